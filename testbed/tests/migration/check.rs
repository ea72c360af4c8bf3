//! The dry run: it says what the migration would be, refuses what the migration refuses, and changes nothing.

use std::fs;

use serde_json::{Value, json};
use tandem_testbed::tree;

use crate::lab::{Lab, SLOW, by_host, cancel, start};

/// What the setting of `SLOW` lets through in a second.
const SPEED: u64 = 15_000_000;

impl Lab {
    /// The dry run of a migration there; `more` joins its query.
    fn check(&self, host: &str, more: &str) -> Value {
        let host = host.replace('#', "%23");
        let path = format!("v1/shares/{}/migration-check?host={host}{more}", self.share);
        self.api.get(&path).unwrap()["migration_check"].take()
    }

    /// The dry run refuses with this in its sentences, and the migration with this code.
    fn both_refuse(&self, host: &str, type_id: &str, part: &str, code: u16) {
        let check = self.check(host, &format!("&share_type_id={type_id}"));
        assert_eq!(check["possible"], false, "{check}");
        assert!(check["refused"].to_string().contains(part), "{part}: {check}");
        let (status, said) = self.act(&start(host, &[("new_share_type_id", json!(type_id))]));
        assert_eq!(status, code, "{said}");
    }
}

#[test]
fn a_dry_run_says_what_would_be_and_changes_nothing() {
    let lab = Lab::with(SLOW);
    let alpha = lab.export();
    for n in 0..40 {
        fs::write(alpha.join(format!("file {n}")), vec![n as u8; 1 << 20]).unwrap();
    }
    let (home, beta) = (lab.pool("alpha"), lab.pool("beta"));

    let by_driver = lab.check(&beta, "");
    let bytes = by_driver["bytes"].as_u64().unwrap();
    assert!((40 << 20..60 << 20).contains(&bytes), "{by_driver}");
    let mut lost = vec!["writability during the second phase"];
    if !tree::is_root() {
        // Only root keeps owners.
        lost.insert(0, "metadata of files");
    }
    let left = (16_u64 << 20).div_ceil(SPEED) + 1;
    assert_eq!(
        by_driver,
        json!({
            "possible": true, "refused": [], "host": beta, "approach": "driver", "writable": true,
            "nondisruptive": false, "interruption": "users remount once, when it is completed", "lost": lost,
            "bytes": bytes, "seconds": bytes.div_ceil(SPEED), "interruption_seconds": left,
        })
    );
    let by_host_assistance = lab.check(&beta, "&host_assisted=true");
    assert_eq!(by_host_assistance["approach"], "host");
    assert!(
        by_host_assistance["interruption"].as_str().unwrap().contains("read-only"),
        "{by_host_assistance}"
    );
    assert!(by_host_assistance["lost"].to_string().contains("snapshots"), "{by_host_assistance}");
    for figure in ["bytes", "seconds", "interruption_seconds"] {
        assert!(by_host_assistance[figure].as_u64() > Some(0), "{figure}: {by_host_assistance}");
    }
    let nothing = lab.check(&home, "");
    assert_eq!((&nothing["approach"], &nothing["seconds"]), (&json!("none"), &json!(0)), "{nothing}");
    for (host, more, part) in [
        (beta.as_str(), "&nondisruptive=true", "does not promise nondisruptive"),
        ("nowhere@beta#x", "", "there is no back end"),
        (&beta.replace('#', "#no-"), "", "no-"),
    ] {
        let check = lab.check(host, more);
        assert_eq!(check["possible"], false, "{check}");
        assert!(check["refused"].to_string().contains(part), "{part}: {check}");
    }

    // As the operator reads it.
    let said = lab.server.try_tandem(&["migration", "check", &lab.share, &beta]);
    let text = String::from_utf8_lossy(&said.stdout);
    assert!(said.status.success(), "{text}");
    for part in ["by the driver", "when it is completed (about", "Lost:", "Carried:", "(an estimate)"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let refused = lab.server.try_tandem(&["migration", "check", &lab.share, &beta, "--nondisruptive"]);
    assert!(!refused.status.success() && refused.stdout.starts_with(b"The share cannot go to"));

    assert_eq!(lab.api.operations("kind=migrate").unwrap(), [] as [Value; 0]);
    assert_eq!(lab.show()["task_state"], Value::Null);
    lab.at_rest("alpha");
}

#[test]
fn what_the_migration_refuses_the_dry_run_refuses() {
    let lab = Lab::start();
    let beta = lab.pool("beta");
    let elsewhere = json!({"driver_handles_share_servers": "False", "availability_zones": "zone-b"});
    let elsewhere = json!({"share_type": {"name": "elsewhere", "extra_specs": elsewhere}});
    let elsewhere = lab.api.post("v2/types", &elsewhere).unwrap()["share_type"]["id"].take();
    lab.both_refuse(&beta, elsewhere.as_str().unwrap(), "zone-a", 400);

    let mirrored = lab.api.create_type("mirrored", "readable", &[]).unwrap();
    let none = json!({"quota_set": {"share_replicas": 0}});
    assert_eq!(lab.api.attempt("PUT", "v2/quota-sets/admin", &none).unwrap(), 200);
    lab.both_refuse(&beta, &mirrored, "quota", 413);
    lab.api.lift_quotas("admin").unwrap();

    assert_eq!(lab.act(&by_host(&beta, &[])).0, 202);
    lab.both_refuse(&lab.pool("gamma"), &lab.share_type, "migrating", 400);
    lab.until("data_copying_completed");
    assert_eq!(lab.act(&cancel()).0, 202);
    lab.until("migration_cancelled");
    lab.at_rest("alpha");

    // What is asked of the driver, and not by the driver, cannot be.
    for (version, experimental) in [("2.22", true), ("2.97", false)] {
        for promise in ["writable", "nondisruptive", "preserve_metadata"] {
            let body = by_host(&beta, &[(promise, json!(true))]);
            let (status, said) = lab.at(version, experimental, &body);
            assert!(
                status == 400 && said.contains("Invalid parameter combination"),
                "{promise}: {status} {said}"
            );
        }
    }
    assert_eq!(lab.task(), "migration_cancelled");
}
