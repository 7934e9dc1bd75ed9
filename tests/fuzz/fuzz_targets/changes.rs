//! Changes of registries, and questions in between: `svcdns_fuzz::world::changes`.
#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| svcdns_fuzz::world::changes(octets));
