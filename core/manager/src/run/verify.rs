//! The content check: what the active instance and a replica hold at a point they have in common, read again on both sides
//! and compared.
//!
//! The step changes nothing of what it reads. What it finds goes into the operation's error, which is durable before any row
//! follows from it: [`found`] tells the rows at the end.

use std::sync::{Arc, Mutex, PoisonError};

use tandem_contract::{
    ContentFingerprint, DiscardPartial, Error, InstanceId, PointId, Progress, ReadFingerprint, ReplicaState,
};
use tandem_host::CallContext;

use super::execute::Run;
use super::finish::state;
use super::steps::{Done, Scene};
use crate::clock::Timestamp;
use crate::core::Core;
use crate::draft::{Draft, active_of};
use crate::model::{Checked, Instance, Intent};
use crate::oplog::{Effect, Ending};
use crate::plan::common_form;

/// Name of the context that says on which side the damage is.
const DAMAGED: &str = "damaged";
/// The replica, as far as is known.
const REPLICA: &str = "replica";
/// The active instance, and not the replica.
const ACTIVE: &str = "active";
/// Either of them.
const BOTH: &str = "both";

impl Run {
    pub(super) async fn compare(
        &self,
        scene: &Scene,
        source: InstanceId,
        dest: InstanceId,
        point: PointId,
    ) -> Result<Done, Error> {
        let (source_row, dest_row) = (scene.row(source)?, scene.row(dest)?);
        let here = self.core.backends.of(source_row).await?;
        let there = self.core.backends.of(dest_row).await?;
        let form = common_form(here.capabilities(), there.capabilities()).ok_or_else(|| {
            Error::unsupported("the drivers of both sides have no form of fingerprints in common")
        })?;
        let bandwidth = self.core.settings.verify.bandwidth.filter(|limit| *limit > 0);
        let ask = |instance| ReadFingerprint { instance, point, form: form.clone(), bandwidth };
        let both = async |cx: CallContext| {
            let (one, other) = halves(&cx);
            tokio::try_join!(here.call(&one, ask(source)), there.call(&other, ask(dest)))
        };
        let (one, other) = self.moving(both).await?;
        match judge(&one, &other)? {
            None => {
                let asked = matches!(self.intent(), Intent::Verify { asked: true, .. });
                Ok(equal(scene, source, dest, point, self.started_at, asked))
            }
            Some(damage) => {
                if damage.side == REPLICA {
                    // A partial increment builds upon what is damaged: what is carried next begins anew. Best effort: a
                    // transfer refuses to go on from another base, and what was found must not be lost.
                    let _ = self.ask(&there, DiscardPartial { instance: dest }).await;
                }
                Err(damage.error(source, dest, point))
            }
        }
    }
}

/// Contexts of two calls whose progress is one.
fn halves(cx: &CallContext) -> (CallContext, CallContext) {
    let told: Arc<Mutex<[Option<Progress>; 2]>> = Arc::default();
    let half = |n: usize| {
        let (told, report) = (Arc::clone(&told), Arc::clone(&cx.on_progress));
        cx.clone().on_progress(move |news| {
            let sum = {
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                told[n] = Some(news);
                sum(&told)
            };
            report(sum);
        })
    };
    (half(0), half(1))
}

/// Bytes read on both sides, of those there are; the total is known once both have told theirs.
fn sum(told: &[Option<Progress>; 2]) -> Progress {
    let done = told.iter().flatten().map(|p| p.done).sum();
    let total = told.iter().map(|p| p.as_ref()?.total).sum::<Option<u64>>();
    let mut sum = Progress::of("verify", done, total.map(|total| total.max(done)));
    sum.current = told.iter().flatten().find_map(|p| p.current.clone());
    sum
}

/// What is damaged, and where.
struct Damage {
    side: &'static str,
    /// What differs, for a person.
    what: String,
}

