//! The OpenAPI document, and parameters as it describes them.

use std::sync::LazyLock;

use serde_json::Value;

use crate::page::Query;

/// The document's text.
pub(super) const TEXT: &str = include_str!("openapi.json");

/// The document. That it parses is tested; a server never starts with one that does not.
pub(super) static DOCUMENT: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(TEXT).unwrap_or_default());

/// The parameters of a request's query, checked against the document, defaults filled in.
#[derive(Debug, Default)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    /// Reads a query. The sentence of a refusal names the parameter.
    pub(super) fn read(path: &str, method: &str, query: Option<&str>) -> Result<Self, String> {
        let query = Query::parse(query);
        let operation = DOCUMENT.get("paths").and_then(|p| p.get(path)?.get(method.to_ascii_lowercase()));
        let described = operation.and_then(|o| o.get("parameters")).and_then(Value::as_array);
        let described: Vec<&Value> =
            described.into_iter().flatten().filter(|p| text(p, "in") == "query").collect();
        if let Some((stranger, _)) =
            query.iter().find(|(name, _)| !described.iter().any(|p| text(p, "name") == *name))
        {
            let names: Vec<&str> = described.iter().map(|p| text(p, "name")).collect();
            let known = if names.is_empty() {
                "it takes none".into()
            } else {
                format!("it takes {}", names.join(", "))
            };
            return Err(format!("This call does not know the parameter {stranger:?}; {known}."));
        }
        let mut params = Vec::new();
        for parameter in described {
            let name = text(parameter, "name");
            let schema = parameter.get("schema").map_or(&Value::Null, followed);
            match query.get(name) {
                Some(value) => {
                    check(name, value, schema)?;
                    params.push((name.to_owned(), value.to_owned()));
                }
                None if parameter.get("required") == Some(&Value::Bool(true)) => {
                    return Err(format!("This call needs the parameter {name:?}."));
                }
                None => params.extend(schema.get("default").map(|d| (name.to_owned(), d.to_string()))),
            }
        }
        Ok(Self(params))
    }

    /// A parameter, when it was given or has a default.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// A parameter that the document describes as a number or an id.
    pub(super) fn parsed<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.get(name)?.parse().ok()
    }
}

/// A schema, or the one in this document that it refers to.
fn followed(schema: &Value) -> &Value {
    let target = text(schema, "$ref").strip_prefix('#').and_then(|pointer| DOCUMENT.pointer(pointer));
    target.unwrap_or(schema)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Whether a value is as its schema says.
fn check(name: &str, value: &str, schema: &Value) -> Result<(), String> {
    let wrong = |wanted: String| Err(format!("The parameter {name:?} is {value:?}, but must be {wanted}."));
    let words = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
    let words: Vec<&str> = words.filter_map(Value::as_str).collect();
    if !words.is_empty() && !words.contains(&value) {
        return wrong(format!("one of {}", words.join(", ")));
    }
    match (text(schema, "type"), text(schema, "format")) {
        ("integer", _) => {
            let bound = |key: &str, default: u64| schema.get(key).and_then(Value::as_u64).unwrap_or(default);
            // What is stored counts in signed numbers.
            let (least, most) = (bound("minimum", 0), bound("maximum", i64::MAX as u64));
            let fits = value.parse::<u64>().is_ok_and(|n| (least..=most).contains(&n));
            if fits { Ok(()) } else { wrong(format!("a whole number from {least} to {most}")) }
        }
        ("boolean", _) if !matches!(value, "true" | "false") => wrong("true or false".into()),
        ("string", "uuid") if uuid::Uuid::parse_str(value).is_err() => wrong("an id (a UUID)".into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<Params, String> {
        Params::read("/v1/operations", "GET", Some(query))
    }

    #[test]
    fn parameters_are_as_the_document_says() {
        let params = read("limit=5&kind=sync&unfinished=true").unwrap();
        assert_eq!(params.parsed::<u64>("limit"), Some(5));
        assert_eq!(params.parsed::<u64>("offset"), Some(0), "a default is filled in");
        assert_eq!(params.get("kind"), Some("sync"));
        assert_eq!(params.get("share_id"), None);
    }

    #[test]
    fn what_is_not_as_the_document_says_is_named() {
        for (query, part) in [
            ("limit=0", "from 1 to 1000"),
            ("limit=1001", "from 1 to 1000"),
            ("offset=-1", "a whole number"),
            ("offset=9223372036854775808", "a whole number"),
            ("limit=%00", "a whole number"),
            ("kind=dance", "one of create_share"),
            ("share_id=x'%20OR%201=1", "an id"),
            ("unfinished=maybe", "true or false"),
            ("nonsense=1", "does not know the parameter \"nonsense\"; it takes share_id"),
        ] {
            let refused = read(query).unwrap_err();
            assert!(refused.contains(part), "{query}: {refused}");
        }
        assert!(Params::read("/v1/access-rules", "GET", None).unwrap_err().contains("needs the parameter"));
        assert!(Params::read("/v1/status", "GET", Some("a=1")).unwrap_err().contains("it takes none"));
    }

    proptest::proptest! {
        #[test]
        fn any_query_is_read_or_refused(query in "\\PC*") {
            let _ = read(&query);
        }
    }
}
