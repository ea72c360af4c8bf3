//! What the stock clients were seen to send, sent again: each request must get the recorded status, and what a command
//! then showed (its table of fields and values) must stand in our answers.
//!
//! The recordings name no headers but the version. Answers were not kept: what was shown of them stands for them.

use serde_json::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tandem_manager::NewType;

use crate::compare::{Known, is_time, next_id};
use crate::differences::{self, Difference};
use crate::record;
use crate::server::{Answer, Server};

/// How long a `GET` may take to become what was recorded.
const DEADLINE: Duration = Duration::from_secs(20);

/// What the client makes up, or writes in lines of its own.
const CLIENTS_OWN: &[&str] =
    &["export_locations", "is_default", "optional_extra_specs", "properties", "visibility"];

/// One command that a person typed.
#[derive(Debug, Default)]
struct Command {
    what: String,
    requests: Vec<Request>,
    /// Its table of fields and values.
    shown: Vec<(String, String)>,
    /// Rows of its table of many things, by the heads of their columns.
    rows: Vec<Vec<(String, String)>>,
}

#[derive(Debug)]
struct Request {
    n: usize,
    method: String,
    target: String,
    version: Option<String>,
    experimental: bool,
    body: Option<Value>,
    status: u16,
}

/// The commands of a recording.
fn read(file: &str) -> Vec<Command> {
    let text = std::fs::read_to_string(record::folder().join(file)).expect("a recording of clients");
    let mut all: Vec<Command> = Vec::new();
    let mut head: Vec<String> = Vec::new();
    let mut n = 0;
    for line in text.lines() {
        if let Some(what) = line.strip_prefix("## $ ") {
            all.push(Command { what: what.to_owned(), ..Command::default() });
            head.clear();
            continue;
        }
        let Some(command) = all.last_mut() else { continue };
        if let Some(request) = request(line, n + 1) {
            n += 1;
            command.requests.push(request);
        } else if let Some(row) = differences::cells(line) {
            let row: Vec<String> = row.into_iter().map(str::to_owned).collect();
            match (head.first().map(String::as_str), &row[..]) {
                (None, _) => head = row,
                (Some("Field"), [field, value]) if !field.is_empty() => {
                    command.shown.push((field.clone(), value.clone()));
                }
                (Some("Field"), [_, value]) => {
                    let last = command.shown.last_mut().expect("a field");
                    last.1 = format!("{}\n{value}", last.1);
                }
                (Some(_), _) => command.rows.push(head.iter().cloned().zip(row).collect()),
            }
        }
    }
    all
}

/// `POST /v2/shares [mv 2.98 exp=true] {…} -> 200`
fn request(line: &str, n: usize) -> Option<Request> {
    let (method, rest) = line.split_once(' ')?;
    if !["GET", "POST", "PUT", "DELETE"].contains(&method) {
        return None;
    }
    let (target, rest) = rest.split_once(" [mv ")?;
    let (spoken, rest) = rest.split_once("] ")?;
    let (body, status) = rest.rsplit_once(" -> ")?;
    let version = spoken.split(' ').next().filter(|v| *v != "None");
    Some(Request {
        n,
        method: method.to_owned(),
        target: target.to_owned(),
        version: version.map(str::to_owned),
        experimental: spoken.ends_with("exp=true"),
        body: (!body.trim().is_empty()).then(|| serde_json::from_str(body).expect("a body of JSON")),
        status: status.parse().expect("a status"),
    })
}

struct Replay {
    file: &'static str,
    server: Server,
    known: Known,
    replayed: usize,
    /// Places that differ as listed.
    needed: BTreeSet<String>,
    wrong: Vec<String>,
}

