//! The file with the snapshot of one registry, replaced as a whole.
//!
//! The file is the magic bytes, the format version, when the data was last known to be current, the
//! name of the registry, which store and part it follows, its keys ([`crate::catalog::save_keys`]),
//! and the SHA-256 of all this. Every version ends with that digest.

use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN, digest};

use crate::registry::StoreIdentity;
use crate::state_file::StateFile;

/// The first bytes of every snapshot.
const MAGIC: [u8; 8] = *b"svcdns\0\n";

/// The version of the format that is written, and the only one that is read.
const VERSION: u32 = 1;

/// Limit on the size of a snapshot, in bytes: some 100 million keys.
const MAX_BYTES: u64 = 4 << 30;

/// Mode of a snapshot: other users than the server's may be given access through its group.
const MODE: u32 = 0o640;

/// The snapshot of one registry.
#[derive(Clone, Debug)]
pub(super) struct SnapshotFile {
    file: StateFile,
}

/// What a snapshot says about its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SnapshotHeader {
    /// The name of the registry.
    pub(super) registry: String,
    /// Which data the registry has.
    pub(super) store: StoreIdentity,
    /// Last time when the keys were known to be those of the registry, in whole seconds.
    pub(super) current_at: SystemTime,
}

/// A snapshot whose digest is right.
#[derive(Debug)]
pub(super) struct ReadSnapshot {
    pub(super) header: SnapshotHeader,
    bytes: Vec<u8>,
    /// Start of the keys in `bytes`.
    keys: usize,
}

/// Reason why a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnusableSnapshot {
    /// The file is not as it was written.
    #[error("it is damaged")]
    Damaged,
    /// A newer svcdns wrote the file.
    #[error("a newer svcdns wrote it (format {0}, this one reads {VERSION})")]
    Newer(u32),
    /// The file is of another registry.
    #[error("it is of registry {registry} ({store})")]
    OtherRegistry {
        /// The name of that registry.
        registry: String,
        /// Which data that registry has.
        store: StoreIdentity,
    },
    /// The file cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
}

impl UnusableSnapshot {
    /// Returns whether the file may be usable later: only the access to it has failed.
    pub(super) fn is_of_access(&self) -> bool {
        let of_file = [ErrorKind::InvalidInput, ErrorKind::FileTooLarge];
        matches!(self, Self::Unreadable(error) if !of_file.contains(&error.kind()))
    }
}

impl ReadSnapshot {
    /// Returns the keys, as [`crate::catalog::save_keys`] wrote them.
    pub(super) fn keys(&self) -> &[u8] {
        let end = self.bytes.len().saturating_sub(SHA256_OUTPUT_LEN);
        self.bytes.get(self.keys..end).unwrap_or_default()
    }
}

impl SnapshotFile {
    /// Returns the snapshot with this file name, in this directory.
    pub(super) fn new(directory: &Path, name: &str) -> Self {
        Self { file: StateFile::new(directory.join(name), MODE) }
    }

    /// Returns the path.
    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Reads the snapshot of a registry; returns `None` if there is none.
    ///
    /// # Errors
    /// If the file cannot be read, was damaged, or is of another version or registry.
    pub(super) fn read(
        &self,
        registry: &str,
        store: &StoreIdentity,
    ) -> Result<Option<ReadSnapshot>, UnusableSnapshot> {
        let Some(bytes) = self.file.read(MAX_BYTES)? else { return Ok(None) };
        let read = parse(bytes)?;
        let SnapshotHeader { registry: found, store: found_store, .. } = &read.header;
        if found != registry || !found_store.is_same(store) {
            let (registry, store) = (found.clone(), found_store.clone());
            return Err(UnusableSnapshot::OtherRegistry { registry, store });
        }
        Ok(Some(read))
    }

    /// Renames the snapshot, so that it is neither read nor replaced; returns its new path.
    ///
    /// # Errors
    /// If the directory cannot be changed.
    pub(super) fn set_aside(&self) -> io::Result<PathBuf> {
        self.file.set_aside()
    }

