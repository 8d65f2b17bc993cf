//! The cache file, with and without a checksum that fits: see `edgesplice::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| edgesplice::fuzzing::cache_file(bytes));
