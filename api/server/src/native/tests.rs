//! The document is held against the server: every path in it answers, every route is in it, and every answer is as its
//! schema says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tandem_contract::{Error, InstanceId, Manifest, OpId, ResourceId};
use tandem_manager::clock::{Clock as _, SystemClock};
use tandem_manager::model::{InstanceStatus, Intent};
use tandem_manager::store::memory::MemoryStore;
use tandem_manager::store::{Batch, Row};
use tandem_manager::{BackendConfig, Caller, Manager, NewReplica, NewRule, NewShare, NewType};
use tower::ServiceExt as _;

use super::document::DOCUMENT;
use super::{DriverFile, Native, ROUTES, Secrets, router};
use crate::app::{App, Settings};
use crate::auth::{Authenticator, Identity, NoAuth, Refusal, Tokens};
use crate::policy::Policy;

/// A server with a share that replicates, whose operation has not begun; and the ids of all that.
struct Server {
    native: Arc<Native>,
    share: ResourceId,
    instance: InstanceId,
    operation: OpId,
}

impl Server {
    async fn new() -> Self {
        Self::with(Arc::new(NoAuth::default())).await
    }

    async fn with(auth: Arc<dyn Authenticator>) -> Self {
        let open = Arc::new(|| -> tandem_host::BoxFuture<'static, Result<tandem_host::Backend, Error>> {
            Box::pin(std::future::ready(Err(Error::unavailable("the cable is out"))))
        });
        let backend = BackendConfig {
            name: "alpha".into(),
            driver: "directory".into(),
            driver_version: "0.1.0".into(),
            availability_zone: "zone-a".into(),
            reserved_percentage: 0,
            max_over_subscription_ratio: 20.0,
            open,
        };
        let clock = Arc::new(SystemClock);
        let started_at = clock.now();
        let manager = Manager::new(
            Arc::new(MemoryStore::new()),
            clock,
            vec![backend],
            tandem_manager::Settings::default(),
        );
        let (share, instance, operation) = populate(&manager).await;
        let app = App {
            manager: Arc::new(manager),
            auth,
            policy: Arc::new(Policy::defaults()),
            settings: Settings::default(),
        };
        let manifest = Manifest {
            name: "directory".into(),
            version: "0.1.0".into(),
            contract: (1, 0),
            features: Vec::new(),
            settings: Value::Null,
            summary: "Plain folders.".into(),
            tokens: Vec::new(),
        };
        let mut secrets = Secrets::default();
        secrets.add("alpha", "of alpha");
        secrets.add("beta", "of beta");
        let drivers = vec![
            DriverFile { host: None, file: "libtandem_driver_directory.so".into(), driver: Ok(manifest) },
            DriverFile { host: None, file: "notes.so".into(), driver: Err("notes.so is no driver.".into()) },
            DriverFile { host: Some("far".into()), file: String::new(), driver: Err("far is away.".into()) },
        ];
        let native = Arc::new(Native {
            app: Arc::new(app),
            drivers: Arc::new(move || drivers.clone()),
            started_at,
            secrets,
        });
        Self { native, share, instance, operation }
    }

    async fn call(&self, method: &str, path: &str, token: Option<&str>) -> (u16, Value) {
        self.call_with(method, path, token.map(|token| ("X-Auth-Token", token))).await
    }

    async fn call_with(&self, method: &str, path: &str, header: Option<(&str, &str)>) -> (u16, Value) {
        let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(path);
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let request = request.body(Body::empty()).unwrap();
        let response = router(self.native.clone()).oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes);
        (status, body.unwrap_or_else(|error| panic!("{method} {path}: {error}: {bytes:?}")))
    }

    /// Calls a path of the document with what exists filled in.
    async fn call_filled(&self, method: &str, path: &str) -> (u16, Value) {
        let id = match path {
            path if path.starts_with("/v1/operations/") => self.operation.to_string(),
            path if path.starts_with("/v1/shares/") => self.share.to_string(),
            _ => self.instance.to_string(),
        };
        if path.ends_with("/verify") {
            // Followers are verified, once there is something of them.
            let manager = &self.native.app.manager;
            let family = manager.store().family(self.share).await.unwrap();
            let follower = family.instances.iter().find(|i| i.id != self.instance).unwrap().id;
            let caller = Caller { admin: true, ..Caller::default() };
            manager.reset_instance_status(&caller, follower, InstanceStatus::Available).await.unwrap();
            return self.call(method, &path.replace("{id}", &follower.to_string()), None).await;
        }
        if path.ends_with("/claim") {
            let path = self.side().await;
            return self.call_with(method, &path, Some(("X-Tandem-Secret", "of alpha"))).await;
        }
        let mut path = path.replace("{id}", &id).replace("{name}", "alpha");
        if path == "/v1/access-rules" {
            path += &format!("?share_id={}", self.share);
        }
        if path.ends_with("/migration-check") {
            path += "?host=h@b";
        }
        self.call(method, &path, None).await
    }

    /// Makes a writable share whose instance lies on the first back end; where its claims go.
    async fn side(&self) -> String {
        let manager = &self.native.app.manager;
        let extra_specs = BTreeMap::from([("replication_type".to_owned(), "writable".to_owned())]);
        let name = format!("writable {}", uuid::Uuid::new_v4());
        let new = NewType { name, description: None, is_public: true, extra_specs };
        let share_type_id = manager.create_type(new).await.unwrap().id;
        let new = NewShare { size_gb: 1, protocol: "NFS".into(), share_type_id, ..NewShare::default() };
        let caller = Caller { project_id: "p".into(), admin: true, ..Caller::default() };
        let share = manager.create_share(&caller, new).await.unwrap();
        let mut row = manager.store().family(share.id).await.unwrap().instances.remove(0);
        row.pool = Some("h@alpha#p".parse().unwrap());
        let path = format!("/v1/replicas/{}/claim?epoch=1", row.id);
        let batch = Batch { put: vec![Row::Instance(Box::new(row))], ..Batch::default() };
        manager.store().commit(batch).await.unwrap();
        path
    }
}

