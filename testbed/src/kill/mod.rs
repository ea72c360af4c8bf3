//! Real kills of a real server, and what must be true after the next start.
//!
//! A [`lab::Lab`] is a server whose state can be put back to where it was. [`matrix`] kills it exactly at each logged
//! event of an operation (the server's own hook, `TANDEM_KILL_AT`), [`storm`] at random moments from outside, and
//! [`audit`] judges what the next start made of it: statuses, laws, folders, contents, and whether it can still be used.

pub mod audit;
pub mod lab;
pub mod matrix;
pub mod pools;
pub mod storm;
pub mod transfer;

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, fs};

use serde_json::json;

use crate::api::{Answered, Gone, word};
use lab::{Beneath, Lab, Stage};

/// The operations that are killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `POST /shares`.
    CreateShare,
    /// `POST /share-replicas`; the first sync follows it.
    CreateReplica,
    /// A sync of the schedule.
    Sync,
    /// A planned promotion.
    Promote,
    /// `DELETE /share-replicas/{id}`.
    DeleteReplica,
    /// `DELETE /shares/{id}`, of a share with one instance left, as Manila wants it.
    DeleteShare,
    /// `migrate_share`, copied from host to host and completed by itself.
    Migrate,
    /// The same by the driver.
    Assist,
}

impl Kind {
    /// The word in the operation log.
    pub fn word(self) -> &'static str {
        match self {
            Self::CreateShare => "create_share",
            Self::CreateReplica => "create_replica",
            Self::Sync => "sync",
            Self::Promote => "promote",
            Self::DeleteReplica => "delete_replica",
            Self::DeleteShare => "delete_share",
            Self::Migrate | Self::Assist => "migrate",
        }
    }

    /// What must be there before it.
    pub fn stage(self) -> Stage {
        match self {
            Self::CreateShare => Stage::Nothing,
            Self::CreateReplica | Self::DeleteShare | Self::Migrate | Self::Assist => Stage::Share,
            Self::Sync | Self::Promote | Self::DeleteReplica => Stage::Pair,
        }
    }

    /// What happens before the server starts: what it starts a sync for by itself.
    pub fn before_start(self, lab: &Lab) {
        if self == Self::Sync && lab.beneath != Beneath::Zfs {
            lab.write_before_start("changed");
        }
    }

    /// Asks for it. The sync is the schedule's own, which looks at every share when the server starts; with pools, where
    /// nothing is mounted before that, it is asked for.
    pub fn act(self, lab: &Lab) -> Answered<()> {
        match self {
            Self::CreateShare => lab.api.create_share(&lab.share_type, lab::HERE).map(drop),
            Self::CreateReplica => lab.api.create_replica(lab.share(), lab::THERE).map(drop),
            Self::Sync if lab.beneath == Beneath::Zfs => {
                lab.write(&reached(lab)?, "changed");
                lab.api.act(lab.replica(), "resync")
            }
            Self::Sync => Ok(()),
            Self::Promote => {
                lab.write(&reached(lab)?, "last word");
                lab.api.act(lab.replica(), "promote")
            }
            Self::DeleteReplica => lab.api.delete_replica(lab.replica()),
            Self::DeleteShare => lab.api.delete_share(lab.share()),
            Self::Migrate | Self::Assist => {
                lab.write(&reached(lab)?, "last word");
                let body = json!({"migrate_share": {"host": other_pool(lab)?, "force_host_copy": self == Self::Migrate}});
                let (status, said) = lab.api.share_action(lab.share(), "2.7", true, &body)?;
                assert_eq!(status, 202, "{said}");
                Ok(())
            }
        }
    }
}

/// The pool of the share's own zone that it is not on.
fn other_pool(lab: &Lab) -> Answered<String> {
    let here = word(&lab.api.share(lab.share())?["host"]);
    let pools = lab.api.get("v2/scheduler-stats/pools")?;
    let names = pools["pools"].as_array().into_iter().flatten().map(|pool| word(&pool["name"]));
    let other = names.into_iter().find(|name| *name != here && !name.contains("@gamma#"));
    Ok(other.unwrap_or_else(|| panic!("there is no other pool than {here}: {pools}")))
}

/// One kill and what came of it.
#[derive(Clone, Debug)]
pub struct Row {
    /// The driver beneath.
    pub driver: &'static str,
    /// The operation.
    pub kind: &'static str,
    /// Where it was killed: `after 7 step_started promote`.
    pub point: String,
    /// What the next start made of it, or what is wrong.
    pub outcome: Result<String, String>,
}

/// Every kill of this run, for the table at its end.
#[derive(Debug, Default)]
pub struct Table(Mutex<Vec<Row>>);

impl Table {
    /// An empty table.
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// Notes a kill.
    pub fn note(&self, row: Row) {
        println!(
            "   {} {} {}: {}",
            row.driver,
            row.kind,
            row.point,
            if row.outcome.is_ok() { "ok" } else { "BROKEN" }
        );
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(row);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let width = |column: fn(&Row) -> usize| rows.iter().map(column).max().unwrap_or(0);
        let (kinds, points) = (width(|r| r.kind.len()), width(|r| r.point.len()));
        for row in rows.iter() {
            let (word, what) = match &row.outcome {
                Ok(what) => ("recovers", what.as_str()),
                Err(why) => ("BROKEN  ", why.lines().next().unwrap_or_default()),
            };
            writeln!(f, "{:9} {:kinds$}  {:points$}  {word}  {what}", row.driver, row.kind, row.point)?;
        }
        let good = rows.iter().filter(|row| row.outcome.is_ok()).count();
        write!(f, "{good} of {} kill points recover", rows.len())
    }
}

/// Where users reach the active instance, once they do: a path whose pool is not mounted yet takes what is written to it
/// as well, and nobody sees that again.
fn reached(lab: &Lab) -> Answered<PathBuf> {
    loop {
        let export = lab.api.export(lab.active())?.ok_or(Gone)?;
        let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
        // Its folder is made just before it is mounted.
        let mounted = || device(&export).is_some_and(|here| export.parent().and_then(device) != Some(here));
        if lab.beneath != Beneath::Zfs || mounted() {
            return Ok(export);
        }
        std::thread::sleep(Duration::from_millis(25));
    }
}
