//! The file registry against real folders.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

mod support;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::unistd::{Uid, setfsuid};
use svcdns::catalog::{self, Catalog};
use svcdns::name::Zones;
use svcdns::registry::file::{self, FileRegistry, FileTimings, Settings};
use svcdns::registry::{Feed, RegisterError, RegisterEvent, Registrant, Registry, RegistryState, gsvc};
use svcdns::service::{Change, Endpoint, ListKind, Metadata, Reason, RegistryId, ServiceId, Update};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

const A: &str = "service#default#default#a#latest#10.0.0.1-80";
const B: &str = "service#default#default#b#latest#10.0.0.2-80";
const CONTENT: &str = r#"{"UpdateAt":"2026-11-22 23:22:29","protocol":"http"}"#;

/// How long anything that must happen may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// How often a registration is refreshed, so that a test need not wait.
const OFTEN: Duration = Duration::from_millis(50);

/// Looks so seldom that only events can tell, and takes no file for dead or broken only because the machine is busy.
const BY_EVENTS: FileTimings = FileTimings {
    expire_after: Duration::from_secs(600),
    poll_interval: Duration::from_secs(3600),
    scan_interval: Duration::from_secs(3600),
    retry_interval: Duration::from_millis(20),
    write_grace: Duration::from_secs(60),
    refresh_interval: OFTEN,
};

/// Looks so often that a test need not wait.
const BY_LOOKING: FileTimings = FileTimings { poll_interval: Duration::from_millis(20), scan_interval: Duration::from_millis(200), ..BY_EVENTS };

/// Someone who follows a folder and keeps what it is told.
struct Follower {
    changes: mpsc::Receiver<Update>,
    state: Arc<RegistryState>,
    /// By key: the registration's endpoints and protocol, or why there is none.
    held: BTreeMap<String, Result<String, Reason>>,
    listing: bool,
    lists: usize,
    connected: Vec<bool>,
    puts: usize,
    _stop: DropGuard,
}

/// The changes of an update, which is one of the registry.
fn changes(update: Update) -> Vec<Change> {
    let Update::Registry(_, changes) = update else { panic!("{update:?}") };
    changes
}

impl Follower {
    fn start(directory: &Path, named: bool, timings: FileTimings) -> Self {
        let (sender, changes) = mpsc::channel(16);
        let state = Arc::new(RegistryState::new("file".parse().unwrap(), format!("file://{}", directory.display())));
        let settings = Settings { directory: directory.into(), named, heads: vec!["service".into(), "services".into()], timings };
        let stop = CancellationToken::new();
        let (_, commands) = mpsc::channel(1);
        tokio::spawn(FileRegistry::new(settings).follow(
            ListKind::Routine,
            Feed::new(RegistryId::FIRST, sender, Arc::clone(&state)),
            commands,
            stop.clone(),
        ));
        Self { changes, state, held: BTreeMap::new(), listing: false, lists: 0, connected: Vec::new(), puts: 0, _stop: stop.drop_guard() }
    }

    fn take(&mut self, change: Change) {
        match change {
            Change::ListBegin(_) => {
                self.listing = true;
                self.held.clear();
            }
            Change::Put(put) => {
                self.puts += 1;
                let content = put.content.map(|found| {
                    let endpoints: Vec<_> = found.endpoints.iter().map(ToString::to_string).collect();
                    format!("{} {}", endpoints.join(","), found.metadata.text("protocol").unwrap_or_default())
                });
                self.held.insert(put.key.into(), content.map_err(|rejected| rejected.reason));
            }
            Change::Delete { key, .. } => {
                assert!(!self.listing, "{key} removed within a list");
                assert!(self.held.remove(&*key).is_some(), "{key} removed, but never put");
            }
            Change::ListEnd { .. } => {
                self.listing = false;
                self.lists += 1;
            }
            Change::Connected(connected) => self.connected.push(connected),
            Change::LeasesGone(_) => panic!("a file has no lease"),
        }
    }

