//! Pages and watch events of an API server or a MetaServer: see `edgesplice::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| edgesplice::fuzzing::api_answer(bytes));
