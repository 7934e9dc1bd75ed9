use std::fs;
use std::path::Path;

use super::*;
use crate::name::Zones;
use crate::wire::{ExtendedError, rtype};

/// Maximum wait for a change, long enough for a very busy machine.
const TEST_TIMEOUT: Duration = Duration::from_secs(30);

const A_QUERY: RouteQuery = RouteQuery { qtype: rtype::A, recursion_desired: true };

/// A root directory whose files are followed.
struct FollowedRoot {
    root: tempfile::TempDir,
    routing: Routing,
    stop: CancellationToken,
}

fn settings(servers: Servers) -> Settings {
    Settings {
        servers,
        domains: vec![(
            Name::from_text("corp.example").unwrap(),
            vec!["10.0.0.53".parse().unwrap()],
        )],
        order: None,
        own: vec!["127.0.0.1:53".parse().unwrap()],
        zones: Zones::new(&["svc".to_owned()]).unwrap(),
        ca_file: None,
        random_case: false,
        rebinding: None,
        cache_bytes: 0,
        stale: Duration::ZERO,
        negative_ttl: 1,
        forward_single_labels: false,
        other_opcodes: false,
    }
}

fn long() -> FollowTimings {
    // The timings are so long that only events cause readings.
    FollowTimings {
        settle: Duration::from_millis(20),
        poll: Duration::from_secs(3600),
        keep_last_known: Duration::from_secs(3600),
    }
}

