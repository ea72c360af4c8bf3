//! `drbdsetup` and `drbdmeta`, by argument vectors.

use std::net::SocketAddr;

use tandem_sdk::command::Command;
use tandem_sdk::{Error, ErrorKind, OpContext, Result, Retry};

/// Talks to the kernel.
pub(crate) const SETUP: &str = "/usr/sbin/drbdsetup";
/// Reads and writes metadata on devices that the kernel does not use.
pub(crate) const META: &str = "/usr/sbin/drbdmeta";

/// Runs `drbdsetup`.
///
/// # Errors
/// In DRBD's own words, with a kind that fits.
pub(crate) async fn setup(cx: &OpContext, words: &[&str]) -> Result<String> {
    let ended = Command::new(SETUP).args(words).run_any(cx).await?;
    judge("drbdsetup", words, ended.status.success(), ended)
}

/// The same, while the device is in use for a moment: a program that looks at new devices may hold it.
pub(crate) async fn when_free(cx: &OpContext, words: &[&str]) -> Result<()> {
    for _ in 0..20 {
        match setup(cx, words).await {
            Err(e) if is_busy(&e) => cx.sleep(std::time::Duration::from_millis(100)).await?,
            other => return other.map(drop),
        }
    }
    setup(cx, words).await.map(drop)
}

/// Runs `drbdmeta` on the metadata volume at `node`.
///
/// # Errors
/// As [`setup`].
pub(crate) async fn meta(cx: &OpContext, minor: u32, node: &str, words: &[&str]) -> Result<String> {
    meta_ended(cx, minor, node, words).await.map(|(said, _)| said)
}

/// Marks as changed what was being written when the host went down. How much that is, in the tool's own words, where it was
/// anything.
pub(crate) async fn apply_log(cx: &OpContext, minor: u32, node: &str) -> Result<Option<String>> {
    let (_, remarks) = meta_ended(cx, minor, node, &["apply-al"]).await?;
    Ok(remarks.lines().find(|line| line.starts_with("Marked additional")).map(str::to_owned))
}

/// What `drbdmeta` printed, and what it remarked beside it.
async fn meta_ended(cx: &OpContext, minor: u32, node: &str, words: &[&str]) -> Result<(String, String)> {
    let minor = minor.to_string();
    let all: Vec<&str> =
        ["--force", &minor, "v08", node, "flex-external"].iter().chain(words).copied().collect();
    let ended = Command::new(META).args(&all).run_any(cx).await?;
    let remarks = String::from_utf8_lossy(&ended.output.stderr).into_owned();
    judge("drbdmeta", &all, ended.status.success(), ended).map(|said| (said, remarks))
}

fn judge(tool: &str, words: &[&str], fine: bool, ended: tandem_sdk::command::Ended) -> Result<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if fine {
        return Ok(text(&ended.output.stdout));
    }
    let said = format!("{} {}", text(&ended.output.stderr), text(&ended.output.stdout));
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let transcript = ended.into_error();
    let error = refusal(tool, words.first().unwrap_or(&""), &said);
    Err(transcript.context.into_iter().fold(error, |error, (name, value)| error.with(name, value)))
}

/// The error behind what a tool said. See drbd-utils' `user/v84/drbdsetup.c` and the kernel's `linux/drbd.h`.
fn refusal(tool: &str, verb: &str, said: &str) -> Error {
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let sentence = format!("`{tool} {verb}` failed: {said}");
    if has(&["held open", "(-12)"]) {
        Error::busy(format!("{sentence}; end what uses the device"))
    } else if has(&["Need access to UpToDate data", "Multiple primaries", "(-2)", "(-1)"]) {
        Error::conflict(sentence)
    } else if has(&["Can only attach to the data we lost last"]) {
        Error::unavailable(format!(
            "{sentence}; what lies here is older than what its users were told: the other side's disk has to come back first"
        ))
    } else if has(&["already in use"]) {
        Error::unavailable(format!("{sentence}; something else has the port or the device"))
            .retry(Retry::AfterOperator)
    } else if has(&["Could not connect to 'drbd'", "module"]) {
        Error::unavailable(format!("{sentence}; load the kernel's module with `modprobe drbd`"))
            .retry(Retry::AfterOperator)
    } else {
        Error::unavailable(sentence)
    }
}

/// Whether an error is only that something is in use.
pub(crate) fn is_busy(error: &Error) -> bool {
    error.kind == ErrorKind::Busy
}

/// An address, as `drbdsetup` takes it.
pub(crate) fn address(of: SocketAddr) -> String {
    match of {
        SocketAddr::V4(of) => format!("ipv4:{of}"),
        SocketAddr::V6(of) => format!("ipv6:{of}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_kinds() {
        for (said, kind) in [
            ("0: State change failed: (-12) Device is held open by someone", ErrorKind::Busy),
            ("1: State change failed: (-2) Need access to UpToDate data", ErrorKind::Conflict),
            ("ra: Failure: (102) Local address(port) already in use.", ErrorKind::Unavailable),
            ("something new", ErrorKind::Unavailable),
        ] {
            let error = refusal("drbdsetup", "primary", said);
            assert_eq!(error.kind, kind, "{said}");
            assert!(error.message.contains(said), "{error}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(address("192.0.2.1:7000".parse().unwrap()), "ipv4:192.0.2.1:7000");
        assert_eq!(address("[2001:db8::1]:7000".parse().unwrap()), "ipv6:[2001:db8::1]:7000");
    }
}
