//! What is really there: the pool, instances, how full they are.

use std::path::Path;

use serde_json::json;
use tandem_sdk::contract::{
    AttachKind, Capabilities, Health, InstanceId, Observation, Pool, ReplicationCapability, ResourceKind,
    Style, Transport,
};
use tandem_sdk::{OpContext, Result, Role};

use crate::drbd::PROTOCOL;
use crate::image::{Found, Image};
use crate::meta::Meta;
use crate::report::{State, Volume};
use crate::{Filesystem, Inner, mount, names};

/// What a pool can do. It replicates where the settings say by what.
pub(crate) fn capabilities(inner: &Inner) -> Capabilities {
    let filesystems: Vec<&str> = [Filesystem::Ext4, Filesystem::Xfs]
        .into_iter()
        .filter(|fs| fs.require_tools().is_ok())
        .map(Filesystem::as_str)
        .collect();
    // How old what users read of a follower may become, with the look that renews it.
    let renewed =
        inner.config.drbd.iter().map(|drbd| ("readable_seconds".to_owned(), json!(drbd.readable_seconds)));
    let offers = |style: &Style| {
        *style != Style::Writable || inner.config.drbd.as_ref().is_some_and(|drbd| drbd.writable.is_some())
    };
    let styles = [Style::Writable, Style::Readable, Style::Dr].into_iter().filter(offers).collect();
    Capabilities {
        resources: vec![ResourceKind::Share],
        share_protocols: vec!["NFS".to_owned()],
        access_enforcement: inner.exporter.enforcement(),
        access_types: inner.exporter.access_types(),
        extend: true,
        shrink: false,
        thin: true,
        replication: inner.config.drbd.as_ref().map(|_| ReplicationCapability {
            styles,
            transport: Transport::Storage { protocols: vec![PROTOCOL.to_owned()] },
            domain: None,
            max_instances: Some(2),
            quiesce: false,
            lag_bytes: true,
            converts: true,
            fingerprints: Vec::new(),
        }),
        attach: Some(AttachKind::Tree),
        extra: [("filesystems".to_owned(), json!(filesystems))].into_iter().chain(renewed).collect(),
        ..Capabilities::default()
    }
}

impl Inner {
    /// The one pool.
    pub(crate) async fn pools(&self, cx: &OpContext) -> Result<Vec<Pool>> {
        let report = self.all(cx).await?;
        let thin = self.pool_of(&report)?;
        let allocated = report
            .0
            .iter()
            .filter(|volume| volume.pool == thin.name)
            .filter_map(|volume| Some((names::instance_of(&volume.name)?, volume)))
            .filter_map(|(id, volume)| Meta::read(id, &volume.name, &volume.tags).ok()?)
            .fold(0u64, |sum, meta| sum.saturating_add(meta.size_bytes));
        let free = thin.data.map(|full| {
            let used = u128::from(thin.size_bytes) * u128::from(full) / 10_000;
            thin.size_bytes.saturating_sub(u64::try_from(used).unwrap_or(u64::MAX))
        });
        let percent = |full: Option<u32>| json!(full.map(|full| f64::from(full) / 100.0));
        let extra = [
            ("thin_data_percent".to_owned(), percent(thin.data)),
            ("thin_metadata_percent".to_owned(), percent(thin.metadata)),
            ("group_metadata_percent".to_owned(), percent(thin.group_metadata)),
        ];
        Ok(vec![Pool {
            name: self.config.pool().to_owned(),
            total_bytes: Some(thin.size_bytes),
            // Unknown while nothing of it is active, as after a boot.
            free_bytes: free,
            allocated_bytes: Some(allocated),
            warning: self.warning(thin),
            extra: extra.into_iter().collect(),
        }])
    }