impl Replay {
    async fn run(&mut self, commands: &[Command], listed: &differences::Differences) {
        for command in commands {
            self.server.settle().await;
            let mut answers = Vec::new();
            for (at, request) in command.requests.iter().enumerate() {
                // Of a row of looks at one thing, the last one tells what was waited for.
                let looks = |other: Option<&Request>| {
                    request.method == "GET"
                        && other.is_some_and(|o| o.method == "GET" && o.target == request.target)
                };
                if looks(command.requests.get(at + 1)) {
                    continue;
                }
                if at > 0 && looks(command.requests.get(at - 1)) {
                    self.server.settle().await;
                }
                let place = format!("{}#{}", self.file, request.n);
                let allowed = listed.get(&place).map(Vec::as_slice).unwrap_or_default();
                if allowed.contains(&Difference::NotSent) {
                    self.needed.insert(place);
                    continue;
                }
                let answer = self.send(request, &place, allowed, &command.what).await;
                if request.method == "POST" {
                    self.bind_made(command, at, &answer);
                }
                answers.push(answer.json());
            }
            self.bind_listed(command, &answers);
            let last = command.requests.last().map_or(0, |request| request.n);
            let place = format!("{}#{last}", self.file);
            let allowed = listed.get(&place).map(Vec::as_slice).unwrap_or_default();
            self.compare(command, &answers, &place, allowed);
        }
    }

