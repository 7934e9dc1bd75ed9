//! The file registry against real directories.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Uid, setfsuid};
use svcdns::catalog::{self, Catalog};
use svcdns::name::Zones;
use svcdns::registry::file::{self, FileRegistry, FileTimings, Settings};
use svcdns::registry::{
    Feed, RegisterError, RegisterEvent, Registrant, Registry, RegistryState, gsvc,
};
use svcdns::service::{
    Change, Endpoint, ListKind, Metadata, Reason, RegistryId, ServiceId, Update,
};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

const A: &str = "service#default#default#a#latest#10.0.0.1-80";
const B: &str = "service#default#default#b#latest#10.0.0.2-80";
const CONTENT: &str = r#"{"UpdateAt":"2026-11-22 23:22:29","protocol":"http"}"#;

/// Longest wait for an event that must come.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Interval of refreshes, short so that tests need not wait.
const REFRESH_INTERVAL: Duration = Duration::from_millis(50);

/// Removal grace of the registries.
const GRACE: Duration = Duration::from_secs(12);

/// Timings by which only inotify can report changes.
///
/// No file expires or is rejected early because the machine is busy.
const EVENTS_ONLY: FileTimings = FileTimings {
    expire_after: Duration::from_secs(600),
    poll_interval: Duration::from_secs(3600),
    scan_interval: Duration::from_secs(3600),
    retry_interval: Duration::from_millis(20),
    write_grace: Duration::from_secs(60),
    refresh_interval: REFRESH_INTERVAL,
};

/// Timings with frequent polls and scans, so that tests need not wait.
const FREQUENT_SCANS: FileTimings = FileTimings {
    poll_interval: Duration::from_millis(20),
    scan_interval: Duration::from_millis(200),
    ..EVENTS_ONLY
};

/// Timings by which only inotify reports changes of files, and polls those of the directory.
const WITHOUT_SCANS: FileTimings =
    FileTimings { poll_interval: Duration::from_millis(20), ..EVENTS_ONLY };

/// A registry that is followed, and the changes it has sent.
struct Following {
    updates: mpsc::Receiver<Update>,
    state: Arc<RegistryState>,
    /// By key, the endpoints and protocol of the registration, or why it was rejected.
    keys: BTreeMap<String, Result<String, Reason>>,
    list_in_progress: bool,
    lists: usize,
    connected: Vec<bool>,
    puts: usize,
    #[allow(dead_code, reason = "ends the follower")]
    stop_on_drop: DropGuard,
}

/// Returns the changes of a registry's update.
fn changes(update: Update) -> Vec<Change> {
    let Update::Registry(_, changes) = update else { panic!("{update:?}") };
    changes
}

impl Following {
    fn start(directory: &Path, named: bool, timings: FileTimings) -> Self {
        let (sender, updates) = mpsc::channel(16);
        let url = format!("file://{}", directory.display());
        let state = Arc::new(RegistryState::new("file".parse().unwrap(), url, GRACE));
        let heads = vec!["service".into(), "services".into()];
        let settings = Settings { directory: directory.into(), named, heads, timings };
        let stop = CancellationToken::new();
        let (_, commands) = mpsc::channel(1);
        tokio::spawn(FileRegistry::new(settings).follow(
            ListKind::Routine,
            Feed::new(RegistryId::FIRST, sender, Arc::clone(&state)),
            commands,
            stop.clone(),
        ));
        Self {
            updates,
            state,
            keys: BTreeMap::new(),
            list_in_progress: false,
            lists: 0,
            connected: Vec::new(),
            puts: 0,
            stop_on_drop: stop.drop_guard(),
        }
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::ListBegin { .. } => {
                self.list_in_progress = true;
                self.keys.clear();
            }
            Change::Put(put) => {
                self.puts += 1;
                let content = put.content.map(|found| {
                    let endpoints: Vec<_> =
                        found.endpoints.iter().map(ToString::to_string).collect();
                    let protocol = found.metadata.text("protocol").unwrap_or_default();
                    format!("{} {protocol}", endpoints.join(","))
                });
                self.keys.insert(put.key.into(), content.map_err(|rejected| rejected.reason));
            }
            Change::Delete { key, .. } => {
                assert!(!self.list_in_progress, "a delete of {key} within a list");
                assert!(self.keys.remove(&*key).is_some(), "a delete of {key} that does not exist");
            }
            Change::ListEnd { .. } => {
                self.list_in_progress = false;
                self.lists += 1;
            }
            Change::Connected(connected) => self.connected.push(connected),
            Change::ServiceNames { .. } | Change::Unreadable { .. } => {
                panic!("the directory is listed as a whole");
            }
            Change::LeasesChecked(_) => panic!("files have no leases"),
        }
    }

    /// Receives changes until the condition holds outside a list.
    async fn wait_until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + TEST_TIMEOUT;
        while !condition(self) || self.list_in_progress {
            match timeout_at(deadline, self.updates.recv()).await {
                Ok(Some(update)) => {
                    for change in changes(update) {
                        self.apply(change);
                    }
                }
                Ok(None) => panic!("waited for: {what}; the registry has ended"),
                Err(elapsed) => panic!("waited for: {what}; {elapsed}; keys: {:?}", self.keys),
            }
        }
    }

    /// Receives changes for this long.
    async fn receive_for(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        while let Ok(Some(update)) = timeout_at(deadline, self.updates.recv()).await {
            for change in changes(update) {
                self.apply(change);
            }
        }
    }

    async fn wait_for_list(&mut self) {
        self.wait_until("the first list", |following| following.lists == 1).await;
    }

    fn names(&self) -> Vec<&str> {
        self.keys.keys().map(String::as_str).collect()
    }
}

