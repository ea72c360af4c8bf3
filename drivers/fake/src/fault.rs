//! Scripted faults.

use serde::{Deserialize, Serialize};
use tandem_sdk::schemars::{self, JsonSchema};

/// A fault and when it strikes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// The verb; every verb when empty.
    #[serde(default)]
    pub verb: String,
    /// The site; every site when empty.
    #[serde(default)]
    pub site: String,
    /// Lets so many calls pass first.
    #[serde(default)]
    pub skip: u32,
    /// Strikes so many times.
    #[serde(default = "once")]
    pub times: u32,
    /// What happens.
    pub what: What,
}

/// What a fault does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum What {
    /// The call fails before it does anything, with an error of this kind (`unavailable`, `busy`, …).
    Fail {
        /// The contract's word for the kind.
        error: String,
    },
    /// The call does its work, then fails as if the answer had been lost.
    LoseAnswer,
    /// The call never returns, heeding no cancel, until `World::release` is called.
    Hang,
    /// The call waits until it is cancelled.
    WaitForCancel,
    /// The call panics.
    Panic,
    /// The call takes so long first, by the runtime's clock.
    Delay {
        /// In milliseconds.
        ms: u64,
    },
    /// The stream of `send` or `receive` breaks after so many bytes.
    CutStream {
        /// Bytes that still pass.
        after: u64,
    },
}

const fn once() -> u32 {
    1
}

/// Takes the fault that strikes this call, if any, and counts.
pub(crate) fn strike(faults: &mut Vec<Fault>, site: &str, verb: &str) -> Option<What> {
    let fits = |fault: &Fault| {
        (fault.verb.is_empty() || fault.verb == verb) && (fault.site.is_empty() || fault.site == site)
    };
    let mut struck = None;
    for fault in faults.iter_mut().filter(|fault| fits(fault)) {
        if fault.skip > 0 {
            fault.skip -= 1;
        } else if struck.is_none() && fault.times > 0 {
            fault.times -= 1;
            struck = Some(fault.what.clone());
        }
    }
    faults.retain(|fault| fault.times > 0);
    struck
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_skips_then_strikes_then_ends() {
        let fault = Fault { verb: "send".into(), site: String::new(), skip: 1, times: 2, what: What::Panic };
        let mut faults = vec![fault];
        let struck: Vec<bool> = ["send", "receive", "send", "send", "send"]
            .iter()
            .map(|v| strike(&mut faults, "a", v).is_some())
            .collect();
        assert_eq!(struck, [false, false, true, true, false]);
        assert!(faults.is_empty());
    }
}
