//! The stage: sees every commit and every driver call of a simulated manager, lets faults strike there, and holds the
//! laws of every moment against what it sees.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tandem_contract::{
    Epoch, Error, ErrorKind, InstanceId, OpId, Request, ResourceId, Retry, Role, Style, VERBS,
};
use tandem_driver_fake::{Fault as Scripted, What as Script, World};
use tandem_manager::clock::{Clock, Timestamp};
use tandem_manager::model::OpStatus;
use tandem_manager::oplog::Event;
use tandem_manager::store::{Batch, Row};
use tokio::sync::{Notify, mpsc};

use super::Config;
use super::clients::Clients;
use super::clock::SimClock;
use super::rng::Rng;

/// Where a fault strikes: at the n-th of its kind since [`Stage::open`], from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum At {
    /// A commit.
    Commit(u32),
    /// A driver call.
    Call(u32),
    /// A report of progress.
    Progress(u32),
}

/// What happens there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The manager dies before it.
    KillBefore,
    /// The manager dies after it, before it hears of it.
    KillAfter,
    /// Somebody asks the operation to end.
    Cancel,
    /// The call fails and does nothing, and so does its repeat, so many times.
    Fail {
        /// What the error says of a repeat.
        retry: Retry,
        /// How often.
        times: u32,
    },
    /// The call fails, and says that a person has to do something, who does so within a minute.
    FailUntilMended,
    /// The call fails for ever, safe to repeat; a minute later somebody asks the operation to end.
    FailUntilCancelled,
    /// The call does its work, and its answer is lost.
    Lose,
    /// The driver panics.
    Panic,
    /// The stream of the call breaks after so many bytes.
    Cut(u64),
    /// The manager is cut off from the call's site for so many seconds.
    Away(u64),
    /// The call's site is without power for so many seconds.
    Off(u64),
    /// The call heeds no cancel for so many seconds, and does its work then.
    Hang(u64),
}

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub at: At,
    /// What.
    pub what: What,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} at {:?}", self.what, self.at)
    }
}

/// How much happened since [`Stage::open`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Commits.
    pub commits: u32,
    /// Driver calls on behalf of operations.
    pub calls: u32,
    /// Reports of progress.
    pub progress: u32,
}

/// What a driver call meets.
#[derive(Default)]
pub(super) struct Meets {
    pub fail: Option<Error>,
    pub panic: bool,
    pub hang: Option<Duration>,
    pub lose: bool,
    pub kill_after: bool,
}

/// Sees everything.
pub struct Stage {
    world: World,
    inner: Mutex<Inner>,
    death: Notify,
}

struct Inner {
    dead: bool,
    clock: Option<Arc<SimClock>>,
    cancels: Option<mpsc::UnboundedSender<OpId>>,
    /// Whether things are counted.
    open: bool,
    counts: Counts,
    /// Verbs of the counted calls, in order.
    verbs: Vec<String>,
    faults: Vec<Fault>,
    /// Calls that still fail: verb, instance, error, times.
    failing: Vec<(String, Option<InstanceId>, Error, u32)>,
    /// Sites that come back.
    returns: Vec<(Timestamp, String, bool)>,
    /// Links that are joined again.
    cuts: Vec<(Timestamp, String, String)>,
    /// Who was told to go on, by resource and the epoch before.
    winners: BTreeMap<(ResourceId, Epoch), InstanceId>,
    /// Calls cease to fail later; whether somebody cancels the operation then.
    later: Vec<(Timestamp, bool)>,
    /// The kind of operation that cancels are meant for, and the operation.
    kind: Option<&'static str>,
    target: Option<OpId>,
    jitter: Option<Rng>,
    trace: Vec<String>,
    problems: Vec<String>,
    share_epochs: BTreeMap<ResourceId, Epoch>,
    instance_epochs: BTreeMap<InstanceId, Epoch>,
    /// When something of an instance rotted last.
    rotted: BTreeMap<InstanceId, Timestamp>,
    clients: Clients,
}