async fn wait_for_file(path: &Path) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !path.exists() {
        assert!(Instant::now() < deadline, "waited for {}", path.display());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Drops root's file permissions in this thread and the threads that it starts.
struct UnprivilegedFiles {
    before: Uid,
}

impl UnprivilegedFiles {
    /// Drops the permissions until the value is dropped; no effect for other users.
    fn enable() -> Self {
        let user = Uid::effective();
        Self { before: setfsuid(if user.is_root() { Uid::from_raw(65_534) } else { user }) }
    }
}

impl Drop for UnprivilegedFiles {
    fn drop(&mut self) {
        setfsuid(self.before);
    }
}

fn set_age(path: &Path, age: Duration) {
    fs::File::open(path).unwrap().set_modified(SystemTime::now() - age).unwrap();
}

#[tokio::test]
async fn inotify_reports_new_changed_and_removed_files() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join(A), CONTENT).unwrap();
    let mut following = Following::start(directory.path(), true, EVENTS_ONLY);
    following.wait_for_list().await;
    assert_eq!(following.keys[A], Ok("10.0.0.1:80 http".into()));
    assert_eq!(following.connected, [true]);

    fs::write(directory.path().join(B), CONTENT).unwrap();
    following.wait_until("a new file", |following| following.keys.len() == 2).await;

    fs::write(directory.path().join(B), CONTENT.replace("http", "grpc")).unwrap();
    following
        .wait_until("rewritten", |following| following.keys[B] == Ok("10.0.0.2:80 grpc".into()))
        .await;

    let hidden = directory.path().join(".new");
    fs::write(&hidden, CONTENT.replace("http", "https")).unwrap();
    fs::rename(&hidden, directory.path().join(B)).unwrap();
    following
        .wait_until("moved into place", |following| {
            following.keys[B] == Ok("10.0.0.2:80 https".into())
        })
        .await;

    fs::remove_file(directory.path().join(A)).unwrap();
    following.wait_until("removed", |following| following.names() == [B]).await;
    fs::rename(directory.path().join(B), directory.path().join(A)).unwrap();
    following.wait_until("renamed", |following| following.names() == [A]).await;
}

#[tokio::test]
async fn refreshed_files_cause_no_event() {
    let directory = TempDir::new().unwrap();
    let mut following = Following::start(directory.path(), true, FREQUENT_SCANS);
    following.wait_for_list().await;
    for second in 10..30 {
        fs::write(directory.path().join(A), CONTENT.replace(":29", &format!(":{second}"))).unwrap();
        following.receive_for(Duration::from_millis(10)).await;
    }
    fs::write(directory.path().join(B), CONTENT).unwrap();
    following.wait_until("the second file", |following| following.keys.len() == 2).await;
    assert_eq!(following.puts, 2);
}

#[tokio::test]
async fn files_expire_unless_refreshed_and_are_never_deleted() {
    let directory = TempDir::new().unwrap();
    let (a, b) = (directory.path().join(A), directory.path().join(B));
    fs::write(&a, CONTENT).unwrap();
    fs::write(&b, CONTENT).unwrap();
    set_age(&a, Duration::from_secs(21));
    let timings = FileTimings { expire_after: Duration::from_secs(20), ..FREQUENT_SCANS };
    let mut following = Following::start(directory.path(), true, timings);
    following.wait_for_list().await;
    assert_eq!(following.names(), [B], "a has expired");

    set_age(&b, Duration::from_millis(19_300));
    following.wait_until("the expiry of b", |following| following.keys.is_empty()).await;
    set_age(&b, Duration::ZERO);
    following.wait_until("the refresh of b", |following| following.names() == [B]).await;
    assert!(a.exists() && b.exists());
}

#[tokio::test]
async fn the_directory_may_be_created_after_startup_and_removed_later() {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("gsvc");
    let mut following = Following::start(&path, false, FREQUENT_SCANS);
    following.wait_for_list().await;
    let report = following.state.report();
    assert_eq!((following.keys.len(), report.synced, report.connected), (0, true, true));
    let note = report.error.unwrap();
    assert!(note.contains("does not exist yet"), "a misspelled path is noticeable: {note}");

    fs::create_dir(&path).unwrap();
    fs::write(path.join(A), CONTENT).unwrap();
    following.wait_until("the new directory", |following| following.names() == [A]).await;
    assert_eq!(following.state.report().error, None);

    fs::remove_dir_all(&path).unwrap();
    following
        .wait_until("the removal of the directory", |following| following.keys.is_empty())
        .await;
    assert_eq!(following.connected, [true], "a missing directory is an empty registry");
}

#[tokio::test]
async fn files_that_are_briefly_empty_stay_registered() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join(A);
    fs::write(&path, CONTENT).unwrap();
    let timings = FileTimings { write_grace: Duration::from_secs(5), ..EVENTS_ONLY };
    let mut following = Following::start(directory.path(), true, timings);
    following.wait_for_list().await;

    fs::write(&path, "").unwrap();
    following.receive_for(Duration::from_millis(150)).await;
    fs::write(&path, CONTENT).unwrap();
    following.receive_for(timings.write_grace + Duration::from_secs(1)).await;
    assert_eq!((following.puts, &following.keys[A]), (1, &Ok("10.0.0.1:80 http".into())));

    fs::write(&path, "").unwrap();
    following
        .wait_until("the rejection of the empty file", |following| {
            following.keys[A] == Err(gsvc::VALUE_NOT_JSON)
        })
        .await;
    fs::write(&path, CONTENT).unwrap();
    following.wait_until("the complete file", |following| following.keys[A].is_ok()).await;
}

