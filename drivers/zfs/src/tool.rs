//! `zfs`, where libzfs_core has no call.

use std::fs;
use std::time::Duration;

use tandem_sdk::command::Command;
use tandem_sdk::{Error, OpContext, Result};

use crate::error;
use crate::names::pool_of;

const ZFS: &str = "/usr/sbin/zfs";
/// A change waits for the pool's next transaction group, and for those before it on a busy pool.
const LONGEST: Duration = Duration::from_secs(120);

/// Runs `zfs` for a dataset; what it printed.
pub(crate) async fn zfs(cx: &OpContext, dataset: &str, args: &[&str]) -> Result<String> {
    alive(dataset)?;
    let ended = Command::new(ZFS).args(args).deadline(LONGEST).run_any(cx).await?;
    if !ended.status.success() {
        let said = String::from_utf8_lossy(&ended.output.stderr).into_owned();
        let unknown = ended.into_error();
        return Err(match error::of_tool(dataset, &said) {
            Some(error) => {
                unknown.context.into_iter().fold(error, |error, (name, value)| error.with(name, value))
            }
            None => Error::unavailable(format!("ZFS refused something of `{dataset}`: {}", said.trim()))
                .with("tool", unknown),
        });
    }
    String::from_utf8(ended.output.stdout).map_err(|_| Error::bug("`zfs` printed something that is no UTF-8"))
}

/// A property of a dataset or snapshot, as it is now: exact, without the line's end.
pub(crate) async fn property(cx: &OpContext, property: &str, of: &str) -> Result<String> {
    let text = zfs(cx, of, &["get", "-Hp", "-o", "value", property, of]).await?;
    Ok(text.trim().to_owned())
}

/// Fails while the pool is away or has stopped: calls to a stopped pool would wait for ever. Costs one small file.
pub(crate) fn alive(dataset: &str) -> Result<()> {
    let pool = pool_of(dataset);
    match fs::read_to_string(format!("/proc/spl/kstat/zfs/{pool}/state")) {
        Ok(state) if state.trim() == "SUSPENDED" => Err(error::suspended(pool)),
        Ok(_) => Ok(()),
        Err(_) => Err(error::not_imported(pool)),
    }
}

/// Runs a call of libzfs_core on a thread for it.
pub(crate) async fn kernel<T: Send + 'static>(
    cx: &OpContext,
    action: &'static str,
    dataset: &str,
    call: impl FnOnce(&str) -> Result<T, crate::lzc::Errno> + Send + 'static,
) -> Result<T> {
    alive(dataset)?;
    let dataset = dataset.to_owned();
    cx.blocking(move |_| call(&dataset).map_err(|errno| error::of_errno(action, &dataset, errno))).await
}
