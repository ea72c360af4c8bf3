//! Mutations of the recorded requests: whatever comes, no answer is a 5xx, and a 4xx has changed nothing.
//!
//! The manager is stopped while requests come, so that a change between two looks at the store is the
//! request's. The seed is printed; `TANDEM_FUZZ_SEED` repeats a run, `TANDEM_FUZZ_ROUNDS` makes it longer.

use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::time::Duration;
use tandem_manager::store::{InstanceQuery, OperationQuery, ShareQuery};

use crate::compare::next_id;
use crate::record::{self, Record};
use crate::server::{ADMIN_PROJECT, Server};

const SEED: u64 = 0x7461_6e64_656d;
const ROUNDS: u64 = 10;
const REQUESTS: u64 = 200;

/// A small generator of numbers (splitmix64): the same seed, the same requests.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.roll() % n.max(1) as u64).unwrap_or(0)
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }
}

#[derive(Debug)]
struct Request {
    method: String,
    target: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Option<Vec<u8>>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_breaks_the_server() {
    let number =
        |name: &str, default| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default);
    let (seed, rounds) = (number("TANDEM_FUZZ_SEED", SEED), number("TANDEM_FUZZ_ROUNDS", ROUNDS));
    println!("TANDEM_FUZZ_SEED={seed} TANDEM_FUZZ_ROUNDS={rounds}");
    let all = record::all();
    let corpus: Vec<&Record> = all.iter().flat_map(|(_, records)| records).collect();
    let (mut refused, mut answered) = (0, 0);
    for round in 0..rounds {
        let mut dice = Dice(seed.wrapping_add(round));
        let server = Server::start().await;
        let ids = populate(&server).await;
        server.manager.stop(Duration::from_secs(5)).await;
        let mut before = picture(&server).await;
        for n in 0..REQUESTS {
            let request = mutate(dice.pick(&corpus).clone(), &ids, &mut dice);
            let shown = show(&request);
            let Request { method, target, headers, body } = request;
            let Some(answer) = server.send(&method, &target, &headers, body).await else { continue };
            let place = format!("seed {seed}, round {round}, request {n}: {shown}\nanswer {answer:?}");
            assert!(answer.status < 500, "{place}");
            let after = picture(&server).await;
            if answer.status >= 400 {
                refused += 1;
                assert!(
                    before == after,
                    "a refused request changed something: {place}\n{}",
                    change(&before, &after)
                );
                let is_fault = answer.text.is_empty() || answer.json().is_object();
                assert!(is_fault, "no fault: {place}");
            } else {
                answered += 1;
            }
            before = after;
        }
    }
    println!("{answered} requests were answered, {refused} refused");
    assert!(refused > 100 && answered > 100, "the mutations are too tame or too wild");
}

/// Shares of both projects, with replicas and rules; their ids.
async fn populate(server: &Server) -> Vec<String> {
    let mut ids = Vec::new();
    let kind = json!({"share_type": {"name": "default", "extra_specs": {
        "driver_handles_share_servers": "False", "replication_type": "readable",
    }}});
    ids.extend(make(server, "admin", "/v2/types", &kind).await);
    for token in ["admin", "demo"] {
        let share = json!({"share": {"name": "s", "share_proto": "NFS", "size": 1, "metadata": {"k": "v"}}});
        let share = make(server, token, "/v2/shares", &share).await.expect("a share");
        server.settle().await;
        let replica = json!({"share_replica": {"share_id": share}});
        ids.extend(make(server, token, "/v2/share-replicas", &replica).await);
        server.settle().await;
        let rule = json!({"allow_access": {"access_type": "ip", "access_to": "10.0.0.1"}});
        ids.extend(make(server, token, &format!("/v2/shares/{share}/action"), &rule).await);
        server.settle().await;
        ids.push(share);
    }
    let instances =
        server.manager.store().instances(&InstanceQuery::default()).await.expect("instances").items;
    ids.extend(instances.iter().flat_map(|i| i.exports.iter().map(|e| e.id.to_string())));
    ids.extend(instances.iter().map(|i| i.id.to_string()));
    assert!(ids.len() >= 8, "{ids:?}");
    ids
}

async fn make(server: &Server, token: &str, target: &str, body: &Value) -> Option<String> {
    let header = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
    let headers = [
        header("X-Auth-Token", token),
        header("Content-Type", "application/json"),
        header("X-OpenStack-Manila-API-Version", "2.99"),
    ];
    let answer = server.send("POST", target, &headers, Some(body.to_string().into_bytes())).await?;
    assert!(answer.status < 300, "{target}: {answer:?}");
    answer.json().as_object()?.values().find_map(|v| v["id"].as_str().map(str::to_owned))
}