#[tokio::test]
async fn hostile_files_are_rejected_without_affecting_others() {
    let directory = TempDir::new().unwrap();
    let other = TempDir::new().unwrap();
    let secret = other.path().join("secret");
    fs::write(&secret, CONTENT).unwrap();
    let write =
        |name: &str, content: &[u8]| fs::write(directory.path().join(name), content).unwrap();
    let named = |name: &str| format!("service#default#default#{name}#latest#10.0.0.9-80");

    nix::unistd::mkfifo(
        &directory.path().join(named("pipe")),
        nix::sys::stat::Mode::from_bits_truncate(0o600),
    )
    .unwrap();
    fs::create_dir(directory.path().join(named("directory"))).unwrap();
    symlink(&secret, directory.path().join(named("link"))).unwrap();
    symlink("/dev/zero", directory.path().join(named("device"))).unwrap();
    fs::write(
        directory
            .path()
            .join(OsStr::from_bytes(b"service#default#default#\xff#latest#10.0.0.9-80")),
        CONTENT,
    )
    .unwrap();
    write(&named("large"), &vec![b' '; 1 << 20]);
    write(&named("brackets"), "[".repeat(20_000).as_bytes());
    write(&named("text"), b"hello");
    write("README.txt", b"hello");
    write("service#default#shop#a#b#v1-rc#10.9.0.5-39645", CONTENT.as_bytes());
    write("service#default#default#ports#latest#10.0.0.1-0,10.0.0.2-81,[-0", CONTENT.as_bytes());
    write("service#default#my-shop#user-svc#v1-rc#web-1.example-9000", CONTENT.as_bytes());
    // Ignored: another head, a hidden file and a temporary file.
    write("svcs#default#default#a#latest#10.0.0.1-80", CONTENT.as_bytes());
    write(".service#default#default#a#latest#10.0.0.1-80", CONTENT.as_bytes());
    write(&format!("{A}.tmp"), CONTENT.as_bytes());

    let timings = FileTimings { write_grace: Duration::from_millis(100), ..FREQUENT_SCANS };
    let mut following = Following::start(directory.path(), true, timings);
    following.wait_until("all files", |following| following.keys.len() == 12).await;
    let expected: BTreeMap<String, Result<String, Reason>> = [
        (named("pipe"), Err(file::UNREADABLE)),
        (named("directory"), Err(file::UNREADABLE)),
        (named("link"), Err(file::UNREADABLE)),
        (named("device"), Err(file::UNREADABLE)),
        ("service#default#default#\\xff#latest#10.0.0.9-80".into(), Err(gsvc::KEY_NOT_TEXT)),
        (named("large"), Err(gsvc::VALUE_TOO_LONG)),
        (named("brackets"), Err(gsvc::VALUE_NOT_JSON)),
        (named("text"), Err(gsvc::VALUE_NOT_JSON)),
        ("README.txt".into(), Err(gsvc::TOO_FEW_SEGMENTS)),
        ("service#default#shop#a#b#v1-rc#10.9.0.5-39645".into(), Err(gsvc::TOO_MANY_SEGMENTS)),
        (
            "service#default#default#ports#latest#10.0.0.1-0,10.0.0.2-81,[-0".into(),
            Ok("10.0.0.2:81 http".into()),
        ),
        (
            "service#default#my-shop#user-svc#v1-rc#web-1.example-9000".into(),
            Ok("web-1.example:9000 http".into()),
        ),
    ]
    .into();
    assert_eq!(following.keys, expected);
    following.receive_for(Duration::from_millis(400)).await;
    assert_eq!(following.puts, 12, "each is sent once");
}

