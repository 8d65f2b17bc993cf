//! Answers of foreign servers, kept for their time and, for when nobody can be asked, beyond it (RFC 8767). Pure.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::wire::{self, Layout};

/// Most memory that answers take.
const CAPACITY: usize = 4 << 20;
/// What an entry takes besides its bytes, about.
const OVERHEAD: usize = 200;
/// The longest time an answer counts as current, whatever it says.
const LONGEST: Duration = Duration::from_hours(1);
/// The same for answers that say that there is nothing; RFC 2308 allows more, but nodes move.
const LONGEST_NEGATIVE: Duration = Duration::from_mins(5);
/// How long an answer is kept beyond its time: long enough for a night without a link.
const STALE: Duration = Duration::from_hours(24);
/// The TTL that a stale answer is given out with (RFC 8767, section 4).
const STALE_TTL: u32 = 30;
/// How many entries are compared when one has to go.
const SAMPLE: usize = 16;

/// What an answer is kept under: the question in lower case, and which kind of answer was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    question: Box<[u8]>,
    flags: u16,
}

impl Key {
    /// `flags`: whatever makes two answers to one question differ.
    pub fn new(question: &[u8], flags: u16) -> Self {
        // Lengths and numbers are below the letters or meet their like: what differs stays different, but for types
        // and classes whose bytes are letters, of which there are none in use with a counterpart.
        let mut question: Box<[u8]> = question.into();
        let name = question.len().saturating_sub(4);
        question[..name].make_ascii_lowercase();
        Self { question, flags }
    }
}

/// An answer without its EDNS record.
#[derive(Debug)]
pub struct Kept {
    packet: Vec<u8>,
    layout: Layout,
    at: Instant,
    life: Duration,
}

impl Kept {
    /// Takes over a response of a server. `None`: it is not one that can be kept or given to others.
    pub fn new(packet: Vec<u8>, now: Instant) -> Option<Self> {
        let mut layout = wire::layout(&packet)?;
        let packet = wire::without_opt(packet, &mut layout)?;
        let code = wire::flags(&packet) & wire::flag::CODE;
        let negative = code != 0 || wire::u16_at(&packet, 6) == Some(0);
        let longest = if negative { LONGEST_NEGATIVE } else { LONGEST };
        let life =
            layout.lowest_ttl.map_or(Duration::ZERO, |ttl| Duration::from_secs(ttl.into()).min(longest));
        Some(Self { packet, layout, at: now, life })
    }

    /// Whether its time is not over.
    pub fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) < self.life
    }

    /// The response code and whether it was cut off.
    pub fn flags(&self) -> u16 {
        wire::flags(&self.packet)
    }

    /// The records' bytes, with TTLs as they are now, and the question replaced by `question`, which must be the same
    /// but for its case.
    pub fn render(&self, id: u16, flags: u16, question: &[u8], now: Instant) -> Vec<u8> {
        let mut packet = self.packet.clone();
        let age = u32::try_from(now.saturating_duration_since(self.at).as_secs()).unwrap_or(u32::MAX);
        let fresh = self.is_fresh(now);
        for at in &self.layout.ttls {
            let Some(place) = packet.get_mut(*at..at + 4) else { continue };
            let Ok(ttl) = <[u8; 4]>::try_from(&*place) else { continue };
            let left = if fresh { u32::from_be_bytes(ttl).saturating_sub(age) } else { STALE_TTL };
            place.copy_from_slice(&left.to_be_bytes());
        }
        wire::put_u16(&mut packet, 0, id);
        wire::put_u16(&mut packet, 2, flags);
        if let Some(place) = packet.get_mut(wire::HEADER..wire::HEADER + question.len()) {
            place.copy_from_slice(question);
        }
        packet
    }

    fn size(&self) -> usize {
        OVERHEAD + self.packet.capacity() + self.layout.ttls.capacity() * size_of::<usize>()
    }
}

/// All answers.
#[derive(Debug, Default)]
pub struct Cache {
    entries: HashMap<Key, Arc<Kept>>,
    size: usize,
}