/// Everything that a request could change.
async fn picture(server: &Server) -> String {
    let store = server.manager.store();
    let mut out = String::new();
    let shares = store.shares(&ShareQuery::default()).await.expect("shares").items;
    for share in &shares {
        let _ = writeln!(out, "{share:?}\n{:?}", store.rules(share.id).await.expect("rules"));
    }
    let _ = writeln!(out, "{:?}", store.instances(&InstanceQuery::default()).await.expect("instances").items);
    let _ = writeln!(out, "{:?}", store.share_types().await.expect("types"));
    let _ = writeln!(out, "{:?}", store.operations(&OperationQuery::default()).await.expect("operations"));
    for project in [ADMIN_PROJECT, "4dca70bbe34248d4b10115a63fd2a0b5"] {
        let (usage, quota) = (store.usage(project).await, store.quota(project).await);
        let _ = writeln!(out, "{usage:?} {quota:?}");
    }
    out
}

fn change(before: &str, after: &str) -> String {
    let lines = before.lines().zip(after.lines()).filter(|(a, b)| a != b);
    lines.map(|(a, b)| format!("- {a}\n+ {b}\n")).collect()
}

fn show(request: &Request) -> String {
    let short = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(600)]).into_owned();
        if bytes.len() > 600 { format!("{text}… ({} bytes)", bytes.len()) } else { text }
    };
    let headers: Vec<String> = request.headers.iter().map(|(k, v)| format!("{k}: {}", short(v))).collect();
    let body = request.body.as_deref().map(short);
    format!("{} {} {headers:?} {body:?}", request.method, short(request.target.as_bytes()))
}

/// Texts that break what takes them for something else.
const NASTY: &[&str] = &[
    "",
    " ",
    "\0",
    "a\0b",
    "'; DROP TABLE shares; --",
    "\" OR \"1\"=\"1",
    "../../../../etc/passwd",
    "..",
    "%s%n%x",
    "{}",
    "\u{1F4A9}",
    "\u{202e}abc",
    "e\u{301}",
    "None",
    "true",
    "-1",
    "0",
    "1e999",
    "18446744073709551616",
    "9223372036854775807",
    "00000000-0000-0000-0000-000000000000",
    "D792C80A-4890-4D02-8132-2102D27C9F54",
    "{d792c80a-4890-4d02-8132-2102d27c9f54}",
    "urn:uuid:d792c80a-4890-4d02-8132-2102d27c9f54",
    "not-a-uuid",
    "host@backend#pool",
    "@#",
    "*",
    "(",
    "2026-13-45T99:99:99",
];

fn nasty_text(dice: &mut Dice) -> String {
    match dice.below(12) {
        0 => "x".repeat(300),
        1 => "\u{e9}".repeat(70_000),
        2 => "A".repeat(1025),
        _ => dice.pick(NASTY).to_owned(),
    }
}

fn nasty(dice: &mut Dice) -> Value {
    match dice.below(14) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(0),
        3 => json!(-1),
        4 => json!(1.5),
        5 => json!(i64::MAX),
        6 => json!(u64::MAX),
        7 => json!([]),
        8 => json!({}),
        9 => json!([[["x"]], {"a": null}]),
        10 => (0..60).fold(json!("deep"), |inner, _| json!([inner])),
        11 => (0..60).fold(json!({}), |inner, _| json!({"a": inner})),
        _ => Value::String(nasty_text(dice)),
    }
}

fn mutate(record: Record, ids: &[String], dice: &mut Dice) -> Request {
    let swap = |text: &str, dice: &mut Dice| {
        let mut out = String::new();
        let mut rest = text;
        while let Some((at, id)) = next_id(rest) {
            out.push_str(&rest[..at]);
            out.push_str(&ids[dice.below(ids.len())]);
            rest = &rest[at + id.len()..];
        }
        out + rest
    };
    let mut headers: Vec<(String, Vec<u8>)> = Vec::new();
    for (name, value) in &record.req_headers {
        let value = if name.eq_ignore_ascii_case("X-Auth-Token") {
            if dice.one_in(3) { "demo" } else { "admin" }
        } else {
            value
        };
        headers.push((name.clone(), value.as_bytes().to_vec()));
    }
    let mut body = record.body().map(|b| swap(&b, dice).into_bytes());
    let mut target = swap(&record.target(), dice);
    let mut method = record.method.clone();
    for _ in 0..=dice.below(3) {
        match dice.below(8) {
            0 => {
                method =
                    (dice.pick(&["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE"])).into()
            }
            1 => target = mutate_target(&target, dice),
            2 => mutate_header(&mut headers, dice),
            3 => body = Some(mutate_bytes(body.unwrap_or_default(), dice)),
            4 if body.is_none() => body = Some(b"{}".to_vec()),
            _ => {
                let json = body.as_deref().and_then(|b| serde_json::from_slice::<Value>(b).ok());
                if let Some(mut json) = json {
                    mutate_json(&mut json, dice);
                    body = Some(json.to_string().into_bytes());
                }
            }
        }
    }
    Request { method, target, headers, body }
}

