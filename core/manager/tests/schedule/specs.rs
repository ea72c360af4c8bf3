//! The operators, by Manila's semantics.

use serde_json::{Value, json};
use tandem_manager::schedule::specs::{matches, satisfied};

use crate::pools::object;

#[test]
fn operators() {
    // Fact, requirement, whether it holds.
    let table: &[(Value, &str, bool)] = &[
        // A bare word.
        (json!("1"), "1", true),
        (json!("Foo"), "fOO", true),
        (json!("foo"), "bar", false),
        (json!("two words"), "two words", true),
        (json!(""), "", true),
        (json!("x"), "", false),
        (json!(true), "True", true),
        (json!(true), "yes", true),
        (json!(true), "1", true),
        (json!(true), "maybe", false),
        (json!(false), "maybe", false),
        (json!(false), "False", true),
        (json!(false), "off", true),
        (json!(5), "5", true),
        (json!(5.5), "5.50", true),
        (json!(5), "6", false),
        (json!(null), "", false),
        // At least.
        (json!("2"), "= 1", true),
        (json!("1"), "= 1", true),
        (json!("0"), "= 1", false),
        (json!(123), ">= 123", true),
        (json!(123), ">= 124", false),
        (json!("3.5"), ">= 3", true),
        (json!("abc"), ">= 3", false),
        (json!("3"), ">= abc", false),
        (json!("3"), ">=", false),
        (json!("1"), ">=1", false),
        (json!(1e3), "= 1000", true),
        (json!("inf"), ">= 1000", true),
        (json!("nan"), ">= 0", false),
        (json!("nan"), "!= 0", false),
        // At most, equal, unequal.
        (json!("2"), "<= 10", true),
        (json!("3"), "<= 2", false),
        (json!("123"), "== 123.0", true),
        (json!("124"), "== 123", false),
        (json!("123"), "!= 124", true),
        (json!("123"), "!= 123", false),
        // Texts.
        (json!("123"), "s== 123", true),
        (json!("1234"), "s== 123", false),
        (json!("1234"), "s!= 123", true),
        (json!("123"), "s!= 123", false),
        (json!("1000"), "s< 2", true),
        (json!("2"), "s< 12", false),
        (json!("12"), "s> 2", false),
        (json!("2"), "s> 12", true),
        (json!("12"), "s<= 2", true),
        (json!("3"), "s<= 2", false),
        (json!("2"), "s>= 12", true),
        (json!("12"), "s>= 2", false),
        (json!("B"), "s== b", true),
        (json!(7), "s== 7", true),
        // A part.
        (json!("12311321"), "<in> 11", true),
        (json!("12310321"), "<in> 11", false),
        (json!("NFS_CIFS"), "<in> nfs", true),
        (json!(["aa", "bb"]), "<in> b", true),
        (json!(true), "<in> tr", false),
        (json!("x"), "<in>", false),
        // Truth.
        (json!(true), "<is> True", true),
        (json!("1"), "<is> yes", true),
        (json!(false), "<is> True", false),
        (json!(false), "<is> no", true),
        (json!("perhaps"), "<is> False", true),
        (json!(true), "<is>", false),
        (json!(null), "<is> False", false),
        // One of several.
        (json!("12"), "<or> 11 <or> 12", true),
        (json!("13"), "<or> 11 <or> 12", false),
        (json!("12"), "<or> 11 <or> 12 <or>", true),
        (json!("12"), "<or> 12", true),
        (json!("x"), "<or>", false),
        (json!("<or>"), "<or> a <or> b", false),
        (json!(12), "<or> 11 <or> 12", true),
        (json!("DR"), "<or> dr <or> readable", true),
        // What is no operator is a word.
        (json!("3"), "<> 2", false),
        (json!("<> 2"), "<> 2", true),
        (json!("a"), "a <or> b", false),
        // One of a list suffices.
        (json!(["readable", "dr"]), "dr", true),
        (json!(["readable", "dr"]), "writable", false),
        (json!(["readable", "dr"]), "<or> writable <or> dr", true),
        (json!([true, false]), "<is> True", true),
        (json!([1, 5]), ">= 5", true),
        (json!([]), "s!= x", false),
        (json!({"a": 1}), "s!= x", false),
    ];
    for (fact, requirement, holds) in table {
        assert_eq!(matches(fact, requirement), *holds, "{fact} against `{requirement}`");
    }
}

#[test]
fn scopes() {
    let facts = object(json!({
        "dedupe": true, "nested": {"deep": {"er": "yes"}}, "snapshot_support": true, "gone": null,
        "driver_handles_share_servers": false,
    }));
    let table: &[(&str, &str, bool)] = &[
        ("dedupe", "True", true),
        ("capabilities:dedupe", "<is> True", true),
        ("capabilities:dedupe", "False", false),
        ("dedupe", "<is> False", false),
        // Another scope is a driver's or ours.
        ("zfs:dedupe", "whatever", true),
        ("replication:rpo_seconds", "30", true),
        ("provisioning:max_share_size", "30", true),
        // Missing and null are the same.
        ("compression", "True", false),
        ("compression", "s!= x", false),
        ("gone", "<is> False", false),
        // Further parts go into objects.
        ("capabilities:nested:deep:er", "yes", true),
        ("capabilities:nested:deep", "yes", false),
        ("capabilities:nested:missing:er", "yes", false),
        ("capabilities:dedupe:er", "yes", false),
        // Not about a pool's abilities, or said of the zone filter.
        ("availability_zones", "a,b", true),
        // Yes or no in any form, as Manila normalises them.
        ("snapshot_support", "True", true),
        ("snapshot_support", "<is> true", true),
        ("snapshot_support", "False", false),
        ("driver_handles_share_servers", "False", true),
        ("driver_handles_share_servers", "0", true),
        ("driver_handles_share_servers", "True", false),
        // Not asked for: no matter.
    ];
    for (key, requirement, holds) in table {
        let specs = [((*key).to_owned(), (*requirement).to_owned())].into();
        let answer = satisfied(&facts, &specs, |_| false);
        assert_eq!(answer.is_ok(), *holds, "{key}={requirement}: {answer:?}");
        if let Err(sentence) = answer {
            assert!(sentence.contains(requirement), "{sentence}");
        }
    }
    assert_eq!(satisfied(&facts, &[].into(), |_| false), Ok(()));
    let both = [("dedupe".to_owned(), "True".to_owned()), ("compression".into(), "True".into())].into();
    assert!(satisfied(&facts, &both, |_| false).is_err(), "all of them must hold");
    assert!(satisfied(&facts, &both, |name| name == "compression").is_ok(), "skipped");
}

#[test]
fn each_security_service_must_be_offered() {
    let offers = |fact: serde_json::Value, wanted: &str| {
        let facts = [("security_services".to_owned(), fact)].into_iter().collect();
        let specs = [("security_services".to_owned(), wanted.to_owned())].into_iter().collect();
        satisfied(&facts, &specs, |_| false).is_ok()
    };
    let both = serde_json::json!(["LDAP", "kerberos"]);
    assert!(offers(both.clone(), "ldap"));
    assert!(offers(both.clone(), "kerberos, ldap"));
    assert!(offers(serde_json::json!("ldap,kerberos"), "kerberos,LDAP"));
    assert!(!offers(both, "ldap, active_directory"));
    assert!(!offers(serde_json::Value::Null, "ldap"));
}
