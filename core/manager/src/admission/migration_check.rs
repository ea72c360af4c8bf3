//! What a migration would do, without doing it: admitted in a draft that is thrown away, placed and planned as it would be.

use tandem_contract::{AttachKind, InstanceId, ResourceId};

use crate::core::Core;
use crate::denied::Denied;
use crate::face::{Caller, MigrationCheck};
use crate::model::{Instance, MigrationRequest, Share, ShareType};
use crate::plan::{Approach, approach};
use crate::store::Family;

/// Bytes a second that an estimate of time assumes where no limit is set.
const USUAL_SPEED: u64 = 100 << 20;
/// A first phase goes on until it leaves no more than this, or a hundredth of the share.
const LITTLE: u64 = 16 << 20;

/// What users cannot do, whatever carries their share, unless they notice nothing.
const SECOND_PHASE: &str = "writability during the second phase";

impl Core {
    /// What a migration would do, and by which way. Changes nothing.
    pub(crate) async fn check_migration(
        &self,
        share: ResourceId,
        request: MigrationRequest,
    ) -> Result<MigrationCheck, Denied> {
        let new_type = self.new_type(&request).await?;
        let family = self.store.family(share).await?;
        let row = family.share.clone().ok_or(Denied::NoShare(share))?;
        let source = row.representative(&family.instances).cloned().ok_or(Denied::NoShare(share))?;
        let mut check = MigrationCheck { host: request.host.clone(), ..MigrationCheck::default() };
        let destination = InstanceId(crate::ids::random());
        let mut draft = self.draft(family.clone(), "").await?;
        let nobody = Caller::default();
        match self.admit_migration(&mut draft, &nobody, share, destination, &request, new_type.as_ref()) {
            Ok(None) => {
                check.approach = "none";
                check.writable = true;
                check.nondisruptive = true;
                check.interruption = "none".into();
                (check.bytes, check.seconds, check.interruption_seconds) = (Some(0), Some(0), Some(0));
                return Ok(check);
            }
            Ok(Some(_)) => {}
            Err(denied) => check.refuse(denied.to_string()),
        }
        if self.destination_zone(&request).is_err() {
            return Ok(check);
        }
        self.check_place(&mut check, &row, &family, &request, new_type).await?;
        check.bytes = self.used_bytes(&source).await;
        check.seconds = check.bytes.map(|bytes| self.seconds_for(bytes));
        let sides = match self.sides(&family, source.id, destination, &request).await {
            Ok(sides) => sides,
            Err(error) => {
                check.refuse(error.message);
                return Ok(check);
            }
        };
        match approach(&request, &sides) {
            Err(error) => check.refuse(error.message),
            Ok(approach) => self.describe(&mut check, approach, sides.attach.0),
        }
        Ok(check)
    }

    /// What users notice of it, for how long, and what is lost.
    fn describe(&self, check: &mut MigrationCheck, approach: Approach, attach: Option<AttachKind>) {
        // Where users write little.
        let left = check.bytes.map(|bytes| self.seconds_for(LITTLE.max(bytes / 100)) + 1);
        let lost = match approach {
            Approach::Driver(promise) => {
                check.approach = "driver";
                check.writable = promise.writable;
                check.nondisruptive = promise.nondisruptive;
                check.interruption = if promise.nondisruptive {
                    check.interruption_seconds = Some(0);
                    "none".into()
                } else if promise.writable {
                    check.interruption_seconds = left;
                    "users remount once, when it is completed".into()
                } else {
                    check.interruption_seconds =
                        check.seconds.zip(left).map(|(first, second)| first + second);
                    "read-only from the start, and users remount once, when it is completed".into()
                };
                [
                    (!promise.preserve_metadata, "metadata of files"),
                    (!promise.preserve_snapshots, "snapshots"),
                    (!promise.writable, "writability during the first phase"),
                    (!promise.nondisruptive, SECOND_PHASE),
                ]
            }
            Approach::Points => {
                check.approach = "points";
                check.writable = true;
                check.interruption =
                    "read-only while the last point is carried, after migration_complete; then users \
                                      remount once"
                        .into();
                check.interruption_seconds = left;
                [(false, ""), (true, "snapshots"), (false, ""), (true, SECOND_PHASE)]
            }
            Approach::Peers => {
                check.approach = "peers";
                check.writable = true;
                check.interruption =
                    "where the share's type does not replicate, for a moment when it begins, and files that are open then are \
                     lost to their users; read-only after migration_complete until both sides hold the same; then users remount \
                     once"
                        .into();
                // What is written arrives at once.
                check.interruption_seconds = Some(1);
                [(false, ""), (true, "snapshots"), (false, ""), (true, SECOND_PHASE)]
            }
            Approach::Host => {
                let blocks = attach == Some(AttachKind::Block);
                check.approach = "host";
                check.writable = true;
                check.interruption =
                    "read-only while the last pass runs, after migration_complete; then users \
                                      remount once"
                        .into();
                // The last pass over a device compares both sides, and the proof does so again.
                let compared =
                    check.bytes.map(|bytes| if blocks { bytes.div_ceil(USUAL_SPEED) * 2 } else { 0 });
                check.interruption_seconds = left.zip(compared).map(|(left, compared)| left + compared);
                let root = rustix::process::geteuid().is_root();
                [
                    (
                        !blocks && !root,
                        "metadata of files that only root may set: owners, devices, attributes",
                    ),
                    (true, "snapshots"),
                    (false, ""),
                    (true, SECOND_PHASE),
                ]
            }
        };
        check.lost = lost.into_iter().filter(|(gone, _)| *gone).map(|(_, what)| what.into()).collect();
    }

    /// How long it takes to carry so much, at the limit that is set or at a usual speed.
    fn seconds_for(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.settings.bandwidth.filter(|limit| *limit > 0).unwrap_or(USUAL_SPEED)).max(1)
    }

    /// What an instance holds, where its storage can tell.
    async fn used_bytes(&self, instance: &Instance) -> Option<u64> {
        let backend = self.backends.of(instance).await.ok()?;
        let cx = crate::reconcile::cx(self);
        let seen = backend.call(&cx, tandem_contract::ObserveInstance { instance: instance.id }).await;
        seen.ok().flatten()?.used_bytes
    }

    /// Whether there is a pool for it.
    async fn check_place(
        &self,
        check: &mut MigrationCheck,
        share: &Share,
        family: &Family,
        request: &MigrationRequest,
        new_type: Option<ShareType>,
    ) -> Result<(), Denied> {
        let Some(share_type) = new_type.or_else(|| family.share_type.clone()) else { return Ok(()) };
        let wanted = crate::schedule::PlacementRequest {
            size_gb: share.size_gb,
            protocol: share.protocol.clone(),
            extra_specs: share_type.extra_specs,
            availability_zone: None,
            replication: None,
            only_host: Some(request.host.clone()),
        };
        if let Err(none) = crate::schedule::place(&wanted, &self.pool_views().await?) {
            check.refuse(none.to_string());
        }
        Ok(())
    }
}