    /// Replaces the snapshot; `write_keys` writes its keys. Returns the size in bytes.
    ///
    /// # Errors
    /// If the directory or the disk does not allow it; the old snapshot remains.
    pub(super) fn replace(
        &self,
        header: &SnapshotHeader,
        write_keys: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<u64> {
        self.file.replace(|out| {
            let mut out = DigestWriter { out, digest: Context::new(&SHA256) };
            write(&mut out, header, write_keys)?;
            let DigestWriter { out, digest } = out;
            out.write_all(digest.finish().as_ref())
        })
    }
}

/// Writes all of a snapshot that its digest covers.
fn write(
    out: &mut impl Write,
    header: &SnapshotHeader,
    write_keys: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    out.write_all(&MAGIC)?;
    out.write_all(&VERSION.to_be_bytes())?;
    out.write_all(&seconds(header.current_at).to_be_bytes())?;
    let StoreIdentity { kind, servers, part } = &header.store;
    write_text(out, &header.registry)?;
    write_text(out, kind)?;
    for texts in [servers, part] {
        write_count(out, texts.len())?;
        texts.iter().try_for_each(|text| write_text(out, text))?;
    }
    write_keys(out)
}

fn write_text(out: &mut impl Write, text: &str) -> io::Result<()> {
    write_count(out, text.len())?;
    out.write_all(text.as_bytes())
}

fn write_count(out: &mut impl Write, count: usize) -> io::Result<()> {
    let count = u32::try_from(count).map_err(|_| ErrorKind::InvalidData)?;
    out.write_all(&count.to_be_bytes())
}

/// Checks the bytes of a snapshot and reads its header.
fn parse(bytes: Vec<u8>) -> Result<ReadSnapshot, UnusableSnapshot> {
    let (content, found) =
        bytes.split_last_chunk::<SHA256_OUTPUT_LEN>().ok_or(UnusableSnapshot::Damaged)?;
    if digest(&SHA256, content).as_ref() != found {
        return Err(UnusableSnapshot::Damaged);
    }
    let mut rest = content;
    if take(&mut rest) != Some(MAGIC) {
        return Err(UnusableSnapshot::Damaged);
    }
    match take(&mut rest).map(u32::from_be_bytes) {
        Some(VERSION) => {}
        Some(version @ VERSION..) => return Err(UnusableSnapshot::Newer(version)),
        _ => return Err(UnusableSnapshot::Damaged),
    }
    let mut header = || {
        let since = Duration::from_secs(u64::from_be_bytes(take(&mut rest)?));
        let current_at = SystemTime::UNIX_EPOCH.checked_add(since)?;
        let (registry, kind) = (take_text(&mut rest)?, take_text(&mut rest)?);
        let (servers, part) = (take_texts(&mut rest)?, take_texts(&mut rest)?);
        Some(SnapshotHeader { registry, store: StoreIdentity { kind, servers, part }, current_at })
    };
    let header = header().ok_or(UnusableSnapshot::Damaged)?;
    let keys = content.len() - rest.len();
    Ok(ReadSnapshot { header, bytes, keys })
}

/// Takes bytes from the front.
fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (array, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*array)
}

fn take_count(bytes: &mut &[u8]) -> Option<usize> {
    usize::try_from(u32::from_be_bytes(take(bytes)?)).ok()
}

