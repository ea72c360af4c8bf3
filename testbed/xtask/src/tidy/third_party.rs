//! Third-party crates: licences that allow everything we do, from crates.io only.
//!
//! This is the part of `cargo deny check` that needs no installation; see
//! `docs/decisions/0004-third-party-checks.md` for why both exist. `.deny.toml` is the one list for both.

use crate::{
    Result,
    command::Run,
    workspace::{Workspace, array, parse, string},
};

/// A remark with the number of crates, or one sentence for each crate that must not be there.
pub(super) fn check(workspace: &Workspace) -> Result<String> {
    let allowed = Allowed::read(workspace)?;
    let metadata = parse(&Run::cargo().args(["metadata", "--format-version=1", "--locked"]).output()?)?;
    let mut findings = Vec::new();
    let mut count = 0;
    for package in array(&metadata, "packages") {
        let source = string(package, "source");
        if source.is_empty() {
            continue;
        }
        count += 1;
        let crate_name = string(package, "name");
        let name = format!("{crate_name} {}", string(package, "version"));
        if !source.starts_with("registry+https://github.com/rust-lang/crates.io-index") {
            findings.push(format!("{name} comes from {source}, not from crates.io."));
        }
        let licence = string(package, "license");
        if !permits(licence, &allowed.of(crate_name)) {
            findings.push(format!("{name} is under {licence:?}, which .deny.toml does not allow."));
        }
    }
    if findings.is_empty() { Ok(format!("{count} crates")) } else { Err(findings.join("\n")) }
}

/// The lists of `.deny.toml`.
struct Allowed {
    everywhere: Vec<String>,
    /// Crate and further licences.
    exceptions: Vec<(String, Vec<String>)>,
}

impl Allowed {
    fn read(workspace: &Workspace) -> Result<Self> {
        let text = std::fs::read_to_string(workspace.root.join(".deny.toml"))
            .map_err(|error| format!("reading .deny.toml: {error}."))?;
        let table: toml::Table = text.parse().map_err(|error| format!(".deny.toml: {error}"))?;
        let licences = table.get("licenses").ok_or(".deny.toml has no [licenses].")?;
        let list = |value: &toml::Value| -> Vec<String> {
            let words = value.get("allow").and_then(toml::Value::as_array).into_iter().flatten();
            words.filter_map(toml::Value::as_str).map(String::from).collect()
        };
        let exceptions = licences.get("exceptions").and_then(toml::Value::as_array).into_iter().flatten();
        let exceptions =
            exceptions.filter_map(|one| Some((one.get("crate")?.as_str()?.to_string(), list(one)))).collect();
        Ok(Self { everywhere: list(licences), exceptions })
    }

    fn of(&self, name: &str) -> Vec<String> {
        let further = self.exceptions.iter().filter(|(of, _)| of == name).flat_map(|(_, more)| more);
        self.everywhere.iter().chain(further).cloned().collect()
    }
}

/// Whether an SPDX expression can be satisfied. `AND` binds tighter than `OR`; crates of old write `/` for `OR`.
fn permits(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let good = either(&mut words, allowed);
    good && words.next().is_none()
}

type Words<'a, 'b> = &'a mut std::iter::Peekable<std::str::SplitWhitespace<'b>>;

fn either(words: Words<'_, '_>, allowed: &[String]) -> bool {
    let mut good = both(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        good |= both(words, allowed);
    }
    good
}

fn both(words: Words<'_, '_>, allowed: &[String]) -> bool {
    let mut good = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        good &= one(words, allowed);
    }
    good
}

fn one(words: Words<'_, '_>, allowed: &[String]) -> bool {
    if words.next_if_eq(&"(").is_some() {
        let good = either(words, allowed);
        return words.next_if_eq(&")").is_some() && good;
    }
    let Some(licence) = words.next() else { return false };
    let exception = words.next_if_eq(&"WITH").and_then(|_| words.next());
    let full = exception.map_or(licence.to_string(), |exception| format!("{licence} WITH {exception}"));
    // An exception only ever permits more.
    allowed.contains(&full) || allowed.iter().any(|a| a == licence)
}

#[cfg(test)]
mod tests {
    use super::permits;

    #[test]
    fn expressions_are_read_as_spdx_says() {
        let allowed = ["MIT".to_string(), "Apache-2.0".into(), "Unicode-3.0".into()];
        for good in [
            "MIT",
            "MIT OR GPL-3.0",
            "GPL-3.0/MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception",
            "GPL-3.0 AND ISC OR MIT",
        ] {
            assert!(permits(good, &allowed), "{good}");
        }
        for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC) AND GPL-3.0", "(MIT", "MIT)", "MIT MIT"] {
            assert!(!permits(bad, &allowed), "{bad}");
        }
    }
}
