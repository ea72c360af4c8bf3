//! What cases share: two back ends, instances that go away with the case, transfers between them.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Map;
use tandem_contract::{
    Attach, AttachKind, Capabilities, CreateInstance, CreateReplica, DeleteInstance, Detach, Epoch, Error,
    InstanceId, InstanceInfo, InstanceSpec, MakePoint, Observation, ObserveInstance, Outcome, PointId,
    PointInfo, Pools, Receive, ReceiveSpec, ReplicationSpec, ResourceId, ResourceKind, Result, SendSpec,
    SendStream, Style, TransferReport, Transport,
};
use uuid::Uuid;

use crate::check::{Check, changed, ensure, same, succeeds};
use crate::content::{self, Content, folder_of};
use crate::pipe::{Mishap, Watched, watched};
use crate::side::Side;
use crate::subject::Subject;

/// The size of a case's instances.
pub(crate) const SIZE: u64 = 1 << 30;

/// What a case works with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Scene {
    pub(crate) subject: Subject,
    pub(crate) capabilities: Arc<Capabilities>,
    /// The back end under test.
    pub(crate) here: Side,
    /// The other side of replication.
    pub(crate) there: Side,
    made: Arc<Mutex<Vec<InstanceId>>>,
}

/// An active instance here, and its replica there.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) active: InstanceSpec,
    pub(crate) replica: InstanceSpec,
    pub(crate) epoch: Epoch,
}

/// A folder through which the suite sees an instance's content.
struct View {
    folder: PathBuf,
    /// Whether it was attached for that, and has to be detached.
    attached: bool,
}

/// How both sides of a transfer ended, and the bytes that passed.
pub(crate) struct Carried {
    pub(crate) sent: Result<TransferReport>,
    pub(crate) received: Result<Outcome<TransferReport>>,
    pub(crate) bytes: u64,
}

impl Scene {
    pub(crate) fn new(subject: &Subject, capabilities: &Arc<Capabilities>, keep: bool) -> Self {
        Self {
            subject: subject.clone(),
            capabilities: Arc::clone(capabilities),
            here: subject.side(false, keep),
            there: subject.side(true, keep),
            made: Arc::default(),
        }
    }

