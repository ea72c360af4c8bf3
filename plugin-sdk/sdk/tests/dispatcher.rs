//! What the dispatcher makes of a driver: abilities, panics, cancel, deadline, progress.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic is a failed test with its reason"
)]

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tandem_sdk::schemars::{self, JsonSchema};
use tandem_sdk::*;

/// Settings of the driver under test.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Config {
    /// What the capabilities claim: `nothing`, `attach` or `streams`.
    claims: String,
}

struct Probe {
    claims: String,
}

impl Driver for Probe {
    const NAME: &'static str = "probe";
    const VERSION: &'static str = "1";
    const SUMMARY: &'static str = "Misbehaves on demand.";
    type Config = Config;

    async fn open(config: Config) -> Result<Self> {
        assert_ne!(config.claims, "panic", "asked to");
        Ok(Self { claims: config.claims })
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        match self.claims.as_str() {
            "attach" => capabilities.attach = Some(AttachKind::Tree),
            "streams" => {
                capabilities.replication = Some(ReplicationCapability {
                    styles: vec![Style::Dr],
                    transport: Transport::Streamed { formats: Vec::new(), resumable: false },
                    domain: None,
                    max_instances: None,
                    quiesce: false,
                    lag_bytes: false,
                    converts: false,
                    fingerprints: Vec::new(),
                });
            }
            _ => {}
        }
        capabilities
    }

    /// Panics.
    async fn pools(&self, _: &OpContext) -> Result<Vec<Pool>> {
        panic!("pools are too deep")
    }

    /// Waits for a cancel in a loop that does not await.
    async fn list_instances(&self, cx: &OpContext) -> Result<Vec<InstanceId>> {
        cx.blocking(|cx| {
            loop {
                cx.check()?;
                std::thread::sleep(Duration::from_millis(1));
            }
        })
        .await
    }

    /// Reports progress a thousand times.
    async fn observe_instance(&self, cx: &OpContext, _: ObserveInstance) -> Result<Option<Observation>> {
        for done in 0..1000 {
            cx.progress(Progress::of("count", done, Some(999)));
        }
        cx.checkpoint(ResumeToken { kind: "k".to_owned(), version: 1, to: None, data: json!(7) }).await?;
        Ok(None)
    }

    /// Waits for a cancel.
    async fn create_instance(&self, cx: &OpContext, _: CreateInstance) -> Result<Outcome<InstanceInfo>> {
        cx.or_cancelled(std::future::pending()).await
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

impl Streamed for Probe {
    async fn make_point(&self, _: &OpContext, _: MakePoint) -> Result<Outcome<PointInfo>> {
        Err(Error::unsupported("not here"))
    }
    async fn release_point(&self, _: &OpContext, _: ReleasePoint) -> Result<Outcome<()>> {
        Ok(Outcome::Unchanged(()))
    }
    /// Reads until it is told to stop.
    async fn send(&self, cx: &OpContext, _: SendStream, stream: OwnedFd) -> Result<TransferReport> {
        cx.blocking(move |cx| {
            let mut stream = Stream::new(stream, cx)?;
            std::io::copy(&mut stream, &mut std::io::sink()).map_err(|e| stream.error(&e))?;
            Ok(TransferReport::default())
        })
        .await
    }
    async fn receive(&self, _: &OpContext, _: Receive, _: OwnedFd) -> Result<Outcome<TransferReport>> {
        Err(Error::unsupported("not here"))
    }
    async fn discard_partial(&self, _: &OpContext, _: DiscardPartial) -> Result<Outcome<()>> {
        Ok(Outcome::Unchanged(()))
    }
}

wire_driver!(Probe: Streamed);

#[derive(Default)]
struct Listener {
    signals: Mutex<Vec<Signal>>,
    calls: Mutex<Vec<Value>>,
}

impl Host for Listener {
    fn signal(&self, signal: Signal) {
        self.signals.lock().unwrap().push(signal);
    }
    fn call(&self, call: Value) -> BoxFuture<'static, Result<Value>> {
        self.calls.lock().unwrap().push(call);
        Box::pin(std::future::ready(Ok(Value::Null)))
    }
}

async fn open(claims: &str) -> Result<(Dispatcher<Probe>, Arc<Listener>)> {
    let host = Arc::<Listener>::default();
    let probe =
        Dispatcher::<Probe>::open(Arc::clone(&host) as Arc<dyn Host>, json!({"claims": claims})).await?;
    Ok((probe, host))
}

fn request<V: Verb>(delivery: u64, verb: V) -> Request {
    Request {
        op: OpId(uuid()),
        delivery,
        deadline_ms: None,
        verb: V::NAME.to_owned(),
        args: serde_json::to_value(verb).unwrap(),
    }
}

fn uuid<T: std::str::FromStr<Err: std::fmt::Debug>>() -> T {
    "018f0000-0000-7000-8000-000000000001".parse().unwrap()
}

fn send() -> SendStream {
    let spec = SendSpec {
        instance: uuid(),
        epoch: Epoch(1),
        to: uuid(),
        from: None,
        resume: None,
        format: String::new(),
        bandwidth: None,
    };
    SendStream { spec }
}

fn create() -> CreateInstance {
    let spec = InstanceSpec {
        instance: uuid(),
        resource: uuid(),
        kind: ResourceKind::Share,
        pool: String::new(),
        size_bytes: 1,
        protocol: String::new(),
        epoch: Epoch(1),
        replication: None,
        options: serde_json::Map::new(),
    };
    CreateInstance { spec }
}

async fn cancel(probe: &Dispatcher<Probe>, delivery: u64) {
    let args = serde_json::to_value(Cancel { delivery }).unwrap();
    let request =
        Request { op: OpId(uuid()), delivery, deadline_ms: None, verb: CANCEL_VERB.to_owned(), args };
    probe.call(request, Vec::new()).await.unwrap();
}

#[test]
fn the_manifest_describes_the_settings() {
    let manifest = Dispatcher::<Probe>::manifest();
    let claims = &manifest.settings["properties"]["claims"];
    assert_eq!(claims["type"], "string");
    assert!(claims["description"].as_str().unwrap().starts_with("What the capabilities claim"));
    assert_eq!(manifest.settings["additionalProperties"], false);
    assert_eq!(manifest.contract, CONTRACT_VERSION);
}

#[tokio::test]
async fn what_is_claimed_and_not_wired_does_not_open() {
    let error = open("attach").await.map(drop).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Bug);
    assert!(error.message.contains("`Attachable`") && error.message.contains("export_driver!"), "{error}");
    assert!(open("streams").await.is_err(), "replication is claimed as a whole, and its roles are not wired");
    assert_eq!(open("panic").await.map(drop).unwrap_err().kind, ErrorKind::Bug);
}