    fn warning(&self, thin: &Volume) -> Option<String> {
        let name = self.config.of_group(&self.config.thin_pool);
        if let Some(trouble) = self.pool_trouble(thin) {
            return Some(format!("the {trouble}"));
        }
        let limit = u32::from(self.config.warn_percent) * 100;
        let group = &self.config.group;
        let (full, sentence) = [
            (thin.data, format!("of the data of the thin pool `{name}` are used; extend it with `lvextend -L +… {name}`")),
            (
                thin.metadata,
                format!(
                    "of the metadata of the thin pool `{name}` are used; extend it with \
                     `lvextend --poolmetadatasize +… {name}`"
                ),
            ),
            (
                thin.group_metadata,
                format!(
                    "of the metadata area of the volume group `{group}` are used; add a device that `pvcreate \
                     --metadatasize 64m` made, and `pvchange --metadataignore y` the others"
                ),
            ),
        ]
        .into_iter()
        .filter_map(|(full, sentence)| Some((full.filter(|full| *full >= limit)?, sentence)))
        .max_by_key(|(full, _)| *full)?;
        Some(format!("{} % {sentence}", full / 100))
    }

    /// Every instance, unfinished ones included.
    pub(crate) async fn instances(&self, cx: &OpContext) -> Result<Vec<InstanceId>> {
        let report = self.tags(cx).await?;
        let ours = |volume: &&Volume| volume.tags.iter().any(|tag| tag == crate::meta::MARK);
        Ok(report.0.iter().filter(ours).filter_map(|volume| names::instance_of(&volume.name)).collect())
    }

    /// What is there of an instance.
    pub(crate) async fn observe(&self, cx: &OpContext, id: InstanceId) -> Result<Option<Observation>> {
        let image = match self.look(cx, id).await? {
            Found::Nothing | Found::Foreign => return Ok(None),
            Found::Instance(image) => image,
        };
        let mut image = image;
        if image.meta.is_shown() && !self.is_exported(&image) {
            // Renewed since the look at the group began, perhaps.
            self.refresh(cx, &mut image).await?;
        }
        let meta = &image.meta;
        // What is suspended answers nobody until it is woken by a call that changes something.
        let awake = image.volume.state == State::Active && image.pool.state != State::Suspended;
        let path = self.path(id);
        let (used, answers) = if awake && self.mounted(&image).is_some() {
            let look = cx.blocking(move |_| Ok((used(&path), mount::answers(&path))));
            self.soon(cx, &image, look, (None, true)).await?
        } else {
            (None, true)
        };
        let below = self.stack_health(cx, &image).await?;
        // What lies below its file system answers again: the next call that ensures it brings it in order.
        let mended = meta.record.is_some()
            && meta.role == Role::Active
            && below == Health::Ok
            && self.pool_trouble(&image.pool).is_none()
            && !self.mounted(&image).is_some_and(mount::is_damaged);
        let health = worse(below, self.health(&image, answers, mended));
        Ok(Some(Observation {
            resource: meta.birth.resource,
            role: meta.role,
            epoch: meta.epoch,
            size_bytes: meta.size_bytes,
            used_bytes: used,
            exports: self.exports(&image),
            read_only: !meta.is_writable(),
            quiesced: false,
            points: Vec::new(),
            resume: None,
            health,
        }))
    }

