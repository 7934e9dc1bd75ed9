//! Behaviour of the test upstream: its responses, delays, forgeries and damages.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::message::{Message, Query};

/// Treatment of queries by the upstream; by default, correct answers from its table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Behaviour {
    /// Number of queries to drop first; counts down.
    pub(crate) drop: usize,
    pub(crate) delay: Duration,
    pub(crate) reply: Reply,
    pub(crate) damage: Damage,
    pub(crate) forged: Forged,
    pub(crate) edns: Edns,
    /// Whether to truncate all UDP responses.
    pub(crate) truncate: bool,
    pub(crate) tcp: Tcp,
    /// Name of a program whose queries are dropped, as by a firewall of its machine.
    pub(crate) deaf_to: Option<&'static str>,
}

/// Makes the bytes of a response.
type MakeResponse = dyn Fn(&Query) -> Vec<u8> + Send + Sync;

/// Source of the responses.
#[derive(Clone, Default)]
pub(crate) enum Reply {
    /// The table of records.
    #[default]
    Table,
    /// No response.
    Never,
    /// A fixed message.
    Message(Message),
    /// A TXT record that describes the query: see [`Query::described`].
    Describe,
    /// The result of a function.
    Made(Arc<MakeResponse>),
    /// The response of another server, to which the query is forwarded.
    Forward(SocketAddr),
}

/// Damage to the bytes of a response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Damage {
    #[default]
    None,
    /// An id other than the query's.
    Id,
    /// Another type in the question section.
    QuestionType,
    /// Another name of the same length in the question section.
    QuestionName,
    /// The question's name in lower case.
    LowerCase,
    /// No question section.
    NoQuestion,
    /// QR is not set.
    NoResponse,
    /// Only this many bytes.
    Cut(usize),
    /// The owner of the first record is a pointer to itself.
    PointerLoop,
    /// The id, then random bytes.
    Garbage,
    /// The header counts one answer too many.
    Counts,
    /// The length of the last record's data exceeds the message.
    DataLength,
    /// At least this many bytes, filled with TXT records, even over UDP.
    Oversized(usize),
    /// Extra bytes at the end.
    Trailing,
}

/// Forged responses, with 192.0.2.66, that arrive before the correct one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Forged {
    #[default]
    None,
    /// Correct id and question, but from another port.
    OtherPort,
    /// Correct id and question, but from another loopback address (IPv4 only).
    OtherAddress,
    /// Correct source, but this many wrong ids.
    Ids(u16),
    /// Like [`Forged::OtherPort`], but without the correct response.
    OnlyOtherPort,
}

/// Treatment of EDNS by the upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Edns {
    #[default]
    Known,
    /// FORMERR without OPT to every query with OPT (RFC 6891 section 7).
    FormErr,
    /// OPT is ignored.
    Ignored,
    /// BADVERS, although the version is 0.
    BadVersion,
    /// No response to queries with OPT.
    Silent,
    /// This code without OPT to every query with OPT.
    Code(u16),
    /// This code with OPT to every query with OPT.
    CodeWithOpt(u16),
    /// The OPT record of a response is in the answer or authority section.
    Misplaced,
    /// A response has two OPT records.
    Twice,
    /// Bytes follow a response with OPT.
    Trailing,
    /// The last bytes of a response with OPT are missing.
    Cut,
}

impl Edns {
    /// All faults that a query without EDNS avoids.
    pub(crate) const FAULTS: [Self; 14] = [
        Self::FormErr,
        Self::BadVersion,
        Self::Silent,
        Self::Code(1),
        Self::Code(2),
        Self::Code(4),
        Self::Code(5),
        Self::CodeWithOpt(1),
        Self::CodeWithOpt(4),
        Self::Misplaced,
        Self::Twice,
        Self::Trailing,
        Self::Cut,
        Self::Ignored,
    ];
}

/// Treatment of TCP by the upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tcp {
    #[default]
    Answers,
    /// Closes the connection on the first query.
    Closes,
    /// Reads queries without answering.
    Silent,
    /// Sends only the first half of a response.
    Half,
}

/// When the upstream closes a TCP connection, independent of the queries on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Closing {
    /// Number of connections that end at their first query, without an answer; counts down.
    pub(crate) unanswered: usize,
    /// Number of answers after which all other connections end, if they do.
    pub(crate) after: Option<usize>,
}

impl Behaviour {
    pub(crate) fn never() -> Self {
        Self { reply: Reply::Never, ..Self::default() }
    }

    pub(crate) fn reply(message: Message) -> Self {
        Self { reply: Reply::Message(message), ..Self::default() }
    }

    /// Makes a response without records.
    pub(crate) fn code(code: u16) -> Self {
        Self::reply(Message::code(code))
    }

    pub(crate) fn describe() -> Self {
        Self { reply: Reply::Describe, ..Self::default() }
    }

    pub(crate) fn made(make: impl Fn(&Query) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self { reply: Reply::Made(Arc::new(make)), ..Self::default() }
    }

    pub(crate) fn forward(to: SocketAddr) -> Self {
        Self { reply: Reply::Forward(to), ..Self::default() }
    }

    pub(crate) fn damaged(damage: Damage) -> Self {
        Self { damage, ..Self::default() }
    }

    pub(crate) fn forged(forged: Forged) -> Self {
        Self { forged, ..Self::default() }
    }

    pub(crate) fn edns(edns: Edns) -> Self {
        Self { edns, ..Self::default() }
    }

    pub(crate) fn truncating() -> Self {
        Self { truncate: true, ..Self::default() }
    }

    /// Drops this many queries first.
    pub(crate) fn dropping(self, drop: usize) -> Self {
        Self { drop, ..self }
    }

    pub(crate) fn delayed(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    pub(crate) fn over_tcp(self, tcp: Tcp) -> Self {
        Self { tcp, ..self }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table => f.write_str("Table"),
            Self::Never => f.write_str("Never"),
            Self::Message(message) => message.fmt(f),
            Self::Describe => f.write_str("Describe"),
            Self::Made(_) => f.write_str("Made"),
            Self::Forward(to) => write!(f, "Forward({to})"),
        }
    }
}
