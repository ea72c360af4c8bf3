//! Sends every recorded request to our server and compares the answers.
//!
//! Each file is replayed in order against a server of its own. Before each request everything that runs has
//! ended, except where the recording looks at something on its way: then the storage is slowed down, so that it
//! is still on its way when we look. What is being waited for in the recording is waited for here: a `GET` is
//! sent again until it fits or a generous time has passed.

use serde_json::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tandem_manager::NewType;

use crate::compare::{Allowed, Known, next_id};
use crate::differences::{Difference, Differences};
use crate::record::{self, Record};
use crate::server::{Answer, Server};
use crate::{differences, server};

/// How long a `GET` may take to become what was recorded, and how long once nothing runs any more.
const DEADLINE: Duration = Duration::from_secs(20);
const IDLE: Duration = Duration::from_secs(1);

/// Headers that must be equal, or absent, in both.
const HEADERS: &[&str] = &[
    "Content-Type",
    "X-OpenStack-Manila-API-Version",
    "X-OpenStack-Manila-API-Experimental",
    "Vary",
    "Retry-After",
];

/// Headers that must be there, or not, in both.
const PRESENT: &[&str] = &["x-openstack-request-id", "x-compute-request-id", "WWW-Authenticate"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_the_recorded_ones() {
    let differences = differences::read();
    let mut report = Report::default();
    for (file, records) in record::all() {
        Replay::of(&file, &records, &differences, &mut report).await.run().await;
    }
    // Those of the clients' recordings are needed elsewhere.
    let listed: BTreeSet<String> = differences.keys().filter(|p| !p.starts_with("10")).cloned().collect();
    for place in listed.difference(&report.needed) {
        report.wrong.push(format!("{place}: docs/openstack.md lists a difference that there is not"));
    }
    println!("{} requests replayed, {} left out", report.replayed, report.left_out);
    assert!(report.wrong.is_empty(), "{} differences:\n{}", report.wrong.len(), report.wrong.join("\n"));
    assert!(report.replayed >= 280, "only {} requests were replayed", report.replayed);
}

#[derive(Default)]
struct Report {
    replayed: usize,
    left_out: usize,
    /// Places whose listed differences were all needed.
    needed: BTreeSet<String>,
    wrong: Vec<String>,
}

struct Replay<'a> {
    file: &'a str,
    records: &'a [Record],
    differences: &'a Differences,
    report: &'a mut Report,
    server: Server,
    known: Known,
    /// Ids of types that the recording itself makes.
    made: BTreeSet<String>,
}

impl<'a> Replay<'a> {
    async fn of(
        file: &'a str,
        records: &'a [Record],
        differences: &'a Differences,
        report: &'a mut Report,
    ) -> Self {
        let makes = |r: &&Record| r.method == "POST" && r.target().ends_with("/types");
        let made = records.iter().filter(makes).filter_map(|r| r.resp["share_type"]["id"].as_str());
        let made = made.map(str::to_owned).collect();
        let server = Server::start().await;
        Self { file, records, differences, report, server, known: Known::default(), made }
    }

    async fn run(mut self) {
        for (n, record) in self.records.iter().enumerate() {
            let place = format!("{}#{}", self.file, record.n);
            let listed = self.differences.get(&place).cloned().unwrap_or_default();
            if listed.contains(&Difference::NotSent) {
                self.report.left_out += 1;
                self.report.needed.insert(place);
                continue;
            }
            self.prepare(record).await;
            if !on_its_way(record) {
                self.server.slow_down(false);
                self.server.settle().await;
            }
            if self.records.get(n + 1).is_some_and(on_its_way) && record.method != "GET" {
                self.server.slow_down(true);
            }
            self.replay(&place, record, &listed).await;
        }
        self.server.slow_down(false);
        self.server.settle().await;
    }

    /// Makes what the recorded server had before the recording began: share types.
    async fn prepare(&mut self, record: &Record) {
        let plain = || {
            serde_json::json!({
                "name": "cap_plain",
                "extra_specs": {"driver_handles_share_servers": "False", "snapshot_support": "True"},
            })
        };
        let mut wanted = vec![serde_json::json!({
            "id": "78ce84f0-82b2-40f9-9ac9-be54452d7404",
            "name": "default",
            "extra_specs": {
                "driver_handles_share_servers": "False",
                "snapshot_support": "True",
                "create_share_from_snapshot_support": "True",
            },
        })];
        if record.method == "GET" {
            wanted.extend(record.resp["share_types"].as_array().into_iter().flatten().cloned());
            wanted.extend(record.resp.get("share_type").cloned());
        }
        let named = [
            &record.req_body["share"]["share_type"],
            &record.req_body["migration_start"]["new_share_type_id"],
        ];
        let ids = named.into_iter().filter_map(Value::as_str).filter(|id| next_id(id).is_some());
        for id in ids.filter(|id| !id.starts_with("00000000")) {
            let mut plain = plain();
            plain["id"] = id.into();
            // Its name shows where a share has it.
            let shows = |r: &&Record| r.resp["share"]["share_type"] == id;
            if let Some(shown) = self.records.iter().find(shows) {
                plain["name"] = shown.resp["share"]["share_type_name"].clone();
            }
            wanted.push(plain);
        }
        for shown in wanted {
            let id = shown["id"].as_str().expect("an id").to_owned();
            if self.known.is_bound(&id) || self.made.contains(&id) {
                continue;
            }
            let specs = shown["extra_specs"].as_object().expect("extra specs");
            let new = NewType {
                name: shown["name"].as_str().expect("a name").to_owned(),
                description: shown["description"].as_str().map(str::to_owned),
                is_public: true,
                extra_specs: specs
                    .iter()
                    .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
                    .collect(),
            };
            let made = self.server.manager.create_type(new).await.expect("a share type");
            self.known.bind(&id, &made.id.to_string());
        }
    }

