//! How the upstream behaves: what it answers, when, from where, and what it breaks.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::message::{Message, Question};

/// By default it answers from its table at once, and is right.
#[derive(Clone, Debug, Default)]
pub(crate) struct Behaviour {
    /// Questions that it passes over before it begins to answer; counts down.
    pub(crate) drop: usize,
    pub(crate) delay: Duration,
    pub(crate) reply: Reply,
    pub(crate) damage: Damage,
    pub(crate) forged: Forged,
    pub(crate) edns: Edns,
    /// Over UDP only the question with TC set; the answer over TCP.
    pub(crate) truncate: bool,
    pub(crate) tcp: Tcp,
}

/// Makes the octets of an answer.
type Make = dyn Fn(&Question) -> Vec<u8> + Send + Sync;

/// What it answers.
#[derive(Clone, Default)]
pub(crate) enum Reply {
    /// What the table holds.
    #[default]
    Table,
    /// Nothing, ever.
    Never,
    /// This.
    Message(Message),
    /// A TXT record that says what the question said: see [`Question::described`].
    Describe,
    /// What this makes of the question, as octets.
    Made(Arc<Make>),
    /// What somebody else answers: the question goes there anew, as a forwarder would send it.
    Forward(SocketAddr),
}

/// What is wrong with the octets of the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Damage {
    #[default]
    None,
    /// Another id than was asked with.
    Id,
    /// The right name, another type.
    QuestionType,
    /// Another name of the same length.
    QuestionName,
    /// The question's name in lower case, whatever case it was asked in.
    LowerCase,
    /// No question section at all.
    NoQuestion,
    /// The query bit: it looks like a question.
    NoResponse,
    /// Only so many octets.
    Cut(usize),
    /// The owner of the first record is a pointer to itself.
    PointerLoop,
    /// The id, then octets without a sense.
    Garbage,
    /// The header tells of one more answer than there are.
    Counts,
    /// The length of the last record's data reaches beyond the end.
    DataLength,
    /// So many octets in all: filled up with TXT records, over UDP whatever size was allowed.
    Oversized(usize),
    /// Octets after the end.
    Trailing,
}

/// Forged answers that arrive before the right one; they say 192.0.2.66.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Forged {
    #[default]
    None,
    /// Right id and question, from another port of the same address.
    OtherPort,
    /// Right id and question, from the same port of another loopback address (IPv4 only).
    OtherAddress,
    /// From the right address and port, so many, with wrong ids.
    Ids(u16),
    /// Only from another port: the right one never comes.
    OnlyOtherPort,
}

/// How it takes EDNS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Edns {
    #[default]
    Known,
    /// FORMERR to every question with an OPT, without an OPT (RFC 6891 section 7).
    FormErr,
    /// The OPT is passed over, and none answered.
    Ignored,
    /// BADVERS, although the version was 0.
    BadVersion,
}

/// What it does over TCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tcp {
    #[default]
    Answers,
    /// Closes the connection when a question has come.
    Closes,
    /// Reads, and says nothing.
    Silent,
    /// Sends the length and half of the message, then nothing.
    Half,
}

impl Behaviour {
    pub(crate) fn never() -> Self {
        Self { reply: Reply::Never, ..Self::default() }
    }

    pub(crate) fn reply(message: Message) -> Self {
        Self { reply: Reply::Message(message), ..Self::default() }
    }

    /// An answer without records.
    pub(crate) fn code(code: u16) -> Self {
        Self::reply(Message::code(code))
    }

    pub(crate) fn describe() -> Self {
        Self { reply: Reply::Describe, ..Self::default() }
    }

    pub(crate) fn made(make: impl Fn(&Question) -> Vec<u8> + Send + Sync + 'static) -> Self {
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

    /// After so many questions without an answer.
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
