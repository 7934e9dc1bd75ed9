//! The file registry: a file for each instance, refreshed by its program.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use jiff::Zoned;
use tempfile::TempDir;

use super::kind::{Inapplicable, Instance, Kind, Login, Program, Programs, Store};
use super::support::files::path_of;
use super::support::seconds;

const NO_SERVER: Inapplicable = "no server: svcdns reads the directory itself";

/// A directory, and the programs that are registered there.
pub(crate) struct FileKind {
    directory: TempDir,
    programs: BTreeMap<PathBuf, Program>,
    /// Refreshes the files of [`Kind::put_many`].
    crowd: Option<Program>,
}

impl FileKind {
    pub(crate) fn start() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), programs: BTreeMap::new(), crowd: None }
    }

    fn path(&self, instance: &Instance) -> PathBuf {
        let key = format!("default/default/{}/latest/{}:80", instance.name, instance.address);
        path_of(self.directory.path(), &key)
    }
}

/// Writes a file as GoFrame does at start and every 10 s: with the time, and truncated first.
fn write(path: &Path, metadata: &str) {
    let now = Zoned::now().strftime("%Y-%m-%d %H:%M:%S");
    let content = format!(r#"{{"UpdateAt":"{now}",{}"#, &metadata[1..]);
    fs::write(path, content).unwrap();
}

impl Kind for FileKind {
    fn section(&self) -> String {
        format!("[registry.store]\nurl = \"file://{}\"\n", self.directory.path().display())
    }

    fn put(&mut self, instance: &Instance) -> Instant {
        let (path, metadata) = (self.path(instance), instance.metadata());
        self.programs.remove(&path);
        let start = Instant::now();
        write(&path, &metadata);
        let file = path.clone();
        self.programs.insert(path, Program::start(seconds(10), move || write(&file, &metadata)));
        start
    }

    fn put_many(&mut self, instances: &[Instance]) {
        let paths: Vec<_> = instances.iter().map(|instance| self.path(instance)).collect();
        for (path, instance) in paths.iter().zip(instances) {
            write(path, &instance.metadata());
        }
        self.crowd = Some(Program::start(seconds(10), move || {
            for path in &paths {
                File::options()
                    .append(true)
                    .open(path)
                    .unwrap()
                    .set_modified(SystemTime::now())
                    .unwrap();
            }
        }));
    }

    fn programs(&mut self) -> Result<&mut dyn Programs, Inapplicable> {
        Ok(self)
    }

    fn store(&mut self) -> Result<&mut dyn Store, Inapplicable> {
        Err(NO_SERVER)
    }

    fn login(&mut self) -> Result<&mut dyn Login, Inapplicable> {
        Err("no login: the permissions of the directory decide")
    }
}

impl Programs for FileKind {
    fn remove(&mut self, instance: &Instance) -> Instant {
        let path = self.path(instance);
        self.programs.remove(&path);
        let start = Instant::now();
        fs::remove_file(path).unwrap();
        start
    }

    fn let_die(&mut self, instance: &Instance) {
        self.programs.remove(&self.path(instance)).expect("a program");
    }

    fn remove_many(&mut self, instances: &[Instance]) {
        self.crowd = None;
        for instance in instances {
            fs::remove_file(self.path(instance)).unwrap();
        }
    }

    fn put_invalid(&mut self) -> Vec<String> {
        let folder = self.directory.path();
        let named =
            |name: &str| folder.join(format!("service#default#default#{name}#latest#10.0.0.2-80"));
        fs::create_dir(named("directory")).unwrap();
        symlink("/dev/zero", named("device")).unwrap();
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
        nix::unistd::mkfifo(&named("pipe"), mode).unwrap();
        fs::write(named("large"), " ".repeat(1 << 20)).unwrap();
        fs::write(named("brackets"), "[".repeat(20_000)).unwrap();
        fs::write(named("notjson"), "not json").unwrap();
        fs::write(named("bell\u{7}name"), "{}").unwrap();
        fs::write(named("slash#es"), "{}").unwrap();
        fs::write(folder.join("README.txt"), "not a registration").unwrap();
        fs::write(
            folder.join(OsStr::from_bytes(b"service#default#default#\xff#latest#10.0.0.2-80")),
            "{}",
        )
        .unwrap();
        for endpoint in ["[-0", "10.0.0.2-0", "10.0.0.2-70000", "0.0.0.0-80"] {
            fs::write(folder.join(format!("service#default#default#bad#latest#{endpoint}")), "{}")
                .unwrap();
        }
        let shown =
            ["directory", "device", "pipe", "large", "brackets", "notjson", "bell\\u{7}name"];
        let other = [
            "slash#es",
            "README.txt",
            "\\xff",
            "[-0",
            "10.0.0.2-0",
            "10.0.0.2-70000",
            "0.0.0.0-80",
        ];
        shown.into_iter().chain(other).map(str::to_owned).collect()
    }
}
