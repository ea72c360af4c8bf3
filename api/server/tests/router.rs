//! The way of a request around the calls: without authentication, redirects, limits, pages.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request};
use http_body_util::BodyExt;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tandem_manager::clock::SystemClock;
use tandem_manager::store::memory::MemoryStore;
use tandem_manager::{Caller, Manager, NewShare, NewType};
use tandem_server::auth::NoAuth;
use tandem_server::policy::Policy;
use tandem_server::{App, Settings, router};
use tower::ServiceExt;

fn server() -> (Router, Manager) {
    let manager = Manager::new(
        Arc::new(MemoryStore::new()),
        Arc::new(SystemClock),
        Vec::new(),
        tandem_manager::Settings::default(),
    );
    let app = App {
        manager: Arc::new(manager.clone()),
        auth: Arc::new(NoAuth::default()),
        policy: Arc::new(Policy::defaults()),
        settings: Settings::default(),
    };
    (router(Arc::new(app)), manager)
}

async fn send(router: &Router, request: Request<Body>) -> (u16, HeaderMap, Value) {
    let response = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts.status.as_u16(), parts.headers, serde_json::from_slice(&body).unwrap_or_default())
}

fn get(target: &str, token: Option<&str>) -> Request<Body> {
    let request =
        Request::builder().uri(target).header("Host", "h:1").header("X-OpenStack-Manila-API-Version", "2.70");
    let request = token.into_iter().fold(request, |request, token| request.header("X-Auth-Token", token));
    request.body(Body::empty()).unwrap()
}

#[tokio::test]
async fn without_a_token_the_one_to_use_is_told() {
    let (router, _) = server();
    let (status, headers, _) = send(&router, get("/v2/shares", None)).await;
    assert_eq!(status, 204);
    assert_eq!(headers["x-auth-token"], "admin:admin");
    assert_eq!(headers["x-server-management-url"], "http://h:1/v2/shares");
    let (status, ..) = send(&router, get("/v2/shares", Some("notused"))).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn a_project_before_the_path_must_be_the_callers() {
    let (router, _) = server();
    for (project, expected) in [("demo", 200), ("abc-123", 400), ("other", 404)] {
        let (status, ..) = send(&router, get(&format!("/v2/{project}/shares"), Some("alice:demo"))).await;
        assert_eq!(status, expected, "{project}");
    }
}

#[tokio::test]
async fn the_bare_version_leads_to_its_page() {
    let (router, _) = server();
    let (status, headers, _) = send(&router, get("/v2", Some("a:b"))).await;
    assert_eq!((status, headers["location"].to_str().unwrap()), (302, "http://h:1/v2/"));
    let (status, _, body) = send(&router, get("/v2/", Some("a:b"))).await;
    assert_eq!((status, &body["versions"][0]["version"]), (200, &"2.99".into()));
}

#[tokio::test]
async fn large_bodies_are_refused_before_they_are_read() {
    let (router, _) = server();
    for announced in [true, false] {
        let mut request = Request::builder().method("POST").uri("/v2/shares").header("X-Auth-Token", "a:b");
        if announced {
            request = request.header("Content-Length", 200_000);
        }
        let request = request.header("Content-Type", "application/json");
        let (status, _, body) = send(&router, request.body(Body::from(vec![b' '; 200_000])).unwrap()).await;
        assert_eq!((status, &body["code"]), (413, &"413 Request Entity Too Large".into()), "{body}");
    }
}

#[tokio::test]
async fn a_host_header_cannot_write_links() {
    let (router, _) = server();
    let request = Request::builder().uri("/").header("Host", "evil\"><script>");
    let (_, _, body) = send(&router, request.body(Body::empty()).unwrap()).await;
    assert_eq!(body["versions"][0]["links"][1]["href"], "http://localhost/v2/");
}

#[tokio::test]
async fn the_links_of_pages_lead_through_the_whole_list() {
    let (router, manager) = server();
    let extra_specs = BTreeMap::from([("driver_handles_share_servers".to_owned(), "False".to_owned())]);
    let kind = NewType { name: "t".into(), is_public: true, extra_specs, ..NewType::default() };
    let kind = manager.create_type(kind).await.unwrap();
    let caller = Caller { user_id: "a".into(), project_id: "b".into(), admin: true, request_id: None };
    for _ in 0..7 {
        let new =
            NewShare { size_gb: 1, protocol: "NFS".into(), share_type_id: kind.id, ..NewShare::default() };
        manager.create_share(&caller, new).await.unwrap();
    }
    let mut next = Some("/v2/shares?limit=2&sort_key=id".to_owned());
    let (mut seen, mut pages) = (BTreeSet::new(), 0);
    while let Some(target) = next {
        let (status, _, body) = send(&router, get(&target, Some("a:b"))).await;
        assert_eq!(status, 200, "{body}");
        for share in body["shares"].as_array().unwrap() {
            assert!(seen.insert(share["id"].as_str().unwrap().to_owned()), "twice");
        }
        pages += 1;
        assert!(pages < 10, "the links go round");
        next = body["shares_links"][0]["href"].as_str().map(|href| href.replace("http://h:1", ""));
    }
    assert_eq!((seen.len(), pages), (7, 4));
}
