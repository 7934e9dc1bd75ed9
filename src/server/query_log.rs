//! Every so many questions, one in the log: who asked what, and what the answer was.

use std::cell::Cell;
use std::fmt::Write;
use std::net::SocketAddr;

use tracing::info;

use crate::wire::{Parsed, Query, type_name};

/// Which questions are logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct QueryLog {
    /// One of so many that a thread is asked; 0 for none.
    every: u32,
}

/// A question to be logged once it is known how it was answered.
#[derive(Debug)]
pub(super) struct Asked {
    source: SocketAddr,
    transport: &'static str,
    name: String,
    kind: String,
}

impl QueryLog {
    pub(super) fn new(every: u32) -> Self {
        Self { every }
    }

    /// Notes a question where it is one to be logged. Where none is, that costs a comparison.
    pub(super) fn pick(self, request: &[u8], source: SocketAddr, transport: &'static str) -> Option<Asked> {
        (self.every > 0 && self.is_next()).then(|| Asked::new(request, source, transport))
    }

    /// Counts a question of this thread, whatever its transport; says whether its turn has come.
    fn is_next(self) -> bool {
        thread_local! {
            static COUNT: Cell<u32> = const { Cell::new(0) };
        }
        let count = COUNT.get() + 1;
        COUNT.set(if count >= self.every { 0 } else { count });
        count >= self.every
    }
}

impl Asked {
    #[cold]
    fn new(request: &[u8], source: SocketAddr, transport: &'static str) -> Self {
        let (name, kind) = match Query::parse(request) {
            Parsed::Query(query) | Parsed::Bad { query, .. } if !query.question.is_empty() => (text(query.name()), type_name(query.qtype)),
            _ => ("?".to_owned(), "?".to_owned()),
        };
        Self { source, transport, name, kind }
    }

    /// Logs it with its answer, if there was one.
    #[cold]
    pub(super) fn answered(self, answer: Option<&[u8]>) {
        let Self { source, transport, name, kind } = self;
        let (rcode, octets) = (answer.map_or("none", rcode_name), answer.map_or(0, <[u8]>::len));
        info!(%source, transport, %name, %kind, rcode, octets, "question");
    }
}

/// A name in wire form as RFC 1035 section 5.1 writes it, without its last dot: nothing in it does anything to a terminal.
fn text(wire: &[u8]) -> String {
    let (mut text, mut rest) = (String::new(), wire);
    while let [length @ (1..), after @ ..] = rest {
        let (label, next) = after.split_at_checked(usize::from(*length)).unwrap_or((after, &[]));
        if !text.is_empty() {
            text.push('.');
        }
        for &octet in label {
            match octet {
                b'.' | b'\\' | b'"' => text.extend(['\\', char::from(octet)]),
                b'!'..=b'~' => text.push(char::from(octet)),
                _ => {
                    let _ = write!(text, "\\{octet:03}");
                }
            }
        }
        rest = next;
    }
    if text.is_empty() { ".".to_owned() } else { text }
}

/// The name of an answer's response code, of those that fit the header.
fn rcode_name(answer: &[u8]) -> &'static str {
    const NAMES: [&str; 6] = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"];
    let rcode = answer.get(3).map(|flags| usize::from(flags & 0x0F));
    rcode.and_then(|rcode| NAMES.get(rcode).copied()).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_so_that_no_terminal_minds() {
        for (wire, written) in [
            (&b"\x05hello\x03svc\0"[..], "hello.svc"),
            (b"\0", "."),
            (b"\x04a.b\\\x02\x1b[\x01\xff\0", "a\\.b\\\\.\\027[.\\255"),
            (b"\x03a b\x01\"\0", "a\\032b.\\\""),
            (b"\x09cut", "cut"),
        ] {
            assert_eq!(text(wire), written);
        }
    }

    #[test]
    fn one_of_so_many_is_picked() {
        // In a thread of its own, whose count begins with this test.
        std::thread::spawn(|| {
            let source = SocketAddr::from(([127, 0, 0, 1], 9));
            let picked = |every: u32| (0..12).filter(|_| QueryLog::new(every).pick(b"?", source, "UDP").is_some()).count();
            assert_eq!([0, 1, 4, 13].map(picked), [0, 12, 3, 0]);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_question_is_told_by_name_and_type() {
        let request = |qtype: u16| {
            let mut request = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x05hello\x03svc\0".to_vec();
            request.extend(qtype.to_be_bytes());
            request.extend([0, 1]);
            request
        };
        for (qtype, kind) in [(1, "A"), (33, "SRV"), (65, "HTTPS"), (4711, "TYPE4711")] {
            let asked = Asked::new(&request(qtype), SocketAddr::from(([127, 0, 0, 1], 9)), "UDP");
            assert_eq!((&*asked.name, &*asked.kind), ("hello.svc", kind));
        }
        assert_eq!(Asked::new(b"garbage", SocketAddr::from(([127, 0, 0, 1], 9)), "UDP").name, "?");
        assert_eq!([&[0, 0, 0x81, 0x83][..], &[0, 0, 0x81, 0x80], &[0]].map(rcode_name), ["NXDOMAIN", "NOERROR", "other"]);
    }
}
