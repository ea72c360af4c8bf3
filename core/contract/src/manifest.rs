//! What a plug-in says of itself before it is opened.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a plug-in says of itself before it is opened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The driver's name, as settings name it (`directory`, `zfs`).
    pub name: String,
    /// The driver's own version.
    pub version: String,
    /// The contract it was built against, (major, minor).
    pub contract: (u32, u32),
    /// Features beyond the first contract that it understands.
    #[serde(default)]
    pub features: Vec<String>,
    /// JSON Schema (2020-12 subset: type, properties, required, additionalProperties, enum, minimum, description) of
    /// its settings. The host checks settings against it and names the key that does not fit.
    #[serde(default)]
    pub settings: Value,
    /// One sentence on what it is.
    #[serde(default)]
    pub summary: String,
    /// Kinds and highest versions of the resume tokens it can read.
    #[serde(default)]
    pub tokens: Vec<(String, u32)>,
}

/// What a host tells a plug-in when it opens a back end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Opening {
    /// The back end's name in the host's settings.
    pub backend: String,
    /// The contract the host knows, (major, minor).
    pub contract: (u32, u32),
    /// Features beyond the first contract that the host understands.
    pub features: Vec<String>,
    /// The least level of log lines that the host wants: `error`, `warn`, `info`, `debug`, `trace`; empty is `info`.
    pub log: String,
    /// The back end's settings, already checked against [`Manifest::settings`].
    pub settings: Value,
}
