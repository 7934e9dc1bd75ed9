//! Keys and values of a registry: `svcdns_fuzz::registry::registry`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| svcdns_fuzz::registry::registry(input));
