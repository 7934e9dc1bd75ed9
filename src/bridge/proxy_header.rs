//! The header of the PROXY protocol, version 2: who the client was.
//!
//! Format: section 2.2 of haproxy.org's proxy-protocol.txt.

use std::net::SocketAddrV4;

/// Size of the header of a TCP connection over IPv4, in bytes.
const HEADER_BYTES: usize = 28;

/// The signature, version 2 with command PROXY, TCP over IPv4, and the length of the addresses.
const HEAD: [u8; 16] = *b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c";

/// Returns the header of a connection from `client` to `destination`.
pub(super) fn proxy_header(client: SocketAddrV4, destination: SocketAddrV4) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let (head, addresses) = header.split_at_mut(HEAD.len());
    head.copy_from_slice(&HEAD);
    addresses[..4].copy_from_slice(&client.ip().octets());
    addresses[4..8].copy_from_slice(&destination.ip().octets());
    addresses[8..10].copy_from_slice(&client.port().to_be_bytes());
    addresses[10..].copy_from_slice(&destination.port().to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_has_both_addresses_and_ports() {
        let header =
            proxy_header("127.0.0.1:4660".parse().unwrap(), "127.83.1.2:80".parse().unwrap());
        let expected = [
            0x0D, 0x0A, 0x0D, 0x0A, 0x00, 0x0D, 0x0A, 0x51, 0x55, 0x49, 0x54, 0x0A, 0x21, 0x11, 0,
            12, 127, 0, 0, 1, 127, 83, 1, 2, 0x12, 0x34, 0, 80,
        ];
        assert_eq!(header, expected);
    }
}