#[tokio::test]
async fn registrations_are_kept_while_the_path_is_unusable() {
    let _user = UnprivilegedFiles::enable();
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("gsvc");
    fs::write(&path, "a file").unwrap();
    let mut following = Following::start(&path, true, FREQUENT_SCANS);
    following.wait_until("the disconnect", |following| following.connected == [false]).await;
    let report = following.state.report();
    assert!(!report.connected && !report.synced);
    assert!(report.error.unwrap().contains("is not a directory"));

    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    fs::write(path.join(A), CONTENT).unwrap();
    following.wait_until("the directory", |following| following.names() == [A]).await;
    assert_eq!((&*following.connected, following.state.report().error), (&[false, true][..], None));

    fs::write(path.join(B), CONTENT).unwrap();
    fs::remove_file(path.join(A)).unwrap();
    following.wait_until("the other file", |following| following.names() == [B]).await;
    for mode in [0o000, 0o300, 0o400] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        following
            .wait_until("the loss of permissions", |following| {
                following.connected.ends_with(&[false])
            })
            .await;
        assert_eq!(following.names(), [B], "{mode:o}");
        assert!(following.state.report().error.unwrap().contains("ermission denied"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        following
            .wait_until("the return of permissions", |following| {
                following.connected.ends_with(&[true])
            })
            .await;
    }
    fs::set_permissions(path.join(B), fs::Permissions::from_mode(0o200)).unwrap();
    fs::File::options()
        .write(true)
        .open(path.join(B))
        .unwrap()
        .set_modified(SystemTime::now())
        .unwrap();
    following
        .wait_until("the unreadable file", |following| following.keys[B] == Err(file::UNREADABLE))
        .await;
}

#[tokio::test]
async fn the_default_directory_must_have_a_trusted_owner() {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("gsvc");
    let real = parent.path().join("real");
    fs::create_dir(&real).unwrap();
    fs::write(real.join(A), CONTENT).unwrap();
    symlink(&real, &path).unwrap();
    let mut following = Following::start(&path, false, FREQUENT_SCANS);
    following.wait_until("the refusal of a link", |following| following.connected == [false]).await;
    let mut named = Following::start(&path, true, FREQUENT_SCANS);
    named.wait_until("a link that was named", |following| following.names() == [A]).await;
    fs::remove_file(&path).unwrap();
    fs::rename(&real, &path).unwrap();
    following.wait_until("our own directory", |following| following.names() == [A]).await;

    if !Uid::effective().is_root() {
        return support::skip(
            "the_default_directory_must_have_a_trusted_owner",
            "only root can change the owner of a directory",
        );
    }
    std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
    following
        .wait_until("the refusal of a foreign directory", |following| {
            following.connected.ends_with(&[true, false])
        })
        .await;
    let error = following.state.report().error.unwrap();
    let advice = format!("--registry file://{}", path.display());
    assert!(error.contains("belongs to") && error.contains(&advice), "{error}");
    let mut named = Following::start(&path, true, FREQUENT_SCANS);
    named
        .wait_until("a foreign directory that was named", |following| following.names() == [A])
        .await;
}

#[tokio::test]
async fn a_large_directory_is_read_as_one_list() {
    let directory = TempDir::new().unwrap();
    for n in 0..1200 {
        fs::write(
            directory.path().join(format!("service#default#default#s{n}#latest#10.0.0.1-80")),
            CONTENT,
        )
        .unwrap();
    }
    let mut following = Following::start(directory.path(), true, FREQUENT_SCANS);
    following.wait_for_list().await;
    assert_eq!((following.keys.len(), following.puts), (1200, 1200));
    following.receive_for(Duration::from_millis(300)).await;
    assert_eq!((following.lists, following.puts), (1, 1200));
}

#[tokio::test]
async fn files_beyond_max_keys_are_listed_as_rejected() {
    let directory = TempDir::new().unwrap();
    for n in 0..5 {
        fs::write(
            directory.path().join(format!("service#default#default#s{n}#latest#10.0.0.1-80")),
            CONTENT,
        )
        .unwrap();
    }
    let mut following = Following::start(directory.path(), true, FREQUENT_SCANS);
    let zones = Zones::new(&["svc".to_owned()]).unwrap();
    let mut catalog =
        Catalog::new(catalog::Settings { max_keys: 3, ..catalog::Settings::new(zones, 1) });
    let now = std::time::Instant::now();
    while !catalog.registry_status(now).synced {
        let update = timeout_at(Instant::now() + TEST_TIMEOUT, following.updates.recv()).await;
        catalog.apply(update.unwrap().unwrap(), now);
    }
    catalog.settle(now);
    assert_eq!(catalog.services().count(), 3);
    let rejections = catalog.rejections();
    assert_eq!(rejections.counts, BTreeMap::from([(Reason::TOO_MANY_KEYS, 2)]));
    assert_eq!(rejections.listed.len(), 2);
}

#[tokio::test]
async fn the_first_list_has_the_kind_passed_to_follow() {
    let parent = TempDir::new().unwrap();
    for directory in [parent.path().to_owned(), parent.path().join("missing")] {
        let (sender, mut updates) = mpsc::channel(16);
        let (_commands_sender, commands) = mpsc::channel(1);
        let settings = Settings { directory, named: true, heads: Vec::new(), timings: EVENTS_ONLY };
        let state = Arc::new(RegistryState::new("file".parse().unwrap(), "file".into(), GRACE));
        let feed = Feed::new(RegistryId::FIRST, sender, state);
        let stop = CancellationToken::new();
        tokio::spawn(FileRegistry::new(settings).follow(
            ListKind::Reconnect,
            feed,
            commands,
            stop.clone(),
        ));
        let mut kinds = Vec::new();
        while kinds.is_empty() {
            let update = timeout_at(Instant::now() + TEST_TIMEOUT, updates.recv()).await;
            let changes = changes(update.unwrap().unwrap());
            kinds.extend(changes.into_iter().filter_map(|change| match change {
                Change::ListBegin { kind, .. } => Some(kind),
                _ => None,
            }));
        }
        assert_eq!(kinds, [ListKind::Reconnect]);
        stop.cancel();
    }
}

#[tokio::test]
async fn follow_returns_when_cancelled() {
    let directory = TempDir::new().unwrap();
    let (sender, mut updates) = mpsc::channel(16);
    let (_commands_sender, commands) = mpsc::channel(1);
    let settings = Settings {
        directory: directory.path().into(),
        named: true,
        heads: Vec::new(),
        timings: EVENTS_ONLY,
    };
    let state = Arc::new(RegistryState::new("file".parse().unwrap(), "file".into(), GRACE));
    let stop = CancellationToken::new();
    let feed = Feed::new(RegistryId::FIRST, sender, state);
    let registry = FileRegistry::new(settings);
    let task = tokio::spawn(registry.follow(ListKind::Routine, feed, commands, stop.clone()));
    updates.recv().await.unwrap();
    stop.cancel();
    tokio::time::timeout(TEST_TIMEOUT, task).await.unwrap().unwrap();
}

/// Registers a service with this name, refreshed at this interval.
async fn register(
    directory: PathBuf,
    name: &str,
    refresh_interval: Duration,
    stop: CancellationToken,
    events: impl Fn(RegisterEvent),
) -> Result<(), RegisterError> {
    let timings = FileTimings { refresh_interval, ..FileTimings::default() };
    let settings = Settings { directory, named: true, heads: Vec::new(), timings };
    file::register(&settings, &registrant(name), stop, events).await
}

fn registrant(name: &str) -> Registrant {
    Registrant {
        head: "service".into(),
        id: ServiceId {
            deployment: "default".into(),
            namespace: "default".into(),
            name: name.into(),
            version: "v1-rc".into(),
        },
        endpoints: vec![
            Endpoint { host: "10.0.0.1".parse::<std::net::IpAddr>().unwrap().into(), port: 80 },
            Endpoint { host: svcdns::service::Host::Name("web-1.example".into()), port: 81 },
        ],
        metadata: Metadata::new([("protocol".into(), "http".into())].into()),
        ttl: Duration::from_secs(10),
    }
}

#[tokio::test]
async fn registrations_are_refreshed_restored_and_removed() {
    const FILE: &str = "service#default#default#user-svc#v1-rc#10.0.0.1-80,web-1.example-81";
    let parent = TempDir::new().unwrap();
    let directory = parent.path().join("new").join("gsvc");
    let expire_after = Duration::from_secs(6);
    let mut following =
        Following::start(&directory, true, FileTimings { expire_after, ..FREQUENT_SCANS });
    following.wait_for_list().await;

    let stop = CancellationToken::new();
    let (sender, mut events) = mpsc::unbounded_channel();
    let task = tokio::spawn(register(
        directory.clone(),
        "user-svc",
        REFRESH_INTERVAL,
        stop.clone(),
        move |event| {
            let _ = sender.send(event);
        },
    ));
    following.wait_until("the registration", |following| following.names() == [FILE]).await;
    assert_eq!(following.keys[FILE], Ok("10.0.0.1:80,web-1.example:81 http".into()));
    assert_eq!(events.recv().await, Some(RegisterEvent::Registered));

    // GoFrame's readers compare `UpdateAt`, in the writer's local time.
    let content: serde_json::Value =
        serde_json::from_slice(&fs::read(directory.join(FILE)).unwrap()).unwrap();
    let update_at = content["UpdateAt"].as_str().unwrap();
    let date = Command::new("date").args(["-d", update_at, "+%s"]).output().unwrap();
    let written: u64 = String::from_utf8(date.stdout).unwrap().trim().parse().unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert!(now.abs_diff(written) < 60, "{now} {content}");

    following.receive_for(expire_after + Duration::from_secs(1)).await;
    assert_eq!((following.names(), following.puts), (vec![FILE], 1), "refreshed in time");

    // A removed file is written again within a second. This is an event, unless the removal
    // coincides with a refresh; then try again. The registry may miss it.
    let deadline = Instant::now() + TEST_TIMEOUT;
    let event = loop {
        assert!(Instant::now() < deadline, "no event for the restored file");
        fs::remove_file(directory.join(FILE)).unwrap();
        wait_for_file(&directory.join(FILE)).await;
        let event = tokio::time::timeout(Duration::from_secs(3), events.recv()).await;
        if let Ok(event) = event {
            break event;
        }
    };
    assert_eq!(event, Some(RegisterEvent::Registered));
    following.wait_until("the restored file", |following| following.names() == [FILE]).await;
    // A refresh may write into the directory during its removal.
    while fs::remove_dir_all(&directory).is_err() {
        assert!(Instant::now() < deadline, "{} cannot be removed", directory.display());
    }
    wait_for_file(&directory.join(FILE)).await;
    following.wait_until("the restored directory", |following| following.names() == [FILE]).await;

    stop.cancel();
    task.await.unwrap().unwrap();
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "no files remain");
    let mut last = None;
    while let Some(event) = events.recv().await {
        // A refresh whose directory is removed meanwhile fails and is retried.
        assert_ne!(event, RegisterEvent::Left);
        last = Some(event);
    }
    assert_eq!(last, Some(RegisterEvent::Removed));
    following.wait_until("the removal", |following| following.keys.is_empty()).await;
}