#[tokio::test]
async fn what_is_wired_and_not_claimed_is_unsupported() {
    let (probe, _) = open("nothing").await.unwrap();
    let error = probe.call(request(1, send()), Vec::new()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(error.message.contains("`Streamed`"), "{error}");
}

#[tokio::test]
async fn a_panic_is_a_bug_that_names_the_verb() {
    let (probe, _) = open("nothing").await.unwrap();
    let error = probe.call(request(1, Pools {}), Vec::new()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Bug);
    assert_eq!(error.message, "the driver panicked in `pools`: pools are too deep");
    assert!(probe.call(request(2, DeleteInstance { instance: uuid() }), Vec::new()).await.is_ok());
}

#[tokio::test]
async fn a_cancel_stops_what_awaits_and_what_blocks() {
    let (probe, _) = open("nothing").await.unwrap();
    let waits = tokio::spawn(probe.call(request(1, create()), Vec::new()));
    let blocks = tokio::spawn(probe.call(request(2, ListInstances {}), Vec::new()));
    cancel(&probe, 1).await;
    assert_eq!(waits.await.unwrap().unwrap_err().kind, ErrorKind::Cancelled);
    assert!(!blocks.is_finished(), "only the named call is cancelled");
    cancel(&probe, 2).await;
    assert_eq!(blocks.await.unwrap().unwrap_err().kind, ErrorKind::Cancelled);
    cancel(&probe, 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_deadline_stops_a_call() {
    let (probe, _) = open("nothing").await.unwrap();
    let request = Request { deadline_ms: Some(5000), ..request(1, create()) };
    let error = probe.call(request, Vec::new()).await.unwrap_err();
    assert_eq!((error.kind, error.retry), (ErrorKind::Cancelled, Retry::Safe));
    assert!(error.message.contains("at its deadline"), "{error}");
}

#[tokio::test]
async fn shutdown_stops_everything_and_waits() {
    let (probe, _) = open("nothing").await.unwrap();
    let waits = tokio::spawn(probe.call(request(1, create()), Vec::new()));
    let blocks = tokio::spawn(probe.call(request(2, ListInstances {}), Vec::new()));
    probe.shutdown().await;
    assert!(waits.await.unwrap().is_err() && blocks.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn progress_is_thinned_and_its_end_is_sent() {
    let (probe, host) = open("nothing").await.unwrap();
    probe.call(request(9, ObserveInstance { instance: uuid() }), Vec::new()).await.unwrap();
    let signals = host.signals.lock().unwrap().clone();
    let done: Vec<u64> = signals
        .iter()
        .map(|signal| match signal {
            Signal::Progress { delivery: 9, progress } => progress.done,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(done, [0, 999]);
    let calls = host.calls.lock().unwrap().clone();
    assert_eq!(calls[0]["host_call"], "checkpoint");
    assert_eq!(calls[0]["token"]["data"], 7);
}
