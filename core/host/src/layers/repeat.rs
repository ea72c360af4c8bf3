//! Duplicate delivery, for tests: each changing call reaches the driver twice, as after a crash of the manager.

use std::sync::Arc;

use serde_json::Value;
use tandem_contract::{Error, MigrationContinue, Receive, Result, Verb};

use super::{Call, Inner, Service};
use crate::BoxFuture;

pub(crate) struct RepeatLayer {
    pub(crate) inner: Inner,
    pub(crate) driver: String,
}

impl Service for RepeatLayer {
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Value>> {
        let (inner, driver) = (Arc::clone(&self.inner), self.driver.clone());
        Box::pin(async move {
            let verb = call.request.verb.clone();
            let mut again = if call.changes { second(&call)? } else { None };
            let first = inner.call(call).await?;
            if let Some(again) = again.take() {
                let second = inner.call(again).await.map_err(|e| {
                    Error::bug(format!(
                        "driver `{driver}` is not idempotent: `{verb}` succeeded, its repeat failed: {e}"
                    ))
                })?;
                // Each round of a migration carries what came since the one before.
                if verb != MigrationContinue::NAME && !is_repeat(&first, &second) {
                    return Err(Error::bug(format!(
                        "driver `{driver}` is not idempotent: the repeat of `{verb}` differs"
                    ))
                    .with("first", first)
                    .with("second", second));
                }
            }
            Ok(first)
        })
    }
}

/// The second delivery. A `receive` gets a stream that has ended already: it must not need one.
fn second(call: &Call) -> Result<Option<Call>> {
    if let Some(again) = call.again() {
        return Ok(Some(again));
    }
    if call.request.verb != Receive::NAME {
        return Ok(None);
    }
    let (ended, _) = rustix::pipe::pipe()
        .map_err(|e| Error::unavailable(format!("no pipe for a second delivery: {e}")))?;
    Ok(Some(Call {
        request: call.request.clone(),
        fds: vec![ended],
        cx: call.cx.clone(),
        changes: call.changes,
        instance: call.instance,
        deadline: call.deadline,
        stop: call.stop.clone(),
    }))
}

/// Whether `second` is what a repeat may answer: `Unchanged`, or the same.
fn is_repeat(first: &Value, second: &Value) -> bool {
    first == second || second.get("outcome").and_then(Value::as_str) == Some("unchanged")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_repeat_is_unchanged_or_the_same() {
        let changed = json!({"outcome": "changed", "value": 1});
        assert!(is_repeat(&changed, &json!({"outcome": "unchanged", "value": 1})));
        assert!(is_repeat(&changed, &changed));
        assert!(!is_repeat(&changed, &json!({"outcome": "changed", "value": 2})));
    }
}
