//! Every so many queries, one in the log: who asked what where, and what the response was.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt::Write;
use std::num::NonZeroU32;

use tracing::info;

use super::sink::{Finished, Sink};
use crate::wire::{Parsed, Query, rcode_name, type_name};

/// Logs one of so many queries that a thread is asked.
#[derive(Debug)]
pub(super) struct QueryLog {
    every: NonZeroU32,
}

impl QueryLog {
    /// Logs one of `every` queries; 0 is for none.
    pub(super) fn new(every: u32) -> Option<Self> {
        NonZeroU32::new(every).map(|every| Self { every })
    }
}

impl Sink for QueryLog {
    /// Counts a query of this thread, whatever its transport; says whether its turn has come.
    fn wants(&self) -> bool {
        thread_local! {
            static COUNT: Cell<u32> = const { Cell::new(0) };
        }
        let count = COUNT.get() + 1;
        let its_turn = count >= self.every.get();
        COUNT.set(if its_turn { 0 } else { count });
        its_turn
    }

    fn finished(&self, query: &Finished<'_>) {
        let Finished { client, request, response, duration } = *query;
        let (source, destination, transport) = (client.source, client.destination, client.transport.name());
        let (name, kind) = question(request);
        let (rcode, octets) = (response.map_or(Cow::Borrowed("none"), rcode_of), response.map_or(0, <[u8]>::len));
        let duration_us = duration.as_micros();
        info!(%source, %destination, transport, %name, %kind, rcode = &*rcode, octets, duration_us, "question");
    }
}

/// The name and the type that a query asks for.
fn question(request: &[u8]) -> (String, String) {
    match Query::parse(request) {
        Parsed::Query(query) | Parsed::Bad { query, .. } if !query.question.is_empty() => (text(query.name()), type_name(query.qtype)),
        _ => ("?".to_owned(), "?".to_owned()),
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

/// The name of the response code in the header; its upper bits, in OPT, are not read.
fn rcode_of(response: &[u8]) -> Cow<'static, str> {
    response.get(3).map_or(Cow::Borrowed("none"), |flags| rcode_name(u16::from(flags & 0xF)))
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
            let picked = |every: u32| {
                let log = QueryLog::new(every).unwrap();
                (0..12).filter(|_| log.wants()).count()
            };
            assert_eq!([1, 4, 13].map(picked), [12, 3, 0]);
            assert!(QueryLog::new(0).is_none());
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
            assert_eq!(question(&request(qtype)), ("hello.svc".to_owned(), kind.to_owned()));
        }
        assert_eq!(question(b"garbage").0, "?");
        assert_eq!([&[0, 0, 0x81, 0x83][..], &[0, 0, 0x81, 0x80], &[0]].map(rcode_of), ["NXDOMAIN", "NOERROR", "none"]);
    }
}