fn encode(text: &str) -> String {
    text.bytes()
        .take(3000)
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

fn mutate_target(target: &str, dice: &mut Dice) -> String {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut parts: Vec<String> = path.split('/').map(str::to_owned).collect();
    match dice.below(6) {
        0 => {
            let at = dice.below(parts.len());
            parts[at] = encode(&nasty_text(dice));
        }
        1 => parts.push(encode(&nasty_text(dice))),
        2 => parts.insert(2.min(parts.len()), "3b75bc3ecad941e691f7d1bec456ef4a".into()),
        3 => parts.push("%ff%fe".into()),
        4 => parts.push(String::new()),
        _ => {
            let name = dice.pick(&[
                "limit",
                "offset",
                "marker",
                "sort_key",
                "sort_dir",
                "all_tenants",
                "is_public",
                "metadata",
                "extra_specs",
                "share_id",
                "share_type",
                "status",
                "host",
                "backend",
                "pool",
                "name",
                "name~",
                "with_count",
                "is_soft_deleted",
                "export_location_id",
                "user_id",
                "project_id",
                "access_type",
            ]);
            let joint = if query.is_empty() { "" } else { "&" };
            return format!("{path}?{query}{joint}{}={}", encode(name), encode(&nasty_text(dice)));
        }
    }
    let path = parts.join("/");
    let path = if path.starts_with('/') { path } else { format!("/{path}") };
    if query.is_empty() { path } else { format!("{path}?{query}") }
}

fn mutate_header(headers: &mut Vec<(String, Vec<u8>)>, dice: &mut Dice) {
    let name = dice.pick(&[
        "X-OpenStack-Manila-API-Version",
        "X-OpenStack-Manila-API-Experimental",
        "X-Auth-Token",
        "Content-Type",
        "Accept",
        "Host",
    ]);
    let value: Vec<u8> = match dice.below(5) {
        0 => format!("2.{}", dice.below(130)).into_bytes(),
        1 => format!("2.{}", dice.below(100)).into_bytes(),
        2 => b"application/json; charset=utf-8".to_vec(),
        3 => vec![0xff, 0xfe, b'a'],
        _ => nasty_text(dice).into_bytes().into_iter().filter(|b| *b >= 32 && *b != 127).take(500).collect(),
    };
    headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
    if !dice.one_in(5) {
        headers.push((name.to_owned(), value));
    }
}

fn mutate_bytes(mut body: Vec<u8>, dice: &mut Dice) -> Vec<u8> {
    match dice.below(6) {
        0 => body.truncate(dice.below(body.len() + 1)),
        1 => body.insert(dice.below(body.len() + 1), 0),
        2 => body.insert(dice.below(body.len() + 1), 0xff),
        3 => return "[".repeat(50_000).into_bytes(),
        4 => return vec![b' '; 200_000],
        _ => body.extend_from_slice(b"}"),
    }
    body
}

fn mutate_json(value: &mut Value, dice: &mut Dice) {
    let deeper = !dice.one_in(3);
    match value {
        Value::Object(map) if deeper && !map.is_empty() => {
            let key = map.keys().nth(dice.below(map.len())).cloned().unwrap_or_default();
            if let Some(inner) = map.get_mut(&key) {
                mutate_json(inner, dice);
            }
        }
        Value::Array(items) if deeper && !items.is_empty() => {
            let at = dice.below(items.len());
            mutate_json(&mut items[at], dice);
        }
        Value::Object(map) => mutate_object(map, dice),
        other => *other = nasty(dice),
    }
}

fn mutate_object(map: &mut Map<String, Value>, dice: &mut Dice) {
    let key = map.keys().nth(dice.below(map.len())).cloned();
    match (dice.below(4), key) {
        (0, Some(key)) => {
            map.remove(&key);
        }
        (1, Some(key)) => {
            let value = map.remove(&key).unwrap_or_default();
            map.insert(nasty_text(dice), value);
        }
        (2, Some(key)) => {
            map.insert(key, nasty(dice));
        }
        _ => {
            let key = if dice.one_in(2) { nasty_text(dice) } else { "availability_zone".into() };
            map.insert(key, nasty(dice));
        }
    }
}