/// Compares. `None`: both hold the same, and neither knows of any damage.
fn judge(active: &ContentFingerprint, replica: &ContentFingerprint) -> Result<Option<Damage>, Error> {
    let differ: Vec<&str> = active
        .parts
        .iter()
        .filter(|(part, digest)| replica.parts.get(*part).is_some_and(|other| other != *digest))
        .map(|(part, _)| part.as_str())
        .collect();
    let side = match (active.damaged.is_empty(), replica.damaged.is_empty()) {
        (true, true) if differ.is_empty() => {
            return match active.parts.keys().any(|part| replica.parts.contains_key(part)) {
                true => Ok(None),
                false => Err(Error::unsupported(
                    "the drivers of both sides keep nothing of a kind, so that what they hold cannot be compared",
                )),
            };
        }
        (true, _) => REPLICA,
        (false, true) => ACTIVE,
        (false, false) => BOTH,
    };
    let named: Vec<&str> = active.damaged.iter().chain(&replica.damaged).map(String::as_str).collect();
    let what = match (differ.is_empty(), named.is_empty()) {
        (false, false) => format!("{} differ: {}", differ.join(", "), named.join("; ")),
        (false, true) => format!("{} differ", differ.join(", ")),
        _ => named.join("; "),
    };
    Ok(Some(Damage { side, what }))
}

impl Damage {
    fn error(&self, active: InstanceId, replica: InstanceId, point: PointId) -> Error {
        let what = &self.what;
        let message = match self.side {
            ACTIVE => format!(
                "the active instance {active} is damaged at point {point}, and replica {replica} is as it was received: \
                 {what}; promote that replica if it holds them whole, or write the damaged files anew, and verify \
                 again"
            ),
            BOTH => format!(
                "the active instance {active} and replica {replica} are both damaged at point {point}: {what}; write \
                 the damaged files anew, perhaps from the other side, then ask for a resync and verify again"
            ),
            _ => format!(
                "replica {replica} does not hold what the active instance {active} holds at point {point}: {what}; \
                 the next sync carries everything again"
            ),
        };
        Error::conflict(message).with(DAMAGED, self.side)
    }
}

/// The rows of a check, begun at that time, that found both equal: what rots after it was read was not seen.
///
/// Of the active one a driver may read only what nobody touched since, so that its damage is taken for mended only by a point
/// that was made after it was found, and only where somebody asks, who knows what was done about it.
fn equal(
    scene: &Scene,
    active: InstanceId,
    replica: InstanceId,
    point: PointId,
    at: Timestamp,
    asked: bool,
) -> Done {
    let known = |row: &Instance| row.point.clone().filter(|p| p.info.id == point);
    let record = scene
        .share
        .points
        .iter()
        .find(|p| p.info.id == point)
        .cloned()
        .or_else(|| scene.family.instances.iter().find_map(known));
    Done::with(move |draft| {
        let made_at = record.as_ref().map(|p| p.made_at);
        for id in [active, replica] {
            if let Some(row) = draft.instance_mut(id) {
                if id == replica || asked && is_later(made_at, row.damaged_at) {
                    mended(row);
                }
                if id == replica {
                    row.checked = Some(Checked { at, point, made_at });
                }
            }
        }
        Vec::new()
    })
}

/// Whether a point was made after something was found.
fn is_later(made_at: Option<Timestamp>, found: Option<Timestamp>) -> bool {
    made_at.is_some_and(|made| found.is_none_or(|found| made > found))
}

/// What was found damaged is so no more, or is nobody's any more.
pub(super) fn mended(row: &mut Instance) {
    row.damaged_at = None;
    if row.damage.take().is_some() {
        row.reason = None;
    }
}

