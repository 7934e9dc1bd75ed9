//! A ZooKeeper registry that is followed into a real catalog.

use std::time::Duration;

use svcdns::registry::zookeeper::{Settings, ZooKeeperRegistry};

use super::super::followed::Followed;
use super::{LONG_SESSION, ZooKeeper};

/// Returns settings with short waits between attempts.
pub(crate) fn settings(zookeeper: &ZooKeeper) -> Settings {
    let endpoints = zookeeper.addresses().iter().map(ToString::to_string).collect();
    let mut settings = Settings::new(endpoints);
    settings.tuning.connection.backoff_max = Duration::from_millis(400);
    settings
}

/// Returns settings for a session that outlives every stall, of [`ZooKeeper::start_patient`].
pub(crate) fn patient_settings(zookeeper: &ZooKeeper) -> Settings {
    let mut settings = settings(zookeeper);
    settings.tuning.session_timeout = LONG_SESSION;
    settings
}

/// Follows a registry whose mass removals are held for `grace`.
pub(crate) fn follow(zookeeper: &ZooKeeper, grace: Duration) -> Followed {
    follow_with(settings(zookeeper), grace)
}

/// Follows a registry with these settings.
pub(crate) fn follow_with(settings: Settings, grace: Duration) -> Followed {
    let url = settings.to_string();
    Followed::start(ZooKeeperRegistry::new(settings), &url, grace)
}

/// A registry that is followed twice: with recursive watches, and with one-shot watches.
pub(crate) struct Both([Followed; 2]);

/// Follows a registry in both ways.
pub(crate) fn follow_both(zookeeper: &ZooKeeper, grace: Duration) -> Both {
    follow_both_with(&settings(zookeeper), grace)
}

/// Follows a registry in both ways with these settings.
pub(crate) fn follow_both_with(settings: &Settings, grace: Duration) -> Both {
    Both([false, true].map(|one_shot_watches| {
        let mut settings = settings.clone();
        settings.tuning.one_shot_watches = one_shot_watches;
        follow_with(settings, grace)
    }))
}

impl Both {
    /// Runs a check on each of the two.
    pub(crate) fn each(&self, check: impl Fn(&Followed)) {
        self.0.iter().for_each(check);
    }

    /// Waits until exactly these endpoints are served under a base name.
    pub(crate) fn wait_for(&self, base: &str, endpoints: &[&str]) {
        self.each(|followed| followed.wait_for(base, endpoints));
    }

    /// Stops both.
    pub(crate) fn stop(self) {
        self.0.into_iter().for_each(Followed::stop);
    }
}
