//! `tandem operations --watch`: a table that moves on a terminal, and one line for each change elsewhere.

use crate::{
    Failure, Output,
    client::Client,
    human::safe,
    parse, say,
    show::{operations, remark},
    wire::Operation,
};
use serde_json::Value;
use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::time::Duration;

/// Tandem renews progress at least once a second.
const PERIOD: Duration = Duration::from_secs(1);

/// Runs until somebody stops it.
pub(crate) fn run(client: &Client, query: &[(&str, Option<String>)], output: Output) -> Result<(), Failure> {
    let mut seen = HashMap::new();
    loop {
        let answer = client.get("operations", query)?;
        let list = answer.get("operations").and_then(Value::as_array).cloned().unwrap_or_default();
        if output == Output::Table && std::io::stdout().is_terminal() {
            // Home, then clear what is left of the last picture.
            say(&format!("\x1b[H\x1b[J{}", operations(parse(Value::Array(list))?)))?;
        } else {
            say(&changes(&mut seen, list, output)?)?;
        }
        std::thread::sleep(PERIOD);
    }
}

/// One line for each operation that is not as it was, oldest first.
fn changes(seen: &mut HashMap<String, Value>, list: Vec<Value>, output: Output) -> Result<String, Failure> {
    let mut text = String::new();
    for value in list.into_iter().rev() {
        let id = value.get("id").and_then(Value::as_str).unwrap_or_default().to_string();
        if seen.get(&id) == Some(&value) {
            continue;
        }
        text.push_str(&match output {
            Output::Json => format!("{value}\n"),
            Output::Table => {
                let operation: Operation = parse(value.clone())?;
                let line = format!(
                    "{} {} {}  {}",
                    operation.id,
                    operation.kind,
                    operation.status,
                    remark(&operation)
                );
                format!("{}\n", safe(line.trim_end()))
            }
        });
        seen.insert(id, value);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_changed_is_said() {
        let mut seen = HashMap::new();
        let (one, two) = (json!({"id": "1", "n": 1}), json!({"id": "2", "n": 1}));
        let first = changes(&mut seen, vec![two.clone(), one.clone()], Output::Json).unwrap();
        assert_eq!(first, "{\"id\":\"1\",\"n\":1}\n{\"id\":\"2\",\"n\":1}\n");
        assert_eq!(changes(&mut seen, vec![two, one], Output::Json).unwrap(), "");
        let moved = json!({"id": "2", "n": 2});
        assert_eq!(changes(&mut seen, vec![moved], Output::Json).unwrap(), "{\"id\":\"2\",\"n\":2}\n");
    }
}
