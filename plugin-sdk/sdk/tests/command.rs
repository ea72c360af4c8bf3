//! Running tools: arguments, locale, bounds, deadline, cancel.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic is a failed test with its reason"
)]

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tandem_sdk::command::Command;
use tandem_sdk::schemars::{self, JsonSchema};
use tandem_sdk::*;

/// No settings.
#[derive(serde::Deserialize, JsonSchema)]
struct Config {}

/// Runs the tool that the pool's name in `create_instance` says.
struct Runs;

impl Driver for Runs {
    const NAME: &'static str = "runs";
    const VERSION: &'static str = "1";
    const SUMMARY: &'static str = "Runs tools.";
    type Config = Config;

    async fn open(_: Config) -> Result<Self> {
        Ok(Self)
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }
    async fn pools(&self, _: &OpContext) -> Result<Vec<Pool>> {
        Ok(Vec::new())
    }
    async fn list_instances(&self, _: &OpContext) -> Result<Vec<InstanceId>> {
        Ok(Vec::new())
    }
    async fn observe_instance(&self, _: &OpContext, _: ObserveInstance) -> Result<Option<Observation>> {
        Ok(None)
    }
    async fn create_instance(&self, cx: &OpContext, call: CreateInstance) -> Result<Outcome<InstanceInfo>> {
        let text = |name: &str| call.spec.options.get(name).and_then(Value::as_str).map(str::to_owned);
        let args: Vec<String> = serde_json::from_value(call.spec.options["args"].clone()).unwrap();
        let mut command = Command::new(text("program").unwrap_or_default()).args(args);
        if let Some(stdin) = text("stdin") {
            command = command.stdin(stdin);
        }
        if let Some(secret) = text("secret") {
            command = command.secret_arg(secret);
        }
        if let Some(ms) = call.spec.options.get("deadline_ms").and_then(Value::as_u64) {
            command = command.deadline(Duration::from_millis(ms));
        }
        let output = command.run(cx).await?;
        let mut info = InstanceInfo::default();
        info.hints.insert("stdout".to_owned(), String::from_utf8_lossy(&output.stdout).into());
        Ok(Outcome::Changed(info))
    }
    async fn resize_instance(&self, _: &OpContext, _: ResizeInstance) -> Result<Outcome<InstanceInfo>> {
        Err(Error::unsupported("not here"))
    }
    async fn delete_instance(&self, _: &OpContext, _: DeleteInstance) -> Result<Outcome<()>> {
        Ok(Outcome::Unchanged(()))
    }
    async fn update_access(&self, _: &OpContext, _: UpdateAccess) -> Result<Outcome<AccessReport>> {
        Err(Error::unsupported("not here"))
    }
    async fn ensure_instance(&self, _: &OpContext, _: EnsureInstance) -> Result<Outcome<InstanceInfo>> {
        Err(Error::unsupported("not here"))
    }
}

wire_driver!(Runs);

struct Deaf;

impl Host for Deaf {
    fn signal(&self, _: Signal) {}
    fn call(&self, _: Value) -> BoxFuture<'static, Result<Value>> {
        Box::pin(std::future::ready(Ok(Value::Null)))
    }
}

fn request(options: Value) -> Request {
    let id = "018f0000-0000-7000-8000-000000000001";
    let args = json!({"spec": {
        "instance": id, "resource": id, "kind": "share", "pool": "p", "size_bytes": 1, "epoch": 1, "options": options
    }});
    let verb = CreateInstance::NAME.to_owned();
    Request { op: OpId(id.parse().unwrap()), delivery: 1, deadline_ms: None, verb, args }
}

async fn runs() -> Dispatcher<Runs> {
    Dispatcher::open(Arc::new(Deaf), Value::Null).await.unwrap()
}

/// Runs a tool and answers what it printed.
async fn run(options: Value) -> Result<String> {
    let answer = runs().await.call(request(options), Vec::new()).await?;
    Ok(answer["value"]["hints"]["stdout"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn arguments_are_passed_as_they_are() {
    let odd = ["a b", "$HOME", "'; echo x", "*"];
    let said =
        run(json!({"program": "/usr/bin/printf", "args": ["%s|", odd[0], odd[1], odd[2], odd[3]]})).await;
    assert_eq!(said.unwrap(), "a b|$HOME|'; echo x|*|");
}

#[tokio::test]
async fn the_environment_is_almost_empty() {
    let said = run(json!({"program": "/usr/bin/env", "args": []})).await.unwrap();
    let mut names: Vec<&str> = said.lines().filter_map(|line| line.split('=').next()).collect();
    names.sort_unstable();
    assert_eq!(names, ["LANG", "LC_ALL", "PATH"]);
    assert!(said.contains("LC_ALL=C\n"));
}

#[tokio::test]
async fn input_is_fed() {
    assert_eq!(run(json!({"program": "/bin/cat", "args": [], "stdin": "hello"})).await.unwrap(), "hello");
}

#[tokio::test]
async fn a_failure_holds_the_transcript_and_no_secret() {
    let options = json!({"program": "/bin/sh", "args": ["-c", "echo out; echo no such pool >&2; exit 3"], "secret": "hunter2"});
    let error = run(options).await.unwrap_err();
    assert_eq!(error.message, "the tool failed (status 3): no such pool");
    let (name, transcript) = &error.context[0];
    assert_eq!(name, "transcript");
    assert!(
        transcript.starts_with("$ /bin/sh -c 'echo out; echo no such pool >&2; exit 3' '***'\n[status 3"),
        "{transcript}"
    );
    assert!(transcript.contains("[stdout]\nout\n") && !transcript.contains("hunter2"), "{transcript}");
}

#[tokio::test]
async fn a_relative_path_is_refused_and_a_missing_tool_needs_an_operator() {
    assert_eq!(run(json!({"program": "cat", "args": []})).await.unwrap_err().kind, ErrorKind::Bug);
    let error = run(json!({"program": "/nonexistent/tool", "args": []})).await.unwrap_err();
    assert_eq!((error.kind, error.retry), (ErrorKind::Unavailable, Retry::AfterOperator));
}

#[tokio::test]
async fn output_without_end_is_bounded() {
    let error =
        run(json!({"program": "/usr/bin/head", "args": ["-c", "30000000", "/dev/zero"]})).await.unwrap_err();
    assert!(error.message.contains("printed more than"), "{error}");
}

#[tokio::test]
async fn a_tool_is_killed_with_its_children_at_its_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("alive");
    // The child would touch the file again and again; after the kill nobody does.
    let script = format!("while :; do : > {0}; sleep 0.05; done & wait", mark.display());
    let options = json!({"program": "/bin/sh", "args": ["-c", script], "deadline_ms": 300});
    let error = run(options).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert!(mark.exists());
    // A signal that was sent takes a moment to arrive.
    tokio::time::sleep(Duration::from_millis(100)).await;
    std::fs::remove_file(&mark).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!mark.exists(), "the tool's child still runs");
}

#[tokio::test]
async fn a_cancelled_call_kills_its_tool() {
    let runs = runs().await;
    let call =
        tokio::spawn(runs.call(request(json!({"program": "/bin/sleep", "args": ["1000"]})), Vec::new()));
    let args = serde_json::to_value(Cancel { delivery: 1 }).unwrap();
    let cancel = Request { verb: CANCEL_VERB.to_owned(), args, ..request(json!({})) };
    runs.call(cancel, Vec::new()).await.unwrap();
    assert_eq!(call.await.unwrap().unwrap_err().kind, ErrorKind::Cancelled);
}
