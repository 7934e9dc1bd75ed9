//! The user and the password that several kinds of registry have.

use crate::config::error::{ConfigError, Origin};
use crate::config::key::{Key, SecretKey};
use crate::config::layers::{Layers, RawValue};
use crate::config::values::{credential, invalid, text};
use crate::registry::Credential;

/// The keys of the login of one kind of registry.
pub(super) struct LoginKeys {
    pub(super) username: &'static Key,
    pub(super) password: &'static SecretKey,
}

impl LoginKeys {
    /// Reads the user and the password: both or neither.
    pub(super) fn read(
        &self,
        layers: &Layers,
    ) -> Result<Option<(String, Credential)>, ConfigError> {
        let Self { username, password } = *self;
        let given = match (text(layers, username), credential(layers, password)) {
            (Some(user), Some(password)) => return Ok(Some((user, password))),
            (None, None) => return Ok(None),
            // The error names whichever of the two is set.
            (Some(_), None) => layers.one(username),
            (None, Some(_)) => match layers.secret(password) {
                Some(variable) => RawValue {
                    key: layers.recommended_key(username),
                    text: String::new(),
                    origin: Origin::Variable(variable.name.clone()),
                },
                None => layers.one(password.file),
            },
        };
        let keys = self.recommended(layers);
        Err(invalid(&given, format!("a user needs a password and vice versa: set {keys}")))
    }

    /// Returns the key of the user and the key or variable of the password in effect.
    pub(super) fn in_force(&self, layers: &Layers) -> String {
        let password = layers.place_of(self.password);
        format!("{} and {password}", layers.written_as(self.username))
    }

    /// Lists the keys and the environment variable of a login, for error messages.
    pub(super) fn recommended(&self, layers: &Layers) -> String {
        let password = layers.recommended_places(self.password);
        format!("{}, and {password}", layers.recommended_key(self.username))
    }
}
