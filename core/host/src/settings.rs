//! Checks a back end's settings against its driver's schema, and names the key that does not fit.

use std::cell::Cell;

use serde_json::{Map, Value};

/// What does not fit, as one sentence that names the key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct SettingsError {
    /// The key, with dots and indices (`pools[0].path`); `settings` for the whole.
    pub key: String,
    /// What is wrong with it.
    pub problem: String,
}

/// Checks `settings` against `schema`: the subset of JSON Schema 2020-12 that settings need. Keywords beyond it are
/// left to the driver, which reads the settings itself.
///
/// # Errors
/// The first thing that does not fit.
pub fn check_settings(schema: &Value, settings: &Value) -> Result<(), SettingsError> {
    let empty = Value::Object(Map::new());
    let settings = if settings.is_null() { &empty } else { settings };
    Checker { root: schema, depth: Cell::new(0) }.check(schema, settings, "")
}

/// A schema comes from a library: one that refers to itself must not exhaust the stack.
const DEEPEST: u32 = 64;

struct Checker<'a> {
    root: &'a Value,
    depth: Cell<u32>,
}

impl Checker<'_> {
    fn check(&self, schema: &Value, value: &Value, key: &str) -> Result<(), SettingsError> {
        if self.depth.get() >= DEEPEST {
            return Err(wrong(key, "is nested too deeply, or the driver's schema refers to itself"));
        }
        self.depth.set(self.depth.get() + 1);
        let checked = self.check_here(schema, value, key);
        self.depth.set(self.depth.get() - 1);
        checked
    }

    fn check_here(&self, schema: &Value, value: &Value, key: &str) -> Result<(), SettingsError> {
        let schema = self.resolve(schema);
        if schema == &Value::Bool(false) {
            return Err(wrong(key, "must not be set"));
        }
        let Some(rules) = schema.as_object() else { return Ok(()) };
        check_type(rules, value, key)?;
        check_values(rules, value, key)?;
        match value {
            Value::Object(fields) => self.check_object(rules, fields, key)?,
            Value::Array(items) => {
                if let Some(each) = rules.get("items") {
                    for (i, item) in items.iter().enumerate() {
                        self.check(each, item, &format!("{key}[{i}]"))?;
                    }
                }
            }
            Value::Number(number) => check_range(rules, number, key)?,
            Value::String(text) => check_length(rules, text, key)?,
            _ => {}
        }
        self.check_choices(rules, value, key)
    }

    /// Follows a reference within the schema.
    fn resolve<'b>(&'b self, schema: &'b Value) -> &'b Value {
        let target = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#'));
        target.and_then(|pointer| self.root.pointer(pointer)).unwrap_or(schema)
    }

    fn check_object(
        &self,
        rules: &Map<String, Value>,
        fields: &Map<String, Value>,
        key: &str,
    ) -> Result<(), SettingsError> {
        let known = rules.get("properties").and_then(Value::as_object);
        for (name, value) in fields {
            let inner = join(key, name);
            match known.and_then(|known| known.get(name)) {
                Some(schema) => self.check(schema, value, &inner)?,
                None => match rules.get("additionalProperties") {
                    Some(Value::Bool(false)) => return Err(unknown(&inner, name, known)),
                    Some(schema) => self.check(schema, value, &inner)?,
                    None => {}
                },
            }
        }
        let required = rules.get("required").and_then(Value::as_array).into_iter().flatten();
        for name in required.filter_map(Value::as_str) {
            if !fields.contains_key(name) {
                return Err(wrong(&join(key, name), "is missing, and has no default"));
            }
        }
        Ok(())
    }

    fn check_choices(
        &self,
        rules: &Map<String, Value>,
        value: &Value,
        key: &str,
    ) -> Result<(), SettingsError> {
        for all in rules.get("allOf").and_then(Value::as_array).into_iter().flatten() {
            self.check(all, value, key)?;
        }
        for word in ["anyOf", "oneOf"] {
            let Some(choices) = rules.get(word).and_then(Value::as_array) else { continue };
            let mut problems: Vec<SettingsError> = Vec::new();
            for choice in choices {
                match self.check(choice, value, key) {
                    Ok(()) => {
                        problems.clear();
                        break;
                    }
                    Err(problem) => problems.push(problem),
                }
            }
            // The choice that was understood furthest is the one that was meant.
            if let Some(problem) = problems.into_iter().max_by_key(|p| p.key.len()) {
                return Err(problem);
            }
        }
        Ok(())
    }
}

fn check_type(rules: &Map<String, Value>, value: &Value, key: &str) -> Result<(), SettingsError> {
    let allowed: Vec<&str> = match rules.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
        _ => return Ok(()),
    };
    let fits = allowed.iter().any(|kind| match *kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0),
        _ => true,
    });
    if fits {
        Ok(())
    } else {
        Err(wrong(key, &format!("must be {}, but is {}", a(&allowed.join(" or ")), kind_of(value))))
    }
}

fn check_values(rules: &Map<String, Value>, value: &Value, key: &str) -> Result<(), SettingsError> {
    if let Some(only) = rules.get("const")
        && only != value
    {
        return Err(wrong(key, &format!("must be {only}, but is {value}")));
    }
    if let Some(allowed) = rules.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        let list: Vec<String> = allowed.iter().map(Value::to_string).collect();
        return Err(wrong(key, &format!("must be one of {}, but is {value}", list.join(", "))));
    }
    Ok(())
}

