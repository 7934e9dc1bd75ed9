//! Packets, asked of servers in every condition: `svcdns_fuzz::packets::packets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| svcdns_fuzz::packets::packets(octets));
