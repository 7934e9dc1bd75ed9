//! The login that several kinds of registry have: a user and a password.

use crate::config::error::{ConfigError, Origin};
use crate::config::key::{Key, SecretKey};
use crate::config::layers::{Layers, RawValue};
use crate::config::values::{credential, invalid, text};
use crate::registry::Credential;

/// The keys of a login of one kind of registry.
pub(super) struct LoginKeys {
    pub(super) username: &'static Key,
    pub(super) password: &'static SecretKey,
}

/// A login as configured.
#[derive(Default)]
pub(super) struct ConfiguredLogin {
    pub(super) username: Option<String>,
    pub(super) password: Option<Credential>,
    /// The key of the user and the key or variable of the password in effect, for messages.
    pub(super) keys: Option<String>,
}

impl LoginKeys {
    /// Reads the user and the password: both or neither.
    pub(super) fn read(&self, layers: &Layers) -> Result<ConfiguredLogin, ConfigError> {
        let Self { username, password } = *self;
        let (user, secret) = (text(layers, username), credential(layers, password));
        if user.is_some() == secret.is_some() {
            let keys = user.is_some().then(|| {
                format!("{} and {}", layers.written_as(username), layers.place_of(password))
            });
            return Ok(ConfiguredLogin { username: user, password: secret, keys });
        }
        // The error names whichever of the two is set.
        let given = match (&user, layers.secret(password)) {
            (Some(_), _) => layers.one(username),
            (None, Some(variable)) => RawValue {
                key: layers.recommended_key(username),
                text: String::new(),
                origin: Origin::Variable(variable.name.clone()),
            },
            (None, None) => layers.one(password.file),
        };
        let why =
            format!("a user needs a password and vice versa: set {}", self.recommended(layers));
        Err(invalid(&given, why))
    }

    /// Lists the keys and the environment variable of a login, for error messages.
    pub(super) fn recommended(&self, layers: &Layers) -> String {
        let password = layers.recommended_places(self.password);
        format!("{}, and {password}", layers.recommended_key(self.username))
    }
}
