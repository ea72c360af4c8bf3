//! The language of extra specs, as Manila's scheduler reads it.
//!
//! A requirement is a bare word (equal, any case), or an operator and a word: `=` and `>=` (at least), `<=`, `==`, `!=`
//! compare numbers; `s==`, `s!=`, `s<`, `s<=`, `s>`, `s>=` compare texts; `<in> X`: X is a part of it; `<is> X`: both are
//! true or both are not; `<or> A <or> B`: it is one of them. A list matches when one of its members does. Where Manila
//! compares a number with a bare word they never match; here they do when they are equal.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Specs that say something else than what a pool must be able to do.
const NOT_CAPABILITIES: [&str; 1] = ["availability_zones"];

/// Services that a share's users depend on, with commas between them: a pool offers each, or the share would be useless
/// there.
const SECURITY_SERVICES: &str = "security_services";

/// Specs that are yes or no, whatever their form.
const BOOLEANS: [&str; 5] = [
    "driver_handles_share_servers",
    "snapshot_support",
    "create_share_from_snapshot_support",
    "revert_to_snapshot_support",
    "mount_snapshot_support",
];

/// Whether facts satisfy every extra spec that speaks of capabilities: those without a scope and those of the scope
/// `capabilities`. Keys of another scope are a driver's or ours.
///
/// # Errors
/// A sentence about the first one that is not satisfied.
pub fn satisfied(
    facts: &Map<String, Value>,
    specs: &BTreeMap<String, String>,
    skip: impl Fn(&str) -> bool,
) -> Result<(), String> {
    for (key, requirement) in specs {
        let name = match key.split_once(':') {
            Some(("capabilities", name)) => name,
            Some(_) => continue,
            None => key,
        };
        if NOT_CAPABILITIES.contains(&name) || skip(name) {
            continue;
        }
        let fact = look_up(facts, name);
        let holds = match fact {
            None | Some(Value::Null) => {
                return Err(format!(
                    "it does not offer {name}, which the share type wants to be `{requirement}`"
                ));
            }
            Some(fact) if BOOLEANS.contains(&name) && !requirement.trim_start().starts_with("<is>") => {
                matches(fact, &format!("<is> {requirement}"))
            }
            Some(fact) if name == SECURITY_SERVICES => offers_each(fact, requirement),
            Some(fact) => matches(fact, requirement),
        };
        if !holds {
            let fact = fact.map(show).unwrap_or_default();
            return Err(format!("its {name} is {fact}, the share type wants `{requirement}`"));
        }
    }
    Ok(())
}

/// A fact by its name; further parts after colons go into objects.
fn look_up<'a>(facts: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let mut parts = name.split(':');
    let mut value = facts.get(parts.next()?)?;
    for part in parts {
        value = value.get(part)?;
    }
    Some(value)
}

fn show(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().map(show).collect::<Vec<_>>().join(", "),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        other => other.to_string(),
    }
}

/// Whether a fact meets a requirement.
pub fn matches(fact: &Value, requirement: &str) -> bool {
    match fact {
        Value::Array(all) => all.iter().any(|one| matches_one(one, requirement)),
        one => matches_one(one, requirement),
    }
}

/// Whether each word of a requirement with commas is among a fact's.
fn offers_each(fact: &Value, requirement: &str) -> bool {
    let offered: Vec<String> = match fact {
        Value::Array(all) => all.iter().filter_map(text_of).collect(),
        one => text_of(one).iter().flat_map(|text| text.split(',')).map(|word| word.trim().into()).collect(),
    };
    let wanted = requirement.to_lowercase();
    let mut wanted = wanted.split(',').map(str::trim).filter(|word| !word.is_empty());
    wanted.all(|word| offered.iter().any(|one| one == word))
}

fn matches_one(fact: &Value, requirement: &str) -> bool {
    let Some(text) = text_of(fact) else { return false };
    let requirement = requirement.to_lowercase();
    let mut words = requirement.split_whitespace();
    let (operator, word) = (words.next().unwrap_or_default(), words.next());
    let order = |holds: fn(Ordering) -> bool| {
        let ordered = word.and_then(|word| number(&text)?.partial_cmp(&number(word)?));
        ordered.is_some_and(holds)
    };
    let text_order = |holds: fn(Ordering) -> bool| word.is_some_and(|word| holds(text.as_str().cmp(word)));
    match operator {
        "<or>" => one_of(&text, &requirement),
        "<in>" => word.is_some_and(|word| matches!(fact, Value::String(_)) && text.contains(word)),
        "<is>" => word.is_some_and(|word| truth(&text) == truth(word)),
        "=" | ">=" => order(Ordering::is_ge),
        "<=" => order(Ordering::is_le),
        "==" => order(Ordering::is_eq),
        "!=" => order(Ordering::is_ne),
        "s==" => text_order(Ordering::is_eq),
        "s!=" => text_order(Ordering::is_ne),
        "s<" => text_order(Ordering::is_lt),
        "s<=" => text_order(Ordering::is_le),
        "s>" => text_order(Ordering::is_gt),
        "s>=" => text_order(Ordering::is_ge),
        _ => equal(fact, &text, &requirement),
    }
}

/// `<or> A <or> B`: every second word. What stands between them is taken for `<or>`, as Manila does.
fn one_of(text: &str, requirement: &str) -> bool {
    requirement.split_whitespace().skip(1).step_by(2).any(|word| word == text)
}

fn equal(fact: &Value, text: &str, requirement: &str) -> bool {
    match fact {
        Value::Bool(is) => strict_truth(requirement) == Some(*is),
        Value::Number(_) => number(text).is_some_and(|is| number(requirement) == Some(is)),
        _ => text == requirement,
    }
}

/// In lower case; `None` for what has no text (null, an object).
fn text_of(fact: &Value) -> Option<String> {
    match fact {
        Value::String(text) => Some(text.to_lowercase()),
        Value::Bool(is) => Some(is.to_string()),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn number(text: &str) -> Option<f64> {
    match text {
        "true" => Some(1.0),
        "false" => Some(0.0),
        _ => text.trim().parse().ok().filter(|number: &f64| !number.is_nan()),
    }
}

/// oslo's reading of a boolean, where what is neither is neither.
fn strict_truth(text: &str) -> Option<bool> {
    match text.trim() {
        "1" | "t" | "true" | "on" | "y" | "yes" => Some(true),
        "0" | "f" | "false" | "off" | "n" | "no" => Some(false),
        _ => None,
    }
}

/// oslo's reading of a boolean, where what is neither is false.
fn truth(text: &str) -> bool {
    strict_truth(text).unwrap_or(false)
}
