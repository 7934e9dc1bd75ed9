//! ZooKeeper's wire format: records of jute, each in a frame with its length.

use std::time::Duration;

/// Length of a session's password, in bytes.
pub(super) const PASSWORD_BYTES: usize = 16;

/// Length of the length in front of each frame, in bytes.
pub(super) const LENGTH_BYTES: usize = 4;

/// Numbers in place of a request's number, in replies that answer no numbered request.
pub(super) mod xid {
    /// An event of a watch.
    pub(in super::super) const EVENT: i32 = -1;
    /// The reply to a ping.
    pub(in super::super) const PING: i32 = -2;
    /// The reply to a login.
    pub(in super::super) const AUTH: i32 = -4;
}

/// ACL that gives all rights to everyone, as GoFrame writes it.
const WORLD_ANYONE: (i32, &str, &str) = (31, "world", "anyone");

/// Mode of a watch that stays, and covers the node and all below it.
const PERSISTENT_RECURSIVE: i32 = 1;

/// Error: a record is shorter than its fields, or a field is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// A request of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ZooKeeperRequest<'a> {
    /// Bring the server up to date with the leader of its ensemble.
    Sync,
    /// Watch a node and all nodes below it; servers before 3.6 have no such watch.
    AddRecursiveWatch { path: &'a str },
    /// Read whether a node exists; a watch also reports its creation.
    Exists { path: &'a str, watch: bool },
    /// Read the names of a node's children.
    Children { path: &'a str, watch: bool },
    /// Read the data of a node.
    Data { path: &'a str, watch: bool },
    /// Create a node; an ephemeral one ends with the session.
    Create { path: &'a str, data: &'a [u8], is_ephemeral: bool },
    /// Delete a node that has this version.
    Delete { path: &'a str, version: i32 },
    /// End the session, and with it its ephemeral nodes.
    Close,
}

impl ZooKeeperRequest<'_> {
    /// Returns the frame of the request with this number.
    pub(super) fn frame(&self, xid: i32) -> Vec<u8> {
        let mut record = RecordWriter::new();
        record.int(xid);
        match *self {
            Self::Sync => {
                record.int(9);
                record.text("/");
            }
            Self::AddRecursiveWatch { path } => {
                record.int(106);
                record.text(path);
                record.int(PERSISTENT_RECURSIVE);
            }
            Self::Exists { path, watch } => record.read(3, path, watch),
            Self::Children { path, watch } => record.read(12, path, watch),
            Self::Data { path, watch } => record.read(4, path, watch),
            Self::Create { path, data, is_ephemeral } => {
                record.int(1);
                record.text(path);
                record.buffer(data);
                record.int(1);
                let (permissions, scheme, id) = WORLD_ANYONE;
                record.int(permissions);
                record.text(scheme);
                record.text(id);
                record.int(i32::from(is_ephemeral));
            }
            Self::Delete { path, version } => {
                record.int(2);
                record.text(path);
                record.int(version);
            }
            Self::Close => record.int(-11),
        }
        record.into_frame()
    }
}

/// Returns the frame of a ping.
pub(super) fn ping() -> Vec<u8> {
    let mut record = RecordWriter::new();
    record.int(xid::PING);
    record.int(11);
    record.into_frame()
}

/// Returns the frame of a login with the scheme `digest`.
pub(super) fn digest_login(user: &str, password: &str) -> Vec<u8> {
    let mut record = RecordWriter::new();
    record.int(xid::AUTH);
    record.int(100);
    record.int(0);
    record.text("digest");
    record.buffer(format!("{user}:{password}").as_bytes());
    record.into_frame()
}

/// A session as its server knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) id: i64,
    pub(super) password: [u8; PASSWORD_BYTES],
    /// Time without a message after which the server ends the session.
    pub(super) timeout: Duration,
}

impl Session {
    /// Returns a session to be opened, with the timeout to ask for.
    pub(super) fn new(timeout: Duration) -> Self {
        Self { id: 0, password: [0; PASSWORD_BYTES], timeout }
    }

    /// Returns the frame that opens the session, or resumes it.
    ///
    /// It claims to have seen nothing: a server that was wiped, or restored from a backup, refuses
    /// every client that has seen more than it has.
    pub(super) fn connect_frame(&self) -> Vec<u8> {
        let mut record = RecordWriter::new();
        record.int(0);
        record.long(0);
        record.int(i32::try_from(self.timeout.as_millis()).unwrap_or(i32::MAX));
        record.long(self.id);
        record.buffer(&self.password);
        record.boolean(false);
        record.into_frame()
    }

    /// Parses the reply to the connect frame; `None` if the session has expired.
    pub(super) fn parse(body: &[u8]) -> Result<Option<Self>, Malformed> {
        let mut record = RecordReader(body);
        let _version = record.int()?;
        let timeout = u64::try_from(record.int()?).unwrap_or(0);
        let id = record.long()?;
        let password = record.buffer()?.try_into().map_err(|_| Malformed)?;
        let timeout = Duration::from_millis(timeout);
        Ok((!timeout.is_zero()).then_some(Self { id, password, timeout }))
    }
}

/// The beginning of every message of a server, after the connect reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReplyHeader {
    pub(super) xid: i32,
    /// The server's last transaction.
    pub(super) zxid: i64,
    /// The error's number; 0 for success.
    pub(super) error: i32,
}

impl ReplyHeader {
    /// Parses the header of a message; also returns the rest.
    pub(super) fn parse(body: &[u8]) -> Result<(Self, &[u8]), Malformed> {
        let mut record = RecordReader(body);
        let (xid, zxid, error) = (record.int()?, record.long()?, record.int()?);
        Ok((Self { xid, zxid, error }, record.0))
    }
}

/// What happened to a watched node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EventKind {
    Created,
    Deleted,
    DataChanged,
    /// Only one-shot watches report it: a child was created or deleted.
    ChildrenChanged,
}