#[tokio::test]
async fn names_that_could_not_be_read_back_are_not_registered() {
    let directory = TempDir::new().unwrap();
    for name in ["", "a/b", "a#b", "../a"] {
        let stop = CancellationToken::new();
        let refused = register(directory.path().into(), name, REFRESH_INTERVAL, stop, |_| {}).await;
        assert!(matches!(refused, Err(RegisterError::NotWritable(_))), "{name}");
    }
    let long = "a".repeat(250);
    let stop = CancellationToken::new();
    let refused = register(directory.path().into(), &long, REFRESH_INTERVAL, stop, |_| {}).await;
    assert!(matches!(refused, Err(RegisterError::Refused { .. })));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn failed_writes_are_retried() {
    let parent = TempDir::new().unwrap();
    let directory = parent.path().join("gsvc");
    let stop = CancellationToken::new();
    let (sender, mut events) = mpsc::unbounded_channel();
    let task = tokio::spawn(register(
        directory.clone(),
        "a",
        REFRESH_INTERVAL,
        stop.clone(),
        move |event| {
            let _ = sender.send(event);
        },
    ));
    assert_eq!(events.recv().await, Some(RegisterEvent::Registered));
    fs::rename(&directory, parent.path().join("old")).unwrap();
    // Replace the directory by a file, even if it was created again meanwhile.
    while fs::write(&directory, "a file").is_err() {
        let _ = fs::remove_dir_all(&directory);
    }
    let deadline = Instant::now() + TEST_TIMEOUT;
    let mut next_event = async || timeout_at(deadline, events.recv()).await.unwrap();
    while !matches!(next_event().await, Some(RegisterEvent::Failed(_))) {}
    fs::remove_file(&directory).unwrap();
    while next_event().await != Some(RegisterEvent::Registered) {}
    stop.cancel();
    task.await.unwrap().unwrap();
}

/// A file system in a file, mounted at a directory, and thawed at the end.
struct Freezable(PathBuf);

impl Freezable {
    /// Mounts an ext4 at the directory; `None` if that is impossible here.
    fn mount(test: &str, image: &Path, directory: &Path) -> Option<Self> {
        if !unshare_mounts(test) {
            return None;
        }
        if !support::on_path("mkfs.ext4") || !support::on_path("fsfreeze") {
            support::skip(test, "no mkfs.ext4 or fsfreeze on PATH");
            return None;
        }
        fs::File::create(image).unwrap().set_len(8 << 20).unwrap();
        assert!(Command::new("mkfs.ext4").arg("-q").arg(image).status().unwrap().success());
        let mount = Command::new("mount").args(["-o", "loop"]).args([image, directory]).output();
        let output = mount.unwrap();
        if !output.status.success() {
            let problem = String::from_utf8_lossy(&output.stderr).into_owned();
            support::skip_without_kernel_feature(test, problem.trim());
            return None;
        }
        Some(Self(directory.into()))
    }

    fn set_frozen(&self, frozen: bool) {
        let flag = if frozen { "--freeze" } else { "--unfreeze" };
        let _ = Command::new("fsfreeze").arg(flag).arg(&self.0).output();
    }
}

impl Drop for Freezable {
    fn drop(&mut self) {
        self.set_frozen(false);
    }
}

#[tokio::test]
async fn a_hanging_file_system_delays_only_its_own_registration() {
    let test = "a_hanging_file_system_delays_only_its_own_registration";
    let top = TempDir::new().unwrap();
    let [image, directory] = ["image", "r"].map(|name| top.path().join(name));
    fs::create_dir(&directory).unwrap();
    let Some(file_system) = Freezable::mount(test, &image, &directory) else { return };
    let stop = CancellationToken::new();
    let (sender, mut events) = mpsc::unbounded_channel();
    let ended = register(directory.clone(), "a", REFRESH_INTERVAL, stop.clone(), move |event| {
        let _ = sender.send(event);
    });
    let frozen = Arc::new(file_system);
    let task = tokio::spawn(ended);
    assert_eq!(events.recv().await, Some(RegisterEvent::Registered));
    frozen.set_frozen(true);
    // Unfreezes a frozen test, too.
    let thaw = std::thread::spawn({
        let frozen = Arc::clone(&frozen);
        move || {
            std::thread::sleep(Duration::from_secs(5));
            frozen.set_frozen(false);
        }
    });
    // The only thread of this runtime is free, although the write hangs.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!thaw.is_finished(), "the runtime was blocked");
    stop.cancel();
    tokio::time::timeout(TEST_TIMEOUT, task).await.unwrap().unwrap().unwrap();
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "only lost+found");
    thaw.join().unwrap();
    umount2(&directory, MntFlags::MNT_DETACH).unwrap();
}

