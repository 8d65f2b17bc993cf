//! How a client begins, and HTTP/1 requests byte by byte: see `edgesplice::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| edgesplice::fuzzing::http(bytes));
