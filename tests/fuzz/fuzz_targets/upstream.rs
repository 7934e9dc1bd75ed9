//! Responses of an upstream: `svcdns_fuzz::upstream::upstream`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| svcdns_fuzz::upstream::upstream(input));
