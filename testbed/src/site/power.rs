//! Power cuts and kills at exact moments of what one of two hosts, or its server, is about.
//!
//! The host with the server is cut once the server has killed itself at a logged event (`TANDEM_KILL_AT`), the other once its
//! driver host has stopped itself at the start or the end of a driver's call (`TANDEM_STOP_AT`), or once the cable was cut in
//! the midst of a stream.

use std::collections::BTreeSet;

use tandem_guests::Link;

use super::{POOLS, Site};
use crate::api::word;
use crate::kill::matrix::events;
use crate::wait;

/// What is struck, and when.
#[derive(Clone, Debug)]
pub enum Strike {
    /// The server, by SIGKILL, once this event of the operation is durable.
    Server(String),
    /// The power of the server's host, at the same moment.
    Near(String),
    /// That of the other host, at this moment of a driver's call.
    Far(String),
    /// That of the other host, in the midst of a stream.
    FarAmid,
}

impl Strike {
    /// Each step that an operation's log says was done, of steps of one name the first.
    pub fn steps(script: &[String]) -> BTreeSet<&String> {
        script.iter().filter(|event| event.starts_with("step_done")).collect()
    }
}

/// An operation that is struck.
pub struct Struck<'a> {
    /// Its word in the operation log.
    pub word: &'a str,
    /// The events that it logs undisturbed.
    pub script: &'a [String],
    /// The pool from which it carries data.
    pub source: usize,
    /// Asks for it; whether it was taken.
    pub ask: &'a dyn Fn() -> bool,
}

impl Site {
    /// The events that the newest operation of a kind logged.
    pub fn script(&self, word_of: &str) -> Vec<String> {
        let done = self.api.operations(&format!("kind={word_of}&status=done&limit=1")).unwrap();
        events(&self.api.operation(&word(&done[0]["id"])).unwrap())
    }

    /// The active replica, and the one that follows it.
    pub fn roles(&self, share: &str) -> (String, String) {
        let secondary = self.api.in_sync(share).pop().expect("a replica");
        (self.api.only_replica(share, "active"), secondary)
    }

    /// Brings the active replica onto a pool.
    pub fn turn(&self, share: &str, pool: usize) -> (String, String) {
        let (active, secondary) = self.roles(share);
        if self.pool_with(&active) == POOLS[pool].0 {
            return (active, secondary);
        }
        self.api.act(&secondary, "promote").unwrap();
        self.api.settle();
        assert_eq!(self.api.only_replica(share, "active"), secondary, "an undisturbed promotion");
        self.roles(share)
    }

    /// Removes the replica of a share.
    pub fn alone_again(&self, share: &str, replica: &str) {
        self.api.delete_replica(replica).unwrap();
        wait::until("the replica to be gone", || (self.api.replicas_of(share).len() == 1).then_some(()));
        self.api.settle();
    }

    /// Asks for an operation and strikes it; what was switched off is switched on again, and what was killed is started.
    pub fn strike(&self, strike: &Strike, struck: &Struck<'_>) {
        match strike {
            Strike::Far(moment) => {
                self.stop_far_at(moment);
                assert!((struck.ask)());
                self.far_stops();
                self.cut_far();
                self.boot_far();
            }
            Strike::FarAmid => {
                let from = if struck.source == 0 { &self.guest } else { self.far() };
                self.cut_after(from, 3 << 20, || assert!((struck.ask)()));
                self.cut_far();
                self.stream_cable(Link::GOOD);
                self.boot_far();
            }
            Strike::Near(event) => {
                self.kill_at(event, struck);
                self.cut_power();
                self.boot();
            }
            Strike::Server(event) => {
                self.kill_at(event, struck);
                self.launch(&[]);
            }
        }
        self.api.backends_are_up();
    }

    /// Starts the server anew so that it kills itself once that event is durable, asks, and waits for that.
    fn kill_at(&self, event: &str, struck: &Struck<'_>) {
        let number = 1 + struck.script.iter().position(|e| e == event).expect("an event of the operation");
        self.kill();
        let at = format!("{}:{number}:after", struck.word);
        self.spawn(&[("TANDEM_KILL_AT", &at)]);
        // One of the schedule may be the one that is struck.
        let up = || self.api.get("v1/status").ok().filter(|s| s["status"]["backends"]["down"] == 0);
        wait::until("the server", || (self.is_dead() || up().is_some()).then_some(()));
        let _ = (struck.ask)();
        self.dies();
    }
}
