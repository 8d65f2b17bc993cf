//! Manifests, and the snapshot that is made of hostile objects: see `edgesplice::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| edgesplice::fuzzing::manifests(bytes));
