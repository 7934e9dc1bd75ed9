//! Messages of an upstream: `svcdns_fuzz::upstream::upstream`.
#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| svcdns_fuzz::upstream::upstream(octets));
