//! What is really there.

use tandem_sdk::{Health, InstanceId, Observation, Pool, ResumeToken};

use crate::driver::Fake;
use crate::instance::Instance;
use crate::world::Sites;

/// Kind of the resume tokens.
pub(crate) const TOKEN: &str = "fake.offset";

impl Fake {
    pub(crate) fn pool(&self, sites: &Sites) -> Pool {
        let taken = sites
            .get(&self.config.site)
            .map(|s| s.instances.values().map(|i| i.size_bytes).sum())
            .unwrap_or(0);
        Pool {
            name: self.config.pool.clone(),
            total_bytes: Some(self.config.size_bytes),
            free_bytes: Some(self.config.size_bytes.saturating_sub(taken)),
            allocated_bytes: Some(taken),
            ..Pool::default()
        }
    }

    pub(crate) fn ids(&self, sites: &Sites) -> Vec<InstanceId> {
        sites.get(&self.config.site).map(|site| site.instances.keys().copied().collect()).unwrap_or_default()
    }

    pub(crate) fn observe(&self, instance: &Instance) -> Observation {
        Observation {
            resource: instance.spec.resource,
            role: instance.role,
            epoch: instance.epoch,
            size_bytes: instance.size_bytes,
            used_bytes: Some(instance.used_bytes()),
            exports: self.exports(instance),
            read_only: !instance.is_writable(),
            quiesced: instance.quiesced,
            points: instance.points.iter().map(|point| point.info()).collect(),
            resume: instance.partial.as_ref().map(|partial| ResumeToken {
                kind: TOKEN.to_owned(),
                version: 1,
                to: Some(partial.to),
                data: serde_json::json!({ "offset": partial.body.len(), "from": partial.from }),
            }),
            health: if instance.served || instance.role == tandem_sdk::Role::Destination {
                Health::Ok
            } else {
                Health::Failed { reason: "it is not served since its host came back".to_owned() }
            },
        }
    }
}
