//! Share migration over a storage that does what it is told to: who may, in which states a cancel comes, what progress says
//! of a failure, and which capabilities a destination must have.

use serde_json::{Value, json};
use std::time::Duration;
use tandem_driver_fake::{Fault, What};

use crate::server::Server;

const ALPHA: &str = "peerhost@ALPHA#fake_pool_for_ALPHA";
const BETA: &str = "peerhost@BETA#fake_pool_for_BETA";

/// Lets whoever is a member do what otherwise an administrator does.
const MEMBERS_MAY: &str = "\
share:migration_start: role:member
share:migration_complete: role:member
share:migration_cancel: role:member
share:migration_get_progress: role:member
share:reset_task_state: role:member
";

/// What is asked of a share that migrates, or does not.
fn every_action() -> [(&'static str, Value); 5] {
    [
        ("2.99", start(BETA, &[])),
        ("2.99", json!({"migration_complete": null})),
        ("2.99", json!({"migration_cancel": null})),
        ("2.97", json!({"migration_get_progress": null})),
        ("2.99", json!({"reset_task_state": {"task_state": null}})),
    ]
}

fn start(host: &str, more: &[(&str, Value)]) -> Value {
    let mut asked = json!({
        "host": host, "writable": false, "nondisruptive": false, "preserve_metadata": false,
        "preserve_snapshots": false,
    });
    for (key, value) in more {
        asked[*key] = value.clone();
    }
    json!({ "migration_start": asked })
}

impl Server {
    /// Sends a request as a person; status and body.
    async fn ask(&self, who: &str, version: &str, method: &str, path: &str, body: Value) -> (u16, Value) {
        let headers = [
            ("X-Auth-Token", who),
            ("X-OpenStack-Manila-API-Version", version),
            ("Content-Type", "application/json"),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
        let body = (!body.is_null()).then(|| body.to_string().into_bytes());
        let answer = self.send(method, path, &headers, body).await.expect("a request");
        (answer.status, answer.json())
    }

    async fn act(&self, share: &str, body: &Value) -> (u16, Value) {
        self.ask("admin", "2.97", "POST", &format!("/v2/shares/{share}/action"), body.clone()).await
    }

    async fn share_type(&self, name: &str, specs: &[(&str, &str)]) -> String {
        let mut extra = json!({"driver_handles_share_servers": "False"});
        for (key, value) in specs {
            extra[*key] = (*value).into();
        }
        let body = json!({"share_type": {"name": name, "extra_specs": extra}});
        let (status, made) = self.ask("admin", "2.80", "POST", "/v2/types", body).await;
        assert_eq!(status, 200, "{made}");
        made["share_type"]["id"].as_str().expect("an id").to_owned()
    }

    /// A share of somebody on alpha, that is available.
    async fn share_of(&self, who: &str, share_type: &str) -> String {
        let body = json!({"share": {"share_proto": "NFS", "size": 1, "share_type": share_type,
            "scheduler_hints": {"only_host": ALPHA}}});
        let (status, made) = self.ask(who, "2.80", "POST", "/v2/shares", body).await;
        assert_eq!(status, 200, "{made}");
        self.settle().await;
        let id = made["share"]["id"].as_str().expect("an id").to_owned();
        let share = self.show(&id).await;
        assert_eq!((&share["status"], &share["host"]), (&json!("available"), &json!(ALPHA)));
        id
    }

    async fn show(&self, share: &str) -> Value {
        let path = format!("/v2/shares/{share}");
        self.ask("admin", "2.99", "GET", &path, Value::Null).await.1["share"].clone()
    }

    async fn until_task(&self, share: &str, task: &str) {
        for _ in 0..6000 {
            if self.show(share).await["task_state"] == task {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{task} in vain: {}", self.show(share).await);
    }

    /// What the next call of this verb meets.
    fn meet(&self, verb: &str, what: What) {
        self.script(Fault { verb: verb.into(), site: String::new(), skip: 0, times: 1, what });
    }

    async fn newest_migration(&self) -> Value {
        let path = "/v1/operations?kind=migrate&limit=1";
        self.ask("admin", "2.99", "GET", path, Value::Null).await.1["operations"][0].clone()
    }

    /// Both ways of asking for the progress; they agree.
    async fn progress(&self, share: &str) -> Value {
        let (status, old) = self.act(share, &json!({"migration_get_progress": null})).await;
        let path = format!("/v2/shares/{share}/migration-progress");
        let (new_status, new) = self.ask("admin", "2.98", "GET", &path, Value::Null).await;
        assert_eq!((status, &old), (new_status, &new));
        new
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_an_administrator_migrates_and_nobody_what_is_anothers() {
    let server = Server::start().await;
    let share_type = server.share_type("plain", &[]).await;
    let (theirs, own) =
        (server.share_of("admin", &share_type).await, server.share_of("demo", &share_type).await);
    let nothing = "00000000-0000-0000-0000-000000000000";
    for (version, body) in every_action() {
        for share in [&theirs, &own, nothing] {
            let path = format!("/v2/shares/{share}/action");
            assert_eq!(server.ask("demo", version, "POST", &path, body.clone()).await.0, 403, "{body}");
            assert_eq!(server.ask("nobody", version, "POST", &path, body.clone()).await.0, 401, "{body}");
        }
        let path = format!("/v2/shares/{nothing}/action");
        assert_eq!(server.ask("admin", version, "POST", &path, body.clone()).await.0, 404, "{body}");
    }
    let progress = format!("/v2/shares/{theirs}/migration-progress");
    assert_eq!(server.ask("demo", "2.98", "GET", &progress, Value::Null).await.0, 403);
    assert_eq!(server.show(&theirs).await["task_state"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whom_policy_lets_migrate_finds_only_the_shares_of_the_own_project() {
    let server = Server::start_under(MEMBERS_MAY).await;
    let share_type = server.share_type("plain", &[]).await;
    let (theirs, own) =
        (server.share_of("admin", &share_type).await, server.share_of("demo", &share_type).await);
    for (version, body) in every_action() {
        let path = format!("/v2/shares/{theirs}/action");
        let (status, said) = server.ask("demo", version, "POST", &path, body).await;
        assert_eq!(status, 404, "{said}");
    }
    let progress = format!("/v2/shares/{theirs}/migration-progress");
    assert_eq!(server.ask("demo", "2.98", "GET", &progress, Value::Null).await.0, 404);
    let path = format!("/v2/shares/{own}/action");
    assert_eq!(server.ask("demo", "2.99", "POST", &path, start(ALPHA, &[])).await.0, 200, "it is there");
    assert_eq!(server.ask("demo", "2.99", "POST", &path, start(BETA, &[])).await.0, 202);
    server.until_task(&own, "migration_driver_phase1_done").await;
    assert_eq!(server.ask("demo", "2.99", "POST", &path, json!({"migration_complete": null})).await.0, 202);
    server.until_task(&own, "migration_success").await;
    assert_eq!(server.show(&own).await["host"], BETA);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_is_taken_in_every_state_that_is_not_the_last() {
    let server = Server::start().await;
    let share_type = server.share_type("plain", &[]).await;
    let share = server.share_of("admin", &share_type).await;
    for (verb, state) in [
        ("migration_check_compatibility", "migration_starting"),
        ("prepare_destination", "migration_in_progress"),
        ("migration_start", "migration_driver_starting"),
        ("migration_continue", "migration_driver_in_progress"),
        ("", "migration_driver_phase1_done"),
        ("migration_complete", "migration_completing"),
    ] {
        match verb {
            "" => {}
            // Which way to go is found out before there is anything to cancel.
            "migration_check_compatibility" => server.meet(verb, What::Delay { ms: 4000 }),
            _ => server.meet(verb, What::WaitForCancel),
        }
        assert_eq!(server.act(&share, &start(BETA, &[])).await.0, 202, "{state}");
        if state == "migration_completing" {
            server.until_task(&share, "migration_driver_phase1_done").await;
            assert_eq!(server.act(&share, &json!({"migration_complete": null})).await.0, 202);
        }
        server.until_task(&share, state).await;
        assert_eq!(server.show(&share).await["status"], "migrating");
        let running = server.newest_migration().await;
        let path = format!("/v1/operations/{}/cancel", running["id"].as_str().expect("an id"));
        assert_eq!(server.ask("admin", "2.99", "POST", &path, Value::Null).await.0, 202, "{state}");
        server.until_task(&share, "migration_cancelled").await;
        server.settle().await;
        // It may have come before the storage was asked.
        server.slow_down(false);
        let now = server.show(&share).await;
        assert_eq!((&now["status"], &now["host"]), (&json!("available"), &json!(ALPHA)), "{state}");
        assert_eq!(server.newest_migration().await["status"], "cancelled");
        let path = format!("/v2/shares/{share}/instances");
        let left = server.ask("admin", "2.99", "GET", &path, Value::Null).await.1;
        assert_eq!(left["share_instances"].as_array().map(Vec::len), Some(1), "{state}: {left}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_is_never_a_hundred_percent() {
    let server = Server::start().await;
    let share_type = server.share_type("plain", &[]).await;
    let share = server.share_of("admin", &share_type).await;
    for verb in ["prepare_destination", "migration_start", "migration_continue", "migration_complete"] {
        server.meet(verb, What::Fail { error: "conflict".into() });
        // The promise rules out that it goes on another way.
        let wanted = [("preserve_snapshots", json!(true))];
        assert_eq!(server.act(&share, &start(BETA, &wanted)).await.0, 202, "{verb}");
        if verb == "migration_complete" {
            server.until_task(&share, "migration_driver_phase1_done").await;
            assert_eq!(server.progress(&share).await["total_progress"], 100, "the first phase is done");
            assert_eq!(server.act(&share, &json!({"migration_complete": null})).await.0, 202);
        }
        server.until_task(&share, "migration_error").await;
        let progress = server.progress(&share).await;
        assert_eq!(progress, json!({"total_progress": 0, "task_state": "migration_error", "details": {}}));
        let failed = server.newest_migration().await;
        assert_eq!((&failed["status"], &failed["progress"]), (&json!("failed"), &Value::Null), "{verb}");
        server.settle().await;
        assert_eq!(server.show(&share).await["status"], "available");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_offers_the_security_services_of_the_share_type_or_is_refused() {
    let server = Server::start().await;
    let both = server.share_type("safe", &[("security_services", "ldap, kerberos")]).await;
    let plain = server.share_type("plain", &[]).await;
    let share = server.share_of("admin", &plain).await;
    let retype = |host| start(host, &[("new_share_type_id", json!(both))]);
    // Only beta has any; the dry run says so, and so does the attempt.
    for (host, offered) in [("peerhost@WR1#fake_pool_for_WR1", false), (BETA, true)] {
        let host_in_query = host.replace('#', "%23");
        let path = format!("/v1/shares/{share}/migration-check?host={host_in_query}&share_type_id={both}");
        let (status, check) = server.ask("admin", "2.99", "GET", &path, Value::Null).await;
        assert_eq!((status, &check["migration_check"]["possible"]), (200, &json!(offered)), "{check}");
        assert_eq!(check.to_string().contains("security_services"), !offered, "{check}");
        assert_eq!(server.act(&share, &retype(host)).await.0, 202);
        if offered {
            server.until_task(&share, "migration_driver_phase1_done").await;
            assert_eq!(server.act(&share, &json!({"migration_complete": null})).await.0, 202);
            server.until_task(&share, "migration_success").await;
            assert_eq!(server.show(&share).await["share_type"], both.as_str());
        } else {
            server.until_task(&share, "migration_error").await;
            let why = server.newest_migration().await["error"].to_string();
            assert!(why.contains("security_services"), "{why}");
        }
        server.settle().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_does_not_hide_a_migration_that_waits() {
    let server = Server::start().await;
    let share_type = server.share_type("plain", &[]).await;
    let share = server.share_of("admin", &share_type).await;
    assert_eq!(server.act(&share, &start(BETA, &[])).await.0, 202);
    server.until_task(&share, "migration_driver_phase1_done").await;
    assert_eq!(server.act(&share, &json!({"reset_status": {"status": "available"}})).await.0, 202);
    assert_eq!(server.act(&share, &json!({"reset_task_state": {"task_state": null}})).await.0, 202);
    // It would be waited for, for days.
    let path = format!("/v2/shares/{share}");
    for (status, said) in [
        server.ask("admin", "2.97", "DELETE", &path, Value::Null).await,
        server.act(&share, &json!({"extend": {"new_size": 2}})).await,
        server.act(&share, &start(BETA, &[])).await,
    ] {
        assert!(status == 400 && said.to_string().contains("busy"), "{status} {said}");
    }
    // Nothing stands in the way of one that is forced.
    assert_eq!(server.act(&share, &json!({"force_delete": null})).await.0, 202);
    server.settle().await;
    assert_eq!(server.ask("admin", "2.97", "GET", &path, Value::Null).await.0, 404);
}
