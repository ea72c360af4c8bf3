//! Links from a Markdown page to a file or a heading of this repository lead somewhere.

use crate::{Result, workspace::Workspace};
use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

/// One sentence for each link that leads nowhere.
pub(super) fn check(workspace: &Workspace) -> Result<Vec<String>> {
    let mut pages = HashMap::new();
    for file in workspace.files()?.into_iter().filter(|file| file.ends_with(".md")) {
        let text = std::fs::read_to_string(workspace.root.join(&file))
            .map_err(|error| format!("reading {file}: {error}."))?;
        pages.insert(file, text);
    }
    let mut findings = Vec::new();
    for (page, text) in &pages {
        for (number, link) in links(text) {
            if let Some(why) = broken(workspace, &pages, page, &link) {
                findings.push(format!("{page}:{number}: {why}."));
            }
        }
    }
    findings.sort();
    Ok(findings)
}

fn broken(workspace: &Workspace, pages: &HashMap<String, String>, page: &str, link: &str) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (file, heading) = link.split_once('#').map_or((link, None), |(file, heading)| (file, Some(heading)));
    let target = if file.is_empty() {
        PathBuf::from(page)
    } else {
        resolve(Path::new(page).parent().unwrap_or(Path::new("")), file)
    };
    if !workspace.root.join(&target).exists() {
        return Some(format!("{link} leads nowhere"));
    }
    let text = pages.get(&*target.to_string_lossy())?;
    let heading = heading?;
    (!anchors(text).iter().any(|anchor| anchor == heading))
        .then(|| format!("{link}: {} has no such heading", target.display()))
}

fn resolve(base: &Path, link: &str) -> PathBuf {
    let mut resolved = PathBuf::new();
    for part in base.join(link).components() {
        match part {
            Component::ParentDir => {
                resolved.pop();
            }
            Component::CurDir => {}
            other => resolved.push(other),
        }
    }
    resolved
}

/// The lines outside of fenced blocks, numbered from one.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            return None;
        }
        (!fenced).then_some((index + 1, line))
    })
}

/// Targets of `[text](target)`, with their line numbers.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        // What stands between backticks is code.
        let plain: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        for (at, _) in plain.match_indices("](") {
            if let Some(end) = plain[at + 2..].find(')') {
                let target = plain[at + 2..at + 2 + end].split_whitespace().next().unwrap_or_default();
                found.push((number, target.to_string()));
            }
        }
    }
    found
}

/// The anchors that a page's headings get.
fn anchors(text: &str) -> Vec<String> {
    prose(text)
        .filter(|(_, line)| line.starts_with('#'))
        .map(|(_, line)| {
            line.trim_start_matches('#')
                .trim()
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_found_outside_of_code() {
        let text = "see [a](one.md) and [b](two.md#part)\n```\n[c](three.md)\n```\n`[d](four.md)`\n";
        assert_eq!(links(text), [(1, "one.md".to_string()), (1, "two.md#part".to_string())]);
    }

    #[test]
    fn anchors_are_spelt_as_forges_spell_them() {
        assert_eq!(anchors("# The way of a request\n## `/v1`: what\n"), ["the-way-of-a-request", "v1-what"]);
    }

    #[test]
    fn targets_are_taken_from_the_page_that_names_them() {
        assert_eq!(resolve(Path::new("docs/decisions"), "../../README.md"), Path::new("README.md"));
    }
}