impl Cache {
    /// The answer kept for a question, fresh or stale.
    pub fn get(&self, key: &Key, now: Instant) -> Option<Arc<Kept>> {
        let kept = self.entries.get(key)?;
        (now.saturating_duration_since(kept.at) < kept.life + STALE).then(|| Arc::clone(kept))
    }

    /// Keeps an answer, unless it is one that must not be kept. An answer of failure never takes the place of a real
    /// one.
    pub fn put(&mut self, key: Key, kept: &Arc<Kept>) {
        let code = kept.flags() & wire::flag::CODE;
        let good = code == 0 || code == 3;
        if kept.life.is_zero()
            || !good
            || kept.flags() & wire::flag::TRUNCATED != 0
            || kept.size() > CAPACITY / 16
        {
            return;
        }
        let added = kept.size() + key.question.len();
        while self.size + added > CAPACITY {
            // The one whose time is over first, of a sample.
            let oldest = self.entries.iter().take(SAMPLE).min_by_key(|(_, kept)| kept.at + kept.life);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else { break };
            self.remove(&oldest);
        }
        self.remove(&key);
        self.size += added;
        self.entries.insert(key, Arc::clone(kept));
    }

    fn remove(&mut self, key: &Key) {
        if let Some(kept) = self.entries.remove(key) {
            self.size = self.size.saturating_sub(kept.size() + key.question.len());
        }
    }

    /// Answers kept now.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(n: u32) -> Vec<u8> {
        let label = format!("n{n:08}");
        [&[9], label.as_bytes(), b"\x07example\x00\x00\x01\x00\x01"].concat()
    }

    fn kept(n: u32, ttl: u32, now: Instant) -> Arc<Kept> {
        let mut packet = wire::with_question(1, wire::flag::RESPONSE, &question(n));
        wire::put_u16(&mut packet, 6, 1);
        packet.extend(b"\xc0\x0c\x00\x01\x00\x01");
        packet.extend(ttl.to_be_bytes());
        packet.extend(b"\x00\x04\x01\x02\x03\x04");
        Arc::new(Kept::new(packet, now).unwrap())
    }

    fn ttl(packet: &[u8], question: &[u8]) -> u32 {
        let at = wire::HEADER + question.len() + 6;
        u32::from_be_bytes(packet[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn an_answer_ages_goes_stale_and_ends() {
        let (mut cache, start, asked) = (Cache::default(), Instant::now(), question(1));
        cache.put(Key::new(&asked, 0), &kept(1, 60, start));
        let at = |seconds| start + Duration::from_secs(seconds);
        let upper = asked.to_ascii_uppercase();
        let key = Key::new(&[&upper[..upper.len() - 4], &asked[asked.len() - 4..]].concat(), 0);
        let found = cache.get(&key, at(10)).unwrap();
        assert!(found.is_fresh(at(10)));
        let packet = found.render(77, 0x8180, &upper, at(10));
        assert_eq!((wire::u16_at(&packet, 0), ttl(&packet, &asked)), (Some(77), 50));
        assert_eq!(&packet[wire::HEADER..wire::HEADER + upper.len()], &upper, "the asker's own spelling");
        assert!(!found.is_fresh(at(60)));
        assert_eq!(ttl(&found.render(1, 0, &asked, at(61)), &asked), STALE_TTL);
        assert!(cache.get(&key, at(60 + 86_399)).is_some());
        assert!(cache.get(&key, at(60 + 86_401)).is_none());
        assert!(cache.get(&Key::new(&asked, 1), at(1)).is_none());
    }

    #[test]
    fn memory_is_bounded() {
        let (mut cache, start) = (Cache::default(), Instant::now());
        for n in 0..100_000 {
            cache.put(Key::new(&question(n), 0), &kept(n, 60, start));
        }
        assert!(
            cache.size <= CAPACITY && cache.len() > 5_000,
            "{} entries, {} bytes",
            cache.len(),
            cache.size
        );
        let real: usize = cache.entries.iter().map(|(key, kept)| kept.size() + key.question.len()).sum();
        assert_eq!(cache.size, real);
    }
}
