//! The recordings, as they lie in `api/server/tests/wire`.

use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// One request and the answer it got.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Record {
    /// Its number in its file, from 1.
    pub(crate) n: u32,
    /// What it is about; names the sender where that was not the administrator.
    pub(crate) what: String,
    pub(crate) method: String,
    pub(crate) url: String,
    pub(crate) req_headers: BTreeMap<String, String>,
    pub(crate) req_body: Value,
    pub(crate) status: u16,
    pub(crate) resp_headers: BTreeMap<String, String>,
    pub(crate) resp: Value,
}

/// The address that the recorded server had.
pub(crate) const BASE: &str = "http://127.0.0.1:8786";

impl Record {
    /// Path and query.
    pub(crate) fn target(&self) -> String {
        match self.url.strip_prefix(BASE).unwrap_or(&self.url) {
            "" => "/".into(),
            rest => rest.into(),
        }
    }

    /// The body as it was sent: JSON, or text that is none.
    pub(crate) fn body(&self) -> Option<String> {
        match &self.req_body {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            json => Some(json.to_string()),
        }
    }

    /// A recorded header, whatever the case of its name.
    pub(crate) fn answered(&self, name: &str) -> Option<&str> {
        self.resp_headers.iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// Who sent it.
    pub(crate) fn sender(&self) -> Option<&'static str> {
        self.req_headers.keys().find(|k| k.eq_ignore_ascii_case("X-Auth-Token"))?;
        let word = |w: &str| self.what.split(|c: char| !c.is_alphanumeric()).any(|part| part == w);
        Some(if word("bad") && word("token") {
            "nobody"
        } else if word("demo") {
            "demo"
        } else {
            "admin"
        })
    }
}

/// The folder of the recordings.
pub(crate) fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../api/server/tests/wire")
}

/// Every recording: its number (`01`) and its records.
pub(crate) fn all() -> Vec<(String, Vec<Record>)> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder())
        .expect("the folder of the recordings")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "jsonl"))
        .collect();
    files.sort();
    files
        .into_iter()
        .map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy()[..2].to_owned();
            let text = std::fs::read_to_string(&path).expect("a recording");
            let records = text.lines().map(|line| serde_json::from_str(line).expect("a record")).collect();
            (name, records)
        })
        .collect()
}
