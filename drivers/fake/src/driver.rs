//! The driver: takes each call, lets scripted faults strike, does the work on the world, writes history.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tandem_sdk::*;

use crate::folder::files_of;
use crate::instance::find;
use crate::world::{Sites, check_reachable};
use crate::{Config, Event, Fault, Mode, What, World, peers, streams};

/// An opened back end.
pub struct Fake {
    pub(crate) world: World,
    pub(crate) config: Config,
    /// Faults from the settings; those of the world come first.
    faults: Mutex<Vec<Fault>>,
}

/// What a fault still does after the call has begun.
#[derive(Clone, Copy, Debug, Default)]
struct Later {
    lose_answer: bool,
    cut: Option<u64>,
}

impl Fake {
    /// The world that it works on.
    pub fn world(&self) -> &World {
        &self.world
    }

    fn strike(&self, verb: &str) -> Option<What> {
        self.world.strike(&self.config.site, verb).or_else(|| {
            let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
            crate::fault::strike(&mut faults, &self.config.site, verb)
        })
    }

    /// Lets a fault strike the call, and checks that the site can be reached.
    async fn begin(&self, cx: &OpContext) -> Result<Later> {
        let verb = cx.verb();
        let mut later = Later::default();
        match self.strike(verb) {
            None => {}
            Some(What::Fail { error }) => {
                let kind = serde_json::from_value(Value::String(error)).unwrap_or(ErrorKind::Unexpected);
                return Err(Error::new(kind, format!("injected: `{verb}` fails")));
            }
            Some(What::LoseAnswer) => later.lose_answer = true,
            Some(What::CutStream { after }) => later.cut = Some(after),
            Some(What::Hang) => {
                self.world.hang().await;
                return Err(Error::unavailable(format!("injected: `{verb}` hung until it was released")));
            }
            Some(What::WaitForCancel) => {
                cx.cancelled().await;
                cx.check()?;
            }
            #[allow(clippy::panic)] // that is the fault
            Some(What::Panic) => panic!("injected: `{verb}` panics"),
            Some(What::Delay { ms }) => {
                cx.sleep(Duration::from_millis(ms)).await?;
            }
        }
        if !self.world.is_in_folder() {
            self.world.with(|sites| check_reachable(sites, &self.config.site))?;
        }
        cx.check()?;
        Ok(later)
    }

    /// One call: fault, work, history.
    async fn act<T>(
        &self,
        cx: &OpContext,
        instance: Option<InstanceId>,
        work: impl FnOnce(&mut Sites) -> Result<T> + Send,
    ) -> Result<T> {
        let answer = match self.begin(cx).await {
            Ok(later) => self.lose(later, cx, self.world.with(work)),
            Err(e) => Err(e),
        };
        self.record(cx, instance, answer.as_ref().err());
        answer
    }

    fn lose<T>(&self, later: Later, cx: &OpContext, answer: Result<T>) -> Result<T> {
        if later.lose_answer && answer.is_ok() {
            return Err(Error::unavailable(format!("injected: the answer of `{}` was lost", cx.verb())));
        }
        answer
    }

    /// Writes history: of worlds in memory, since only their tests look into it.
    fn record(&self, cx: &OpContext, instance: Option<InstanceId>, error: Option<&Error>) {
        if self.world.is_in_folder() {
            return;
        }
        let after = self.world.with(|sites| {
            let found = instance.and_then(|id| find(sites, &self.config.site, id).ok());
            Ok(found.map(|i| (i.epoch, i.role)))
        });
        let after = after.ok().flatten();
        let kind =
            error.map(|e| serde_json::to_value(e.kind).ok().and_then(|v| v.as_str().map(str::to_owned)));
        self.world.record(Event::Call {
            op: cx.op(),
            site: self.config.site.clone(),
            verb: cx.verb().to_owned(),
            instance,
            epoch: after.map(|(epoch, _)| epoch),
            role: after.map(|(_, role)| role),
            error: kind.map(|kind| kind.unwrap_or_else(|| "unexpected".to_owned())),
        });
    }
}

