//! Static services: registrations written in the configuration, for programs that cannot register.

use std::fmt;
use std::path::PathBuf;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Feed, Registry, RegistryCommand, RegistryReport, gsvc};
use crate::service::{Change, ListKind, Put, Registration};

/// The static services of a configuration file.
///
/// Displays as the URL of the file: `static:///etc/svcdns/svcdns.toml`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The configuration file.
    pub file: PathBuf,
    /// The registrations; no endpoint occurs twice in one version of a service.
    pub registrations: Vec<Registration>,
}

/// First segment of the keys, which only messages show.
const HEAD: &str = "static";

/// A registry of static services. It never disconnects, and its list never changes.
#[derive(Debug)]
pub(super) struct StaticRegistry {
    settings: Settings,
}

impl StaticRegistry {
    /// Creates the registry.
    pub(super) fn new(settings: Settings) -> Self {
        Self { settings }
    }
}

impl Registry for StaticRegistry {
    async fn follow(
        self,
        first: ListKind,
        feed: Feed,
        _commands: mpsc::Receiver<RegistryCommand>,
        stop: CancellationToken,
    ) {
        let put = |content: Registration| {
            let key = gsvc::key(HEAD, &content.id, &content.endpoints).into();
            Change::Put(Put { key, revision: 0, lease: 0, content: Ok(content) })
        };
        let mut changes = vec![Change::Connected(true), Change::list_begin(first)];
        changes.extend(self.settings.registrations.into_iter().map(put));
        changes.push(Change::ListEnd { revision: 0 });
        feed.state().update(|report| {
            report.connected = true;
            report.error = None;
        });
        if feed.send(changes).await.is_err() {
            return;
        }
        feed.state().update(RegistryReport::note_list);
        stop.cancelled().await;
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "static://{}", self.file.display())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::registry::RegistryState;
    use crate::service::{RegistryId, Update};

    #[tokio::test]
    async fn the_registry_sends_one_list_and_stays_connected() {
        let registration = gsvc::parse(b"/s/d/n/legacy/v1/10.0.0.7:80", b"{}").unwrap();
        let registrations = vec![registration.clone()];
        let settings = Settings { file: "/etc/svcdns.toml".into(), registrations };
        let name = "static".parse().unwrap();
        let state = Arc::new(RegistryState::new(name, settings.to_string(), Duration::ZERO));
        let (sender, mut inlet) = mpsc::channel(4);
        let (_sender_of_commands, commands) = mpsc::channel(1);
        let (feed, stop) =
            (Feed::new(RegistryId::FIRST, sender, Arc::clone(&state)), CancellationToken::new());
        let registry = StaticRegistry::new(settings);
        let followed =
            tokio::spawn(registry.follow(ListKind::Reconnect, feed, commands, stop.clone()));
        let Some(Update::Registry(_, changes)) = inlet.recv().await else { panic!("no list") };
        let key = "/static/d/n/legacy/v1/10.0.0.7:80".into();
        let put = Put { key, revision: 0, lease: 0, content: Ok(registration) };
        let expected = [
            Change::Connected(true),
            Change::list_begin(ListKind::Reconnect),
            Change::Put(put),
            Change::ListEnd { revision: 0 },
        ];
        assert_eq!(changes, expected);
        stop.cancel();
        followed.await.unwrap();
        let report = state.report();
        assert!(report.connected && report.synced && report.lists == 1);
        assert_eq!(state.url, "static:///etc/svcdns.toml");
        assert!(inlet.recv().await.is_none());
    }
}
