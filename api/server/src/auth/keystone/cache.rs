//! What Keystone said of tokens lately. Pure: the time is an argument.
//!
//! A good token is *fresh* for a while after Keystone was asked, then *stale* until its end: it must be asked about
//! again, but counts where nobody can be asked. Tokens that were refused are remembered apart, so that a flood of them
//! drives out no good one. Tokens themselves are not kept, only their hashes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::token::Valid;

/// How many refused tokens are remembered.
const REFUSED: usize = 1024;

/// A token's hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; 32]);

impl Key {
    pub(super) fn of(token: &str) -> Self {
        Self(*blake3::hash(token.as_bytes()).as_bytes())
    }

    /// A number below `lanes` that is always the same for the same token.
    pub(super) fn lane(&self, lanes: usize) -> usize {
        usize::from(self.0[0]) % lanes.max(1)
    }
}

/// A moment, by both clocks: ends of tokens are told by the wall's, ages are measured by the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    /// Seconds since 1970.
    pub(super) wall: i64,
    pub(super) steady: Instant,
}

impl Now {
    pub(super) fn read() -> Self {
        Self { wall: time::OffsetDateTime::now_utc().unix_timestamp(), steady: Instant::now() }
    }
}

/// What is known of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Known {
    /// It is good, and was asked about lately.
    Fresh(Arc<Valid>),
    /// It was good, and must be asked about again.
    Stale(Arc<Valid>),
    /// It was refused lately.
    Refused,
    /// Nothing.
    Nothing,
}

/// What Keystone said lately.
#[derive(Debug)]
pub(super) struct Cache {
    fresh_for: Duration,
    capacity: usize,
    good: HashMap<Key, (Arc<Valid>, Instant)>,
    refused: HashMap<Key, Instant>,
}

impl Cache {
    /// A cache for so many good tokens, each asked about again after `fresh_for`.
    pub(super) fn new(capacity: usize, fresh_for: Duration) -> Self {
        Self { fresh_for, capacity: capacity.max(1), good: HashMap::new(), refused: HashMap::new() }
    }

    pub(super) fn look(&self, key: &Key, now: Now) -> Known {
        if let Some((valid, asked)) = self.good.get(key).filter(|(valid, _)| valid.expires > now.wall) {
            let fresh = now.steady.saturating_duration_since(*asked) < self.fresh_for;
            return if fresh { Known::Fresh(valid.clone()) } else { Known::Stale(valid.clone()) };
        }
        match self.refused.get(key) {
            Some(asked) if now.steady.saturating_duration_since(*asked) < self.fresh_for => Known::Refused,
            _ => Known::Nothing,
        }
    }

    /// Keystone called the token good. `asked` is the moment before it was asked.
    pub(super) fn accept(&mut self, key: Key, valid: Arc<Valid>, asked: Now) {
        self.refused.remove(&key);
        if self.good.len() >= self.capacity && !self.good.contains_key(&key) {
            self.good.retain(|_, (valid, _)| valid.expires > asked.wall);
            trim(&mut self.good, self.capacity, |(_, asked)| *asked);
        }
        self.good.insert(key, (valid, asked.steady));
    }

    /// Keystone does not know the token, or not any more.
    pub(super) fn refuse(&mut self, key: Key, asked: Now) {
        self.good.remove(&key);
        if self.refused.len() >= REFUSED && !self.refused.contains_key(&key) {
            trim(&mut self.refused, REFUSED, |asked| *asked);
        }
        self.refused.insert(key, asked.steady);
    }
}

