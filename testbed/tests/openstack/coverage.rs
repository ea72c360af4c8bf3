//! Holds `docs/openstack.md` against the table of routes, and the clients' calls against both.

use std::collections::BTreeSet;

use crate::differences::{cells, document};
use crate::record;

/// The list of a section of the document: what stands in backquotes first on each line that starts with `- `.
fn listed(heading: &str) -> BTreeSet<String> {
    let text = document();
    let section = text.split("\n## ").find(|s| s.starts_with(heading)).unwrap_or_default();
    let quoted = |line: &str| line.strip_prefix("- `")?.split('`').next().map(str::to_owned);
    section.lines().filter_map(quoted).collect()
}

fn compare(heading: &str, served: Vec<String>) {
    let (listed, served) = (listed(heading), served.into_iter().collect::<BTreeSet<_>>());
    assert!(!served.is_empty());
    let missing: Vec<_> = served.difference(&listed).collect();
    let gone: Vec<_> = listed.difference(&served).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "{heading}: not listed: {missing:#?}\nlisted in vain: {gone:#?}"
    );
}

#[test]
fn every_call_that_is_served_is_listed() {
    compare("Served", tandem_server::calls());
}

#[test]
fn every_call_that_is_not_served_yet_is_listed() {
    compare("Not yet", tandem_server::later_calls());
}

#[test]
fn the_table_of_differences_has_rows() {
    let text = document();
    let rows = text.lines().filter_map(cells).filter(|row| row.len() == 4 && row[0].contains('#'));
    assert!(rows.count() > 3);
}

/// Every call of the stock clients is served, or listed as a later issue's.
#[test]
fn the_clients_find_what_they_call() {
    let text = std::fs::read_to_string(record::folder().join("10-clients-endpoints.txt"))
        .expect("the clients' calls");
    let (served, later) = (tandem_server::calls(), tandem_server::later_calls());
    let known = |method: &str, path: &str, action: Option<&str>| {
        let action = action.map_or_else(String::new, |a| format!(" {{{a}}}"));
        let fits = |call: &String| {
            let Some((m, p)) = call.split_once(' ') else { return false };
            let (p, a) = p.split_once(' ').map_or((p, String::new()), |(p, a)| (p, format!(" {a}")));
            m == method && a == action && same_path(p, path)
        };
        let waits = |call: &String| {
            let (p, a) =
                call.split_once(' ').map_or((call.as_str(), String::new()), |(p, a)| (p, format!(" {a}")));
            a == action && same_path(p, path)
        };
        served.iter().any(fits) || later.iter().any(waits)
    };
    let mut count = 0;
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let mut words = line.split_whitespace();
        let (method, target) = (words.next().expect("a method"), words.next().expect("a path"));
        let path = target.split('?').next().unwrap_or(target);
        let Some(path) = path.strip_prefix("/v2").filter(|p| p.len() > 1) else { continue };
        let action = words.next().and_then(|w| w.strip_prefix('{')?.strip_suffix('}'));
        assert!(known(method, path, action), "{line}");
        count += 1;
    }
    assert!(count > 40, "only {count} calls were looked for");
}

fn same_path(pattern: &str, path: &str) -> bool {
    let (a, b): (Vec<&str>, Vec<&str>) = (pattern.split('/').collect(), path.split('/').collect());
    a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a == b || (a.starts_with('{')))
}