    /// What is wrong with an instance. `mended`: a file system that stopped can be served again.
    pub(crate) fn health(&self, image: &Image, answers: bool, mended: bool) -> Health {
        let (meta, id) = (&image.meta, image.meta.birth.instance);
        if meta.deleting {
            return Health::Failed { reason: "its deletion was interrupted; delete it again".to_owned() };
        }
        if !meta.made {
            return Health::Failed {
                reason: "its making was interrupted; make or delete it again".to_owned(),
            };
        }
        let mounted = self.mounted(image);
        if mounted.is_some_and(|there| there.stopped) || !answers {
            if mended {
                let reason = "its file system stopped after an error of its disks, which answer again; the server checks \
                              and mounts it anew";
                return Health::Degraded { reason: reason.to_owned() };
            }
            return Health::Failed {
                reason: format!(
                    "the file system on `{}` has stopped after an error of its volume; see the kernel's log, repair the \
                     volume group, unmount `{}`, check the file system with fsck",
                    image.volume.node,
                    self.path(id).display()
                ),
            };
        }
        if [image.volume.state, image.pool.state].contains(&State::Suspended) {
            return Health::Degraded {
                reason:
                    "a command of LVM was cut and left it suspended; it goes on once the server ensures it"
                        .to_owned(),
            };
        }
        if let Some(trouble) = trouble(&image.volume) {
            return Health::Degraded { reason: format!("its volume `{}` {trouble}", self.of(id)) };
        }
        if let Some(trouble) = self.pool_trouble(&image.pool) {
            return Health::Degraded { reason: format!("its {trouble}") };
        }
        if meta.is_served() && !self.is_exported(image) {
            return Health::Degraded {
                reason: "it is not exported; it is once the server confirmed its epoch".to_owned(),
            };
        }
        if meta.growing {
            return Health::Degraded { reason: "its growth was interrupted; resize it again".to_owned() };
        }
        Health::Ok
    }

    /// What is wrong with the thin pool, and what to do about it.
    pub(crate) fn pool_trouble(&self, pool: &Volume) -> Option<String> {
        let name = self.config.of_group(&self.config.thin_pool);
        let what = match pool.trouble.as_str() {
            "out_of_data" => {
                format!("is full, and writes to it fail; extend it with `lvextend -L +… {name}`")
            }
            _ if is_full(pool) => format!(
                "has no room for metadata, and writes to it fail; extend it with `lvextend --poolmetadatasize +… {name}`"
            ),
            _ => format!("{}; see `lvs -a {}`", trouble(pool)?, self.config.group),
        };
        Some(format!("thin pool `{name}` {what}"))
    }

    /// The same, where all that is wrong is that it has no room.
    pub(crate) fn lacks_room(&self, pool: &Volume) -> Option<String> {
        self.pool_trouble(pool).filter(|_| is_full(pool))
    }
}

/// The kernel keeps a tenth of a small pool's metadata for removals, and takes it to be full when no more is left. Hundredths
/// of a percent.
const METADATA_FULL: u32 = 8_500;

/// Whether what is wrong with a thin pool is that it has no room, for data or for metadata.
fn is_full(pool: &Volume) -> bool {
    match pool.trouble.as_str() {
        "out_of_data" => true,
        "metadata_read_only" => pool.metadata.is_some_and(|full| full >= METADATA_FULL),
        _ => false,
    }
}

/// The worse of two; the first where they are as bad.
pub(crate) fn worse(one: Health, other: Health) -> Health {
    let rank = |health: &Health| match health {
        Health::Ok => 0,
        Health::Degraded { .. } => 1,
        _ => 2,
    };
    if rank(&one) >= rank(&other) { one } else { other }
}

/// What is wrong with a volume, by LVM's word for it: lvs(8), "lv_health_status".
fn trouble(volume: &Volume) -> Option<String> {
    Some(match volume.trouble.as_str() {
        "" => return None,
        "partial" => "misses a device".to_owned(),
        "out_of_data" => "is full: writes fail".to_owned(),
        "metadata_read_only" => {
            "cannot change its metadata, and is to be repaired with `lvconvert --repair`".to_owned()
        }
        "failed" => "has failed, and is to be repaired with `lvconvert --repair`".to_owned(),
        other => format!("is in trouble: {other}"),
    })
}

/// Bytes in use in a mounted file system.
fn used(path: &Path) -> Option<u64> {
    let facts = rustix::fs::statvfs(path).ok()?;
    Some(facts.f_blocks.saturating_sub(facts.f_bfree).saturating_mul(facts.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lvm_has_words_for_trouble() {
        let of = |word: &str| trouble(&Volume { trouble: word.to_owned(), ..Volume::default() });
        assert_eq!(of(""), None);
        assert!(of("out_of_data").unwrap().contains("full"));
        assert!(of("refresh needed").unwrap().contains("refresh needed"));
    }
}
