//! Other people's files and words: `svcdns_fuzz::files::files`.
#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| svcdns_fuzz::files::files(octets));
