//! Netlink answers: routes, rules, nft, conntrack, sock_diag: see `edgesplice::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| edgesplice::fuzzing::netlink(bytes));
