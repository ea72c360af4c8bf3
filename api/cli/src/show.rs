//! Each answer as people read it.

use crate::{
    human::{duration, moment, safe, size},
    table::Table,
    wire::{Backend, Doctor, Driver, Operation, Progress, Replica, Share, Status},
};
use std::fmt::Write as _;

pub(crate) fn status(status: Status) -> String {
    let state = |name: &str| status.replicas.get(name).copied().unwrap_or(0);
    let mut text =
        format!("tandemd {} on {}, since {}\n", status.version, status.host, moment(&status.started_at));
    let down = match status.backends.down {
        0 => String::new(),
        n => format!(", {n} DOWN (see `tandem backends`)"),
    };
    let _ = writeln!(text, "back ends   {} up{down}", status.backends.up);
    let _ = writeln!(text, "shares      {}", status.shares);
    let _ = writeln!(
        text,
        "replicas    {} active, {} in sync, {} out of sync, {} in error",
        state("active"),
        state("in_sync"),
        state("out_of_sync"),
        state("error")
    );
    let _ = writeln!(
        text,
        "operations  {} unfinished, {} of them syncs",
        status.operations.unfinished, status.operations.syncs
    );
    for trouble in &status.troubles {
        let _ = writeln!(text, "TROUBLE     {}", safe(trouble));
    }
    text
}

pub(crate) fn shares(shares: Vec<Share>) -> String {
    let mut table = Table::new(&[
        "ID",
        "NAME",
        "PROJECT",
        "STATUS",
        "SIZE>",
        "TYPE",
        "REPLICATION",
        "COPIES>",
        "LAG>",
        "ACTIVE ON",
    ]);
    for share in shares {
        table.row([
            share.id,
            share.name.unwrap_or_default(),
            share.project_id,
            share.status,
            format!("{} GiB", share.size_gb),
            share.share_type.unwrap_or_default(),
            share.replication.unwrap_or_default(),
            share.instances.to_string(),
            share.lag_seconds.map(duration).unwrap_or_default(),
            share.host.unwrap_or_default(),
        ]);
    }
    table.to_string()
}

pub(crate) fn replicas(replicas: Vec<Replica>) -> String {
    let mut table = Table::new(&[
        "ID",
        "SHARE",
        "STATUS",
        "STATE",
        "ZONE",
        "LAG>",
        "BEHIND>",
        "ALLOWED>",
        "LAST POINT",
        "VERIFIED",
        "ON",
        "REMARK",
    ]);
    for replica in replicas {
        let remarks = remarks(&replica);
        table.row([
            replica.id,
            replica.share_name.unwrap_or(replica.share_id),
            replica.status,
            replica.replica_state.unwrap_or_default(),
            replica.availability_zone.unwrap_or_default(),
            replica.lag_seconds.map(duration).unwrap_or_default(),
            replica.lag_bytes.map(size).unwrap_or_default(),
            duration(replica.rpo_seconds),
            replica.last_point.map(|point| moment(&point.made_at)).unwrap_or_default(),
            replica.verified_at.as_deref().map(moment).unwrap_or_default(),
            replica.host.unwrap_or_default(),
            remarks.join("; "),
        ]);
    }
    table.to_string()
}

/// What a person should know of a replica.
fn remarks(replica: &Replica) -> Vec<String> {
    let mut remarks = Vec::new();
    if replica.unfenced {
        remarks.push("UNFENCED: may still be written to".to_string());
    }
    if replica.fenced {
        remarks.push("fenced: resync says which side to keep".into());
    }
    if replica.reset_by_admin {
        remarks.push("reset by an administrator".into());
    }
    if let Some(damage) = &replica.damage {
        remarks.push(format!("DAMAGED: {damage}"));
    }
    if let Some(degraded) =
        replica.degraded.as_ref().filter(|degraded| replica.reason.as_ref() != Some(degraded))
    {
        remarks.push(format!("DEGRADED: {degraded}"));
    }
    remarks.extend(replica.reason.clone().filter(|reason| replica.damage.as_ref() != Some(reason)));
    remarks
}

