//! Packets, sent to servers in several states: `svcdns_fuzz::packets::packets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| svcdns_fuzz::packets::packets(input));