impl Stage {
    pub(super) fn new(world: World, config: &Config) -> Self {
        let inner = Inner {
            dead: false,
            clock: None,
            cancels: None,
            open: false,
            counts: Counts::default(),
            verbs: Vec::new(),
            faults: Vec::new(),
            failing: Vec::new(),
            returns: Vec::new(),
            cuts: Vec::new(),
            winners: BTreeMap::new(),
            later: Vec::new(),
            kind: None,
            target: None,
            jitter: config.jitter.then(|| Rng::new(config.seed ^ 0x6a69)),
            trace: Vec::new(),
            problems: Vec::new(),
            share_epochs: BTreeMap::new(),
            instance_epochs: BTreeMap::new(),
            rotted: BTreeMap::new(),
            clients: Clients::default(),
        };
        Self { world, inner: Mutex::new(inner), death: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new life begins. Answers what it is asked to cancel.
    pub(super) fn begin(&self, clock: Arc<SimClock>) -> mpsc::UnboundedReceiver<OpId> {
        let (tell, told) = mpsc::unbounded_channel();
        let mut inner = self.lock();
        inner.dead = false;
        inner.clock = Some(clock);
        inner.cancels = Some(tell);
        inner.say("a manager starts");
        told
    }

    /// Resolves when the manager is killed.
    pub(super) async fn killed(&self) {
        self.death.notified().await;
    }

    /// Kills the manager.
    pub fn kill(&self) {
        let mut inner = self.lock();
        inner.dead = true;
        inner.say("killed");
        self.death.notify_one();
    }

    /// The dead do nothing.
    async fn alive(&self) {
        if self.lock().dead {
            pending::<()>().await;
        }
    }

    /// Now and then lets other tasks go first.
    pub(super) async fn yields(&self) {
        self.alive().await;
        let times = self.lock().jitter.as_mut().map_or(0, |rng| rng.below(4));
        for _ in 0..times {
            tokio::task::yield_now().await;
        }
    }

    /// From now on things are counted, and these faults strike; cancels are meant for the next operation of `kind`.
    pub fn open(&self, kind: Option<&'static str>, faults: &[Fault]) {
        let mut inner = self.lock();
        inner.open = true;
        inner.kind = kind;
        inner.target = None;
        inner.counts = Counts::default();
        inner.verbs.clear();
        inner.faults = faults.to_vec();
        inner.clients.budget = 24;
        inner.say("the stage is open");
    }

    /// One more fault to strike.
    pub fn add(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    /// Things are counted no more, and no new fault strikes.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.open = false;
        inner.faults.clear();
    }

    /// A site is without power for so many seconds more.
    pub fn returns(&self, site: &str, seconds: u64) {
        self.lock().powers(site, seconds);
    }

    /// The link between two sites is cut for so many seconds.
    pub fn cut(&self, one: &str, other: &str, seconds: u64) {
        self.world.cut(one, other, true);
        let mut inner = self.lock();
        let at = inner.now().plus(Duration::from_secs(seconds));
        inner.cuts.push((at, one.to_owned(), other.to_owned()));
        inner.say(&format!("{one} and {other} are cut off from each other"));
    }

    /// An instance was told to go on alone: nobody else ever was from that epoch on.
    pub fn won(&self, resource: ResourceId, before: Epoch, instance: InstanceId) {
        let mut inner = self.lock();
        let first = *inner.winners.entry((resource, before)).or_insert(instance);
        if first != instance {
            inner.broken(format!("{first} and {instance} were both told to go on after epoch {before}"));
        }
    }

    /// Ends every fault that lasts.
    pub fn mend(&self) {
        let mut inner = self.lock();
        for (_, one, other) in std::mem::take(&mut inner.cuts) {
            self.world.cut(&one, &other, false);
        }
        inner.failing.clear();
        inner.later.clear();
        for (_, site, off) in std::mem::take(&mut inner.returns) {
            self.restore(&site, off);
        }
    }

    fn restore(&self, site: &str, off: bool) {
        // What came back before is not switched off again.
        match off {
            true if self.world.is_away(site) => self.world.down(site, false),
            true => {}
            false => self.world.isolate(site, false),
        }
    }

    /// Time passes: who was away for a while comes back.
    pub fn pass(&self) {
        let mut inner = self.lock();
        let now = inner.now();
        let (due, left) = std::mem::take(&mut inner.returns).into_iter().partition(|(at, ..)| *at <= now);
        inner.returns = left;
        let due: Vec<(Timestamp, String, bool)> = due;
        let (joined, left): (Vec<_>, _) =
            std::mem::take(&mut inner.cuts).into_iter().partition(|(at, ..)| *at <= now);
        inner.cuts = left;
        for (_, one, other) in joined {
            if !inner.cuts.iter().any(|(_, a, b)| (a, b) == (&one, &other) || (b, a) == (&one, &other)) {
                inner.say(&format!("{one} and {other} reach each other again"));
                self.world.cut(&one, &other, false);
            }
        }
        for (_, site, off) in due {
            inner.say(&format!("{site} is back"));
            self.restore(&site, off);
        }
        if let Some(due) = inner.later.iter().position(|(at, _)| *at <= now) {
            let (_, cancels) = inner.later.remove(due);
            inner.failing.clear();
            if cancels {
                inner.cancel();
            }
        }
    }

    /// Something of an instance reads otherwise from now on than it was written.
    pub fn rot(&self, site: &str, instance: InstanceId) {
        let mut inner = self.lock();
        if self.world.rot(site, instance) {
            let now = inner.now();
            inner.rotted.insert(instance, now);
            inner.say(&format!("{instance} rots on {site}"));
        }
    }

    /// When something of an instance rotted last.
    pub fn rotted_at(&self, instance: InstanceId) -> Option<Timestamp> {
        self.lock().rotted.get(&instance).copied()
    }

    /// Whether something lasts that keeps a manager from its rest.
    pub fn is_disturbed(&self) -> bool {
        let inner = self.lock();
        !inner.returns.is_empty() || !inner.later.is_empty() || !inner.cuts.is_empty()
    }

    /// How much happened since the stage was opened.
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// The verbs of the calls since the stage was opened.
    pub fn verbs(&self) -> Vec<String> {
        self.lock().verbs.clone()
    }

    /// What happened, in order.
    pub fn trace(&self) -> Vec<String> {
        self.lock().trace.clone()
    }

    /// Writes a line into the history.
    pub fn say(&self, what: &str) {
        self.lock().say(what);
    }

    /// Every law of a moment that was broken so far.
    pub fn problems(&self) -> Vec<String> {
        self.lock().problems.clone()
    }

    /// What users wrote, and what was acknowledged.
    pub fn clients<T>(&self, with: impl FnOnce(&mut Clients, &World) -> T) -> T {
        with(&mut self.lock().clients, &self.world)
    }

    pub(super) async fn before_commit(&self, batch: &Batch) -> Option<What> {
        self.alive().await;
        let due = {
            let mut inner = self.lock();
            if inner.open {
                inner.counts.commits += 1;
            }
            let at = At::Commit(inner.counts.commits);
            inner.aim(batch);
            inner.take(at)
        };
        if due == Some(What::KillBefore) {
            self.kill();
            pending::<()>().await;
        }
        due
    }

    pub(super) async fn after_commit(&self, due: Option<What>, batch: &Batch) {
        self.lock().committed(batch, &self.world);
        match due {
            Some(What::KillAfter) => {
                self.kill();
                pending::<()>().await;
            }
            Some(What::Cancel) => self.lock().cancel(),
            _ => {}
        }
    }

    pub(super) async fn before_call(
        &self,
        site: &str,
        request: &Request,
        instance: Option<InstanceId>,
    ) -> Meets {
        self.yields().await;
        let takes = self.lock().takes();
        if takes > 0 {
            // So that requests meet operations that are on their way.
            tokio::time::sleep(Duration::from_millis(takes)).await;
            self.alive().await;
        }
        let mut meets = Meets::default();
        let due = {
            let mut inner = self.lock();
            let due = if inner.open && !request.op.0.is_nil() {
                inner.counts.calls += 1;
                inner.verbs.push(request.verb.clone());
                let at = At::Call(inner.counts.calls);
                inner.clients.tick(&self.world);
                inner.take(at)
            } else {
                None
            };
            if let Some(what) = due {
                let verb = &request.verb;
                inner.say(&format!("{what:?} strikes {verb} on {site}"));
                inner.strike(what, site, verb, instance, &self.world);
            }
            meets.fail = inner.fails(&request.verb, instance);
            due
        };
        match due {
            Some(What::KillBefore) => {
                self.kill();
                pending::<()>().await;
            }
            Some(What::KillAfter) => meets.kill_after = true,
            Some(What::Lose) => meets.lose = true,
            Some(What::Panic) => meets.panic = true,
            Some(What::Hang(seconds)) => meets.hang = Some(Duration::from_secs(seconds)),
            _ => {}
        }
        meets
    }

    pub(super) async fn after_call(
        &self,
        site: &str,
        request: &Request,
        instance: Option<InstanceId>,
        end: &str,
    ) {
        self.alive().await;
        let mut inner = self.lock();
        let id = instance.map(|i| i.to_string()).unwrap_or_default();
        inner.say(&format!("{site} {} {id} for {}: {end}", request.verb, request.op));
        if VERBS.iter().any(|(verb, changes)| *verb == request.verb && *changes) {
            inner.judge(&self.world);
        }
        if inner.open && !request.op.0.is_nil() {
            inner.clients.tick(&self.world);
        }
    }

    pub(super) fn progress(&self) {
        let mut inner = self.lock();
        if !inner.open || inner.dead {
            return;
        }
        inner.counts.progress += 1;
        let at = At::Progress(inner.counts.progress);
        match inner.take(at) {
            Some(What::Cancel) => inner.cancel(),
            Some(What::KillBefore | What::KillAfter) => {
                drop(inner);
                self.kill();
            }
            _ => {}
        }
    }
}

impl Inner {
    fn now(&self) -> Timestamp {
        self.clock.as_ref().map(|clock| clock.now()).unwrap_or_default()
    }

    /// How many milliseconds a call takes: none on a closed stage, so that nothing changes while rest is judged.
    fn takes(&mut self) -> u64 {
        let open = self.open;
        self.jitter
            .as_mut()
            .filter(|_| open)
            .map_or(0, |rng| if rng.chance(40) { rng.below(1500) } else { 0 })
    }

    fn say(&mut self, what: &str) {
        let now = self.now();
        self.trace.push(format!("{} {what}", now.iso()));
    }

    fn take(&mut self, at: At) -> Option<What> {
        let found = self.faults.iter().position(|fault| fault.at == at)?;
        Some(self.faults.remove(found).what)
    }

    /// Notes which operation cancels are meant for.
    fn aim(&mut self, batch: &Batch) {
        if self.target.is_none() && self.open {
            let meant = batch.operations.iter().find(|op| {
                op.status == OpStatus::Accepted && op.seq == 1 && self.kind == Some(op.intent.kind())
            });
            self.target = meant.map(|op| op.id);
        }
    }

    fn cancel(&mut self) {
        if let (Some(op), Some(cancels)) = (self.target, self.cancels.clone()) {
            self.say(&format!("somebody cancels {op}"));
            // Its other end goes only with the manager.
            let _ = cancels.send(op);
        }
    }

    /// A site has power again in so many seconds, and not before: an absence is long enough to be noticed.
    fn powers(&mut self, site: &str, seconds: u64) {
        let at = self.now().plus(Duration::from_secs(seconds));
        self.returns.retain(|(earlier, of, power)| !(*power && of == site && *earlier < at));
        self.returns.push((at, site.to_owned(), true));
    }

    fn strike(&mut self, what: What, site: &str, verb: &str, instance: Option<InstanceId>, world: &World) {
        let now = self.now();
        let injected = |kind| Error::new(kind, format!("simulated: `{verb}` fails"));
        match what {
            What::Cancel => self.cancel(),
            What::Fail { retry, times } => {
                let kind = if retry == Retry::Safe { ErrorKind::Unavailable } else { ErrorKind::Unexpected };
                self.failing.push((verb.to_owned(), instance, injected(kind).retry(retry), times));
            }
            What::FailUntilMended => {
                let error = injected(ErrorKind::OutOfSpace).retry(Retry::AfterOperator);
                self.failing.push((verb.to_owned(), instance, error, u32::MAX));
                self.later.push((now.plus(Duration::from_secs(50)), false));
            }
            What::FailUntilCancelled => {
                self.failing.push((verb.to_owned(), instance, injected(ErrorKind::Unavailable), u32::MAX));
                self.later.push((now.plus(Duration::from_secs(60)), true));
            }
            What::Cut(after) => world.script(Scripted {
                verb: verb.to_owned(),
                site: site.to_owned(),
                skip: 0,
                times: 1,
                what: Script::CutStream { after },
            }),
            What::Away(seconds) => {
                world.isolate(site, true);
                self.returns.push((now.plus(Duration::from_secs(seconds)), site.to_owned(), false));
            }
            What::Off(seconds) => {
                world.down(site, true);
                self.powers(site, seconds);
            }
            _ => {}
        }
    }

    fn fails(&mut self, verb: &str, instance: Option<InstanceId>) -> Option<Error> {
        let found =
            self.failing.iter_mut().find(|(v, i, _, left)| v == verb && *i == instance && *left > 0)?;
        found.3 -= 1;
        Some(found.2.clone())
    }

    /// What a commit changed: into the history, and held against the laws of every moment.
    fn committed(&mut self, batch: &Batch, world: &World) {
        for logged in &batch.events {
            let kind =
                batch.operations.iter().find(|op| op.id == logged.op).map_or("", |op| op.intent.kind());
            let more = match &logged.event {
                Event::Planned { steps } => format!("{steps:?}"),
                Event::StepFailed { error, undo, .. } => format!("{error} {undo:?}"),
                Event::Finished { ending, error } => format!("{ending:?} {error:?}"),
                Event::StepStarted { step } | Event::StepDone { step, .. } => step.to_string(),
                _ => String::new(),
            };
            let (op, seq, name) = (logged.op, logged.seq, logged.event.name());
            self.say(&format!("{kind} {op} {seq} {name} {more} {:?}", logged.effects));
            self.clients.logged(&logged.event, batch);
        }
        for row in &batch.put {
            let Row::Share(share) = row else { continue };
            let last = self.share_epochs.insert(share.id, share.epoch).unwrap_or_default();
            if share.epoch < last {
                self.broken(format!("the epoch of share {} fell from {last} to {}", share.id, share.epoch));
            }
        }
        if self.open {
            self.clients.tick(world);
        }
    }

    /// The laws of every moment: epochs never fall, and one instance at most is active at the newest.
    fn judge(&mut self, world: &World) {
        let mut active: BTreeMap<ResourceId, (Epoch, Vec<InstanceId>)> = BTreeMap::new();
        for seen in world.inspect() {
            let last = self.instance_epochs.insert(seen.instance, seen.epoch).unwrap_or_default();
            if seen.epoch < last {
                self.broken(format!(
                    "the epoch of instance {} fell from {last} to {}",
                    seen.instance, seen.epoch
                ));
            }
            if seen.style == Some(Style::Writable) {
                continue;
            }
            let newest = active.entry(seen.resource).or_default();
            if seen.epoch > newest.0 {
                *newest = (seen.epoch, Vec::new());
            }
            if seen.epoch == newest.0 && seen.role == Role::Active {
                newest.1.push(seen.instance);
            }
        }
        for (resource, (epoch, holders)) in active {
            if holders.len() > 1 {
                self.broken(format!("share {resource}: {holders:?} are all active at epoch {epoch}"));
            }
        }
        let wrong = std::mem::take(&mut self.clients.problems);
        wrong.into_iter().for_each(|what| self.broken(what));
    }

    fn broken(&mut self, what: String) {
        self.say(&format!("BROKEN: {what}"));
        if !self.problems.contains(&what) {
            self.problems.push(what);
        }
    }
}