fn check_range(
    rules: &Map<String, Value>,
    number: &serde_json::Number,
    key: &str,
) -> Result<(), SettingsError> {
    let Some(number) = number.as_f64() else { return Ok(()) };
    let bound = |name: &str| rules.get(name).and_then(Value::as_f64);
    if let Some(least) = bound("minimum").filter(|least| number < *least) {
        return Err(wrong(key, &format!("must be at least {least}, but is {number}")));
    }
    if let Some(most) = bound("maximum").filter(|most| number > *most) {
        return Err(wrong(key, &format!("must be at most {most}, but is {number}")));
    }
    Ok(())
}

fn check_length(rules: &Map<String, Value>, text: &str, key: &str) -> Result<(), SettingsError> {
    let length = text.chars().count() as u64;
    let bound = |name: &str| rules.get(name).and_then(Value::as_u64);
    if bound("minLength").is_some_and(|least| length < least) {
        return Err(wrong(key, if length == 0 { "must not be empty" } else { "is too short" }));
    }
    if bound("maxLength").is_some_and(|most| length > most) {
        return Err(wrong(key, "is too long"));
    }
    Ok(())
}

fn unknown(key: &str, name: &str, known: Option<&Map<String, Value>>) -> SettingsError {
    let names: Vec<&str> = known.into_iter().flat_map(|known| known.keys()).map(String::as_str).collect();
    let near = names.iter().map(|n| (distance(n, name), *n)).min().filter(|(d, _)| *d <= 2);
    let hint = match near {
        Some((_, near)) => format!("; did you mean `{near}`?"),
        None if names.is_empty() => "; there are none".to_owned(),
        None => format!("; there are {}", names.join(", ")),
    };
    wrong(key, &format!("is not a setting of this driver{hint}"))
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = substituted.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

fn join(key: &str, name: &str) -> String {
    if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") }
}

fn wrong(key: &str, problem: &str) -> SettingsError {
    let key = if key.is_empty() { "settings".to_owned() } else { format!("`{key}`") };
    SettingsError { key, problem: problem.to_owned() }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "a table",
    }
}

fn a(kind: &str) -> String {
    let kind = kind.replace("object", "table");
    let article = if kind.starts_with(['a', 'i']) { "an" } else { "a" };
    format!("{article} {kind}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn schema() -> Value {
        json!({
            "type": "object",
            "additionalProperties": false,
            "required": ["root"],
            "properties": {
                "root": {"type": "string", "minLength": 1},
                "mode": {"enum": ["fast", "safe"]},
                "size": {"type": ["integer", "null"], "minimum": 1},
                "pools": {"type": "array", "items": {"$ref": "#/$defs/pool"}},
                "either": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/pool"}]}
            },
            "$defs": {"pool": {"type": "object", "required": ["path"], "properties": {"path": {"type": "string"}}}}
        })
    }

    fn problem(settings: Value) -> String {
        check_settings(&schema(), &settings).unwrap_err().to_string()
    }

    #[test]
    fn the_key_is_named() {
        assert_eq!(
            check_settings(&schema(), &json!({"root": "/x", "size": 3, "pools": [{"path": "p"}]})),
            Ok(())
        );
        assert_eq!(problem(json!({})), "`root`: is missing, and has no default");
        assert_eq!(problem(Value::Null), "`root`: is missing, and has no default");
        assert_eq!(
            problem(json!({"rot": "/x"})),
            "`rot`: is not a setting of this driver; did you mean `root`?"
        );
        assert_eq!(problem(json!({"root": 3})), "`root`: must be a string, but is a number");
        assert_eq!(problem(json!({"root": ""})), "`root`: must not be empty");
        assert_eq!(
            problem(json!({"root": "/x", "mode": "x"})),
            "`mode`: must be one of \"fast\", \"safe\", but is \"x\""
        );
        assert_eq!(problem(json!({"root": "/x", "size": 0})), "`size`: must be at least 1, but is 0");
        assert_eq!(
            problem(json!({"root": "/x", "size": 1.5})),
            "`size`: must be an integer or null, but is a number"
        );
        assert_eq!(
            problem(json!({"root": "/x", "pools": [{}]})),
            "`pools[0].path`: is missing, and has no default"
        );
        assert_eq!(
            problem(json!({"root": "/x", "either": {"path": 1}})),
            "`either.path`: must be a string, but is a number"
        );
        assert_eq!(problem(json!([])), "settings: must be a table, but is an array");
    }

    #[test]
    fn a_schema_that_refers_to_itself_is_refused() {
        assert!(check_settings(&json!({"allOf": [{"$ref": "#"}]}), &json!({})).is_err());
    }

    proptest! {
        #[test]
        fn distance_is_a_metric(a in "[a-c]{0,6}", b in "[a-c]{0,6}") {
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert_eq!(distance(&a, &b) == 0, a == b);
        }

        #[test]
        fn no_schema_breaks_the_check(schema in json_value(), settings in json_value()) {
            let _ = check_settings(&schema, &settings);
        }
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[a-z]{0,5}".prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            let keys = prop_oneof![
                Just("type".to_owned()),
                Just("properties".to_owned()),
                Just("required".to_owned()),
                Just("enum".to_owned()),
                Just("anyOf".to_owned()),
                Just("items".to_owned()),
                "[a-z]{0,3}"
            ];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((keys, inner), 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }
}