impl Driver for Fake {
    const NAME: &'static str = "fake";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SUMMARY: &'static str = "The model driver of simulations and tests; keeps nothing of worth.";
    const TOKENS: &'static [(&'static str, u32)] = &[(crate::observe::TOKEN, 1)];
    type Config = Config;

    async fn open(config: Config) -> Result<Self> {
        let world = match (&config.world, &config.path) {
            (Some(name), None) => World::named(name),
            (None, Some(path)) if path.is_absolute() => World::in_folder(path.clone()),
            (None, Some(path)) => {
                return Err(Error::invalid(format!("`path`: {} is not absolute", path.display())));
            }
            _ => return Err(Error::invalid("exactly one of `world` and `path` must be set")),
        };
        if config.site.is_empty() || config.site.contains('/') || config.site.starts_with('.') {
            return Err(Error::invalid(format!("`site`: `{}` cannot be the name of a folder", config.site)));
        }
        let fake = Self { world, faults: Mutex::new(config.faults.clone()), config };
        match fake.strike("open") {
            Some(What::Fail { .. }) => Err(Error::unavailable("injected: the back end cannot be opened")),
            #[allow(clippy::panic)] // that is the fault
            Some(What::Panic) => panic!("injected: `open` panics"),
            Some(What::Hang) => {
                fake.world.hang().await;
                Ok(fake)
            }
            _ => Ok(fake),
        }
    }

    fn capabilities(&self) -> Capabilities {
        let transport = match self.config.mode {
            Mode::Streamed => {
                Transport::Streamed { formats: vec![streams::FORMAT.to_owned()], resumable: true }
            }
            Mode::Storage => Transport::Storage { protocols: vec![peers::PROTOCOL.to_owned()] },
        };
        Capabilities {
            resources: vec![ResourceKind::Share],
            share_protocols: vec!["NFS".to_owned(), "CIFS".to_owned()],
            access_enforcement: AccessEnforcement::Full,
            access_types: vec!["ip".to_owned(), "user".to_owned()],
            extend: true,
            shrink: true,
            thin: false,
            replication: Some(ReplicationCapability {
                styles: self.styles(),
                transport,
                domain: Some("fake".to_owned()),
                max_instances: None,
                quiesce: self.config.quiesce,
                lag_bytes: self.config.mode == Mode::Storage,
                converts: self.config.mode == Mode::Storage,
                fingerprints: match self.config.mode {
                    Mode::Streamed => vec![streams::PRINTS.to_owned()],
                    Mode::Storage => Vec::new(),
                },
            }),
            migration: self.config.migration.map(|_| MigrationCapability {
                to_drivers: vec![Self::NAME.to_owned()],
                revert: true,
                force_complete: true,
            }),
            attach: self.world.is_in_folder().then_some(AttachKind::Tree),
            extra: self.config.facts.clone(),
        }
    }

    async fn pools(&self, cx: &OpContext) -> Result<Vec<Pool>> {
        self.act(cx, None, |sites| Ok(vec![self.pool(sites)])).await
    }

    async fn list_instances(&self, cx: &OpContext) -> Result<Vec<InstanceId>> {
        self.act(cx, None, |sites| Ok(self.ids(sites))).await
    }

    async fn observe_instance(&self, cx: &OpContext, call: ObserveInstance) -> Result<Option<Observation>> {
        let work = |sites: &mut Sites| {
            Ok(find(sites, &self.config.site, call.instance).ok().map(|i| self.observe(i)))
        };
        self.act(cx, Some(call.instance), work).await
    }

    async fn create_instance(&self, cx: &OpContext, call: CreateInstance) -> Result<Outcome<InstanceInfo>> {
        let id = call.spec.instance;
        self.act(cx, Some(id), |sites| self.create(sites, call.spec, Role::Active)).await
    }

    async fn resize_instance(&self, cx: &OpContext, call: ResizeInstance) -> Result<Outcome<InstanceInfo>> {
        let work = |sites: &mut Sites| self.resize(sites, call.instance, call.epoch, call.size_bytes);
        self.act(cx, Some(call.instance), work).await
    }

    async fn delete_instance(&self, cx: &OpContext, call: DeleteInstance) -> Result<Outcome<()>> {
        self.act(cx, Some(call.instance), |sites| Ok(self.remove(sites, call.instance))).await
    }

    async fn update_access(&self, cx: &OpContext, call: UpdateAccess) -> Result<Outcome<AccessReport>> {
        let work = |sites: &mut Sites| self.set_access(sites, call.instance, call.epoch, call.access);
        self.act(cx, Some(call.instance), work).await
    }

    async fn ensure_instance(&self, cx: &OpContext, call: EnsureInstance) -> Result<Outcome<InstanceInfo>> {
        self.act(cx, Some(call.instance), |sites| self.ensure(sites, call.instance, call.epoch)).await
    }
}

