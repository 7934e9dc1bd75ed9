//! Queries of all kinds of clients.

use svcdns::wire::{Transport, put_u16, rtype};

use super::choices::Choices;

const TYPES: [u16; 23] = [
    rtype::A,
    rtype::A,
    rtype::A,
    rtype::A,
    rtype::AAAA,
    rtype::AAAA,
    rtype::AAAA,
    rtype::SRV,
    rtype::SRV,
    rtype::SRV,
    rtype::SRV,
    rtype::TXT,
    rtype::ANY,
    rtype::ANY,
    rtype::SOA,
    rtype::NS,
    rtype::PTR,
    rtype::CNAME,
    // HTTPS, MX, NAPTR
    65,
    15,
    35,
    rtype::AXFR,
    0xFFFE,
];
const PAYLOADS: [u16; 8] = [1232, 1232, 4096, 512, 0, 600, 900, 65535];
/// EDNS options.
///
/// Cookie, client subnet, padding, keep-alive, an unknown one, a truncated one.
const OPTIONS: [&[u8]; 6] = [
    b"\0\x0A\0\x08abcdefgh",
    b"\0\x08\0\x07\0\x01\x18\0\x0A\0\0",
    b"\0\x0C\0\x04\0\0\0\0",
    b"\0\x0B\0\0",
    b"\xFE\x01\0\x01x",
    b"\0\x0A\0\x08abc",
];

/// A query message with its transport and the random number for its answer.
#[derive(Debug)]
pub struct TestQuery {
    pub packet: Vec<u8>,
    pub transport: Transport,
    pub draw: u64,
}

impl TestQuery {
    /// Composes a query for a name in wire form.
    pub fn new(choices: &mut Choices<'_>, name: &[u8]) -> Self {
        let mut packet = Vec::with_capacity(name.len() + 48);
        put_u16(&mut packet, 0x1234);
        // Usually RD; sometimes CD, AD, or another opcode.
        put_u16(
            &mut packet,
            if choices.one_in(64) {
                0x2000
            } else {
                choices.of(&[0x0100, 0x0100, 0, 0x0110, 0x0120])
            },
        );
        packet.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        packet.extend_from_slice(name);
        put_u16(&mut packet, choices.of(&TYPES));
        put_u16(&mut packet, if choices.one_in(64) { choices.of(&[3, 255]) } else { rtype::IN });
        match choices.below(8) {
            0..=2 => {}
            3..=6 => put_opt(choices, &mut packet, 0),
            _ => {
                let version = choices.of(&[0, 0, 0, 1]);
                put_opt(choices, &mut packet, version);
                if choices.one_in(4) {
                    // Another additional record, such as a signature.
                    packet[11] += 1;
                    packet.extend_from_slice(b"\0\0\xFA\0\xFF\0\0\0\0\0\0");
                }
            }
        }
        let transport = if choices.one_in(4) { Transport::Tcp } else { Transport::Udp };
        Self { packet, transport, draw: choices.number() }
    }
}

fn put_opt(choices: &mut Choices<'_>, packet: &mut Vec<u8>, version: u8) {
    packet[11] += 1;
    packet.extend_from_slice(&[0, 0, 41]);
    put_u16(packet, choices.of(&PAYLOADS));
    packet.extend_from_slice(&[0, version, if choices.one_in(4) { 0x80 } else { 0 }, 0]);
    let option = if choices.one_in(8) { choices.of(&OPTIONS) } else { &[] };
    put_u16(packet, u16::try_from(option.len()).unwrap());
    packet.extend_from_slice(option);
}