#[tokio::test]
async fn a_file_rewritten_by_another_program_is_not_removed() {
    let directory = TempDir::new().unwrap();
    let stop = CancellationToken::new();
    let (sender, mut events) = mpsc::unbounded_channel();
    let never = Duration::from_secs(3600);
    let task =
        tokio::spawn(register(directory.path().into(), "a", never, stop.clone(), move |event| {
            let _ = sender.send(event);
        }));
    assert_eq!(events.recv().await, Some(RegisterEvent::Registered));
    let path = fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap().path();
    let foreign = fs::File::options().write(true).open(&path).unwrap();
    foreign.set_modified(SystemTime::now() + Duration::from_secs(1)).unwrap();
    stop.cancel();
    task.await.unwrap().unwrap();
    assert_eq!(events.recv().await, Some(RegisterEvent::Left));
    assert!(path.exists());
}

/// A registry whose changes go to a catalog.
struct Served {
    directory: PathBuf,
    updates: mpsc::Receiver<Update>,
    state: Arc<RegistryState>,
    catalog: Catalog,
    #[allow(dead_code, reason = "ends the follower")]
    stop_on_drop: DropGuard,
}

impl Served {
    /// Follows a directory and waits until it was read.
    async fn start(directory: &Path, timings: FileTimings) -> Self {
        let following = Following::start(directory, true, timings);
        let Following { updates, state, stop_on_drop, .. } = following;
        let zones = Zones::new(&["svc".to_owned()]).unwrap();
        let catalog = Catalog::new(catalog::Settings::new(zones, 1));
        let directory = directory.to_owned();
        let mut served = Self { directory, updates, state, catalog, stop_on_drop };
        served.wait_until("the first list", |served| served.state.report().synced).await;
        served
    }

    async fn wait_until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + TEST_TIMEOUT;
        while !condition(self) {
            let update = timeout_at(deadline, self.updates.recv()).await;
            let now = std::time::Instant::now();
            let update = update.unwrap_or_else(|_| {
                panic!("waited for: {what}; {:?} {:?}", self.names(), self.state.report())
            });
            self.catalog.apply(update.unwrap(), now);
            self.catalog.settle(now);
        }
    }

    async fn wait_for(&mut self, names: &[&str]) {
        self.wait_until(&format!("{names:?}"), |served| served.names() == names).await;
    }

    /// Waits until something is held or the registry cannot be reached; returns what it reports.
    async fn wait_for_trouble(&mut self) -> String {
        self.wait_until("trouble", |served| served.held() > 0 || served.is_disconnected()).await;
        self.state.report().error.unwrap()
    }

    /// Returns the served names.
    fn names(&self) -> Vec<String> {
        let names = self.catalog.services().map(|service| service.base().to_owned());
        names.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
    }

    fn held(&self) -> usize {
        self.catalog.registry_status(std::time::Instant::now()).held_keys
    }

    fn is_disconnected(&self) -> bool {
        !self.catalog.registry_status(std::time::Instant::now()).disconnected.is_empty()
    }

    /// Advances the catalog's clock past the end of every hold.
    fn end_holds(&mut self) {
        self.catalog.settle(std::time::Instant::now() + GRACE);
    }

    /// Writes the file of a service.
    fn write(&self, name: &str) {
        fs::write(file_of(&self.directory, name), CONTENT).unwrap();
    }
}

fn file_of(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("service#default#default#{name}#latest#10.0.0.1-80"))
}

/// Makes a directory with the files of these services.
fn make_directory(path: &Path, names: &[&str]) {
    fs::create_dir_all(path).unwrap();
    for name in names {
        fs::write(file_of(path, name), CONTENT).unwrap();
    }
}

fn exchange(a: &Path, b: &Path) {
    renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE).unwrap();
}

/// Gives this thread, and those that it starts, their own mounts; `false` if that is impossible.
fn unshare_mounts(test: &str) -> bool {
    if !Uid::effective().is_root() {
        support::skip(test, "only root can mount");
        return false;
    }
    let private = || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
    };
    if let Err(error) = private() {
        support::skip_without_kernel_feature(test, &format!("no mount namespace: {error}"));
        return false;
    }
    true
}

