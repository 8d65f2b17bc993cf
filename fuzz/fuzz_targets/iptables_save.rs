//! The text of iptables-save, and what is judged a leftover in it: see `edgesplice::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| edgesplice::fuzzing::iptables_save(bytes));
