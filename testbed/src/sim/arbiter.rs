//! The part of two kernels that lost each other: each side that takes no writes asks the manager whether it goes on, again
//! and again, until it is told so or follows.

use std::sync::Arc;
use std::time::Duration;

use tandem_driver_fake::Claimant;
use tandem_manager::{Manager, Verdict};

use super::Life;
use super::rng::Rng;

/// Between two claims of a side that waits.
const AGAIN: Duration = Duration::from_millis(400);
/// Questions that may be asked once more.
const OLD: usize = 16;

impl Life<'_> {
    /// From now on whoever waits asks. Some answers are lost on their way, some come late, and some questions arrive twice.
    pub fn answer_claims(&self, seed: u64) {
        let (world, stage) = (self.sim.world.clone(), Arc::clone(&self.sim.stage));
        let manager = self.manager.clone();
        let mut rng = Rng::new(seed);
        tokio::spawn(async move {
            let mut old: Vec<Claimant> = Vec::new();
            loop {
                tokio::time::sleep(AGAIN).await;
                // All at once, as two kernels do.
                let mut claimants = world.claimants();
                let again = rng.pick(&old).filter(|_| rng.chance(3)).cloned();
                old.extend(claimants.iter().cloned());
                old.drain(..old.len().saturating_sub(OLD));
                claimants.extend(again);
                let asked: Vec<_> = claimants
                    .into_iter()
                    .map(|claimant| tokio::spawn(ask(manager.clone(), claimant)))
                    .collect();
                for answer in asked {
                    let Ok(Some((claimant, verdict))) = answer.await else { continue };
                    let Verdict::Won { epoch } = verdict else { continue };
                    stage
                        .say(&format!("{} of {} goes on at epoch {epoch}", claimant.instance, claimant.site));
                    stage.won(claimant.resource, claimant.epoch, claimant.instance);
                    if rng.chance(20) {
                        let (world, late) = (world.clone(), Duration::from_millis(rng.below(20_000)));
                        tokio::spawn(async move {
                            tokio::time::sleep(late).await;
                            world.goes_on(&claimant, epoch);
                        });
                    } else if !rng.chance(20) {
                        world.goes_on(&claimant, epoch);
                    }
                }
            }
        });
    }
}

async fn ask(manager: Manager, claimant: Claimant) -> Option<(Claimant, Verdict)> {
    let verdict = manager.claim(claimant.resource, claimant.instance, claimant.epoch).await.ok()?;
    Some((claimant, verdict))
}
