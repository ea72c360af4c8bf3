//! Against something that answers as Keystone does, and can be told to be away or to forget.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing};
use serde_json::{Value, json};

use super::*;
use crate::auth::Scope;

/// How long a condition may take to come true.
const LONG: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Mock {
    password: Mutex<String>,
    /// Tokens that are good, and their project.
    tokens: Mutex<HashMap<String, String>>,
    /// What every question about a token is answered, instead of the truth.
    instead: Mutex<Option<(StatusCode, &'static str)>>,
    own: Mutex<Option<String>>,
    logins: AtomicUsize,
    checks: AtomicUsize,
}

fn header(headers: &HeaderMap, name: &str) -> String {
    text(headers, name).unwrap_or_default().to_owned()
}

fn error(status: StatusCode) -> Response {
    (status, Json(json!({"error": {"code": status.as_u16(), "message": "x", "title": "x"}}))).into_response()
}

fn in_an_hour() -> String {
    let end = time::OffsetDateTime::now_utc() + time::Duration::hours(1);
    end.format(&time::format_description::well_known::Rfc3339).unwrap()
}

async fn login(Shared(mock): Shared<Arc<Mock>>, Json(body): Json<Value>) -> Response {
    let number = mock.logins.fetch_add(1, Ordering::SeqCst);
    let password = &body["auth"]["identity"]["password"]["user"]["password"];
    if password != lock(&mock.password).as_str() || body["auth"]["scope"]["project"]["name"] != "service" {
        return error(StatusCode::UNAUTHORIZED);
    }
    let own = format!("own-{number}");
    *lock(&mock.own) = Some(own.clone());
    let body = Json(json!({"token": {"expires_at": in_an_hour()}}));
    (StatusCode::CREATED, [("X-Subject-Token", own)], body).into_response()
}

async fn check(Shared(mock): Shared<Arc<Mock>>, headers: HeaderMap) -> Response {
    mock.checks.fetch_add(1, Ordering::SeqCst);
    if let Some((status, body)) = *lock(&mock.instead) {
        return (status, body).into_response();
    }
    if lock(&mock.own).as_deref() != Some(header(&headers, "X-Auth-Token").as_str()) {
        return error(StatusCode::UNAUTHORIZED);
    }
    // Requests that come together must be seen together.
    tokio::time::sleep(Duration::from_millis(50)).await;
    match lock(&mock.tokens).get(&header(&headers, "X-Subject-Token")) {
        None => error(StatusCode::NOT_FOUND),
        Some(project) => Json(json!({"token": {
            "user": {"id": "ada"}, "project": {"id": project}, "roles": [{"name": "Member"}],
            "expires_at": in_an_hour(),
        }}))
        .into_response(),
    }
}

struct Lab {
    mock: Arc<Mock>,
    keystone: Arc<Keystone>,
}

impl Lab {
    async fn start(check_seconds: u64) -> Self {
        let mock = Arc::new(Mock::default());
        *lock(&mock.password) = "s3cret".into();
        lock(&mock.tokens).insert("good".into(), "demo".into());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app =
            Router::new().route("/v3/auth/tokens", routing::get(check).post(login)).with_state(mock.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        let settings = KeystoneSettings { url, check_seconds, ..KeystoneSettings::default() };
        let keystone = Keystone::new(&settings, Password::Given(Secret::new("s3cret"))).unwrap();
        Self { mock, keystone: Arc::new(keystone) }
    }

    async fn who(&self, token: &str) -> Result<Identity, Refusal> {
        let mut headers = HeaderMap::new();
        headers.insert(TOKEN_HEADER, token.parse().unwrap());
        self.keystone.authenticate(&headers).await
    }

    async fn until(&self, token: &str, wanted: impl Fn(&Result<Identity, Refusal>) -> bool) {
        let start = Instant::now();
        loop {
            let outcome = self.who(token).await;
            if wanted(&outcome) {
                return;
            }
            assert!(start.elapsed() < LONG, "waited in vain; the last answer: {outcome:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn answer_instead(&self, instead: Option<(StatusCode, &'static str)>) {
        *lock(&self.mock.instead) = instead;
    }

    fn checks(&self) -> usize {
        self.mock.checks.load(Ordering::SeqCst)
    }

    fn logins(&self) -> usize {
        self.mock.logins.load(Ordering::SeqCst)
    }
}

fn is_away(outcome: &Result<Identity, Refusal>) -> bool {
    matches!(outcome, Err(Refusal::Unavailable { .. }))
}

#[tokio::test]
async fn a_good_token_tells_who_and_is_asked_about_once() {
    let lab = Lab::start(60).await;
    for who in all((0..20).map(|_| lab.who("good")).collect()).await {
        let who = who.unwrap();
        assert_eq!((who.user_id.as_str(), who.project_id.as_str()), ("ada", "demo"));
        assert_eq!((who.roles, who.scope), (vec!["member".to_owned()], Scope::Project));
    }
    assert_eq!((lab.checks(), lab.logins()), (1, 1));
}

/// Runs futures together.
async fn all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, output) in futures.iter_mut().zip(&mut outputs).filter(|(_, output)| output.is_none()) {
            if let std::task::Poll::Ready(ready) = future.as_mut().poll(context) {
                *output = Some(ready);
            }
        }
        if outputs.iter().all(Option::is_some) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    outputs.into_iter().flatten().collect()
}

#[tokio::test]
async fn bad_tokens_are_refused_and_not_asked_about_again() {
    let lab = Lab::start(60).await;
    for _ in 0..3 {
        assert_eq!(lab.who("bad").await, Err(Refusal::Unauthorized));
    }
    assert_eq!(lab.checks(), 1);
    assert_eq!(lab.keystone.authenticate(&HeaderMap::new()).await, Err(Refusal::Unauthorized));
    assert_eq!(lab.who(&"x".repeat(LONGEST_TOKEN + 1)).await, Err(Refusal::Unauthorized));
    assert_eq!(lab.checks(), 1);
}

#[tokio::test]
async fn a_revocation_is_noticed() {
    let lab = Lab::start(1).await;
    lab.who("good").await.unwrap();
    lock(&lab.mock.tokens).clear();
    lab.until("good", |outcome| *outcome == Err(Refusal::Unauthorized)).await;
}

#[tokio::test]
async fn while_keystone_is_away_known_tokens_go_on_and_new_ones_wait() {
    let lab = Lab::start(1).await;
    lab.who("good").await.unwrap();
    lock(&lab.mock.tokens).insert("new".into(), "other".into());
    lab.answer_instead(Some((StatusCode::BAD_GATEWAY, "")));
    // Until it is stale, and beyond.
    let before = lab.checks();
    let start = Instant::now();
    while lab.checks() == before {
        assert!(start.elapsed() < LONG, "nobody asked again");
        lab.who("good").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    lab.who("good").await.unwrap();
    assert!(is_away(&lab.who("new").await));
    let trouble = lab.keystone.trouble().unwrap();
    assert!(trouble.contains("answers 502"), "{trouble}");

    lab.answer_instead(None);
    lab.until("new", Result::is_ok).await;
    assert_eq!(lab.keystone.trouble(), None);
}

#[tokio::test]
async fn answers_that_are_not_keystones_settle_nothing() {
    let lab = Lab::start(60).await;
    for (status, body, sentence) in [
        (StatusCode::NOT_FOUND, "<html>no such page</html>", "answers 404"),
        (StatusCode::OK, "<html>good</html>", "is no token"),
        (StatusCode::FOUND, "", "answers 302"),
        (StatusCode::TOO_MANY_REQUESTS, "", "answers 429"),
        (StatusCode::FORBIDDEN, "", "openstack role add --user tandem --project service service"),
    ] {
        lab.answer_instead(Some((status, body)));
        assert!(is_away(&lab.who("good").await), "{status}");
        let trouble = lab.keystone.trouble().unwrap();
        assert!(trouble.contains(sentence), "{trouble}");
    }
    lab.answer_instead(None);
    lab.who("good").await.unwrap();
}

#[tokio::test]
async fn the_service_users_own_token_is_replaced_when_it_is_refused() {
    let lab = Lab::start(60).await;
    lab.who("good").await.unwrap();
    *lock(&lab.mock.own) = None;
    assert_eq!(lab.who("bad").await, Err(Refusal::Unauthorized));
    assert_eq!(lab.logins(), 2);
    assert_eq!(lab.keystone.trouble(), None);
}

#[tokio::test]
async fn a_wrong_password_is_a_sentence_without_it_and_is_not_tried_at_every_request() {
    let lab = Lab::start(60).await;
    *lock(&lab.mock.password) = "another".into();
    lab.keystone.prepare().await;
    let trouble = lab.keystone.trouble().unwrap();
    assert!(trouble.contains("refuses the user 'tandem'") && !trouble.contains("s3cret"), "{trouble}");
    let outcomes = all((0..10).map(|n| lab.who(["good", "bad"][n % 2])).collect()).await;
    assert!(outcomes.iter().all(is_away), "{outcomes:?}");
    assert!(lab.logins() <= 3, "{}", lab.logins());
    *lock(&lab.mock.password) = "s3cret".into();
    lab.until("good", Result::is_ok).await;
}

#[tokio::test]
async fn nothing_that_can_be_shown_has_a_secret() {
    let lab = Lab::start(60).await;
    lab.who("good").await.unwrap();
    let shown = format!("{:?} {:?}", lab.keystone, lab.keystone.trouble());
    assert!(!shown.contains("s3cret") && !shown.contains("good"), "{shown}");
    assert!(lab.keystone.challenge().starts_with("Keystone uri=\"http://127.0.0.1:"));
}

#[tokio::test]
async fn where_nobody_listens_new_tokens_are_told_to_come_back() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings = KeystoneSettings { url: format!("http://{closed}/v3"), ..KeystoneSettings::default() };
    let keystone = Keystone::new(&settings, Password::Given(Secret::new("s3cret"))).unwrap();
    let mut headers = HeaderMap::new();
    headers.insert(TOKEN_HEADER, "t".parse().unwrap());
    assert!(is_away(&keystone.authenticate(&headers).await));
    assert!(keystone.trouble().unwrap().contains("does not answer"));
}
