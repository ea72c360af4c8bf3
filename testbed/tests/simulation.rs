//! The seeded simulation: every kind of operation under every fault at every place, and random runs.
//!
//! `CASE=text` runs only the cases whose name contains the text and prints the history of those that fail.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use tandem_contract::Style;
use tandem_testbed::sim::Transport;
use tandem_testbed::sim::cases::{Case, Kind, Outcome, at_calls, at_commits, at_progress, run};

/// Runs a kind of operation with every fault, over one transport.
fn matrix(kind: Kind, transport: Transport) {
    let style = if transport == Transport::Plain { Style::Dr } else { Style::Readable };
    let case = Case { kind, transport, style, fault: None, twice: false };
    let mut failed = Vec::new();
    let mut all = 1;
    let plain = judge(&case, &mut failed);
    judge(&Case { twice: true, ..case }, &mut failed);
    let mut faults = at_commits(plain.counts);
    faults.extend(at_calls(plain.counts, &plain.verbs));
    faults.extend(at_progress(plain.counts));
    for fault in faults {
        all += 1;
        judge(&Case { fault: Some(fault), ..case }, &mut failed);
    }
    println!("{case}: {all} cases, {:?}", plain.counts);
    assert!(failed.is_empty(), "{} of {all} cases failed:\n\n{}", failed.len(), failed.join("\n\n"));
}

fn judge(case: &Case, failed: &mut Vec<String>) -> Outcome {
    let wanted = std::env::var("CASE").ok();
    if case.fault.is_some() && wanted.as_ref().is_some_and(|text| !case.to_string().contains(text)) {
        return Outcome {
            counts: Default::default(),
            verbs: Vec::new(),
            problems: Vec::new(),
            trace: Vec::new(),
        };
    }
    let outcome = run(case);
    if !outcome.problems.is_empty() {
        failed.push(format!("{case}:\n  {}", outcome.problems.join("\n  ")));
        if wanted.is_some() {
            println!("{case}:\n{}", outcome.trace.join("\n"));
        }
    }
    outcome
}

macro_rules! matrix {
    ($($name:ident: $kind:ident;)*) => {
        $(mod $name {
            use super::*;

            #[test]
            fn streamed() {
                matrix(Kind::$kind, Transport::Streamed);
            }

            #[test]
            fn plain() {
                matrix(Kind::$kind, Transport::Plain);
            }

            #[test]
            fn storage() {
                matrix(Kind::$kind, Transport::Storage);
            }
        })*
    };
}

matrix! {
    create_share: CreateShare;
    create_replica: CreateReplica;
    sync: Sync;
    promote_planned: PromotePlanned;
    promote_forced: PromoteForced;
    delete_replica: DeleteReplica;
    delete_share: DeleteShare;
    update_access: UpdateAccess;
    extend: Extend;
    shrink: Shrink;
    resync_fenced: ResyncFenced;
    repair: Repair;
}
