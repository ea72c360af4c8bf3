//! The committed bindings to LVM's library are those that bindgen makes from its header.
//!
//! They are committed, so that building needs neither the header nor bindgen; where both are installed (`cargo xtask testbed
//! setup`), they are made again and compared.

use crate::{Result, command::Run, workspace::Workspace};

const HEADER: &str = "/usr/include/lvm2cmd.h";
const BINDINGS: &str = "drivers/lvm/src/lvm2cmd.rs";
/// Another one writes other words for the same.
const VERSION: &str = "bindgen 0.60.1";
const ARGUMENTS: &[&str] = &[
    "--disable-header-comment",
    "--dynamic-loading",
    "Lvm2Cmd",
    "--dynamic-link-require-all",
    "--allowlist-function",
    "lvm2_(log_fn|init|log_level|run|exit)",
    "--allowlist-type",
    "lvm2_log_fn_t",
    "--allowlist-var",
    "LVM2_.*",
    "--no-layout-tests",
    "--no-doc-comments",
    "--raw-line",
    "//! The calls of liblvm2cmd, made from lvm2cmd.h by bindgen; `cargo xtask tidy` says how, and compares.",
    "--raw-line",
    "#![allow(warnings, clippy::all, clippy::pedantic, unsafe_code, missing_docs, reason = \"generated\")]",
    HEADER,
];

/// A remark, or how to make them anew.
pub(super) fn check(workspace: &Workspace) -> Result<String> {
    let version = Run::new("bindgen").args(["--version"]).output();
    if !version.is_ok_and(|version| version.trim() == VERSION) || !std::path::Path::new(HEADER).exists() {
        return Ok(format!("not compared: {VERSION} or {HEADER} is not installed"));
    }
    let made = Run::new("bindgen").args(ARGUMENTS).dir(&workspace.root).output()?;
    let file = workspace.root.join(BINDINGS);
    let committed =
        std::fs::read_to_string(&file).map_err(|error| format!("reading {BINDINGS}: {error}."))?;
    if made == committed {
        return Ok("as bindgen makes them".into());
    }
    let quoted: Vec<String> = ARGUMENTS.iter().map(|word| format!("'{word}'")).collect();
    Err(format!("{BINDINGS} is not what its header says; type: bindgen {} > {BINDINGS}", quoted.join(" ")))
}