fn mount_tmpfs(path: &Path) {
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

#[tokio::test]
async fn names_of_a_vanished_directory_are_held_until_it_is_back() {
    type Step = fn(&Path);
    const GONE: &str = "no longer exists";
    const OTHER: &str = "is now another directory";
    let cases: [(&str, &str, Step, Step); 6] = [
        (
            "moved away",
            GONE,
            |top| fs::rename(top.join("up/r"), top.join("up/old")).unwrap(),
            |top| fs::rename(top.join("up/old"), top.join("up/r")).unwrap(),
        ),
        (
            "below a directory that is moved",
            GONE,
            |top| fs::rename(top.join("up"), top.join("old")).unwrap(),
            |top| fs::rename(top.join("old"), top.join("up")).unwrap(),
        ),
        (
            "exchanged for an empty directory",
            OTHER,
            |top| exchange(&top.join("up/r"), &top.join("empty")),
            |top| exchange(&top.join("up/r"), &top.join("empty")),
        ),
        (
            "exchanged for a file",
            "is not a directory: remove it",
            |top| exchange(&top.join("up/r"), &top.join("file")),
            |top| exchange(&top.join("up/r"), &top.join("file")),
        ),
        (
            "moved away and created again",
            OTHER,
            |top| {
                fs::rename(top.join("up/r"), top.join("up/old")).unwrap();
                fs::create_dir(top.join("up/r")).unwrap();
            },
            |top| {
                fs::remove_dir(top.join("up/r")).unwrap();
                fs::rename(top.join("up/old"), top.join("up/r")).unwrap();
            },
        ),
        (
            "moved away and deleted there",
            GONE,
            |top| {
                fs::rename(top.join("up/r"), top.join("up/old")).unwrap();
                fs::remove_dir_all(top.join("up/old")).unwrap();
            },
            |top| make_directory(&top.join("up/r"), &["a", "b"]),
        ),
    ];
    for (case, reason, vanish, come_back) in cases {
        let top = TempDir::new().unwrap();
        let path = top.path().join("up/r");
        make_directory(&path, &["a", "b"]);
        fs::create_dir(top.path().join("empty")).unwrap();
        fs::write(top.path().join("file"), "a file").unwrap();
        let mut served = Served::start(&path, FREQUENT_SCANS).await;
        for _ in 0..2 {
            vanish(top.path());
            served.wait_until(case, |served| served.held() == 2).await;
            assert_eq!(served.names(), ["a", "b"], "{case}");
            let error = served.state.report().error.unwrap_or_default();
            assert!(error.contains(reason), "{case}: {error}");
            come_back(top.path());
            served.wait_until(case, |served| served.held() == 0).await;
            served.wait_until(case, |served| !served.is_disconnected()).await;
            served.end_holds();
            assert_eq!(served.names(), ["a", "b"], "{case}");
        }
        vanish(top.path());
        served.wait_until(case, |served| served.held() == 2).await;
        served.end_holds();
        assert!(served.names().is_empty(), "{case}: after the removal grace");
    }
}

#[tokio::test]
async fn a_directory_that_replaces_another_is_served_at_once() {
    let top = TempDir::new().unwrap();
    let [path, one, two] = ["r", "one", "two"].map(|name| top.path().join(name));
    make_directory(&one, &["a", "b"]);
    make_directory(&two, &["b", "c"]);
    // A release is switched to by replacing a link.
    symlink(&one, &path).unwrap();
    let mut served = Served::start(&path, FREQUENT_SCANS).await;
    served.wait_for(&["a", "b"]).await;
    let link = top.path().join("link");
    symlink(&two, &link).unwrap();
    fs::rename(&link, &path).unwrap();
    served.wait_for(&["a", "b", "c"]).await;
    assert_eq!(served.held(), 1);
    served.write("d");
    served.wait_for(&["a", "b", "c", "d"]).await;
    fs::remove_file(file_of(&two, "b")).unwrap();
    served.wait_for(&["a", "c", "d"]).await;
    served.end_holds();
    assert_eq!(served.names(), ["c", "d"]);
}

#[tokio::test]
async fn names_of_an_unreadable_directory_are_kept() {
    let _user = UnprivilegedFiles::enable();
    let top = TempDir::new().unwrap();
    let path = top.path().join("up/r");
    make_directory(&path, &["a", "b"]);
    let mut served = Served::start(&path, FREQUENT_SCANS).await;
    for directory in [&path, path.parent().unwrap()] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o000)).unwrap();
        let error = served.wait_for_trouble().await;
        assert!(error.contains("Permission denied"), "{error}");
        served.end_holds();
        assert_eq!((served.names(), served.held()), (vec!["a".into(), "b".into()], 0));
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).unwrap();
        served.wait_until("the return", |served| !served.is_disconnected()).await;
        assert_eq!(served.names(), ["a", "b"]);
    }
}

#[tokio::test]
async fn deleted_files_are_removed_at_once() {
    let top = TempDir::new().unwrap();
    let path = top.path().join("r");
    for timings in [WITHOUT_SCANS, FREQUENT_SCANS] {
        let names = ["a", "b", "c", "d"];
        make_directory(&path, &names);
        let mut served = Served::start(&path, timings).await;
        served.wait_for(&names).await;
        fs::remove_file(file_of(&path, "a")).unwrap();
        served.wait_for(&["b", "c", "d"]).await;
        for name in ["b", "c", "d"] {
            fs::remove_file(file_of(&path, name)).unwrap();
        }
        served.wait_for(&[]).await;

        make_directory(&path, &names);
        served.wait_for(&names).await;
        fs::remove_dir_all(&path).unwrap();
        served.wait_for(&[]).await;
        // Deleted and created again before the follower looks: perhaps with the same inode.
        make_directory(&path, &["a", "b"]);
        served.wait_until("the new directory", |served| served.names() == ["a", "b"]).await;
        fs::remove_dir_all(&path).unwrap();
        make_directory(&path, &["c"]);
        served.wait_for(&["c"]).await;
        served.write("d");
        served.wait_for(&["c", "d"]).await;
        // One that was unlinked before its directory vanished.
        fs::remove_file(file_of(&path, "c")).unwrap();
        fs::rename(&path, top.path().join("old")).unwrap();
        served.wait_until("the vanished directory", |served| served.held() == 1).await;
        assert_eq!(served.names(), ["d"]);
        fs::remove_dir_all(top.path().join("old")).unwrap();
    }
}