impl Attachable for Fake {
    async fn attach(&self, cx: &OpContext, call: Attach) -> Result<Outcome<Attachment>> {
        let work = |sites: &mut Sites| {
            let instance = find(sites, &self.config.site, call.instance)?;
            instance.admit(call.epoch)?;
            let path = match &self.config.path {
                Some(path) => files_of(path, &self.config.site, call.instance).display().to_string(),
                None => return Err(Error::unsupported("a world in memory has no paths")),
            };
            // Its folder says so by its permissions.
            let root_mode = (!instance.is_writable()).then_some(0o755);
            let attachment = Attachment { kind: AttachKind::Tree, path, root_mode };
            match instance.attached {
                Some(read_only) if read_only == call.read_only => Ok(Outcome::Unchanged(attachment)),
                Some(_) => Err(Error::conflict("it is attached the other way; detach it first")),
                None => {
                    instance.attached = Some(call.read_only);
                    Ok(Outcome::Changed(attachment))
                }
            }
        };
        self.act(cx, Some(call.instance), work).await
    }

    async fn detach(&self, cx: &OpContext, call: Detach) -> Result<Outcome<()>> {
        let work = |sites: &mut Sites| {
            let Ok(instance) = find(sites, &self.config.site, call.instance) else {
                return Ok(Outcome::Unchanged(()));
            };
            Ok(if instance.attached.take().is_some() { Outcome::Changed(()) } else { Outcome::Unchanged(()) })
        };
        self.act(cx, Some(call.instance), work).await
    }
}

impl Replication for Fake {
    async fn create_replica(&self, cx: &OpContext, call: CreateReplica) -> Result<Outcome<InstanceInfo>> {
        let id = call.spec.instance;
        self.act(cx, Some(id), |sites| self.make_replica(sites, call.spec)).await
    }

    async fn update_replica_state(&self, cx: &OpContext, call: UpdateReplicaState) -> Result<ReplicaReport> {
        self.act(cx, Some(call.instance), |sites| self.report(sites, call.instance, call.epoch)).await
    }

    async fn promote_replica(&self, cx: &OpContext, call: PromoteReplica) -> Result<Outcome<InstanceInfo>> {
        let work = |sites: &mut Sites| self.promote(sites, call.instance, call.epoch, call.promotion);
        self.act(cx, Some(call.instance), work).await
    }

    async fn demote_replica(&self, cx: &OpContext, call: DemoteReplica) -> Result<Outcome<InstanceInfo>> {
        self.act(cx, Some(call.instance), |sites| self.demote(sites, call.instance, call.epoch, call.to))
            .await
    }

    async fn delete_replica(&self, cx: &OpContext, call: DeleteReplica) -> Result<Outcome<()>> {
        self.act(cx, Some(call.instance), |sites| self.delete_secondary(sites, call.instance)).await
    }
}

impl Quiescable for Fake {
    async fn quiesce(&self, cx: &OpContext, call: Quiesce) -> Result<Outcome<()>> {
        self.act(cx, Some(call.instance), |sites| self.hold(sites, call.instance, call.epoch, true)).await
    }

    async fn resume_writes(&self, cx: &OpContext, call: ResumeWrites) -> Result<Outcome<()>> {
        self.act(cx, Some(call.instance), |sites| self.hold(sites, call.instance, call.epoch, false)).await
    }
}

impl Streamed for Fake {
    async fn make_point(&self, cx: &OpContext, call: MakePoint) -> Result<Outcome<PointInfo>> {
        self.act(cx, Some(call.instance), |sites| self.point(sites, call.instance, call.epoch, call.point))
            .await
    }

    async fn release_point(&self, cx: &OpContext, call: ReleasePoint) -> Result<Outcome<()>> {
        self.act(cx, Some(call.instance), |sites| Ok(self.release(sites, call.instance, call.point))).await
    }

    async fn send(&self, cx: &OpContext, call: SendStream, stream: OwnedFd) -> Result<TransferReport> {
        let id = call.spec.instance;
        let answer = match self.begin(cx).await {
            Ok(later) => {
                let sent = self.send_stream(cx, call.spec, stream, later.cut).await;
                self.lose(later, cx, sent)
            }
            Err(e) => Err(e),
        };
        self.record(cx, Some(id), answer.as_ref().err());
        answer
    }

    async fn receive(
        &self,
        cx: &OpContext,
        call: Receive,
        stream: OwnedFd,
    ) -> Result<Outcome<TransferReport>> {
        let id = call.spec.instance;
        let answer = match self.begin(cx).await {
            Ok(later) => {
                let received = self.receive_stream(cx, call.spec, stream, later.cut).await;
                self.lose(later, cx, received)
            }
            Err(e) => Err(e),
        };
        self.record(cx, Some(id), answer.as_ref().err());
        answer
    }

    async fn discard_partial(&self, cx: &OpContext, call: DiscardPartial) -> Result<Outcome<()>> {
        self.act(cx, Some(call.instance), |sites| self.discard(sites, call.instance)).await
    }
}