    /// Deletes what the case made, and says what was wrong with the driver's news meanwhile.
    pub(crate) async fn clean(&self) -> Check {
        let made = std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner));
        for instance in made {
            for side in [&self.here, &self.there] {
                let gone = side.call(DeleteInstance { instance }).await;
                succeeds("deleting what the case left behind", gone)?;
            }
        }
        let wrong: Vec<String> = self.here.wrong().into_iter().chain(self.there.wrong()).collect();
        ensure(wrong.is_empty(), || wrong.join("; "))
    }

    /// The same with the sides exchanged.
    pub(crate) fn turned(&self) -> Self {
        Self { here: self.there.clone(), there: self.here.clone(), ..self.clone() }
    }

    /// Remembers an instance that the case is about to make.
    pub(crate) fn will_make(&self, id: InstanceId) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push(id);
    }

    /// A style that the driver offers, the one asked for first.
    pub(crate) fn style(&self, preferred: Style) -> Option<Style> {
        let styles = &self.capabilities.replication.as_ref()?.styles;
        styles.iter().find(|s| **s == preferred).or(styles.first()).copied()
    }

    /// A spec that nobody used yet.
    pub(crate) async fn spec(&self, side: &Side, style: Option<Style>) -> Check<InstanceSpec> {
        let pools = succeeds("`pools`", side.call(Pools {}).await)?;
        let pool = pools.first().ok_or("the back end has no pool")?.name.clone();
        let instance = InstanceId(Uuid::new_v4());
        self.will_make(instance);
        Ok(InstanceSpec {
            instance,
            resource: ResourceId(Uuid::new_v4()),
            kind: self.capabilities.resources.first().copied().unwrap_or(ResourceKind::Share),
            pool,
            size_bytes: SIZE,
            protocol: self.capabilities.share_protocols.first().cloned().unwrap_or_default(),
            epoch: Epoch(3),
            replication: style.map(|style| ReplicationSpec { style, instances: 2 }),
            options: Map::new(),
        })
    }

    /// A new active instance here.
    pub(crate) async fn active(&self) -> Check<(InstanceSpec, InstanceInfo)> {
        let spec = self.spec(&self.here, self.style(Style::Readable)).await?;
        let made = changed("`create_instance`", self.here.call(CreateInstance { spec: spec.clone() }).await)?;
        Ok((spec, made))
    }

    /// A new active instance here, and an empty replica of it there.
    pub(crate) async fn pair(&self, style: Style) -> Check<Pair> {
        let active = self.spec(&self.here, Some(style)).await?;
        changed("`create_instance`", self.here.call(CreateInstance { spec: active.clone() }).await)?;
        let pool = self.spec(&self.there, Some(style)).await?.pool;
        let instance = InstanceId(Uuid::new_v4());
        self.will_make(instance);
        let replica = InstanceSpec { instance, pool, ..active.clone() };
        changed("`create_replica`", self.there.call(CreateReplica { spec: replica.clone() }).await)?;
        Ok(Pair { epoch: active.epoch, active, replica })
    }

    /// What is there of an instance that must be there.
    pub(crate) async fn observe(&self, side: &Side, instance: InstanceId) -> Check<Observation> {
        let seen = succeeds("`observe_instance`", side.call(ObserveInstance { instance }).await)?;
        seen.ok_or_else(|| format!("`observe_instance` finds nothing of {instance}"))
    }

    /// Where the suite can see an instance's content: its export, or what `attach` gives. `None` where it cannot.
    async fn look(&self, side: &Side, instance: InstanceId, epoch: Epoch) -> Check<Option<View>> {
        let seen = self.observe(side, instance).await?;
        if let Some(folder) = folder_of(&seen.exports) {
            return Ok(Some(View { folder, attached: false }));
        }
        if self.capabilities.attach != Some(AttachKind::Tree) {
            return Ok(None);
        }
        let read_only = seen.role != tandem_contract::Role::Active;
        let attached = side.call(Attach { instance, epoch, read_only }).await;
        let path = PathBuf::from(succeeds("`attach`", attached)?.into_inner().path);
        Ok(path.is_dir().then_some(View { folder: path, attached: true }))
    }

    /// Puts content into an active instance; `false` where the suite cannot.
    pub(crate) async fn fill(
        &self,
        side: &Side,
        instance: InstanceId,
        epoch: Epoch,
        content: &Content,
    ) -> Check<bool> {
        let Some(view) = self.look(side, instance, epoch).await? else { return Ok(false) };
        content::write(&view.folder, content)?;
        self.unlook(side, instance, &view).await?;
        Ok(true)
    }

    /// Compares an instance's content, where the suite can.
    pub(crate) async fn holds(
        &self,
        side: &Side,
        instance: InstanceId,
        epoch: Epoch,
        expected: &Content,
    ) -> Check {
        let Some(view) = self.look(side, instance, epoch).await? else { return Ok(()) };
        let found = content::read(&view.folder)?;
        self.unlook(side, instance, &view).await?;
        let names = |c: &Content| c.keys().cloned().collect::<Vec<_>>();
        same("the list of files", &names(&found), &names(expected))?;
        for (name, bytes) in expected {
            ensure(found.get(name) == Some(bytes), || {
                format!("`{name}` of instance {instance} has another content")
            })?;
        }
        Ok(())
    }

    async fn unlook(&self, side: &Side, instance: InstanceId, view: &View) -> Check {
        if view.attached {
            succeeds("`detach`", side.call(Detach { instance }).await)?;
        }
        Ok(())
    }

    /// A new point on an active instance.
    pub(crate) async fn point(&self, side: &Side, instance: InstanceId, epoch: Epoch) -> Check<PointInfo> {
        let point = PointId(Uuid::new_v4());
        changed("`make_point`", side.call(MakePoint { instance, epoch, point }).await)
    }

    /// The stream format to use.
    pub(crate) fn format(&self) -> String {
        match self.capabilities.replication.as_ref().map(|r| &r.transport) {
            Some(Transport::Streamed { formats, .. }) => formats.first().cloned().unwrap_or_default(),
            _ => String::new(),
        }
    }

    /// The two halves of a transfer from `active` to `replica`, going on from what the replica has.
    pub(crate) async fn halves(
        &self,
        from_to: (InstanceId, InstanceId),
        there: &Side,
        epoch: Epoch,
        to: &PointInfo,
        from: Option<&PointInfo>,
    ) -> Check<(SendSpec, ReceiveSpec)> {
        let seen = self.observe(there, from_to.1).await?;
        let resume = seen.resume.filter(|token| token.to == Some(to.id));
        let format = self.format();
        let send = SendSpec {
            instance: from_to.0,
            epoch,
            to: to.id,
            from: from.cloned(),
            resume: resume.clone(),
            format: format.clone(),
            bandwidth: None,
        };
        let receive =
            ReceiveSpec { instance: from_to.1, epoch, to: to.clone(), from: from.cloned(), resume, format };
        Ok((send, receive))
    }

    /// Carries a point from the pair's active instance to its replica, with a mishap.
    pub(crate) async fn carry(
        &self,
        pair: &Pair,
        to: &PointInfo,
        from: Option<&PointInfo>,
        mishap: Mishap,
    ) -> Check<Carried> {
        let ids = (pair.active.instance, pair.replica.instance);
        let (send, receive) = self.halves(ids, &self.there, pair.epoch, to, from).await?;
        let Watched { write, read, relay, .. } = watched(mishap).map_err(|e| format!("no pipe: {e}"))?;
        let (sent, received) = tokio::join!(
            self.here.call_with(SendStream { spec: send }, vec![write]),
            self.there.call_with(Receive { spec: receive }, vec![read]),
        );
        let bytes = relay.await.map_err(|e| format!("the relay failed: {e}"))?;
        for (what, answer) in [("send", sent.as_ref().err()), ("receive", received.as_ref().err())] {
            no_bug(what, answer)?;
        }
        Ok(Carried { sent, received, bytes })
    }

    /// Carries a point, which must succeed.
    pub(crate) async fn sync(&self, pair: &Pair, to: &PointInfo, from: Option<&PointInfo>) -> Check<Carried> {
        let carried = self.carry(pair, to, from, Mishap::None).await?;
        if let Err(e) = &carried.sent {
            return Err(format!("`send` failed: {e}"));
        }
        match &carried.received {
            Ok(outcome) => {
                ensure(outcome.clone().into_inner().verified, || {
                    "`receive` has not verified what arrived".to_owned()
                })?;
                Ok(carried)
            }
            Err(e) => Err(format!("`receive` failed: {e}")),
        }
    }
}

/// Law 11: whatever is refused, it is not with a defect.
pub(crate) fn no_bug(what: &str, error: Option<&Error>) -> Check {
    match error {
        Some(e) if e.kind == tandem_contract::ErrorKind::Bug => Err(format!("`{what}` shows a defect: {e}")),
        _ => Ok(()),
    }
}
