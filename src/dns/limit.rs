//! How many questions one client may ask. Pure.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

/// Questions a second for one client, answered from memory as most are. A busy pod asks some hundred.
const RATE: f64 = 5_000.0;
/// Questions that may come at once.
const BURST: f64 = 10_000.0;
/// Clients remembered; a node has some hundred pods.
const CLIENTS: usize = 4_096;
/// How many are compared when one has to go.
const SAMPLE: usize = 16;

/// A bucket of tokens for each client.
#[derive(Debug, Default)]
pub struct Limit {
    clients: HashMap<IpAddr, (f64, Instant)>,
}

impl Limit {
    /// Takes a token for `client`. `false`: it has none left.
    pub fn admit(&mut self, client: IpAddr, now: Instant) -> bool {
        if self.clients.len() >= CLIENTS && !self.clients.contains_key(&client) {
            let oldest = self.clients.iter().take(SAMPLE).min_by_key(|(_, (_, at))| *at).map(|(ip, _)| *ip);
            if let Some(oldest) = oldest {
                self.clients.remove(&oldest);
            }
        }
        let (tokens, at) = self.clients.entry(client).or_insert((BURST, now));
        let since = now.saturating_duration_since(*at).as_secs_f64();
        *tokens = since.mul_add(RATE, *tokens).min(BURST);
        *at = now;
        let admitted = *tokens >= 1.0;
        if admitted {
            *tokens -= 1.0;
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_flood_is_cut_and_others_are_not() {
        let (mut limit, start) = (Limit::default(), Instant::now());
        let (loud, quiet) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let admitted = (0..20_000).filter(|_| limit.admit(loud, start)).count();
        assert_eq!(admitted, 10_000);
        assert!(limit.admit(quiet, start));
        assert!(limit.admit(loud, start + Duration::from_millis(10)));
        for n in 0..10_000_u32 {
            limit.admit(std::net::Ipv4Addr::from(n).into(), start);
        }
        assert!(limit.clients.len() <= CLIENTS);
    }
}
