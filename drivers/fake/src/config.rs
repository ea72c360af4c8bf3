//! Settings.

use std::path::PathBuf;

use serde::Deserialize;
use tandem_sdk::schemars::{self, JsonSchema};

use crate::Fault;

/// Settings of a back end.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the world in this process whose storage is used. Either this or `path`.
    #[serde(default)]
    pub world: Option<String>,
    /// Folder that keeps the world; an absolute path. Either this or `world`.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// The storage within the world that is this back end's.
    #[serde(default = "site")]
    pub site: String,
    /// Whether Tandem carries the data, or the storage replicates by itself.
    #[serde(default)]
    pub mode: Mode,
    /// Whether writers can be held back.
    #[serde(default = "yes")]
    pub quiesce: bool,
    /// Name of its pool.
    #[serde(default = "pool")]
    pub pool: String,
    /// Size of the pool in bytes.
    #[serde(default = "size")]
    #[schemars(range(min = 1))]
    pub size_bytes: u64,
    /// Bytes that go through a stream between two reports of progress.
    #[serde(default = "chunk")]
    #[schemars(range(min = 1))]
    pub chunk_bytes: usize,
    /// What it promises when it moves a share to another site of its world; null moves nothing.
    #[serde(default = "promises")]
    pub migration: Option<Promises>,
    /// Further facts of the storage, as capabilities that share types can ask for.
    #[serde(default)]
    pub facts: serde_json::Map<String, serde_json::Value>,
    /// Faults to inject.
    #[serde(default)]
    pub faults: Vec<Fault>,
}

/// What a migration by this driver promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Promises {
    /// Users write during the first phase.
    pub writable: bool,
    /// Users notice nothing: the export stays the same.
    pub nondisruptive: bool,
    /// All metadata is kept.
    pub preserve_metadata: bool,
    /// Snapshots move along.
    pub preserve_snapshots: bool,
    /// Rounds of its first phase.
    pub rounds: u32,
}

impl Default for Promises {
    fn default() -> Self {
        Self {
            writable: true,
            nondisruptive: false,
            preserve_metadata: true,
            preserve_snapshots: true,
            rounds: 2,
        }
    }
}

fn promises() -> Option<Promises> {
    Some(Promises::default())
}

/// Who moves a replica's data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Tandem, as streams between points.
    #[default]
    Streamed,
    /// The storage itself.
    Storage,
}

fn site() -> String {
    "site".to_owned()
}

fn pool() -> String {
    "pool".to_owned()
}

const fn yes() -> bool {
    true
}

const fn size() -> u64 {
    1 << 40
}

const fn chunk() -> usize {
    4096
}