/// Makes room in a full map: the eighth that was asked about longest ago goes, so that making room is seldom.
fn trim<V>(map: &mut HashMap<Key, V>, capacity: usize, asked: impl Fn(&V) -> Instant) {
    if map.len() < capacity {
        return;
    }
    let mut ages: Vec<(Instant, Key)> = map.iter().map(|(key, value)| (asked(value), *key)).collect();
    let leave = (capacity / 8).max(1).min(ages.len());
    ages.select_nth_unstable_by_key(leave - 1, |(asked, _)| *asked);
    for (_, key) in &ages[..leave] {
        map.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Identity, Scope};
    use proptest::prelude::*;

    fn valid(expires: i64) -> Arc<Valid> {
        let identity = Identity {
            user_id: "u".into(),
            project_id: "p".into(),
            roles: Vec::new(),
            is_admin: false,
            scope: Scope::Project,
            facts: Default::default(),
        };
        Arc::new(Valid { identity, expires })
    }

    fn at(start: Instant, second: u64) -> Now {
        Now { wall: second as i64, steady: start + Duration::from_secs(second) }
    }

    #[test]
    fn a_good_token_is_fresh_then_stale_then_unknown() {
        let start = Instant::now();
        let mut cache = Cache::new(10, Duration::from_secs(30));
        let key = Key::of("t");
        cache.accept(key, valid(100), at(start, 0));
        assert_eq!(cache.look(&key, at(start, 29)), Known::Fresh(valid(100)));
        assert_eq!(cache.look(&key, at(start, 30)), Known::Stale(valid(100)));
        assert_eq!(cache.look(&key, at(start, 99)), Known::Stale(valid(100)));
        assert_eq!(cache.look(&key, at(start, 100)), Known::Nothing);
        cache.accept(key, valid(100), at(start, 50));
        assert_eq!(cache.look(&key, at(start, 79)), Known::Fresh(valid(100)));
        cache.refuse(key, at(start, 80));
        assert_eq!(cache.look(&key, at(start, 81)), Known::Refused);
        assert_eq!(cache.look(&key, at(start, 110)), Known::Nothing);
    }

    #[test]
    fn what_was_asked_about_longest_ago_makes_room() {
        let start = Instant::now();
        let mut cache = Cache::new(16, Duration::from_secs(30));
        let key = |n: u64| Key::of(&n.to_string());
        for n in 0..17 {
            cache.accept(key(n), valid(1000), at(start, n));
        }
        let known = |n| cache.look(&key(n), at(start, 17)) != Known::Nothing;
        assert_eq!((0..17).filter(|n| known(*n)).collect::<Vec<_>>(), (2..17).collect::<Vec<_>>());
    }

    #[test]
    fn a_flood_of_bad_tokens_drives_out_no_good_one() {
        let start = Instant::now();
        let mut cache = Cache::new(4, Duration::from_secs(30));
        let good = Key::of("good");
        cache.accept(good, valid(1000), at(start, 0));
        for n in 0..5000 {
            cache.refuse(Key::of(&n.to_string()), at(start, 1));
        }
        assert!(cache.refused.len() <= REFUSED);
        assert_eq!(cache.look(&good, at(start, 2)), Known::Fresh(valid(1000)));
    }

    #[derive(Debug, Clone)]
    enum Act {
        Accept(u8, i64),
        Refuse(u8),
        Wait(u64),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            (0..12u8, 0..200i64).prop_map(|(token, life)| Act::Accept(token, life)),
            (0..12u8).prop_map(Act::Refuse),
            (0..40u64).prop_map(Act::Wait),
        ];
        prop::collection::vec(act, 0..60)
    }

    proptest! {
        /// Against a model that forgets nothing: the cache may know less, never anything else.
        #[test]
        fn it_never_says_more_than_keystone_said(acts in acts()) {
            let start = Instant::now();
            let mut cache = Cache::new(5, Duration::from_secs(30));
            let mut said: HashMap<u8, (Option<i64>, u64)> = HashMap::new();
            let mut second = 0;
            for act in acts {
                match act {
                    Act::Accept(token, life) => {
                        let expires = second as i64 + life;
                        cache.accept(Key::of(&token.to_string()), valid(expires), at(start, second));
                        said.insert(token, (Some(expires), second));
                    }
                    Act::Refuse(token) => {
                        cache.refuse(Key::of(&token.to_string()), at(start, second));
                        said.insert(token, (None, second));
                    }
                    Act::Wait(seconds) => second += seconds,
                }
                prop_assert!(cache.good.len() <= 5);
                for token in 0..12u8 {
                    let last = said.get(&token).copied();
                    let lately = last.is_some_and(|(_, when)| second - when < 30);
                    let expires = last.and_then(|(expires, _)| expires);
                    match cache.look(&Key::of(&token.to_string()), at(start, second)) {
                        Known::Fresh(valid) => {
                            prop_assert!(lately && expires == Some(valid.expires));
                            prop_assert!(valid.expires > second as i64);
                        }
                        Known::Stale(valid) => {
                            prop_assert!(!lately && expires == Some(valid.expires));
                            prop_assert!(valid.expires > second as i64);
                        }
                        Known::Refused => prop_assert!(lately && last.is_some() && expires.is_none()),
                        Known::Nothing => {}
                    }
                }
            }
        }
    }
}