/// The rows of a check that has ended with an error. One that was cut short says nothing of what it read.
pub(super) fn found(
    core: &Core,
    draft: &mut Draft,
    replica: InstanceId,
    ending: Ending,
    error: Option<&Error>,
) -> Vec<Effect> {
    let now = draft.now;
    if let Some(row) = draft.instance_mut(replica).filter(|_| ending != Ending::Cancelled) {
        row.tried_at = Some(now);
    }
    let side = error.and_then(|e| e.context.iter().find(|(name, _)| name == DAMAGED));
    let (Ending::Failed, Some(error), Some((_, side))) = (ending, error, side) else { return Vec::new() };
    let active = active_of(&draft.instances).map(|a| a.id);
    if side != REPLICA
        && let Some(row) = active.and_then(|id| draft.instance_mut(id))
    {
        (row.damage, row.damaged_at) = (Some(error.message.clone()), Some(now));
        row.reason = Some(error.message.clone());
    }
    // Where both are damaged, the replica may hold the only good copy of what the active one lost: it is kept.
    let Some(row) = draft.instance_mut(replica).filter(|row| side == REPLICA && Some(row.id) != active)
    else {
        return Vec::new();
    };
    (row.damage, row.damaged_at) = (Some(error.message.clone()), Some(now));
    row.reason = Some(error.message.clone());
    let (share, is) = (row.share_id, row.replica_state);
    core.board.set_freshness(replica, |fresh| *fresh = Default::default());
    core.board.look_at(share);
    if is == Some(ReplicaState::InSync) { vec![state(replica, ReplicaState::OutOfSync)] } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(parts: &[(&str, &str)], damaged: &[&str]) -> ContentFingerprint {
        ContentFingerprint {
            parts: parts.iter().map(|(part, digest)| ((*part).to_owned(), (*digest).to_owned())).collect(),
            damaged: damaged.iter().map(|d| (*d).to_owned()).collect(),
            ..ContentFingerprint::default()
        }
    }

    fn side(active: &ContentFingerprint, replica: &ContentFingerprint) -> Option<&'static str> {
        judge(active, replica).unwrap().map(|damage| damage.side)
    }

    #[test]
    fn only_what_both_keep_is_compared() {
        let whole = print(&[("contents", "1"), ("owners", "2")], &[]);
        assert_eq!(side(&whole, &print(&[("contents", "1")], &[])), None);
        assert_eq!(side(&whole, &print(&[("contents", "2")], &[])), Some(REPLICA));
        let damage = judge(&whole, &print(&[("contents", "2"), ("owners", "3")], &["`a`"])).unwrap().unwrap();
        assert_eq!(damage.what, "contents, owners differ: `a`");
        // Two that have nothing in common are not equal by that.
        assert!(judge(&whole, &print(&[("times", "1")], &[])).is_err());
    }

    #[test]
    fn a_side_that_knows_of_its_damage_is_the_damaged_one() {
        let (whole, other) = (print(&[("contents", "1")], &[]), print(&[("contents", "2")], &["`a` rots"]));
        assert_eq!(side(&other, &whole), Some(ACTIVE));
        assert_eq!(side(&whole, &other), Some(REPLICA));
        assert_eq!(side(&other, &other), Some(BOTH));
        // What could not be read has no digests at all.
        assert_eq!(side(&whole, &print(&[], &["`a` cannot be read"])), Some(REPLICA));
    }

    #[test]
    fn what_was_found_before_a_point_was_made_can_be_lifted_by_it() {
        let at = |n| Some(Timestamp(n));
        assert!(is_later(at(2), at(1)) && is_later(at(2), None));
        assert!(!is_later(at(1), at(1)) && !is_later(at(1), at(2)) && !is_later(None, at(1)));
    }

    #[test]
    fn progress_is_of_both_sides() {
        let of = |done, total| Some(Progress::of("scan", done, total));
        assert_eq!(sum(&[of(3, Some(10)), None]).total, None);
        let both = sum(&[of(3, Some(10)), of(4, Some(9))]);
        assert_eq!((both.done, both.total), (7, Some(19)));
    }
}
