//! The few Python readings that Manila's wire format leans on.
//!
//! Manila's answers are what Python's `json.dumps` prints, its booleans are what oslo's
//! `bool_from_string` takes, some of its messages quote a value with `repr`, and some of its filters are
//! Python literals. Clients have grown around all four, so they live here, once.

use serde_json::ser::Formatter;
use serde_json::{Map, Value};
use std::io::{self, Write};

/// Prints JSON as Python's `json.dumps` does: `", "` and `": "` between parts, and ASCII only.
pub(crate) fn dumps(value: &Value) -> Vec<u8> {
    use serde::Serialize;
    let mut out = Vec::with_capacity(256);
    let mut printer = serde_json::Serializer::with_formatter(&mut out, Dumps);
    // A Value that is already in memory cannot fail to print into a Vec; an empty body is the answer if it did.
    if value.serialize(&mut printer).is_err() {
        out.clear();
    }
    out
}

struct Dumps;

impl Formatter for Dumps {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        if fragment.is_ascii() {
            return writer.write_all(fragment.as_bytes());
        }
        for c in fragment.chars() {
            if c.is_ascii() {
                writer.write_all(&[c as u8])?;
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

/// `oslo_utils.strutils.bool_from_string(value, strict=True)`.
pub(crate) fn strict_bool(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "t" | "true" | "on" | "y" | "yes" => Some(true),
        "0" | "f" | "false" | "off" | "n" | "no" => Some(false),
        _ => None,
    }
}

/// `bool_from_string` of any JSON value, strictly; numbers and booleans are read through their text.
pub(crate) fn strict_bool_value(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(b) => Some(*b),
        Value::String(s) => strict_bool(s),
        Value::Number(n) => strict_bool(&n.to_string()),
        _ => None,
    }
}

/// What `bool_from_string(..., strict=True)` says about a value it does not take.
pub(crate) fn not_a_bool(value: &str) -> String {
    format!(
        "Unrecognized value '{value}', acceptable values are: '0', '1', 'f', 'false', 'n', 'no', 'off', 'on', \
         't', 'true', 'y', 'yes'"
    )
}

/// Whether Python would take the value for true.
pub(crate) fn truthy(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::Bool(b)) => *b,
        Some(Value::Number(n)) => n.as_f64() != Some(0.0),
        Some(Value::String(s)) => !s.is_empty(),
        Some(Value::Array(a)) => !a.is_empty(),
        Some(Value::Object(o)) => !o.is_empty(),
    }
}

/// `repr(value)`.
pub(crate) fn repr(value: &Value) -> String {
    match value {
        Value::String(s) => repr_str(s),
        Value::Array(items) => format!("[{}]", join(items.iter().map(repr))),
        Value::Object(map) => {
            format!("{{{}}}", join(map.iter().map(|(k, v)| format!("{}: {}", repr_str(k), repr(v)))))
        }
        other => str_of(other),
    }
}

/// `str(value)`: as [`repr`], but a string is itself.
pub(crate) fn str_of(value: &Value) -> String {
    match value {
        Value::Null => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Number(n) => n.to_string(),
        Value::String(s) => s.clone(),
        other => repr(other),
    }
}

fn repr_str(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

fn join(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(", ")
}

/// `int(value)` of a JSON value: whole numbers, floats cut off, and decimal text.
pub(crate) fn int(value: &Value) -> Option<i64> {
    match value {
        Value::Number(n) => n.as_i64().or_else(|| n.as_f64().filter(|f| f.abs() < 9e18).map(|f| f as i64)),
        Value::String(s) => s.trim().parse().ok(),
        Value::Bool(b) => Some(i64::from(*b)),
        _ => None,
    }
}

/// `oslo_utils.strutils.is_int_like`: the value prints as the integer it is.
pub(crate) fn int_like(value: &Value) -> Option<i64> {
    match value {
        Value::Number(n) => n.as_i64(),
        Value::String(s) => s.parse::<i64>().ok().filter(|n| n.to_string() == *s),
        _ => None,
    }
}

/// `ast.literal_eval` of a flat dictionary, `{'key': 'value', ...}`: what the clients send as a filter.
/// Values may be text, whole numbers, `True`, `False` and `None`.
pub(crate) fn literal_dict(text: &str) -> Option<Map<String, Value>> {
    let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
    let mut out = Map::new();
    while !rest.is_empty() {
        let (key, after) = literal_string(rest)?;
        let after = after.trim_start().strip_prefix(':')?.trim_start();
        let (value, after) = literal(after)?;
        out.insert(key, value);
        let after = after.trim_start();
        rest = match after.strip_prefix(',') {
            Some(more) => more.trim_start(),
            None if after.is_empty() => after,
            None => return None,
        };
    }
    Some(out)
}

fn literal(text: &str) -> Option<(Value, &str)> {
    if let Some((s, rest)) = literal_string(text) {
        return Some((Value::String(s), rest));
    }
    let end = text.find([',', '}']).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    let value = match word.trim() {
        "True" => Value::Bool(true),
        "False" => Value::Bool(false),
        "None" => Value::Null,
        number => Value::from(number.parse::<i64>().ok()?),
    };
    Some((value, rest))
}

fn literal_string(text: &str) -> Option<(String, &str)> {
    let text = text.strip_prefix('u').unwrap_or(text);
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let mut out = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => match chars.next()?.1 {
                'n' => out.push('\n'),
                't' => out.push('\t'),
                other => out.push(other),
            },
            c if c == quote => return Some((out, text.get(at + 1..)?)),
            c => out.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn prints_as_python_does() {
        let value = json!({"a": [1, 2.0, "é😀"], "b": {}});
        assert_eq!(
            String::from_utf8_lossy(&dumps(&value)),
            "{\"a\": [1, 2.0, \"\\u00e9\\ud83d\\ude00\"], \"b\": {}}"
        );
    }

    #[test]
    fn reads_the_filters_that_clients_send() {
        let dict = literal_dict("{'replication_type': 'readable', \"n\": 2, 'on': True}").unwrap();
        assert_eq!(Value::Object(dict), json!({"replication_type": "readable", "n": 2, "on": true}));
        for bad in ["", "[1]", "{'a'}", "{'a': }", "{'a': 'b", "__import__('os')", "{'a': {'b': 'c'}}"] {
            assert!(literal_dict(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn quotes_as_repr_does() {
        assert_eq!(repr(&json!({"a": [true, null, "it's"]})), "{'a': [True, None, \"it's\"]}");
    }

    proptest::proptest! {
        #[test]
        fn no_filter_text_panics(text in "\\PC*") {
            let _ = literal_dict(&text);
            let _ = literal_dict(&format!("{{{text}}}"));
        }

        #[test]
        fn what_is_printed_reads_back(text in "\\PC*") {
            let value = json!({ text.clone(): text });
            proptest::prop_assert_eq!(serde_json::from_slice::<Value>(&dumps(&value)).unwrap(), value);
        }
    }
}
