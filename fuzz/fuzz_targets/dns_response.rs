//! Whatever a server answers: it is kept, or not, and given out again within its own bounds.
#![no_main]

use std::time::{Duration, Instant};

use edgesplice::dns::cache::{Cache, Kept, Key};
use edgesplice::dns::wire;
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;

fuzz_target!(|packet: &[u8]| {
    let Some(end) = wire::question_end(packet) else { return };
    let question = &packet[wire::HEADER..end];
    let now = Instant::now();
    let _ = wire::answers(packet, 7, question);
    let Some(kept) = Kept::new(packet.to_vec(), now).map(Arc::new) else { return };
    for later in [0, 1, 3_600, 100_000] {
        let given = kept.render(9, kept.flags(), question, now + Duration::from_secs(later));
        assert!(given.len() <= packet.len());
        assert_eq!(&given[wire::HEADER..end], question);
        let mut with = given.clone();
        wire::add_opt(&mut with, true);
        assert_eq!(with.len(), given.len() + 11);
    }
    let (mut cache, key) = (Cache::default(), Key::new(question, 0));
    cache.put(key.clone(), &kept);
    let _ = cache.get(&key, now);
});
