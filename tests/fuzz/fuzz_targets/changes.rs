//! Registry changes and queries in any order: `svcdns_fuzz::world::changes`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| svcdns_fuzz::world::changes(input));