pub(crate) fn replica(replica: Replica) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "{name:10}  {}", safe(value));
        }
    };
    let remarks = remarks(&replica);
    line("replica", &replica.id);
    line("share", replica.share_name.as_deref().unwrap_or(&replica.share_id));
    line("status", &replica.status);
    line("state", replica.replica_state.as_deref().unwrap_or_default());
    line("zone", replica.availability_zone.as_deref().unwrap_or_default());
    line("on", replica.host.as_deref().unwrap_or_default());
    line("lag", &replica.lag_seconds.map(duration).unwrap_or_default());
    line("behind", &replica.lag_bytes.map(size).unwrap_or_default());
    line("allowed", &duration(replica.rpo_seconds));
    line("last point", &replica.last_point.map(|point| moment(&point.made_at)).unwrap_or_default());
    line("verified", &replica.verified_at.as_deref().map_or_else(|| "never".into(), moment));
    if let Some(point) = &replica.verified_point {
        let made = point.made_at.as_deref().map(|at| format!(", made {}", moment(at))).unwrap_or_default();
        line("at point", &format!("{}{made}", point.id));
    }
    for export in &replica.exports {
        line("export", export);
    }
    for remark in &remarks {
        line("remark", remark);
    }
    text
}

pub(crate) fn begun(operation: Operation) -> String {
    let (kind, id) = (safe(&operation.kind), safe(&operation.id));
    format!(
        "operation {id} of kind {kind} is {}; see `tandem operation show {id}`.\n",
        safe(&operation.status)
    )
}

pub(crate) fn operations(operations: Vec<Operation>) -> String {
    let mut table =
        Table::new(&["ID", "KIND", "STATUS", "SHARE", "REPLICA", "BYTES>", "ACCEPTED", "PROGRESS OR REASON"]);
    for operation in operations {
        let (carried, remark) = (carried(&operation), remark(&operation));
        table.row([
            operation.id,
            operation.kind,
            operation.status,
            operation.share_id,
            operation.instance_id.unwrap_or_default(),
            carried,
            moment(&operation.created_at),
            remark,
        ]);
    }
    table.to_string()
}

/// What it carried, and what had been carried before by a transfer that was cut.
fn carried(operation: &Operation) -> String {
    let carried = size(operation.bytes);
    match operation.resumed_bytes {
        0 => carried,
        before => format!("{carried} after {}", size(before)),
    }
}

/// What there is to say about an operation in one line.
pub(crate) fn remark(operation: &Operation) -> String {
    if operation.finished() {
        let error = operation.error.as_ref().map(|error| error.message.clone());
        return error.unwrap_or_else(|| operation.remarks.join("; "));
    }
    let mut parts = Vec::new();
    if operation.cancel_requested {
        parts.push("cancelling".to_string());
    }
    if let Some(step) = &operation.step {
        parts.push(format!("{}/{} {}", step.number, step.of, step.name));
    }
    parts.extend(operation.progress.as_ref().map(bar));
    parts.join("  ")
}

/// A bar where the total is known; never more than is known.
fn bar(progress: &Progress) -> String {
    const WIDTH: u64 = 20;
    let amount = match progress.total {
        Some(total) => {
            let percent = progress.percent.unwrap_or(0).min(100);
            let full = percent * WIDTH / 100;
            let cells = (0..WIDTH).map(|cell| if cell < full { '#' } else { '.' });
            let about = if progress.estimate { "about " } else { "" };
            let bar: String = cells.collect();
            format!("[{bar}] {percent:>2} %  {} of {about}{}", size(progress.done), size(total))
        }
        None => format!("{} so far", size(progress.done)),
    };
    match &progress.blocked_on {
        Some(cause) => format!("{amount}  {}, waits for {cause}", progress.phase),
        None => format!("{amount}  {}", progress.phase),
    }
}

pub(crate) fn operation(operation: Operation) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "{name:10}  {}", safe(value));
        }
    };
    line("operation", &operation.id);
    line("kind", &operation.kind);
    line("status", &operation.status);
    line("share", &operation.share_id);
    line("replica", operation.instance_id.as_deref().unwrap_or_default());
    line("request", operation.request_id.as_deref().unwrap_or_default());
    line("accepted", &moment(&operation.created_at));
    line("changed", &moment(&operation.updated_at));
    line("carried", &carried(&operation));
    if !operation.finished() {
        line("now", &remark(&operation));
    }
    if let Some(error) = &operation.error {
        line("error", &format!("{} ({})", error.message, error.kind));
    }
    for remark in &operation.remarks {
        line("remark", remark);
    }
    if !operation.steps.is_empty() {
        let mut table = Table::new(&["STEP>", "WHAT", "STATE"]);
        for (number, step) in operation.steps.iter().enumerate() {
            table.row([(number + 1).to_string(), step.step.clone(), step.state.clone()]);
        }
        let _ = write!(text, "\n{table}");
    }
    if !operation.events.is_empty() {
        let mut table = Table::new(&["EVENT>", "AT", "WHAT", "STEP>", "REMARK"]);
        for event in operation.events {
            let error = event.error.map(|error| error.message);
            table.row([
                event.seq.to_string(),
                moment(&event.at),
                event.event,
                event.step.map(|step| (step + 1).to_string()).unwrap_or_default(),
                error.or(event.remark).unwrap_or_default(),
            ]);
        }
        let _ = write!(text, "\n{table}");
    }
    text
}

