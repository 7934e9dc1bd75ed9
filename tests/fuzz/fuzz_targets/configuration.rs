//! The configuration file and the environment: `svcdns_fuzz::configuration::configuration`.
#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| svcdns_fuzz::configuration::configuration(octets));
