//! Files and texts of other programs: `svcdns_fuzz::files::files`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| svcdns_fuzz::files::files(input));
