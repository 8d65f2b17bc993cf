//! What ipset prints, and the kernel's lists of sockets: see `edgesplice::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| edgesplice::fuzzing::ipset(bytes));
