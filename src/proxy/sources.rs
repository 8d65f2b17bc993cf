//! How many connections each client address has, where the node's owner limits that.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

/// Connections by client address. An address without connections takes no room.
#[derive(Debug)]
pub(super) struct Sources {
    /// Most at once of one address; 0: any number, and nothing is counted.
    most: usize,
    open: Mutex<HashMap<IpAddr, usize>>,
}

impl Sources {
    pub(super) fn new(most: usize) -> Self {
        Self { most, open: Mutex::default() }
    }

    /// Counts a connection of `client` in, until the guard is dropped. `None`: it has as many as it may.
    pub(super) fn enter(&self, client: IpAddr) -> Option<Entry<'_>> {
        if self.most == 0 {
            return Some(Entry(None));
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(client).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Entry(Some((self, client))))
    }
}

/// A connection that is counted.
#[derive(Debug)]
pub(super) struct Entry<'a>(Option<(&'a Sources, IpAddr)>);

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let Some((sources, client)) = self.0 else { return };
        let mut open = sources.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                open.remove(&client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_own_count_and_leaves_nothing_behind() {
        let sources = Sources::new(2);
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let first = sources.enter(a);
        let second = sources.enter(a).unwrap();
        assert!(sources.enter(a).is_none());
        let other = sources.enter(b);
        assert!(other.is_some());
        drop((first, other));
        assert!(sources.enter(a).is_some());
        drop(second);
        assert!(sources.open.lock().unwrap().is_empty());
    }
}
