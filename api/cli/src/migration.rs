//! `tandem migration`: what a migration would do, how those get on that run, and their end.

use serde_json::Value;

use crate::client::{Client, segment};
use crate::wire::MigrationCheck;
use crate::{Failure, Moving, Output, human, print, show, watch};

pub(crate) fn run(client: &Client, verb: &Moving, out: Output) -> Result<(), Failure> {
    match verb {
        Moving::Check {
            share,
            host,
            share_type,
            host_assisted,
            writable,
            nondisruptive,
            preserve_metadata,
            preserve_snapshots,
        } => {
            let flag = |set: bool| set.then(|| "true".to_string());
            let query = [
                ("host", Some(host.clone())),
                ("share_type_id", share_type.clone()),
                ("host_assisted", flag(*host_assisted)),
                ("writable", flag(*writable)),
                ("nondisruptive", flag(*nondisruptive)),
                ("preserve_metadata", flag(*preserve_metadata)),
                ("preserve_snapshots", flag(*preserve_snapshots)),
            ];
            let answer = client.get(&format!("shares/{}/migration-check", segment(share)), &query)?;
            print(out, &answer, "migration_check", check)?;
            let possible = answer.pointer("/migration_check/possible").and_then(Value::as_bool);
            if possible == Some(true) { Ok(()) } else { Err(Failure::Said) }
        }
        Moving::List { watch, share, part } => {
            let mut query = part.query().to_vec();
            query.extend([("share_id", share.clone()), ("kind", Some("migrate".to_string()))]);
            if *watch {
                return watch::run(client, &query, out);
            }
            print(out, &client.get("operations", &query)?, "operations", show::operations)
        }
        Moving::Cancel { share } => {
            let query = [
                ("share_id", Some(share.clone())),
                ("kind", Some("migrate".to_string())),
                ("unfinished", Some("true".to_string())),
            ];
            let running = client.get("operations", &query)?;
            let Some(id) = running.pointer("/operations/0/id").and_then(Value::as_str) else {
                return Err(Failure::Refused(format!("Share {share} is not being migrated.")));
            };
            let answer = client.post(&format!("operations/{}/cancel", segment(id)))?;
            print(out, &answer, "operation", show::cancelled)
        }
    }
}

/// What a migration would do, for a person.
fn check(check: MigrationCheck) -> String {
    let mut lines = Vec::new();
    if check.possible {
        let how = match check.approach.as_str() {
            "driver" => "by the driver",
            "points" => "by points, as a replica is filled",
            "peers" => "as a replica of storage that replicates by itself",
            "host" => "from host to host, by the manager",
            _ => "not at all: the share is there",
        };
        lines.push(format!("The share would go to {} {how}.", check.host));
    } else {
        lines.push(format!("The share cannot go to {}:", check.host));
        lines.extend(check.refused.iter().map(|why| format!("  {why}")));
    }
    if !check.interruption.is_empty() {
        let time = check.interruption_seconds.filter(|s| *s > 0);
        let time = time.map(|s| format!(" (about {s} s without writing)")).unwrap_or_default();
        lines.push(format!("Users:    {}{time}", check.interruption));
    }
    if !check.lost.is_empty() {
        lines.push(format!("Lost:     {}", check.lost.join(", ")));
    }
    if let Some(bytes) = check.bytes {
        let time = check.seconds.map(|s| format!(", about {s} s")).unwrap_or_default();
        lines.push(format!("Carried:  {}{time} (an estimate)", human::size(bytes)));
    }
    lines.iter().map(|line| human::safe(line) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_would_be_and_why_not() {
        let answer = serde_json::json!({
            "possible": false, "refused": ["the share is error, but must be available"], "host": "h@b#p",
            "approach": "", "writable": false, "nondisruptive": false, "interruption": "users remount once",
            "lost": ["snapshots"], "bytes": 2048, "seconds": 1, "interruption_seconds": 2,
        });
        let said = check(serde_json::from_value(answer).unwrap());
        for part in [
            "cannot go to h@b#p",
            "must be available",
            "Lost:     snapshots",
            "about 1 s",
            "remount once (about 2 s without writing)",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}