impl Verifiable for Fake {
    async fn fingerprint(&self, cx: &OpContext, call: ReadFingerprint) -> Result<ContentFingerprint> {
        // So that progress is seen, and there is time for a cancel.
        cx.progress(Progress::of("verify", 0, Some(1)));
        tokio::task::yield_now().await;
        let answer = self.act(cx, Some(call.instance), |sites| self.read_again(sites, &call)).await?;
        cx.progress(Progress::of("verify", 1, Some(1)));
        Ok(answer)
    }
}

impl Reachable for Fake {
    async fn endpoint(&self, cx: &OpContext, call: GetEndpoint) -> Result<Endpoint> {
        let work = |sites: &mut Sites| {
            find(sites, &self.config.site, call.instance)?;
            Ok(self.address(call.instance))
        };
        self.act(cx, Some(call.instance), work).await
    }
}

impl StorageReplicated for Fake {
    async fn connect_peers(&self, cx: &OpContext, call: ConnectPeers) -> Result<Outcome<()>> {
        self.act(cx, Some(call.instance), |sites| self.connect(sites, call)).await
    }

    async fn disconnect_peers(&self, cx: &OpContext, call: DisconnectPeers) -> Result<Outcome<()>> {
        self.act(cx, Some(call.instance), |sites| self.disconnect(sites, call.instance, call.peer)).await
    }

    async fn begin_replication(
        &self,
        cx: &OpContext,
        call: BeginReplication,
    ) -> Result<Outcome<InstanceInfo>> {
        self.act(cx, Some(call.spec.instance), |sites| self.replicates_now(sites, &call.spec)).await
    }

    async fn end_replication(&self, cx: &OpContext, call: EndReplication) -> Result<Outcome<InstanceInfo>> {
        self.act(cx, Some(call.instance), |sites| self.replicates_no_more(sites, &call)).await
    }
}

impl Migration for Fake {
    async fn prepare_destination(
        &self,
        cx: &OpContext,
        call: PrepareDestination,
    ) -> Result<Outcome<InstanceInfo>> {
        let id = call.spec.instance;
        self.act(cx, Some(id), |sites| self.create(sites, call.spec, Role::Destination)).await
    }

    async fn migration_check_compatibility(
        &self,
        cx: &OpContext,
        call: MigrationCheckCompatibility,
    ) -> Result<Compatibility> {
        let source = call.migration.source;
        self.act(cx, Some(source), |sites| self.promise(sites, &call.migration)).await
    }

    async fn migration_start(&self, cx: &OpContext, call: MigrationStart) -> Result<Outcome<()>> {
        let source = call.migration.source;
        self.act(cx, Some(source), |sites| self.start_moving(sites, &call.migration)).await
    }

    async fn migration_continue(&self, cx: &OpContext, call: MigrationContinue) -> Result<MigrationProgress> {
        let source = call.migration.source;
        self.act(cx, Some(source), |sites| self.move_on(sites, &call.migration, 1)).await
    }

    async fn migration_complete(&self, cx: &OpContext, call: MigrationComplete) -> Result<Outcome<Switched>> {
        let source = call.migration.source;
        self.act(cx, Some(source), |sites| self.take_over(sites, &call.migration)).await
    }

    async fn migration_release(&self, cx: &OpContext, call: MigrationRelease) -> Result<Outcome<()>> {
        let source = call.migration.source;
        self.act(cx, Some(source), |sites| self.let_go(sites, &call.migration)).await
    }

    async fn migration_revert(&self, cx: &OpContext, call: MigrationRevert) -> Result<Outcome<Switched>> {
        let source = call.migration.source;
        self.act(cx, Some(source), |sites| self.go_back(sites, &call.migration)).await
    }

    async fn migration_cancel(&self, cx: &OpContext, call: MigrationCancel) -> Result<Outcome<()>> {
        let source = call.migration.source;
        self.act(cx, Some(source), |sites| self.stop_moving(sites, &call.migration)).await
    }

    async fn migration_get_progress(
        &self,
        cx: &OpContext,
        call: MigrationGetProgress,
    ) -> Result<MigrationProgress> {
        let source = call.migration.source;
        self.act(cx, Some(source), |sites| self.move_on(sites, &call.migration, 0)).await
    }

    async fn migration_force_complete(
        &self,
        cx: &OpContext,
        call: MigrationForceComplete,
    ) -> Result<Outcome<()>> {
        let source = call.migration.source;
        let all = self.config.migration.map_or(0, |p| p.rounds);
        self.act(cx, Some(source), |sites| {
            self.move_on(sites, &call.migration, all).map(|_| Outcome::Changed(()))
        })
        .await
    }
}
