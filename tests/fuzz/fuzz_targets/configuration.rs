//! The configuration: `svcdns_fuzz::configuration::configuration`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| svcdns_fuzz::configuration::configuration(input));
