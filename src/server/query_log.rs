//! The query log: client, name, type and response code of one in N queries.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt::Write;
use std::num::NonZeroU32;

use tracing::info;

use super::sink::{FinishedQuery, QuerySink};
use crate::wire::{Parsed, Query, rcode_name, type_name};

/// Logs one of every N queries that a thread receives.
#[derive(Debug)]
pub(super) struct QueryLog {
    every: NonZeroU32,
}

impl QueryLog {
    /// Creates a log of one in `every` queries; returns `None` for 0.
    pub(super) fn new(every: u32) -> Option<Self> {
        NonZeroU32::new(every).map(|every| Self { every })
    }
}

impl QuerySink for QueryLog {
    /// Counts a query of this thread, on any transport; returns whether to log it.
    fn wants(&self) -> bool {
        thread_local! {
            static COUNT: Cell<u32> = const { Cell::new(0) };
        }
        let count = COUNT.get() + 1;
        let due = count >= self.every.get();
        COUNT.set(if due { 0 } else { count });
        due
    }

    fn record(&self, query: &FinishedQuery<'_>) {
        let FinishedQuery { client, request, response, duration } = *query;
        let (source, destination, transport) =
            (client.source, client.destination, client.transport.name());
        let (name, qtype) = name_and_type(request);
        let (rcode, bytes) =
            (response.map_or(Cow::Borrowed("none"), rcode_of), response.map_or(0, <[u8]>::len));
        let duration_us = duration.as_micros();
        info!(
            %source,
            %destination,
            transport,
            %name,
            %qtype,
            rcode = &*rcode,
            bytes,
            duration_us,
            "query"
        );
    }
}

/// Returns the name and type of a query, for the log.
fn name_and_type(request: &[u8]) -> (String, String) {
    match Query::parse(request) {
        Parsed::Query(query) | Parsed::Bad { query, .. } if !query.question.is_empty() => {
            (name_text(query.name()), type_name(query.qtype))
        }
        _ => ("?".to_owned(), "?".to_owned()),
    }
}

/// Returns a name in wire form in presentation form (RFC 1035 section 5.1).
///
/// The result has no trailing dot. Unprintable bytes are escaped, so that no terminal interprets
/// them.
fn name_text(wire: &[u8]) -> String {
    let (mut text, mut rest) = (String::new(), wire);
    while let [length @ (1..), after @ ..] = rest {
        let (label, next) = after.split_at_checked(usize::from(*length)).unwrap_or((after, &[]));
        if !text.is_empty() {
            text.push('.');
        }
        for &byte in label {
            match byte {
                b'.' | b'\\' | b'"' => text.extend(['\\', char::from(byte)]),
                b'!'..=b'~' => text.push(char::from(byte)),
                _ => {
                    let _ = write!(text, "\\{byte:03}");
                }
            }
        }
        rest = next;
    }
    if text.is_empty() { ".".to_owned() } else { text }
}

/// Returns the name of the response code in the header.
///
/// Ignores the upper bits of an extended code, which are in OPT.
fn rcode_of(response: &[u8]) -> Cow<'static, str> {
    response.get(3).map_or(Cow::Borrowed("none"), |flags| rcode_name(u16::from(flags & 0xF)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unprintable_bytes_in_names_are_escaped() {
        for (wire, written) in [
            (&b"\x05hello\x03svc\0"[..], "hello.svc"),
            (b"\0", "."),
            (b"\x04a.b\\\x02\x1b[\x01\xff\0", "a\\.b\\\\.\\027[.\\255"),
            (b"\x03a b\x01\"\0", "a\\032b.\\\""),
            (b"\x09cut", "cut"),
        ] {
            assert_eq!(name_text(wire), written);
        }
    }

    #[test]
    fn one_of_every_n_queries_is_logged() {
        // A new thread's count starts at 0.
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
    fn queries_are_logged_by_name_and_type() {
        let request = |qtype: u16| {
            let mut request = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x05hello\x03svc\0".to_vec();
            request.extend(qtype.to_be_bytes());
            request.extend([0, 1]);
            request
        };
        for (qtype, type_name) in [(1, "A"), (33, "SRV"), (65, "HTTPS"), (4711, "TYPE4711")] {
            let expected = ("hello.svc".to_owned(), type_name.to_owned());
            assert_eq!(name_and_type(&request(qtype)), expected);
        }
        assert_eq!(name_and_type(b"garbage").0, "?");
        assert_eq!(
            [&[0, 0, 0x81, 0x83][..], &[0, 0, 0x81, 0x80], &[0]].map(rcode_of),
            ["NXDOMAIN", "NOERROR", "none"]
        );
    }
}