    /// Takes changes until the condition holds.
    async fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !condition(self) || self.listing {
            match timeout_at(deadline, self.changes.recv()).await {
                Ok(Some(update)) => changes(update).into_iter().for_each(|change| self.take(change)),
                Ok(None) => panic!("{what}: the registry has ended"),
                Err(elapsed) => panic!("{what}: {elapsed} after {DEADLINE:?}; held: {:?}", self.held),
            }
        }
    }

    /// Takes whatever comes for this long.
    async fn linger(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        while let Ok(Some(update)) = timeout_at(deadline, self.changes.recv()).await {
            for change in changes(update) {
                self.take(change);
            }
        }
    }

    async fn listed(&mut self) {
        self.until("the first list", |follower| follower.lists == 1).await;
    }

    fn keys(&self) -> Vec<&str> {
        self.held.keys().map(String::as_str).collect()
    }
}

async fn appears(path: &Path) {
    let deadline = Instant::now() + DEADLINE;
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} is not there after {DEADLINE:?}", path.display());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Keeps this thread, and the threads it starts, from opening what is closed to its owner, as root can.
struct OrdinaryUser {
    before: Uid,
}

impl OrdinaryUser {
    /// Takes root's rights to files until the value is dropped; changes nothing for any other user.
    fn assume() -> Self {
        let user = Uid::effective();
        Self { before: setfsuid(if user.is_root() { Uid::from_raw(65_534) } else { user }) }
    }
}

impl Drop for OrdinaryUser {
    fn drop(&mut self) {
        setfsuid(self.before);
    }
}

fn age(path: &Path, age: Duration) {
    fs::File::open(path).unwrap().set_modified(SystemTime::now() - age).unwrap();
}

#[tokio::test]
async fn files_that_come_change_and_go_are_told_by_events() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join(A), CONTENT).unwrap();
    let mut follower = Follower::start(folder.path(), true, BY_EVENTS);
    follower.listed().await;
    assert_eq!(follower.held[A], Ok("10.0.0.1:80 http".into()));
    assert_eq!(follower.connected, [true]);

    fs::write(folder.path().join(B), CONTENT).unwrap();
    follower.until("a new file", |follower| follower.held.len() == 2).await;

    fs::write(folder.path().join(B), CONTENT.replace("http", "grpc")).unwrap();
    follower.until("rewritten", |follower| follower.held[B] == Ok("10.0.0.2:80 grpc".into())).await;

    let hidden = folder.path().join(".new");
    fs::write(&hidden, CONTENT.replace("http", "https")).unwrap();
    fs::rename(&hidden, folder.path().join(B)).unwrap();
    follower.until("moved into place", |follower| follower.held[B] == Ok("10.0.0.2:80 https".into())).await;

    fs::remove_file(folder.path().join(A)).unwrap();
    follower.until("removed", |follower| follower.keys() == [B]).await;
    fs::rename(folder.path().join(B), folder.path().join(A)).unwrap();
    follower.until("renamed", |follower| follower.keys() == [A]).await;
}

#[tokio::test]
async fn a_refresh_is_told_to_nobody() {
    let folder = TempDir::new().unwrap();
    let mut follower = Follower::start(folder.path(), true, BY_LOOKING);
    follower.listed().await;
    for second in 10..30 {
        fs::write(folder.path().join(A), CONTENT.replace(":29", &format!(":{second}"))).unwrap();
        follower.linger(Duration::from_millis(10)).await;
    }
    fs::write(folder.path().join(B), CONTENT).unwrap();
    follower.until("the second file", |follower| follower.held.len() == 2).await;
    assert_eq!(follower.puts, 2);
}

