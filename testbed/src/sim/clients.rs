//! Users: they write to every copy they can reach, all the time, and remember what was acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use tandem_contract::{Epoch, InstanceId, ResourceId, Style};
use tandem_driver_fake::World;
use tandem_manager::oplog::Event;
use tandem_manager::plan::Step;
use tandem_manager::store::Batch;

/// What users wrote.
#[derive(Debug, Default)]
pub struct Clients {
    /// How often they still write by themselves.
    pub budget: u32,
    /// Names and contents that were acknowledged.
    acknowledged: BTreeMap<ResourceId, BTreeMap<String, Vec<u8>>>,
    /// Who took writes at which epoch.
    takers: BTreeMap<(ResourceId, Epoch), InstanceId>,
    /// Resources that were promoted by force: what the old active took last may be lost, and it may take more until it
    /// has been fenced.
    forced: BTreeSet<ResourceId>,
    written: u64,
    pub(super) problems: Vec<String>,
}

impl Clients {
    /// Everybody tries to write to every copy of everything.
    pub fn tick(&mut self, world: &World) {
        if self.budget == 0 {
            return;
        }
        self.budget -= 1;
        for seen in world.inspect() {
            self.write(world, &seen.site, seen.instance, 40);
        }
    }

    /// Writes `size` bytes under a new name to one copy. Answers whether that was acknowledged.
    pub fn write(&mut self, world: &World, site: &str, instance: InstanceId, size: usize) -> bool {
        let name = format!("file {}", self.written);
        let byte = u8::try_from(self.written % 251).unwrap_or(0);
        let content = vec![byte; size];
        let Some(before) = world.inspect().into_iter().find(|i| i.instance == instance && i.site == site)
        else {
            return false;
        };
        if world.write(site, instance, &name, &content).is_err() {
            return false;
        }
        self.written += 1;
        let resource = before.resource;
        self.acknowledged.entry(resource).or_default().insert(name, content);
        let taker = *self.takers.entry((resource, before.epoch)).or_insert(instance);
        // Where all are active, those that are connected take writes at one epoch.
        if taker != instance && before.style != Some(Style::Writable) {
            self.problems.push(format!("{taker} and {instance} both took writes at epoch {}", before.epoch));
        }
        let newer = self.takers.range((resource, before.epoch.next())..=(resource, Epoch(u64::MAX))).next();
        if let Some(((_, epoch), other)) = newer
            && !self.forced.contains(&resource)
        {
            self.problems.push(format!(
                "{instance} took a write at epoch {} after {other} had taken one at epoch {epoch}",
                before.epoch
            ));
        }
        true
    }

    /// Notes which promotions are forced.
    pub(super) fn logged(&mut self, event: &Event, batch: &Batch) {
        let Event::Planned { steps } = event else { return };
        if steps.iter().any(|step| matches!(step, Step::Promote { forced: true, .. })) {
            self.forced.extend(batch.operations.iter().map(|op| op.share_id));
        }
    }

    /// Whether what was acknowledged may have been lost.
    pub fn may_have_lost(&self, resource: ResourceId) -> bool {
        self.forced.contains(&resource)
    }

    /// Names that were acknowledged for a resource and are not in `data` as they were written.
    pub fn missing(&self, resource: ResourceId, data: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
        let all = self.acknowledged.get(&resource).into_iter().flatten();
        all.filter(|(name, content)| data.get(*name) != Some(content)).map(|(name, _)| name.clone()).collect()
    }
}