    async fn send(&self, record: &Record) -> Answer {
        let target = self.known.translate(&record.target());
        let target = target.replace("backend=alpha", "backend=ALPHA");
        let mut headers: Vec<(String, Vec<u8>)> = Vec::new();
        for (name, value) in &record.req_headers {
            let value = if name.eq_ignore_ascii_case("X-Auth-Token") {
                record.sender().unwrap_or_default()
            } else {
                value
            };
            headers.push((name.clone(), value.as_bytes().to_vec()));
        }
        let back_ends = |body: &str| body.replace("@alpha", "@ALPHA").replace("@beta", "@BETA");
        let body = record.body().map(|body| back_ends(&self.known.translate(&body)).into_bytes());
        self.server.send(&record.method, &target, &headers, body).await.expect("a request")
    }

    async fn replay(&mut self, place: &str, record: &Record, listed: &[Difference]) {
        self.report.replayed += 1;
        let begun = Instant::now();
        let mut ran = begun;
        loop {
            let answer = self.send(record).await;
            let mut known = self.known.clone();
            let (wrong, needed) = judge(record, &answer, listed, &mut known);
            if !self.server.is_idle().await {
                ran = Instant::now();
            }
            let patient = begun.elapsed() < DEADLINE && ran.elapsed() < IDLE;
            let again = record.method == "GET" && patient && !wrong.is_empty();
            if again {
                tokio::time::sleep(Duration::from_millis(25)).await;
                continue;
            }
            self.known = known;
            if needed {
                self.report.needed.insert(place.to_owned());
            }
            let shown = wrong.iter().map(|what| format!("{place} [{}] {what}", record.what));
            self.report.wrong.extend(shown);
            return;
        }
    }
}

/// Whether the recording saw something that was still on its way.
fn on_its_way(record: &Record) -> bool {
    let transient = |v: &Value| {
        matches!(v["status"].as_str(), Some("creating" | "deleting" | "replication_change"))
            || v["status"] == "migrating"
                && (v["task_state"] == "migration_starting" || record.what.contains("right after"))
    };
    let body = &record.resp;
    record.method == "GET"
        && (transient(&body["share"])
            || transient(&body["share_replica"])
            || (record.target().contains("share_id=")
                && body["share_replicas"].as_array().into_iter().flatten().any(transient)))
}

/// Everything that is wrong with an answer, and whether every listed difference was needed.
fn judge(record: &Record, answer: &Answer, listed: &[Difference], known: &mut Known) -> (Vec<String>, bool) {
    let mut wrong = Vec::new();
    let listed_status = listed.iter().find_map(|d| match d {
        Difference::Status(status) => Some(*status),
        _ => None,
    });
    if let Some(status) = listed_status {
        if answer.status != status {
            wrong.push(format!("docs say {status}, ours {}: {}", answer.status, answer.text));
        }
        let mut other_body =
            || !known.compare(&record.resp, &answer.json(), &mut Allowed::default()).is_empty();
        return (wrong, record.status != status || other_body());
    }
    if record.status >= 500 {
        // The rule for all of them: what broke there is the caller's mistake here.
        if !(400..500).contains(&answer.status) {
            wrong.push(format!("recorded {}, ours {}: {}", record.status, answer.status, answer.text));
        }
        return (wrong, listed.is_empty());
    }
    if record.status != answer.status {
        wrong.push(format!("recorded {}, ours {}: {}", record.status, answer.status, answer.text));
        return (wrong, false);
    }
    for name in HEADERS {
        let (recorded, ours) = (record.answered(name), answer.header(name));
        if recorded != ours {
            wrong.push(format!("header {name}: recorded {recorded:?}, ours {ours:?}"));
        }
    }
    for name in PRESENT {
        let (recorded, ours) = (record.answered(name), answer.header(name));
        if recorded.is_some() != ours.is_some() {
            wrong.push(format!("header {name}: recorded {recorded:?}, ours {ours:?}"));
        }
    }
    let mut allowed = Allowed {
        page: record.target().contains("limit=") && !everything_is_ours(record, known),
        ..Allowed::default()
    };
    for difference in listed {
        match difference {
            Difference::Body(path) => allowed.paths.insert(path.clone()),
            Difference::Fewer(key) => allowed.fewer.insert(key.clone()),
            _ => true,
        };
    }
    wrong.extend(known.compare(&record.resp, &answer.json(), &mut allowed));
    (wrong, !listed.is_empty() && allowed.used.len() == listed.len())
}

/// Whether every entry of a recorded list is known to us.
fn everything_is_ours(record: &Record, known: &Known) -> bool {
    let lists = record.resp.as_object().into_iter().flatten().filter_map(|(_, v)| v.as_array());
    lists.flatten().filter_map(|v| v["id"].as_str()).all(|id| known.is_bound(id))
}

#[test]
fn the_recordings_are_there() {
    let all = record::all();
    let count: usize = all.iter().map(|(_, records)| records.len()).sum();
    assert!(all.len() >= 4 && count >= 300, "{count} records in {} files", all.len());
    assert!(all.iter().any(|(_, records)| records.iter().any(|r| r.sender() == Some("demo"))));
    assert_eq!(server::ADMIN_PROJECT.len(), 32);
}