#[tokio::test]
async fn a_file_counts_while_it_is_refreshed_and_is_never_deleted() {
    let folder = TempDir::new().unwrap();
    let (a, b) = (folder.path().join(A), folder.path().join(B));
    fs::write(&a, CONTENT).unwrap();
    fs::write(&b, CONTENT).unwrap();
    age(&a, Duration::from_secs(21));
    let timings = FileTimings { expire_after: Duration::from_secs(20), ..BY_LOOKING };
    let mut follower = Follower::start(folder.path(), true, timings);
    follower.listed().await;
    assert_eq!(follower.keys(), [B], "a is a dead program's");

    age(&b, Duration::from_millis(19_300));
    follower.until("b has died", |follower| follower.held.is_empty()).await;
    age(&b, Duration::ZERO);
    follower.until("b is back", |follower| follower.keys() == [B]).await;
    assert!(a.exists() && b.exists());
}

#[tokio::test]
async fn a_folder_may_come_late_go_and_be_another() {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("gsvc");
    let mut follower = Follower::start(&path, false, BY_LOOKING);
    follower.listed().await;
    assert_eq!((follower.held.len(), follower.state.report().synced, follower.state.report().connected), (0, true, true));
    assert!(follower.state.report().error.unwrap().contains("does not exist yet"), "a mistyped path shows");

    fs::create_dir(&path).unwrap();
    fs::write(path.join(A), CONTENT).unwrap();
    follower.until("the folder has come", |follower| follower.keys() == [A]).await;
    assert_eq!(follower.state.report().error, None);

    let elsewhere = parent.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join(B), CONTENT).unwrap();
    fs::rename(&path, parent.path().join("old")).unwrap();
    fs::rename(&elsewhere, &path).unwrap();
    follower.until("another folder", |follower| follower.keys() == [B]).await;
    fs::write(path.join(A), CONTENT).unwrap();
    follower.until("a file in the other folder", |follower| follower.held.len() == 2).await;

    fs::remove_dir_all(&path).unwrap();
    follower.until("the folder has gone", |follower| follower.held.is_empty()).await;
    assert_eq!(follower.connected, [true], "a missing folder is an empty registry");
}

#[tokio::test]
async fn an_empty_moment_hurts_nobody() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join(A);
    fs::write(&path, CONTENT).unwrap();
    let timings = FileTimings { write_grace: Duration::from_secs(5), ..BY_EVENTS };
    let mut follower = Follower::start(folder.path(), true, timings);
    follower.listed().await;

    fs::write(&path, "").unwrap();
    follower.linger(Duration::from_millis(150)).await;
    fs::write(&path, CONTENT).unwrap();
    follower.linger(timings.write_grace + Duration::from_secs(1)).await;
    assert_eq!((follower.puts, &follower.held[A]), (1, &Ok("10.0.0.1:80 http".into())));

    fs::write(&path, "").unwrap();
    follower.until("it stays empty", |follower| follower.held[A] == Err(gsvc::VALUE_NOT_JSON)).await;
    fs::write(&path, CONTENT).unwrap();
    follower.until("it is written", |follower| follower.held[A].is_ok()).await;
}