    async fn send(&mut self, request: &Request, place: &str, allowed: &[Difference], what: &str) -> Answer {
        let mut headers = Vec::new();
        let mut header = |name: &str, value: &str| headers.push((name.to_owned(), value.as_bytes().to_vec()));
        if request.status != 401 {
            header("X-Auth-Token", "admin");
        }
        if let Some(version) = &request.version {
            header("X-OpenStack-Manila-API-Version", version);
        }
        if request.experimental {
            header("X-OpenStack-Manila-API-Experimental", "true");
        }
        if request.body.is_some() {
            header("Content-Type", "application/json");
        }
        let target = self.known.translate(&request.target);
        let body = request.body.as_ref().map(|body| self.known.translate(&body.to_string()).into_bytes());
        let listed = allowed.iter().find_map(|d| match d {
            Difference::Status(status) => Some(*status),
            _ => None,
        });
        let wanted = listed.unwrap_or(request.status);
        let begun = Instant::now();
        self.replayed += 1;
        loop {
            let answer =
                self.server.send(&request.method, &target, &headers, body.clone()).await.expect("a request");
            if answer.status == wanted {
                if listed.is_some_and(|listed| listed != request.status) {
                    self.needed.insert(place.to_owned());
                }
                return answer;
            }
            if request.method != "GET" || begun.elapsed() > DEADLINE {
                let ours = format!("recorded {}, ours {}: {}", request.status, answer.status, answer.text);
                self.wrong.push(format!("{place} [{what}] {} {target}: {ours}", request.method));
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// What a request made has our id: the recorded one is shown, or asked about next.
    fn bind_made(&mut self, command: &Command, at: usize, answer: &Answer) {
        let json = answer.json();
        let made = json.as_object().and_then(|o| o.values().next()).and_then(|v| v["id"].as_str());
        let shown = command.shown.iter().find(|(field, _)| field == "id").map(|(_, id)| id.as_str());
        let later = command.requests[at + 1..].iter().find_map(|r| next_id(&r.target).map(|(_, id)| id));
        let recorded = shown.or(later).filter(|id| !self.known.is_bound(id));
        if let (Some(made), Some(recorded)) = (made, recorded) {
            self.known.bind(recorded, made);
        }
    }

    /// A replica of a known share that a list shows for the first time is ours in the same zone.
    fn bind_listed(&mut self, command: &Command, answers: &[Value]) {
        let ours = answers.iter().filter_map(|a| a["share_replicas"].as_array()).flatten();
        let ours: Vec<&Value> = ours.collect();
        for row in &command.rows {
            let cell = |name: &str| row.iter().find(|(head, _)| head == name).map(|(_, cell)| cell.as_str());
            let (Some(id), Some(share), Some(zone)) =
                (cell("ID"), cell("Share ID"), cell("Availability Zone"))
            else {
                continue;
            };
            let share = self.known.translate(share);
            let same = |o: &&&Value| o["share_id"] == share.as_str() && o["availability_zone"] == zone;
            if let (false, Some(found)) = (self.known.is_bound(id), ours.iter().find(same)) {
                self.known.bind(id, found["id"].as_str().expect("an id"));
            }
        }
    }

    /// Each field that was shown stands in what was answered.
    fn compare(&mut self, command: &Command, answers: &[Value], place: &str, allowed: &[Difference]) {
        if command.shown.is_empty() {
            return;
        }
        let shown: Vec<(String, String)> =
            command.shown.iter().map(|(field, value)| (field.clone(), self.known.translate(value))).collect();
        let id = shown.iter().find(|(field, _)| field == "id").map(|(_, id)| id.as_str());
        let mut best = (0, &Value::Null);
        for answer in answers {
            closest(answer, &shown, id, &mut best);
        }
        let mut wrong = Vec::new();
        for (field, recorded) in &shown {
            if CLIENTS_OWN.contains(&field.as_str()) {
                continue;
            }
            let ours = best.1.get(field).map(text);
            let same = ours.as_ref().is_some_and(|ours| {
                // Manila is late to note when something was changed for the first time.
                ours == recorded || (is_time(ours) && (is_time(recorded) || field == "updated_at"))
            });
            let listed = allowed.contains(&Difference::Body(field.clone()));
            if listed && !same {
                self.needed.insert(place.to_owned());
            } else if !same {
                wrong.push(format!(
                    "{place} [{}] {field}: recorded {recorded:?}, ours {ours:?}",
                    command.what
                ));
            }
        }
        self.wrong.extend(wrong);
    }
}

/// The object of an answer, however deep, that has most of the fields; the latest of equals, and the one of this id if any.
fn closest<'a>(
    value: &'a Value,
    shown: &[(String, String)],
    id: Option<&str>,
    best: &mut (usize, &'a Value),
) {
    if let Value::Object(fields) = value {
        let same = id.is_none_or(|id| fields.get("id").is_some_and(|ours| ours == id));
        let count = shown.iter().filter(|(field, _)| fields.contains_key(field)).count();
        if same && count > 0 && count >= best.0 {
            *best = (count, value);
        }
        fields.values().for_each(|value| closest(value, shown, id, best));
    }
    if let Value::Array(all) = value {
        all.iter().for_each(|value| closest(value, shown, id, best));
    }
}

/// A value as the client shows it.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::String(text) => text.clone(),
        Value::Object(fields) if !fields.is_empty() => {
            let lines: Vec<String> =
                fields.iter().map(|(key, value)| format!("{key} : {}", text(value))).collect();
            lines.join("\n")
        }
        other => other.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_clients_sent_is_answered_as_it_was() {
    let listed = differences::read();
    let (mut replayed, mut needed, mut wrong) = (0, BTreeSet::new(), Vec::new());
    for (file, name) in [("10", "10-clients.md"), ("10b", "10b-clients.md")] {
        let server = Server::start().await;
        let extra_specs = [("driver_handles_share_servers".to_owned(), "False".to_owned())].into();
        let default = NewType { name: "default".into(), description: None, is_public: true, extra_specs };
        server.manager.create_type(default).await.expect("the default type");
        let mut replay = Replay { file, server, known: Known::default(), replayed: 0, needed, wrong };
        replay.run(&read(name), &listed).await;
        replayed += replay.replayed;
        (needed, wrong) = (replay.needed, replay.wrong);
    }
    let places = listed.keys().filter(|place| place.starts_with("10"));
    for place in places.filter(|place| !needed.contains(*place)) {
        wrong.push(format!("{place}: docs/openstack.md lists a difference that there is not"));
    }
    println!("{replayed} requests of the clients replayed");
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
    assert!(replayed >= 280, "only {replayed} requests were replayed");
}