impl FollowedRoot {
    fn start(resolv_conf: Option<&str>, servers: Servers, timings: FollowTimings) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        if let Some(text) = resolv_conf {
            fs::write(root.path().join("etc/resolv.conf"), text).unwrap();
        }
        Self::start_in(root, &settings(servers), timings)
    }

    fn start_with(resolv_conf: &str, settings: &Settings, timings: FollowTimings) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/resolv.conf"), resolv_conf).unwrap();
        Self::start_in(root, settings, timings)
    }

    fn start_in(root: tempfile::TempDir, settings: &Settings, timings: FollowTimings) -> Self {
        let sources = Sources { root: root.path().into(), own: settings.own.clone() };
        let connector = Connector::new(Handle::current(), None);
        let (follower, routing) =
            SourceFollower::new(settings, sources, (connector, Vec::new()), timings);
        let stop = CancellationToken::new();
        tokio::spawn(follower.run(stop.clone()));
        Self { root, routing, stop }
    }

    fn etc(&self, name: &str) -> PathBuf {
        self.root.path().join("etc").join(name)
    }

    /// Replaces the file by renaming, as DHCP clients do.
    fn replace(&self, text: &str) {
        fs::write(self.etc("resolv.conf.new"), text).unwrap();
        fs::rename(self.etc("resolv.conf.new"), self.etc("resolv.conf")).unwrap();
    }

    fn asked(&self, name: &str) -> Vec<Arc<Upstream>> {
        match self.routing.route(&Name::from_text(name).unwrap(), A_QUERY) {
            Route::Forward(upstreams) => upstreams.to_vec(),
            _ => Vec::new(),
        }
    }

    fn shown(&self) -> String {
        self.asked("www.example")
            .iter()
            .map(|upstream| upstream.target().to_string())
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Waits until svcdns uses these upstreams.
    async fn wait_for(&self, shown: &str) {
        let begin = Instant::now();
        while self.shown() != shown {
            assert!(begin.elapsed() < TEST_TIMEOUT, "{} are asked, not {shown}", self.shown());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the files have been read, although the upstreams remain the same.
    ///
    /// Each caller also changes whether the file names svcdns; the canary domain shows that change.
    async fn wait_for_snapshot(&self, canary: bool) {
        let name = Name::from_text("use-application-dns.net").unwrap();
        let begin = Instant::now();
        while matches!(self.routing.route(&name, A_QUERY), Route::Local(_)) != canary {
            assert!(begin.elapsed() < TEST_TIMEOUT, "no snapshot was taken");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for FollowedRoot {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[tokio::test]
async fn upstreams_in_both_the_old_and_the_new_file_are_kept() {
    let followed = FollowedRoot::start(
        Some("nameserver 192.0.2.1\nnameserver 192.0.2.2\n"),
        Servers::System,
        long(),
    );
    assert_eq!(followed.shown(), "192.0.2.1 192.0.2.2");
    let (before, corp) = (followed.asked("www.example"), followed.asked("a.corp.example"));
    followed.replace("nameserver 192.0.2.2\nnameserver 192.0.2.3\n");
    followed.wait_for("192.0.2.2 192.0.2.3").await;
    let after = followed.asked("www.example");
    assert!(Arc::ptr_eq(&before[1], &after[0]));
    assert!(Arc::ptr_eq(&corp[0], &followed.asked("corp.example")[0]));
    // Replace the file again, then write it in place.
    followed.replace("nameserver 192.0.2.4\n");
    followed.wait_for("192.0.2.4").await;
    fs::write(followed.etc("resolv.conf"), "nameserver 192.0.2.5\n").unwrap();
    followed.wait_for("192.0.2.5").await;
}

#[tokio::test]
async fn targets_of_symlinks_are_followed() {
    let followed = FollowedRoot::start(None, Servers::System, long());
    assert_eq!(followed.shown(), "");
    let folder = followed.root.path().join("elsewhere");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("a"), "nameserver 192.0.2.1\n").unwrap();
    std::os::unix::fs::symlink("../elsewhere/a", followed.etc("resolv.conf")).unwrap();
    followed.wait_for("192.0.2.1").await;
    fs::write(folder.join("b"), "nameserver 192.0.2.2\n").unwrap();
    fs::rename(folder.join("b"), folder.join("a")).unwrap();
    followed.wait_for("192.0.2.2").await;
}

#[tokio::test]
async fn polling_finds_changes_without_events() {
    let timings = FollowTimings { poll: Duration::from_millis(50), ..long() };
    let followed = FollowedRoot::start(Some("nameserver 127.0.0.53\n"), Servers::System, timings);
    assert_eq!(followed.shown(), "127.0.0.53");
    // The directory did not exist, so there is no watch on it.
    let folder = followed.root.path().join("run/systemd/resolve");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("resolv.conf"), "nameserver 192.0.2.1\n").unwrap();
    followed.wait_for("192.0.2.1").await;
}

#[tokio::test]
async fn files_without_name_servers_keep_the_last_upstreams_for_a_while() {
    let followed = FollowedRoot::start(Some("nameserver 192.0.2.1\n"), Servers::System, long());
    // The server's own address in the file shows that the file was read.
    for (text, canary) in [
        ("nameserver 127.0.0.1\n", true),
        ("", false),
        ("nameserver 127.0.0.1\nnameserver 192.0.2.", true),
        ("\n", false),
    ] {
        followed.replace(text);
        followed.wait_for_snapshot(canary).await;
        assert_eq!(followed.shown(), "192.0.2.1", "{text:?}");
    }
    followed.replace("nameserver 192.0.2.2\n");
    followed.wait_for("192.0.2.2").await;
}

#[tokio::test]
async fn upstreams_are_dropped_when_the_files_list_none_for_too_long() {
    let timings = FollowTimings { keep_last_known: Duration::from_millis(100), ..long() };
    let followed = FollowedRoot::start(Some("nameserver 192.0.2.1\n"), Servers::System, timings);
    fs::remove_file(followed.etc("resolv.conf")).unwrap();
    followed.wait_for("").await;
    let Route::Fail(error) =
        followed.routing.route(&Name::from_text("www.example").unwrap(), A_QUERY)
    else {
        panic!("somebody is asked")
    };
    assert_eq!(error.code, ExtendedError::NO_REACHABLE_AUTHORITY);
    assert_eq!(followed.asked("corp.example").len(), 1);
    followed.replace("nameserver 192.0.2.1\n");
    followed.wait_for("192.0.2.1").await;
}

#[test]
fn unreadable_files_keep_the_last_upstreams_without_a_time_limit() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("etc/resolv.conf");
    fs::create_dir(path.parent().unwrap()).unwrap();
    fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
    let settings = settings(Servers::System);
    let sources = Sources { root: root.path().into(), own: settings.own.clone() };
    let timings = FollowTimings { keep_last_known: Duration::ZERO, ..long() };
    let connector = Connector::new(runtime.handle().clone(), None);
    let (mut follower, ..) =
        SourceFollower::new(&settings, sources, (connector, Vec::new()), timings);
    let mut servers = |change: &dyn Fn(&Path)| {
        change(&path);
        let snapshot = follower.snapshot();
        follower.apply(&snapshot);
        follower.current.as_ref().map(|now| now.servers.len())
    };
    let unreadable = |path: &Path| {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
    };
    assert_eq!(servers(&unreadable), Some(1));
    assert_eq!(servers(&|_| {}), Some(1));
    // A missing file differs from an unreadable one: without a period for which upstreams are kept,
    // it drops them at once.
    assert_eq!(servers(&|path| fs::remove_dir(path).unwrap()), Some(0));
}

#[tokio::test]
async fn configured_upstreams_exclude_the_servers_own_address() {
    let named = Servers::Named(vec!["127.0.0.1".parse().unwrap(), "192.0.2.9".parse().unwrap()]);
    let followed = FollowedRoot::start(Some("nameserver 192.0.2.1\n"), named, long());
    assert_eq!(followed.shown(), "192.0.2.9");
    // The follower still follows whether svcdns is the system's resolver.
    followed.wait_for_snapshot(false).await;
    followed.replace("nameserver 127.0.0.1\n");
    followed.wait_for_snapshot(true).await;
    assert_eq!(followed.shown(), "192.0.2.9");
}

#[tokio::test]
async fn the_order_of_a_list_depends_on_its_origin() {
    let two = "nameserver 192.0.2.1\nnameserver 192.0.2.2\n";
    let rotating = format!("options rotate\n{two}");
    let order_of = |followed: &FollowedRoot, name: &str| match followed
        .routing
        .route(&Name::from_text(name).unwrap(), A_QUERY)
    {
        Route::Forward(upstreams) => upstreams.order(),
        route => panic!("{name}: {route:?}"),
    };
    let named = Servers::Named(vec!["192.0.2.3".parse().unwrap(), "192.0.2.4".parse().unwrap()]);
    for (text, servers, order) in [
        (two, Servers::System, UpstreamOrder::Strict),
        (&*rotating, Servers::System, UpstreamOrder::Fastest),
        (two, named.clone(), UpstreamOrder::Fastest),
    ] {
        let followed = FollowedRoot::start(Some(text), servers.clone(), long());
        assert_eq!(order_of(&followed, "www.example"), order, "{text} {servers:?}");
        assert_eq!(order_of(&followed, "a.corp.example"), UpstreamOrder::Strict);
    }
    // The setting applies to all lists.
    for order in [UpstreamOrder::Strict, UpstreamOrder::Fastest] {
        for (text, servers) in [(&*rotating, &Servers::System), (two, &named)] {
            let settings = Settings { order: Some(order), ..settings(servers.clone()) };
            let followed = FollowedRoot::start_with(text, &settings, long());
            assert_eq!(order_of(&followed, "www.example"), order);
            assert_eq!(order_of(&followed, "a.corp.example"), order);
        }
    }
}

#[tokio::test]
async fn adding_options_rotate_changes_the_order() {
    let two = "nameserver 192.0.2.1\nnameserver 192.0.2.2\n";
    let followed = FollowedRoot::start(Some(two), Servers::System, long());
    let described = || {
        followed.routing.routes.load().describe(&Name::from_text("a.example").unwrap(), rtype::A)
    };
    assert_eq!(described(), "forwarded to 192.0.2.1 and 192.0.2.2, in this order");
    followed.replace(&format!("{two}options rotate\n"));
    let began = Instant::now();
    while described() != "forwarded to 192.0.2.1 and 192.0.2.2, the fastest first" {
        assert!(began.elapsed() < TEST_TIMEOUT, "{}", described());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