async fn populate(manager: &Manager) -> (ResourceId, InstanceId, OpId) {
    let caller =
        Caller { user_id: "u".into(), project_id: "p".into(), admin: true, request_id: Some("req-1".into()) };
    let extra_specs = BTreeMap::from([("replication_type".to_owned(), "readable".to_owned())]);
    let new = NewType { name: "mirrored".into(), description: None, is_public: true, extra_specs };
    let share_type = manager.create_type(new).await.unwrap();
    let new =
        NewShare { size_gb: 1, protocol: "NFS".into(), share_type_id: share_type.id, ..NewShare::default() };
    let share = manager.create_share(&caller, new).await.unwrap();
    let family = manager.store().family(share.id).await.unwrap();
    let instance = family.instances[0].id;
    let operation = family.operations[0].id;
    manager.reset_instance_status(&caller, instance, InstanceStatus::Available).await.unwrap();
    manager.create_replica(&caller, share.id, NewReplica::default()).await.unwrap();
    let new = NewRule {
        access_type: "ip".into(),
        access_to: "192.0.2.1".into(),
        access_level: tandem_contract::AccessLevel::Rw,
        metadata: BTreeMap::new(),
    };
    manager.allow_access(&caller, share.id, new).await.unwrap();
    (share.id, instance, operation)
}

/// The calls of the document: method, path and what stands there.
fn documented() -> Vec<(String, &'static str, &'static Value)> {
    let paths = DOCUMENT["paths"].as_object().unwrap();
    paths
        .iter()
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().unwrap();
            methods.iter().map(move |(method, call)| (method.to_uppercase(), path.as_str(), call))
        })
        .collect()
}

/// Holds an answer against the document.
fn conforms(call: &Value, status: u16, body: &Value, what: &str) {
    let response = call["responses"].get(status.to_string());
    let response =
        response.unwrap_or_else(|| panic!("{what} answered {status}, which is not documented: {body}"));
    let mut schema = response["content"]["application/json"]["schema"].clone();
    schema["components"] = DOCUMENT["components"].clone();
    if let Err(wrong) = tandem_host::check_settings(&schema, body) {
        panic!("{what} answered {status} with {body:#}: {wrong}");
    }
}

#[test]
#[should_panic(expected = "error.message")]
fn an_answer_that_is_not_as_documented_is_found() {
    let call = &DOCUMENT["paths"]["/v1/status"]["get"];
    conforms(call, 401, &json!({"error": {"code": 401}}), "GET /v1/status");
}

#[test]
fn every_route_is_in_the_document_and_every_path_of_the_document_is_a_route() {
    let routes: BTreeSet<_> = ROUTES.iter().map(|route| (route.verb.to_owned(), route.path)).collect();
    let documented: BTreeSet<_> = documented().into_iter().map(|(method, path, _)| (method, path)).collect();
    assert_eq!(routes, documented);
}

#[test]
fn every_kind_of_operation_is_in_the_document() {
    // serde names them all when it refuses one that does not exist.
    let nonsense = json!({"kind": "nonsense"});
    let refused = serde_json::from_value::<Intent>(nonsense).unwrap_err().to_string();
    let kinds: BTreeSet<_> = refused.split('`').skip(3).step_by(2).collect();
    let documented = DOCUMENT["components"]["schemas"]["OperationKind"]["enum"].as_array().unwrap();
    let documented: BTreeSet<_> = documented.iter().filter_map(Value::as_str).collect();
    assert_eq!(kinds, documented);
}