/// An event of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeEvent {
    pub(super) kind: EventKind,
    pub(super) path: Box<str>,
}

impl NodeEvent {
    /// Parses an event; `None` if it is about a watch or the session, not about a node.
    pub(super) fn parse(body: &[u8]) -> Result<Option<Self>, Malformed> {
        let mut record = RecordReader(body);
        let kind = record.int()?;
        let _state = record.int()?;
        let path = record.text()?;
        let kind = match kind {
            1 => EventKind::Created,
            2 => EventKind::Deleted,
            3 => EventKind::DataChanged,
            4 => EventKind::ChildrenChanged,
            _ => return Ok(None),
        };
        Ok(Some(Self { kind, path: path.into() }))
    }
}

/// Facts about a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    /// The creation.
    pub(super) creation: Creation,
    /// The transaction of the last change of the data.
    pub(super) modified: i64,
    /// Number of changes of the data.
    pub(super) version: i32,
    /// The session of an ephemeral node; 0 for a persistent one.
    pub(super) owner: i64,
}

/// The creation of a node, which tells it from other nodes that ever had its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Creation {
    /// The transaction.
    pub(super) zxid: i64,
    /// The time of the server's clock, in milliseconds.
    pub(super) time: i64,
}

impl Stat {
    fn parse(record: &mut RecordReader<'_>) -> Result<Self, Malformed> {
        let (created, modified) = (record.long()?, record.long()?);
        let (creation_time, _modification_time) = (record.long()?, record.long()?);
        let (version, _children_version, _acl_version) =
            (record.int()?, record.int()?, record.int()?);
        let owner = record.long()?;
        let (_data_length, _children, _children_zxid) =
            (record.int()?, record.int()?, record.long()?);
        let creation = Creation { zxid: created, time: creation_time };
        Ok(Self { creation, modified, version, owner })
    }
}

/// Parses the reply to [`ZooKeeperRequest::Data`].
pub(super) fn parse_data(body: &[u8]) -> Result<(&[u8], Stat), Malformed> {
    let mut record = RecordReader(body);
    let data = record.buffer()?;
    Ok((data, Stat::parse(&mut record)?))
}

/// Parses the reply to [`ZooKeeperRequest::Children`].
pub(super) fn parse_children(body: &[u8]) -> Result<(Vec<&str>, Stat), Malformed> {
    let mut record = RecordReader(body);
    let count = usize::try_from(record.int()?.max(0)).map_err(|_| Malformed)?;
    // Each name has a length: a larger count than this cannot be true.
    let mut names = Vec::with_capacity(count.min(record.0.len() / LENGTH_BYTES));
    for _ in 0..count {
        names.push(record.text()?);
    }
    Ok((names, Stat::parse(&mut record)?))
}

/// Composes a record, in a frame.
struct RecordWriter(Vec<u8>);

impl RecordWriter {
    fn new() -> Self {
        Self(vec![0; LENGTH_BYTES])
    }

    fn int(&mut self, value: i32) {
        self.0.extend(value.to_be_bytes());
    }

    fn long(&mut self, value: i64) {
        self.0.extend(value.to_be_bytes());
    }

    fn boolean(&mut self, value: bool) {
        self.0.push(value.into());
    }

    fn buffer(&mut self, bytes: &[u8]) {
        self.int(i32::try_from(bytes.len()).unwrap_or(i32::MAX));
        self.0.extend(bytes);
    }

    fn text(&mut self, text: &str) {
        self.buffer(text.as_bytes());
    }

    /// Writes a request to read a node.
    fn read(&mut self, operation: i32, path: &str, watch: bool) {
        self.int(operation);
        self.text(path);
        self.boolean(watch);
    }

    fn into_frame(mut self) -> Vec<u8> {
        let length = i32::try_from(self.0.len() - LENGTH_BYTES).unwrap_or(i32::MAX);
        self.0[..LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
        self.0
    }
}

/// Reads the fields of a record, one after the other.
struct RecordReader<'a>(&'a [u8]);

