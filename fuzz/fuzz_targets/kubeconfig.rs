//! A kubeconfig, and the kubelet's or edged's file: see `edgesplice::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| edgesplice::fuzzing::kubeconfig(bytes));