#[test]
fn calls_that_need_a_token_are_documented_so() {
    for (method, path, call) in documented() {
        let route = ROUTES.iter().find(|r| r.verb == method && r.path == path).unwrap();
        let open = call.get("security") == Some(&json!([]));
        assert_eq!(open, route.needs == super::Needs::Nothing, "{method} {path}");
    }
}

#[tokio::test]
async fn every_path_of_the_document_answers_as_its_schema_says() {
    let server = Server::new().await;
    for (method, path, call) in documented() {
        let (status, body) = server.call_filled(&method, path).await;
        assert!(status < 300, "{method} {path}: {status} {body}");
        conforms(call, status, &body, &format!("{method} {path}"));
    }
    // Once more: the operation has been asked to end meanwhile, and lists have what has ended.
    for (method, path, call) in documented() {
        let (status, body) = server.call_filled(&method, path).await;
        conforms(call, status, &body, &format!("{method} {path}"));
    }
}

#[tokio::test]
async fn what_is_not_there_and_what_makes_no_sense_is_refused_as_documented() {
    let server = Server::new().await;
    for (method, path, call) in documented().into_iter().filter(|(_, path, _)| !path.ends_with("/claim")) {
        if path.contains('{') {
            for stranger in
                ["00000000-0000-0000-0000-000000000000", "%00", "x'%20OR%20'1'='1", "..%2f..%2fetc"]
            {
                let mut path = path.replace("{id}", stranger).replace("{name}", stranger);
                if path.ends_with("/migration-check") {
                    path += "?host=h@b";
                }
                let (status, body) = server.call(&method, &path, None).await;
                assert_eq!(status, 404, "{method} {path}: {body}");
                conforms(call, status, &body, &format!("{method} {path}"));
            }
        }
        if call
            .get("parameters")
            .is_some_and(|all| all.as_array().unwrap().iter().any(|p| p["in"] == "query"))
        {
            let (status, body) = server.call(&method, &format!("{path}?stranger=1"), None).await;
            assert_eq!(status, 400, "{method} {path}: {body}");
            conforms(call, status, &body, &format!("{method} {path}"));
        }
    }
    for (method, path, status) in [
        ("GET", "/v1/nowhere", 404),
        ("GET", "/v1/", 404),
        ("DELETE", "/v1/status", 405),
        ("PUT", "/v1/nowhere", 404),
    ] {
        let (answered, body) = server.call(method, path, None).await;
        assert_eq!(answered, status, "{method} {path}");
        assert_eq!(body["error"]["code"], status, "{body}");
    }
}

#[tokio::test]
async fn policy_decides_and_an_administrator_may() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.toml");
    let entry = |token: &str, role: &str| {
        use sha2::Digest as _;
        let hash: String = sha2::Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("[[token]]\nhash = \"sha256:{hash}\"\nuser = \"u\"\nproject = \"p\"\nroles = [\"{role}\"]\n")
    };
    std::fs::write(&file, entry("of-an-admin", "admin") + &entry("of-a-member", "member")).unwrap();
    let server = Server::with(Arc::new(Tokens::load(file).unwrap())).await;
    for (method, path, call) in documented().into_iter().filter(|(_, path, _)| !path.ends_with("/claim")) {
        let open = call.get("security").is_some();
        for (token, refused) in [(None, 401), (Some("unknown"), 401), (Some("of-a-member"), 403)] {
            let (status, body) = server.call(&method, path, token).await;
            assert_eq!(status == refused, !open, "{method} {path} {token:?}: {status} {body}");
            conforms(call, status, &body, &format!("{method} {path}"));
        }
    }
    assert_eq!(server.call("GET", "/v1/status", Some("of-an-admin")).await.0, 200);
}

/// An identity service that is away.
struct Away;

#[async_trait::async_trait]
impl Authenticator for Away {
    async fn authenticate(&self, _: &HeaderMap) -> Result<Identity, Refusal> {
        Err(Refusal::Unavailable { why: "Keystone does not answer; try again later.".into() })
    }
}

#[tokio::test]
async fn where_nobody_can_check_tokens_every_call_says_so_as_documented() {
    let server = Server::with(Arc::new(Away)).await;
    for (method, path, call) in documented() {
        if call.get("security").is_some() {
            continue;
        }
        let (status, body) = server.call(&method, path, Some("token")).await;
        assert_eq!(status, 503, "{method} {path}: {body}");
        conforms(call, status, &body, &format!("{method} {path}"));
    }
}

