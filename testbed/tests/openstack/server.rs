//! A whole server in this process, set up as the recorded one was.

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tandem_driver_fake::{Fake, Fault, What, World};
use tandem_host::{Library, Options};
use tandem_manager::clock::{Clock, SystemClock};
use tandem_manager::store::memory::MemoryStore;
use tandem_manager::{BackendConfig, Manager};
use tandem_server::auth::Tokens;
use tandem_server::native::Native;
use tandem_server::policy::Policy;
use tandem_server::{App, Settings};
use tower::ServiceExt;

/// Projects and users of the recordings.
pub(crate) const ADMIN_PROJECT: &str = "3b75bc3ecad941e691f7d1bec456ef4a";
const ADMIN_USER: &str = "733e8a3049454427be4c9d06337bef1d";
const DEMO_PROJECT: &str = "4dca70bbe34248d4b10115a63fd2a0b5";
const DEMO_USER: &str = "5aa9e48569be4a7ea7c30ecb354fd942";

/// The back ends of the recorded server, in its order: name, zone, whether the storage replicates by itself.
const BACKENDS: [(&str, &str, bool); 6] = [
    ("WR1", "az1", true),
    ("DR1", "az1", true),
    ("DR2", "az2", true),
    ("WR2", "az2", true),
    ("ALPHA", "az1", false),
    ("BETA", "az2", false),
];

/// A server that runs.
pub(crate) struct Server {
    pub(crate) manager: Arc<Manager>,
    world: World,
    router: Router,
    _tokens: tempfile::TempDir,
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    /// The body as JSON; no body is empty text, as in the recordings.
    pub(crate) fn json(&self) -> Value {
        if self.text.is_empty() {
            return json!("");
        }
        serde_json::from_str(&self.text).unwrap_or_else(|_| json!({"not JSON": self.text}))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_under("").await
    }

    /// The same under a policy file with these rules.
    pub(crate) async fn start_under(rules: &str) -> Self {
        let world_name = format!("openstack-{}", uuid::Uuid::new_v4());
        let library = Library::linked::<tandem_sdk::InProcess<Fake>>().expect("the model driver's manifest");
        let backends = BACKENDS.map(|(name, zone, storage)| {
            let mut settings = json!({
                "world": world_name,
                "site": name,
                "pool": format!("fake_pool_for_{name}"),
                "mode": if storage { "storage" } else { "streamed" },
                "facts": {"snapshot_support": true, "create_share_from_snapshot_support": true},
            });
            if name == "BETA" {
                settings["facts"]["security_services"] = json!(["ldap", "kerberos"]);
            }
            let library = library.clone();
            let open = Arc::new(move || -> tandem_host::BoxFuture<'static, _> {
                let (library, settings) = (library.clone(), settings.clone());
                Box::pin(async move { library.open(name, &settings, Options::default()).await })
            });
            BackendConfig {
                name: name.into(),
                driver: "fake".into(),
                driver_version: "1.0".into(),
                availability_zone: zone.into(),
                reserved_percentage: 0,
                max_over_subscription_ratio: 20.0,
                open,
            }
        });
        let clock = Arc::new(SystemClock);
        let started_at = clock.now();
        let settings = tandem_manager::Settings { host: "peerhost".into(), ..Default::default() };
        let manager = Manager::new(Arc::new(MemoryStore::new()), clock, backends.to_vec(), settings);
        manager.start();
        let manager = Arc::new(manager);
        let (folder, tokens) = tokens();
        let policy = folder.path().join("policy.yaml");
        std::fs::write(&policy, rules).expect("a policy file");
        let app = Arc::new(App {
            manager: manager.clone(),
            auth: Arc::new(tokens),
            policy: Arc::new(Policy::load(policy).expect("a policy")),
            settings: Settings::default(),
        });
        let secrets = tandem_server::native::Secrets::default();
        let native = Native { app: app.clone(), drivers: Arc::new(Vec::new), started_at, secrets };
        let router = tandem_server::router(app).merge(tandem_server::native::router(Arc::new(native)));
        let server = Self { manager, world: World::named(&world_name), router, _tokens: folder };
        server.until_backends_are_up().await;
        server
    }

    async fn until_backends_are_up(&self) {
        for _ in 0..1000 {
            let up = |b: &tandem_manager::BackendView| {
                b.state == tandem_manager::BackendState::Up && !b.pools.is_empty()
            };
            if self.manager.backends().iter().all(up) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the back ends do not come up: {:?}", self.manager.backends());
    }

    /// Whether nothing runs.
    pub(crate) async fn is_idle(&self) -> bool {
        let store = self.manager.store();
        for op in store.unfinished().await.expect("the store") {
            let share = store.share(op.share_id).await.expect("the store");
            let task = share.and_then(|s| s.task_state).unwrap_or_default();
            // A migration that waits to be completed rests, also under a task state that was reset.
            let rests = ["migration_driver_phase1_done", "data_copying_completed", "migration_error", ""]
                .contains(&task.as_str());
            if !rests || op.proceed || op.cancel || op.intent.kind() != "migrate" {
                return false;
            }
        }
        true
    }

    /// Waits until every operation has ended.
    pub(crate) async fn settle(&self) {
        for _ in 0..3000 {
            if self.is_idle().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let left = self.manager.store().unfinished().await.expect("the store");
        panic!("operations do not end: {left:#?}");
    }

    /// Lets the storage do something at the next call that fits.
    pub(crate) fn script(&self, fault: Fault) {
        self.world.script(fault);
    }

    /// Lets every call of a driver take a while, so that what is on its way can be seen on its way.
    pub(crate) fn slow_down(&self, slow: bool) {
        self.world.clear_faults();
        if slow {
            let what = What::Delay { ms: 1500 };
            self.world.script(Fault {
                verb: String::new(),
                site: String::new(),
                skip: 0,
                times: u32::MAX,
                what,
            });
        }
    }

    /// Sends a request as it is.
    pub(crate) async fn send(
        &self,
        method: &str,
        target: &str,
        headers: &[(String, Vec<u8>)],
        body: Option<Vec<u8>>,
    ) -> Option<Answer> {
        let method = Method::from_bytes(method.as_bytes()).ok()?;
        let mut request = Request::builder().method(method).uri(target).header("Host", "127.0.0.1:8786");
        for (name, value) in headers {
            request = request.header(name.as_str(), value.as_slice());
        }
        if let Some(body) = &body {
            request = request.header("Content-Length", body.len());
        }
        let request = request.body(body.map_or_else(Body::empty, Body::from)).ok()?;
        let response = self.router.clone().oneshot(request).await.expect("the router answers");
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a body").to_bytes();
        let text = String::from_utf8(bytes.to_vec()).expect("a body of text");
        Some(Answer { status: parts.status.as_u16(), headers: parts.headers, text })
    }
}

fn tokens() -> (tempfile::TempDir, Tokens) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tokens.toml");
    let entry = |token: &str, user: &str, project: &str, roles: &str| {
        let hash = blake3::hash(token.as_bytes()).to_hex();
        format!(
            "[[token]]\nhash = \"blake3:{hash}\"\nuser = \"{user}\"\nproject = \"{project}\"\nroles = {roles}\n"
        )
    };
    let text = entry("admin", ADMIN_USER, ADMIN_PROJECT, "[\"admin\", \"member\", \"reader\"]")
        + &entry("demo", DEMO_USER, DEMO_PROJECT, "[\"member\", \"reader\"]");
    std::fs::write(&path, text).expect("a tokens file");
    let tokens = Tokens::load(path).expect("tokens");
    (folder, tokens)
}
