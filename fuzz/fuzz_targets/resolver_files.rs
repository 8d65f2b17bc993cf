//! Whatever stands in `/etc/resolv.conf`.
#![no_main]

use edgesplice::dns::servers;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for server in servers::parse(text) {
        assert_eq!(server.port(), 53);
    }
});