#[tokio::test]
async fn lists_are_filtered_and_cut() {
    let server = Server::new().await;
    let count = |body: &Value, name: &str| body[name].as_array().unwrap().len();
    let (_, all) = server.call("GET", "/v1/operations", None).await;
    assert!(count(&all, "operations") > 2, "{all:#}");
    let (_, one) = server.call("GET", "/v1/operations?limit=1&offset=1", None).await;
    assert_eq!(one["operations"][0], all["operations"][1]);
    let (_, created) = server.call("GET", "/v1/operations?kind=create_share", None).await;
    assert_eq!(created["operations"][0]["id"], json!(server.operation));
    let (_, none) = server.call("GET", "/v1/operations?kind=promote", None).await;
    assert_eq!(count(&none, "operations"), 0);
    let other = uuid::Uuid::nil();
    let (_, none) = server.call("GET", &format!("/v1/replicas?share_id={other}"), None).await;
    assert_eq!(count(&none, "replicas"), 0);
}

#[tokio::test]
async fn a_back_end_that_is_down_says_why_and_drivers_are_what_the_folder_holds() {
    let server = Server::new().await;
    let (_, body) = server.call("GET", "/v1/backends/alpha", None).await;
    assert_eq!(body["backend"]["state"], "down");
    assert!(body["backend"]["reason"].is_string(), "{body}");
    let (_, body) = server.call("GET", "/v1/drivers", None).await;
    assert_eq!(body["drivers"][0]["backends"], json!(["alpha"]));
    assert_eq!(body["drivers"][1]["state"], "refused");
    assert_eq!(body["drivers"][1]["reason"], "notes.so is no driver.");
    assert_eq!((&body["drivers"][2]["state"], &body["drivers"][2]["host"]), (&json!("away"), &json!("far")));
}

#[tokio::test]
async fn a_claim_needs_the_secret_of_its_back_end_and_is_decided_once() {
    let server = Server::new().await;
    let path = server.side().await;
    let secret = |secret| Some(("X-Tandem-Secret", secret));
    for refused in
        [None, secret(""), secret("of beta"), secret("of alpha "), Some(("X-Auth-Token", "of alpha"))]
    {
        let (status, body) = server.call_with("POST", &path, refused).await;
        assert_eq!(status, 401, "{refused:?}: {body}");
        assert!(!body.to_string().contains("of alpha"), "{body}");
    }
    let nobody = format!("/v1/replicas/{}/claim?epoch=1", uuid::Uuid::nil());
    for path in [nobody.as_str(), "/v1/replicas/x/claim?epoch=1"] {
        assert_eq!(server.call_with("POST", path, secret("of alpha")).await.0, 401);
    }
    for _ in 0..2 {
        let (status, body) = server.call_with("POST", &path, secret("of alpha")).await;
        assert_eq!((status, &body["claim"]), (200, &json!({"outcome": "won", "epoch": 2})));
    }
    let stale = path.replace("epoch=1", "epoch=7");
    let (status, body) = server.call_with("POST", &stale, secret("of alpha")).await;
    assert_eq!((status, &body["claim"]["outcome"]), (200, &json!("lost")));
    assert!(body["claim"]["why"].as_str().unwrap().contains("epoch 7"));
    let long = format!("?epoch={}", "9".repeat(40));
    for odd in [
        "",
        "?epoch=0",
        "?epoch=x",
        "?epoch=",
        "?epoch=-1",
        "?epoch=1.5",
        "?epoch=1e3",
        "?epoch=%00",
        "?epoch[]=1",
        &long,
        "?epoch=1&stranger=1",
    ] {
        let path = path.replace("?epoch=1", odd);
        assert_eq!(server.call_with("POST", &path, secret("of alpha")).await.0, 400, "{odd}");
    }
    let most = path.replace("epoch=1", &format!("epoch={}", u64::MAX));
    let (status, body) = server.call_with("POST", &most, secret("of alpha")).await;
    assert!((status, &body["claim"]["outcome"]) == (200, &json!("lost")) || status == 400, "{status} {body}");
    for method in ["GET", "PUT", "DELETE"] {
        assert_eq!(server.call_with(method, &path, secret("of alpha")).await.0, 405, "{method}");
    }
}

#[tokio::test]
async fn only_a_writable_share_is_arbitrated() {
    let server = Server::new().await;
    let manager = &server.native.app.manager;
    let mut row = manager.store().instance(server.instance).await.unwrap().unwrap();
    row.pool = Some("h@beta#p".parse().unwrap());
    let path = format!("/v1/replicas/{}/claim?epoch=1", row.id);
    let batch = Batch { put: vec![Row::Instance(Box::new(row))], ..Batch::default() };
    manager.store().commit(batch).await.unwrap();
    let (status, body) = server.call_with("POST", &path, Some(("X-Tandem-Secret", "of beta"))).await;
    assert_eq!(status, 409, "{body}");
}