impl<'a> RecordReader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn int(&mut self) -> Result<i32, Malformed> {
        let bytes = self.take(4)?.try_into().map_err(|_| Malformed)?;
        Ok(i32::from_be_bytes(bytes))
    }

    fn long(&mut self) -> Result<i64, Malformed> {
        let bytes = self.take(8)?.try_into().map_err(|_| Malformed)?;
        Ok(i64::from_be_bytes(bytes))
    }

    /// Reads bytes; a length of -1 means that there are none.
    fn buffer(&mut self) -> Result<&'a [u8], Malformed> {
        match self.int()? {
            -1 => Ok(&[]),
            length => self.take(usize::try_from(length).map_err(|_| Malformed)?),
        }
    }

    fn text(&mut self) -> Result<&'a str, Malformed> {
        str::from_utf8(self.buffer()?).map_err(|_| Malformed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_make_a_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Session::parse(&bytes);
            let _ = ReplyHeader::parse(&bytes);
            let _ = NodeEvent::parse(&bytes);
            let _ = parse_data(&bytes);
            let _ = parse_children(&bytes);
        }
    }

    /// Returns the record of a frame.
    fn record(frame: &[u8]) -> &[u8] {
        let (length, record) = frame.split_at(LENGTH_BYTES);
        assert_eq!(length, i32::try_from(record.len()).unwrap().to_be_bytes());
        record
    }

    #[test]
    fn requests_have_zookeepers_form() {
        let read = ZooKeeperRequest::Data { path: "/a/é", watch: true }.frame(7);
        assert_eq!(record(&read), b"\0\0\0\x07\0\0\0\x04\0\0\0\x05/a/\xc3\xa9\x01");
        let watch = ZooKeeperRequest::AddRecursiveWatch { path: "/a" }.frame(1);
        assert_eq!(record(&watch), b"\0\0\0\x01\0\0\0\x6a\0\0\0\x02/a\0\0\0\x01");
        let create =
            ZooKeeperRequest::Create { path: "/a", data: b"x", is_ephemeral: true }.frame(2);
        let expected = b"\0\0\0\x02\0\0\0\x01\0\0\0\x02/a\0\0\0\x01x\0\0\0\x01\0\0\0\x1f\
                         \0\0\0\x05world\0\0\0\x06anyone\0\0\0\x01";
        assert_eq!(record(&create), expected);
        assert_eq!(record(&ZooKeeperRequest::Close.frame(3)), b"\0\0\0\x03\xff\xff\xff\xf5");
        assert_eq!(record(&ping()), b"\xff\xff\xff\xfe\0\0\0\x0b");
        let login = digest_login("u", "p");
        let expected = b"\xff\xff\xff\xfc\0\0\0\x64\0\0\0\0\0\0\0\x06digest\0\0\0\x03u:p";
        assert_eq!(record(&login), expected);
    }

    #[test]
    fn a_new_session_claims_to_have_seen_nothing() {
        let frame = Session::new(Duration::from_secs(10)).connect_frame();
        let mut expected = b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x27\x10\0\0\0\0\0\0\0\0".to_vec();
        expected.extend(b"\0\0\0\x10");
        expected.extend([0; 17]);
        assert_eq!(record(&frame), expected);
        let mut reply = b"\0\0\0\0\0\0\x27\x10\0\0\0\0\0\0\x01\0\0\0\0\x10".to_vec();
        reply.extend([7; 16]);
        let session = Session::parse(&reply).unwrap().unwrap();
        assert_eq!((session.id, session.password), (256, [7; 16]));
        assert_eq!(session.timeout, Duration::from_secs(10));
        reply[4..8].fill(0);
        assert_eq!(Session::parse(&reply), Ok(None), "expired");
    }

    #[test]
    fn truncated_and_lying_records_are_malformed() {
        let mut children = b"\0\0\0\x02\0\0\0\x01a\0\0\0\x02bc".to_vec();
        children.extend([0; 68]);
        let (names, stat) = parse_children(&children).unwrap();
        assert_eq!((names, stat.owner), (vec!["a", "bc"], 0));
        let mut data = b"\0\0\0\x01x".to_vec();
        data.extend([0; 68]);
        assert_eq!(parse_data(&data).unwrap().0, b"x");
        let event = b"\0\0\0\x02\0\0\0\x03\0\0\0\x02/a";
        let expected = NodeEvent { kind: EventKind::Deleted, path: "/a".into() };
        assert_eq!(NodeEvent::parse(event), Ok(Some(expected)));
        for length in 0..children.len() {
            assert_eq!(parse_children(&children[..length]), Err(Malformed));
        }
        for length in 0..data.len() {
            assert_eq!(parse_data(&data[..length]), Err(Malformed));
        }
        for length in 0..event.len() {
            assert_eq!(NodeEvent::parse(&event[..length]), Err(Malformed));
        }
        // Two thousand million children, and a name of as many bytes.
        assert_eq!(parse_children(b"\x7f\xff\xff\xff\0\0\0\0"), Err(Malformed));
        assert_eq!(parse_children(b"\0\0\0\x01\x7f\xff\xff\xff"), Err(Malformed));
        assert_eq!(parse_data(b"\xff\xff\xff\xfe"), Err(Malformed));
        assert_eq!(NodeEvent::parse(b"\0\0\0\x02\0\0\0\x03\0\0\0\x01\xff"), Err(Malformed));
    }
}
