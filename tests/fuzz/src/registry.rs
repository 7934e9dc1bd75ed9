//! Arbitrary keys and values of a registry, from the store to the answer.

use std::time::Instant;

use svcdns::answer::{Publisher, Settings};
use svcdns::catalog;
use svcdns::name::{Name, Zones};
use svcdns::registry::gsvc;
use svcdns::service::{Change, Put, Registration, RegistryId, Rejected, Update};
use svcdns::wire::{Transport, put_u16, rtype};

use super::answers::{Kinds, answer};
use super::query::TestQuery;

/// Fuzz target. Input: lines of a key, a space, and a value.
///
/// The keys are parsed as keys of etcd and as names of files.
pub fn registry(input: &[u8]) {
    let entries: Vec<(&[u8], &[u8])> =
        input.split(|byte| *byte == b'\n').take(16).map(entry).collect();
    let mut parser = gsvc::KeyParser::default();
    for (key, value) in &entries {
        let read = gsvc::parse(key, value);
        assert_eq!(
            parser.parse(key, value),
            read,
            "earlier keys of a parser must not affect this one"
        );
        if let Ok(registration) = &read {
            check_round_trip(registration);
        }
        if let Ok(registration) = gsvc::parse_file_name(key, value) {
            let name = gsvc::file_name("head", &registration.id, &registration.endpoints);
            let again = gsvc::parse_file_name(name.as_bytes(), b"");
            assert!(
                registration.endpoints.is_empty()
                    || again.is_ok_and(|again| again.endpoints == registration.endpoints),
                "{name}"
            );
        }
    }
    check_answers(&entries);
}

fn entry(line: &[u8]) -> (&[u8], &[u8]) {
    let end = line.iter().position(|byte| *byte == b' ').unwrap_or(line.len());
    (&line[..end], line.get(end + 1..).unwrap_or_default())
}

/// Checks that key and value of a registration parse as the same registration.
fn check_round_trip(Registration { id, endpoints, metadata, .. }: &Registration) {
    if endpoints.is_empty() {
        return;
    }
    let (key, value) = (gsvc::key("head", id, endpoints), gsvc::value(metadata));
    match gsvc::parse(key.as_bytes(), value.as_bytes()) {
        Ok(again) => {
            assert_eq!((&again.id, &again.endpoints), (id, endpoints), "{key}");
            // The last digit of a fraction may change.
            assert!(value.contains(['.', 'e', 'E']) || again.metadata == *metadata, "{value}");
        }
        Err(Rejected { reason, .. }) => {
            assert!(
                key.len() > gsvc::MAX_KEY_BYTES || value.len() > gsvc::MAX_VALUE_BYTES,
                "{key}: {reason}"
            );
        }
    }
}

/// Checks that the responses for every registered name are well-formed.
fn check_answers(entries: &[(&[u8], &[u8])]) {
    let zones = Zones::new(&["svc".to_owned()]).unwrap();
    let settings = Settings::new(zones.clone());
    let now = Instant::now();
    let (mut publisher, answerer) = Publisher::new(catalog::Settings::new(zones, 1), settings, now);
    let put = |(key, value): &(&[u8], &[u8])| {
        Change::Put(Put {
            key: String::from_utf8_lossy(key).into(),
            revision: 0,
            lease: 0,
            content: gsvc::parse(key, value),
        })
    };
    let published = publisher
        .apply([Update::Registry(RegistryId::FIRST, entries.iter().map(put).collect())], now);
    let mut kinds = Kinds::unmeasured();
    for service in published.changed.iter().filter_map(|changed| changed.after.as_ref()) {
        for rtype in [rtype::A, rtype::SRV, rtype::TXT] {
            let Ok(name) = Name::from_text(&format!("{}.svc", service.base())) else {
                panic!("{:?} is no name", service.base())
            };
            let mut packet = b"\0\0\x01\0\0\x01\0\0\0\0\0\0".to_vec();
            packet.extend_from_slice(name.as_wire());
            put_u16(&mut packet, rtype);
            put_u16(&mut packet, rtype::IN);
            answer(
                &answerer,
                &TestQuery { packet, transport: Transport::Tcp, draw: 1 },
                &mut kinds,
            );
        }
    }
}