pub(crate) fn cancelled(operation: Operation) -> String {
    format!("operation {} of kind {} is asked to end.\n", safe(&operation.id), safe(&operation.kind))
}

pub(crate) fn backends(backends: Vec<Backend>) -> String {
    let mut table = Table::new(&["NAME", "DRIVER", "ZONE", "STATE", "POOLS>", "FREE>", "TOTAL>", "REMARK"]);
    for backend in backends {
        // A sum with an unknown part is unknown.
        let sum =
            |of: fn(&crate::wire::Pool) -> Option<u64>| backend.pools.iter().map(of).sum::<Option<u64>>();
        let (free, total) = (sum(|pool| pool.free_bytes), sum(|pool| pool.total_bytes));
        let warnings = backend.pools.iter().filter_map(|pool| pool.warning.clone());
        let remark: Vec<String> = backend.reason.into_iter().chain(warnings).collect();
        let known = |sum: Option<u64>| {
            if backend.pools.is_empty() { String::new() } else { sum.map(size).unwrap_or_default() }
        };
        table.row([
            backend.name,
            format!("{} {}", backend.driver, backend.driver_version).trim().to_string(),
            backend.availability_zone,
            backend.state,
            backend.pools.len().to_string(),
            known(free),
            known(total),
            remark.join("; "),
        ]);
    }
    table.to_string()
}

pub(crate) fn drivers(drivers: Vec<Driver>) -> String {
    let mut table =
        Table::new(&["NAME", "VERSION", "CONTRACT", "STATE", "BACK ENDS", "HOST", "FILE", "REMARK"]);
    for driver in drivers {
        table.row([
            driver.name.unwrap_or_default(),
            driver.version.unwrap_or_default(),
            driver.contract.unwrap_or_default(),
            driver.state,
            driver.backends.join(", "),
            driver.host.unwrap_or_default(),
            driver.file,
            driver.reason.or(driver.summary).unwrap_or_default(),
        ]);
    }
    table.to_string()
}

pub(crate) fn doctor(doctor: Doctor) -> String {
    let mut text = String::new();
    if !doctor.findings.is_empty() {
        let mut table = Table::new(&["LAW>", "SEVERITY", "SUBJECT", "FINDING"]);
        for finding in doctor.findings {
            let law = if finding.law == 0 { String::new() } else { finding.law.to_string() };
            table.row([law, finding.severity, finding.subject, finding.message]);
        }
        let _ = writeln!(text, "{table}");
    }
    text.push_str(if doctor.healthy { "No law is broken.\n" } else { "Something is broken.\n" });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(done: u64, total: Option<u64>, percent: Option<u64>) -> Progress {
        Progress { phase: "transfer".into(), done, total, percent, estimate: false, blocked_on: None }
    }

    #[test]
    fn a_bar_claims_no_more_than_is_known() {
        assert_eq!(
            bar(&progress(512, Some(1024), Some(50))),
            "[##########..........] 50 %  512 B of 1.0 KiB  transfer"
        );
        assert_eq!(bar(&progress(512, None, None)), "512 B so far  transfer");
        let mut waiting = progress(0, Some(0), Some(0));
        waiting.estimate = true;
        waiting.blocked_on = Some("the receiver".into());
        assert_eq!(
            bar(&waiting),
            "[....................]  0 %  0 B of about 0 B  transfer, waits for the receiver"
        );
    }

    #[test]
    fn a_failed_operation_says_why_and_an_unfinished_one_where_it_is() {
        let json = serde_json::json!({
            "id": "o", "kind": "sync", "status": "running", "share_id": "s", "instance_id": null, "request_id": null,
            "cancel_requested": true, "bytes": 0, "step": {"number": 2, "of": 5, "name": "transfer"}, "progress": null,
            "error": null, "remarks": [], "created_at": "2026-11-21T00:00:00Z", "updated_at": "2026-11-21T00:00:00Z"
        });
        let mut operation: Operation = serde_json::from_value(json).unwrap();
        assert_eq!(remark(&operation), "cancelling  2/5 transfer");
        operation.status = "failed".into();
        operation.error =
            Some(crate::wire::Failed { kind: "out_of_space".into(), message: "the disk is full".into() });
        assert_eq!(remark(&operation), "the disk is full");
        operation.bytes = 1024;
        assert_eq!(carried(&operation), "1.0 KiB");
        operation.resumed_bytes = 2048;
        assert_eq!(carried(&operation), "1.0 KiB after 2.0 KiB");
    }
}