#[tokio::test]
async fn hostile_files_are_rejected_one_by_one() {
    let folder = TempDir::new().unwrap();
    let other = TempDir::new().unwrap();
    let secret = other.path().join("secret");
    fs::write(&secret, CONTENT).unwrap();
    let write = |name: &str, content: &[u8]| fs::write(folder.path().join(name), content).unwrap();
    let named = |name: &str| format!("service#default#default#{name}#latest#10.0.0.9-80");

    nix::unistd::mkfifo(&folder.path().join(named("pipe")), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    fs::create_dir(folder.path().join(named("folder"))).unwrap();
    symlink(&secret, folder.path().join(named("link"))).unwrap();
    symlink("/dev/zero", folder.path().join(named("device"))).unwrap();
    fs::write(folder.path().join(OsStr::from_bytes(b"service#default#default#\xff#latest#10.0.0.9-80")), CONTENT).unwrap();
    write(&named("large"), &vec![b' '; 1 << 20]);
    write(&named("brackets"), "[".repeat(20_000).as_bytes());
    write(&named("text"), b"hello");
    write("README.txt", b"hello");
    write("service#default#shop#a#b#v1-rc#10.9.0.5-39645", CONTENT.as_bytes());
    write("service#default#default#ports#latest#10.0.0.1-0,10.0.0.2-81,[-0", CONTENT.as_bytes());
    write("service#default#my-shop#user-svc#v1-rc#web-1.example-9000", CONTENT.as_bytes());
    // Not for us.
    write("svcs#default#default#a#latest#10.0.0.1-80", CONTENT.as_bytes());
    write(".service#default#default#a#latest#10.0.0.1-80", CONTENT.as_bytes());
    write(&format!("{A}.tmp"), CONTENT.as_bytes());

    let timings = FileTimings { write_grace: Duration::from_millis(100), ..BY_LOOKING };
    let mut follower = Follower::start(folder.path(), true, timings);
    follower.until("all are judged", |follower| follower.held.len() == 12).await;
    let expected: BTreeMap<String, Result<String, Reason>> = [
        (named("pipe"), Err(file::UNREADABLE)),
        (named("folder"), Err(file::UNREADABLE)),
        (named("link"), Err(file::UNREADABLE)),
        (named("device"), Err(file::UNREADABLE)),
        ("service#default#default#\\xff#latest#10.0.0.9-80".into(), Err(gsvc::KEY_NOT_TEXT)),
        (named("large"), Err(gsvc::VALUE_TOO_LONG)),
        (named("brackets"), Err(gsvc::VALUE_NOT_JSON)),
        (named("text"), Err(gsvc::VALUE_NOT_JSON)),
        ("README.txt".into(), Err(gsvc::TOO_FEW_SEGMENTS)),
        ("service#default#shop#a#b#v1-rc#10.9.0.5-39645".into(), Err(gsvc::TOO_MANY_SEGMENTS)),
        ("service#default#default#ports#latest#10.0.0.1-0,10.0.0.2-81,[-0".into(), Ok("10.0.0.2:81 http".into())),
        ("service#default#my-shop#user-svc#v1-rc#web-1.example-9000".into(), Ok("web-1.example:9000 http".into())),
    ]
    .into();
    assert_eq!(follower.held, expected);
    follower.linger(Duration::from_millis(400)).await;
    assert_eq!(follower.puts, 12, "each is told once");
}

#[tokio::test]
async fn a_path_that_cannot_be_followed_keeps_what_was_known() {
    let _user = OrdinaryUser::assume();
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("gsvc");
    fs::write(&path, "a file").unwrap();
    let mut follower = Follower::start(&path, true, BY_LOOKING);
    follower.until("it says so", |follower| follower.connected == [false]).await;
    let report = follower.state.report();
    assert!(!report.connected && !report.synced);
    assert!(report.error.unwrap().contains("is not a directory"));

    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    fs::write(path.join(A), CONTENT).unwrap();
    follower.until("it is followed", |follower| follower.keys() == [A]).await;
    assert_eq!((&*follower.connected, follower.state.report().error), (&[false, true][..], None));

    // In exchange, so that at no moment there is nothing, which would be an empty registry.
    let file = parent.path().join("file");
    fs::write(&file, "a file").unwrap();
    renameat2(AT_FDCWD, &file, AT_FDCWD, &path, RenameFlags::RENAME_EXCHANGE).unwrap();
    follower.until("it cannot be followed", |follower| follower.connected.ends_with(&[false])).await;
    assert_eq!(follower.keys(), [A]);
    assert_eq!(follower.state.report().disconnects, 1);

    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    fs::write(path.join(B), CONTENT).unwrap();
    follower.until("it can again", |follower| follower.keys() == [B]).await;

    for mode in [0o000, 0o300, 0o400] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        follower.until("the folder is closed", |follower| follower.connected.ends_with(&[false])).await;
        assert_eq!(follower.keys(), [B], "{mode:o}");
        assert!(follower.state.report().error.unwrap().contains("ermission denied"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        follower.until("the folder is open", |follower| follower.connected.ends_with(&[true])).await;
    }
    fs::set_permissions(path.join(B), fs::Permissions::from_mode(0o200)).unwrap();
    fs::File::options().write(true).open(path.join(B)).unwrap().set_modified(SystemTime::now()).unwrap();
    follower.until("the file is closed", |follower| follower.held[B] == Err(file::UNREADABLE)).await;
}

#[tokio::test]
async fn a_folder_nobody_named_must_be_ours() {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("gsvc");
    let real = parent.path().join("real");
    fs::create_dir(&real).unwrap();
    fs::write(real.join(A), CONTENT).unwrap();
    symlink(&real, &path).unwrap();
    let mut follower = Follower::start(&path, false, BY_LOOKING);
    follower.until("a link is refused", |follower| follower.connected == [false]).await;
    let mut named = Follower::start(&path, true, BY_LOOKING);
    named.until("a link that was named is followed", |follower| follower.keys() == [A]).await;
    fs::remove_file(&path).unwrap();
    fs::rename(&real, &path).unwrap();
    follower.until("a folder of ours is followed", |follower| follower.keys() == [A]).await;

    if !Uid::effective().is_root() {
        return support::skip("a_folder_nobody_named_must_be_ours", "only root can give a folder away");
    }
    std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
    follower.until("somebody else's folder is refused", |follower| follower.connected.ends_with(&[true, false])).await;
    let error = follower.state.report().error.unwrap();
    assert!(error.contains("belongs to") && error.contains(&format!("--registry file://{}", path.display())), "{error}");
    let mut named = Follower::start(&path, true, BY_LOOKING);
    named.until("it is believed when named", |follower| follower.keys() == [A]).await;
}

#[tokio::test]
async fn a_large_folder_is_one_list() {
    let folder = TempDir::new().unwrap();
    for n in 0..1200 {
        fs::write(folder.path().join(format!("service#default#default#s{n}#latest#10.0.0.1-80")), CONTENT).unwrap();
    }
    let mut follower = Follower::start(folder.path(), true, BY_LOOKING);
    follower.listed().await;
    assert_eq!((follower.held.len(), follower.puts), (1200, 1200));
    follower.linger(Duration::from_millis(300)).await;
    assert_eq!((follower.lists, follower.puts), (1, 1200));
}

#[tokio::test]
async fn files_beyond_max_keys_are_rejected_and_none_is_left_out() {
    let folder = TempDir::new().unwrap();
    for n in 0..5 {
        fs::write(folder.path().join(format!("service#default#default#s{n}#latest#10.0.0.1-80")), CONTENT).unwrap();
    }
    let mut follower = Follower::start(folder.path(), true, BY_LOOKING);
    let zones = Zones::new(&["svc".to_owned()]).unwrap();
    let mut catalog = Catalog::new(catalog::Settings { max_keys: 3, ..catalog::Settings::new(zones, 1) });
    let now = std::time::Instant::now();
    while !catalog.registry_status(now).synced {
        let update = timeout_at(Instant::now() + DEADLINE, follower.changes.recv()).await.unwrap().unwrap();
        catalog.apply(update, now);
    }
    catalog.settle(now);
    assert_eq!(catalog.services().count(), 3);
    let rejections = catalog.rejections();
    assert_eq!(rejections.counts, BTreeMap::from([(Reason::TOO_MANY_KEYS, 2)]));
    assert_eq!(rejections.listed.len(), 2);
}

#[tokio::test]
async fn the_first_list_is_of_the_kind_asked_for() {
    let folder = TempDir::new().unwrap();
    for directory in [folder.path().to_owned(), folder.path().join("missing")] {
        let (sender, mut changes) = mpsc::channel(16);
        let (_commander, commands) = mpsc::channel(1);
        let settings = Settings { directory, named: true, heads: Vec::new(), timings: BY_EVENTS };
        let feed = Feed::new(RegistryId::FIRST, sender, Arc::new(RegistryState::new("file".parse().unwrap(), "file".into())));
        let stop = CancellationToken::new();
        tokio::spawn(FileRegistry::new(settings).follow(ListKind::Reconnect, feed, commands, stop.clone()));
        let mut kinds = Vec::new();
        while kinds.is_empty() {
            let batch = self::changes(timeout_at(Instant::now() + DEADLINE, changes.recv()).await.unwrap().unwrap());
            kinds.extend(batch.into_iter().filter_map(|change| match change {
                Change::ListBegin(kind) => Some(kind),
                _ => None,
            }));
        }
        assert_eq!(kinds, [ListKind::Reconnect]);
        stop.cancel();
    }
}

#[tokio::test]
async fn follows_end_when_stopped() {
    let folder = TempDir::new().unwrap();
    let (sender, mut changes) = mpsc::channel(16);
    let (_commander, commands) = mpsc::channel(1);
    let settings = Settings { directory: folder.path().into(), named: true, heads: Vec::new(), timings: BY_EVENTS };
    let state = Arc::new(RegistryState::new("file".parse().unwrap(), "file".into()));
    let stop = CancellationToken::new();
    let task =
        tokio::spawn(FileRegistry::new(settings).follow(ListKind::Routine, Feed::new(RegistryId::FIRST, sender, state), commands, stop.clone()));
    changes.recv().await.unwrap();
    stop.cancel();
    tokio::time::timeout(DEADLINE, task).await.unwrap().unwrap();
}

/// Keeps a registration of this name in a folder, refreshed this often.
async fn register(
    directory: PathBuf,
    name: &str,
    refresh: Duration,
    stop: CancellationToken,
    events: impl Fn(RegisterEvent),
) -> Result<(), RegisterError> {
    let settings = Settings { directory, named: true, heads: Vec::new(), timings: FileTimings { refresh_interval: refresh, ..FileTimings::default() } };
    file::register(&settings, &registrant(name), stop, events).await
}

fn registrant(name: &str) -> Registrant {
    Registrant {
        head: "service".into(),
        id: ServiceId { deployment: "default".into(), namespace: "default".into(), name: name.into(), version: "v1-rc".into() },
        endpoints: vec![
            Endpoint { host: "10.0.0.1".parse::<std::net::IpAddr>().unwrap().into(), port: 80 },
            Endpoint { host: svcdns::service::Host::Name("web-1.example".into()), port: 81 },
        ],
        metadata: Metadata::new([("protocol".into(), "http".into())].into()),
        ttl: Duration::from_secs(10),
    }
}

#[tokio::test]
async fn a_registration_is_kept_refreshed_restored_and_taken_back() {
    const FILE: &str = "service#default#default#user-svc#v1-rc#10.0.0.1-80,web-1.example-81";
    let parent = TempDir::new().unwrap();
    let directory = parent.path().join("new").join("gsvc");
    let expire_after = Duration::from_secs(6);
    let mut follower = Follower::start(&directory, true, FileTimings { expire_after, ..BY_LOOKING });
    follower.listed().await;

    let stop = CancellationToken::new();
    let (sender, mut events) = mpsc::unbounded_channel();
    let task = tokio::spawn(register(directory.clone(), "user-svc", OFTEN, stop.clone(), move |event| {
        let _ = sender.send(event);
    }));
    follower.until("it is registered", |follower| follower.keys() == [FILE]).await;
    assert_eq!(follower.held[FILE], Ok("10.0.0.1:80,web-1.example:81 http".into()));
    assert_eq!(events.recv().await, Some(RegisterEvent::Registered));

    // GoFrame's readers judge by the writer's local time.
    let content: serde_json::Value = serde_json::from_slice(&fs::read(directory.join(FILE)).unwrap()).unwrap();
    let written = std::process::Command::new("date").args(["-d", content["UpdateAt"].as_str().unwrap(), "+%s"]).output().unwrap();
    let written: u64 = String::from_utf8(written.stdout).unwrap().trim().parse().unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert!(now.abs_diff(written) < 60, "{now} {content}");

    follower.linger(expire_after + Duration::from_secs(1)).await;
    assert_eq!((follower.keys(), follower.puts), (vec![FILE], 1), "refreshed in time");

    // Made again within a second, and told, unless it was removed in the very moment of a refresh: then once more. Whether
    // the follower sees the moment without it is a matter of chance.
    let deadline = Instant::now() + DEADLINE;
    let told = loop {
        assert!(Instant::now() < deadline, "that it was made again is not told");
        fs::remove_file(directory.join(FILE)).unwrap();
        appears(&directory.join(FILE)).await;
        if let Ok(told) = tokio::time::timeout(Duration::from_secs(3), events.recv()).await {
            break told;
        }
    };
    assert_eq!(told, Some(RegisterEvent::Registered), "that it was made again is told");
    follower.until("it is restored", |follower| follower.keys() == [FILE]).await;
    // A refresh may put something into the folder while it is being removed.
    while fs::remove_dir_all(&directory).is_err() {
        assert!(Instant::now() < deadline, "{} cannot be removed", directory.display());
    }
    appears(&directory.join(FILE)).await;
    follower.until("the folder is restored", |follower| follower.keys() == [FILE]).await;

    stop.cancel();
    task.await.unwrap().unwrap();
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "nothing is left behind");
    let mut last = None;
    while let Some(event) = events.recv().await {
        // A refresh that lost its folder on the way fails, and is tried again.
        assert_ne!(event, RegisterEvent::Left);
        last = Some(event);
    }
    assert_eq!(last, Some(RegisterEvent::Removed));
    follower.until("it is taken back", |follower| follower.held.is_empty()).await;
}

#[tokio::test]
async fn what_would_read_back_differently_is_not_registered() {
    let folder = TempDir::new().unwrap();
    for name in ["", "a/b", "a#b", "../a"] {
        let refused = register(folder.path().into(), name, OFTEN, CancellationToken::new(), |_| {}).await;
        assert!(matches!(refused, Err(RegisterError::NotWritable(_))), "{name}");
    }
    let long = register(folder.path().into(), &"a".repeat(250), OFTEN, CancellationToken::new(), |_| {}).await;
    assert!(matches!(long, Err(RegisterError::Refused { .. })));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_registration_that_cannot_be_written_is_tried_again() {
    let parent = TempDir::new().unwrap();
    let directory = parent.path().join("gsvc");
    let stop = CancellationToken::new();
    let (sender, mut events) = mpsc::unbounded_channel();
    let task = tokio::spawn(register(directory.clone(), "a", OFTEN, stop.clone(), move |event| {
        let _ = sender.send(event);
    }));
    assert_eq!(events.recv().await, Some(RegisterEvent::Registered));
    fs::rename(&directory, parent.path().join("old")).unwrap();
    // Whatever it makes meanwhile gives way to a file.
    while fs::write(&directory, "a file").is_err() {
        let _ = fs::remove_dir_all(&directory);
    }
    let deadline = Instant::now() + DEADLINE;
    while !matches!(timeout_at(deadline, events.recv()).await.unwrap(), Some(RegisterEvent::Failed(_))) {}
    fs::remove_file(&directory).unwrap();
    while timeout_at(deadline, events.recv()).await.unwrap() != Some(RegisterEvent::Registered) {}
    stop.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_registration_that_another_program_keeps_is_left() {
    let folder = TempDir::new().unwrap();
    let stop = CancellationToken::new();
    let (sender, mut events) = mpsc::unbounded_channel();
    let seldom = Duration::from_secs(3600);
    let task = tokio::spawn(register(folder.path().into(), "a", seldom, stop.clone(), move |event| {
        let _ = sender.send(event);
    }));
    assert_eq!(events.recv().await, Some(RegisterEvent::Registered));
    let path = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let theirs = fs::File::options().write(true).open(&path).unwrap();
    theirs.set_modified(SystemTime::now() + Duration::from_secs(1)).unwrap();
    stop.cancel();
    task.await.unwrap().unwrap();
    assert_eq!(events.recv().await, Some(RegisterEvent::Left));
    assert!(path.exists());
}