#[tokio::test]
async fn a_file_system_can_be_unmounted_and_mounted_again() {
    if !unshare_mounts("a_file_system_can_be_unmounted_and_mounted_again") {
        return;
    }
    let top = TempDir::new().unwrap();
    let path = top.path().join("r");
    for timings in [WITHOUT_SCANS, FREQUENT_SCANS] {
        fs::create_dir_all(&path).unwrap();
        mount_tmpfs(&path);
        make_directory(&path, &["a", "b"]);
        let mut served = Served::start(&path, timings).await;
        // Within one poll interval, so that device and inode of the new root may be the same.
        let unmount = || {
            support::eventually("the end of a step", support::SOON, || {
                umount2(&path, MntFlags::empty()).ok()
            });
        };
        unmount();
        mount_tmpfs(&path);
        make_directory(&path, &["c"]);
        served.wait_for(&["a", "b", "c"]).await;
        assert_eq!(served.held(), 2);
        served.write("d");
        served.wait_for(&["a", "b", "c", "d"]).await;
        served.end_holds();
        assert_eq!(served.names(), ["c", "d"]);

        // Without the mount, there is an empty directory.
        unmount();
        served.wait_until("the held names", |served| served.held() == 2).await;
        assert_eq!(served.names(), ["c", "d"]);
        let error = served.state.report().error.unwrap();
        assert!(
            error.contains("unmounted") && error.contains("served for at most 12 s"),
            "{error}"
        );
        assert!(served.state.report().connected);
    }
}

#[tokio::test]
async fn a_mount_over_the_directory_counts_as_another_directory() {
    if !unshare_mounts("a_mount_over_the_directory_counts_as_another_directory") {
        return;
    }
    let top = TempDir::new().unwrap();
    let path = top.path().join("r");
    make_directory(&path, &["a", "b"]);
    let mut served = Served::start(&path, FREQUENT_SCANS).await;
    mount_tmpfs(&path);
    served.wait_until("the held names", |served| served.held() == 2).await;
    served.write("b");
    served.wait_until("the name that is back", |served| served.held() == 1).await;
    umount2(&path, MntFlags::MNT_DETACH).unwrap();
    served.wait_until("all names", |served| served.held() == 0).await;
    served.end_holds();
    assert_eq!(served.names(), ["a", "b"]);
}

#[tokio::test]
async fn a_deleted_directory_that_is_still_mounted_is_reported() {
    if !unshare_mounts("a_deleted_directory_that_is_still_mounted_is_reported") {
        return;
    }
    let top = TempDir::new().unwrap();
    let [path, real] = ["r", "real"].map(|name| top.path().join(name));
    fs::create_dir(&path).unwrap();
    make_directory(&real, &["a"]);
    mount(Some(&real), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    for n in 0..2 {
        let mut served = Served::start(&path, FREQUENT_SCANS).await;
        served.wait_for(&["a"]).await;
        fs::remove_dir_all(&real).unwrap();
        let error = served.wait_for_trouble().await;
        assert!(error.contains("restart the container"), "{error}");
        assert!(served.names().is_empty(), "unlinked: {:?}", served.names());
        make_directory(&real, &["a"]);
        umount2(&path, MntFlags::MNT_DETACH).unwrap();
        mount(Some(&real), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        served.wait_for(&["a"]).await;
        assert_eq!((served.state.report().error, n < 2), (None, true));
    }
}

#[test]
fn status_and_readiness_explain_a_vanished_directory() {
    let top = TempDir::new().unwrap();
    let [path, old] = ["r", "old"].map(|name| top.path().join(name));
    make_directory(&path, &["a", "b"]);
    let url = format!("file://{}", path.display());
    let server = support::svcdns::Svcdns::serve(&["--registry", &url, "--removal-grace", "60s"]);
    server.wait_for("a.svc", &["10.0.0.1"]);
    let output =
        |arguments: &[&str]| String::from_utf8_lossy(&server.run(arguments).stdout).into_owned();
    let socket = server.state_dir().join("svcdns.sock");
    let ready = || {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--unix-socket"]).arg(&socket).arg("http://localhost/readyz");
        String::from_utf8_lossy(&curl.output().unwrap().stdout).into_owned()
    };
    assert_eq!(ready(), "ready\n");

    fs::rename(&path, &old).unwrap();
    let note = format!(
        "{} no longer exists: it, or a directory above it, was moved away or unmounted; \
         its registrations (2) are served for at most 60 s (removal-grace): put it back, or let \
         the programs register again",
        path.display()
    );
    support::eventually("the note in the status", support::SOON, || {
        output(&["status"]).contains(&note).then_some(())
    });
    let status = output(&["status"]);
    assert!(status.contains("disconnected, synced"), "{status}");
    assert!(status.contains("2 removals held"), "{status}");
    assert_eq!(ready(), format!("ready\nfile: {note}\n"));
    let found = output(&["doctor"]);
    assert!(found.contains("is unreachable") && found.contains("no longer exists"), "{found}");
    server.wait_for("a.svc", &["10.0.0.1"]);

    // Back, and another directory in its place.
    fs::rename(&old, &path).unwrap();
    support::eventually("the end of the holds", support::SOON, || {
        (!output(&["status"]).contains("held")).then_some(())
    });
    make_directory(&old, &["b", "c"]);
    exchange(&path, &old);
    server.wait_for("c.svc", &["10.0.0.1"]);
    server.wait_for("a.svc", &["10.0.0.1"]);
    let status = output(&["status"]);
    assert!(status.contains("connected, synced") && status.contains("1 removal held"), "{status}");
    let found = output(&["doctor"]);
    assert!(found.contains("was read, but"), "{found}");

    let log = server.log();
    let lines = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    assert_eq!(lines("WARN svcdns::registry"), 2, "{log}");
    assert_eq!(lines(&format!("WARN svcdns::registry::file::follower: {note}")), 1, "{log}");
    server.stop();
}
