//! The first packet of a connection, bare and in a netlink message: see `edgesplice::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| edgesplice::fuzzing::held_packet(bytes));