fn take_text(bytes: &mut &[u8]) -> Option<String> {
    let length = take_count(bytes)?;
    let (text, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    String::from_utf8(text.to_vec()).ok()
}

fn take_texts(bytes: &mut &[u8]) -> Option<Vec<String>> {
    let count = take_count(bytes)?;
    (0..count).map(|_| take_text(bytes)).collect()
}

/// Returns the seconds since 1970; 0 if the clock is before that.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Passes bytes on, and adds them to a digest.
struct DigestWriter<W> {
    out: W,
    digest: Context,
}

impl<W: Write> Write for DigestWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.digest.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn store(server: &str) -> StoreIdentity {
        let (servers, part) = (vec![server.into(), "b:1".into()], vec!["group=g".into()]);
        StoreIdentity { kind: "nacos".into(), servers, part }
    }

    fn header(seconds: u64) -> SnapshotHeader {
        let current_at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        SnapshotHeader { registry: "main".into(), store: store("a:1"), current_at }
    }

    fn replace(file: &SnapshotFile, seconds: u64, keys: &[u8]) -> io::Result<u64> {
        file.replace(&header(seconds), |out| out.write_all(keys))
    }

    fn read(file: &SnapshotFile) -> Result<Option<ReadSnapshot>, UnusableSnapshot> {
        file.read("main", &store("a:1"))
    }

    #[test]
    fn a_snapshot_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = SnapshotFile::new(folder.path(), "snapshot-main");
        assert!(read(&file).unwrap().is_none());
        for (seconds, keys) in [(1_800_000_000, &b"the keys"[..]), (7, b"")] {
            let size = replace(&file, seconds, keys).unwrap();
            assert_eq!(fs::metadata(file.path()).unwrap().len(), size);
            assert_eq!(fs::metadata(file.path()).unwrap().permissions().mode() & 0o7777, MODE);
            let found = read(&file).unwrap().unwrap();
            assert_eq!((&found.header, found.keys()), (&header(seconds), keys));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn any_flipped_bit_and_any_missing_end_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let file = SnapshotFile::new(folder.path(), "snapshot-main");
        replace(&file, 5, b"some keys").unwrap();
        let whole = fs::read(file.path()).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(file.path(), bytes).unwrap();
            assert!(matches!(read(&file), Err(UnusableSnapshot::Damaged)), "bit {bit}");
        }
        for length in 0..whole.len() {
            fs::write(file.path(), &whole[..length]).unwrap();
            assert!(matches!(read(&file), Err(UnusableSnapshot::Damaged)), "{length} bytes");
        }
        fs::write(file.path(), [&whole[..], b"\0"].concat()).unwrap();
        assert!(matches!(read(&file), Err(UnusableSnapshot::Damaged)));
    }

    #[test]
    fn snapshots_of_newer_versions_and_other_registries_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let file = SnapshotFile::new(folder.path(), "snapshot-main");
        replace(&file, 5, b"keys").unwrap();
        let why = |found: Result<_, UnusableSnapshot>| found.map(drop).unwrap_err().to_string();
        let other = StoreIdentity { servers: vec!["c:1".into()], ..store("a:1") };
        let reason = "it is of registry main (nacos://a:1,b:1 group=g)";
        assert_eq!(why(file.read("main", &other)), reason);
        assert_eq!(why(file.read("other", &store("a:1"))), reason);
        // One common server is enough.
        assert!(file.read("main", &store("c:1")).unwrap().is_some());
        let mut bytes = fs::read(file.path()).unwrap();
        let end = bytes.len() - SHA256_OUTPUT_LEN;
        bytes[MAGIC.len() + 3] = 2;
        let right = digest(&SHA256, &bytes[..end]);
        bytes[end..].copy_from_slice(right.as_ref());
        fs::write(file.path(), bytes).unwrap();
        assert_eq!(why(read(&file)), "a newer svcdns wrote it (format 2, this one reads 1)");
        let aside = file.set_aside().unwrap();
        assert_eq!(aside, folder.path().join("snapshot-main.unusable"));
        assert!(read(&file).unwrap().is_none() && aside.exists());
    }

    #[test]
    fn a_power_cut_at_any_point_leaves_the_old_or_the_new_snapshot() {
        let folder = tempfile::tempdir().unwrap();
        let file = SnapshotFile::new(folder.path(), "snapshot-main");
        replace(&file, 2, b"the new keys").unwrap();
        let new = fs::read(file.path()).unwrap();
        let unfinished = file.file.unfinished();
        // Before the rename, any beginning of the new file may be there, followed by zeros.
        for written in 0..=new.len() {
            for zeros in [0, new.len() - written] {
                replace(&file, 1, b"the old keys").unwrap();
                fs::write(&unfinished, [&new[..written], &vec![0; zeros]].concat()).unwrap();
                let found = read(&file).unwrap().unwrap();
                assert_eq!(found.keys(), b"the old keys", "{written} bytes");
                // The next run replaces what is left.
                replace(&file, 3, b"later keys").unwrap();
                assert_eq!(read(&file).unwrap().unwrap().keys(), b"later keys");
                assert!(!unfinished.exists());
            }
        }
        // `sync_all` comes before the rename, so the renamed file is complete.
        replace(&file, 1, b"the old keys").unwrap();
        fs::write(&unfinished, &new).unwrap();
        fs::rename(&unfinished, file.path()).unwrap();
        assert_eq!(read(&file).unwrap().unwrap().keys(), b"the new keys");
    }

    #[test]
    fn a_failed_write_leaves_the_old_snapshot_and_no_unfinished_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = SnapshotFile::new(folder.path(), "snapshot-main");
        replace(&file, 1, b"the old keys").unwrap();
        let full = |out: &mut dyn Write| {
            out.write_all(&vec![1; 100_000])?;
            Err(io::Error::from(ErrorKind::StorageFull))
        };
        assert_eq!(file.replace(&header(2), full).unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!(read(&file).unwrap().unwrap().keys(), b"the old keys");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_in_place_of_the_unfinished_snapshot_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let file = SnapshotFile::new(folder.path(), "snapshot-main");
        let precious = folder.path().join("precious");
        fs::write(&precious, "mine").unwrap();
        std::os::unix::fs::symlink(&precious, file.file.unfinished()).unwrap();
        replace(&file, 1, b"keys").unwrap();
        assert_eq!(fs::read_to_string(&precious).unwrap(), "mine");
        assert_eq!(read(&file).unwrap().unwrap().keys(), b"keys");
    }
}
