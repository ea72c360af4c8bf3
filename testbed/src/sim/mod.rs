//! The seeded simulation: managers that live and die over one store and one storage, on a clock of their own.
//!
//! A [`Sim`] holds what survives a manager: the rows ([`MemoryStore`]), the storage of the model driver (`fake`'s
//! world) and the time. [`Sim::life`] runs one manager on a runtime of its own, on one thread, with time that passes
//! only when nothing else can happen. Dropping that runtime is `kill -9`: no task of that manager takes another step.
//! Between the manager and what survives it stands the [`stage`]: it sees every commit and every driver call, lets
//! faults strike there, and holds the laws of every moment against what it sees. [`check`] holds the laws of rest.
//!
//! A run follows from its seed alone: ids, the order of tasks, users' writes and faults. [`stage::Stage::trace`] is its
//! history; the same seed gives the same history.

mod arbiter;
pub mod cases;
pub mod check;
pub mod clients;
mod clock;
mod driver;
pub mod random;
pub mod rng;
pub mod scenario;
pub mod stage;
mod store;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use tandem_driver_fake::World;
use tandem_host::{Library, Options};
use tandem_manager::clock::{Clock, Timestamp};
use tandem_manager::store::memory::MemoryStore;
use tandem_manager::{BackendConfig, Manager, OpenBackend, Settings, VerifySettings};

use clock::SimClock;
use stage::Stage;
use store::StagedStore;

/// Who moves the data, and whether writers can be held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Streams that the manager carries; writers can be held back.
    Streamed,
    /// Streams that the manager carries; writers cannot be held back.
    Plain,
    /// The storage itself.
    Storage,
}

impl Transport {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Streamed, Self::Plain, Self::Storage];

    /// One word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Streamed => "streamed",
            Self::Plain => "plain",
            Self::Storage => "storage",
        }
    }
}

/// Back ends of a simulation, each in a zone of its own.
pub const SITES: [&str; 3] = ["alpha", "beta", "gamma"];

/// What a simulation starts with.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Everything follows from it.
    pub seed: u64,
    /// Of every back end.
    pub transport: Transport,
    /// Whether each changing call reaches the driver twice.
    pub twice: bool,
    /// Whether tasks are interleaved at random.
    pub jitter: bool,
    /// Whether drivers move shares by themselves.
    pub moves: bool,
}

/// What survives a manager.
pub struct Sim {
    /// The storage of every back end.
    pub world: World,
    /// The rows.
    pub rows: Arc<MemoryStore>,
    /// Between the manager and both.
    pub stage: Arc<Stage>,
    /// Between two content checks by schedule.
    pub verify_every: Cell<Option<Duration>>,
    config: Config,
    name: String,
    now: Cell<Timestamp>,
}

/// One life of a manager.
pub struct Life<'a> {
    /// What survives it.
    pub sim: &'a Sim,
    /// The manager.
    pub manager: Manager,
    clock: Arc<SimClock>,
}

impl Life<'_> {
    /// Lets simulated time pass.
    pub async fn sleep(&self, duration: Duration) {
        self.clock.sleep(duration).await;
    }

    /// Simulated now.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

impl Sim {
    /// An empty store and empty storage.
    pub fn new(config: Config) -> Self {
        static WORLDS: AtomicU64 = AtomicU64::new(0);
        // The name tells apart simulations of one process; it is no part of any history.
        let name = format!("sim-{}", WORLDS.fetch_add(1, Ordering::Relaxed));
        tandem_manager::ids::repeat_on_this_thread(config.seed);
        let world = World::named(&name);
        let stage = Arc::new(Stage::new(world.clone(), &config));
        let rows = Arc::new(MemoryStore::new());
        // Any moment; the first lives in the year 2026.
        let now = Cell::new(Timestamp(1_767_225_600_000_000));
        Self { world, rows, stage, verify_every: Cell::new(None), config, name, now }
    }

    /// Runs one manager from its start until `work` is done or it is killed; `None`: it was killed. Nothing of it
    /// runs on afterwards.
    pub fn life<T>(&self, work: impl AsyncFnOnce(&Life<'_>) -> T) -> Option<T> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime for one life");
        let ended = runtime.block_on(self.live(work));
        drop(runtime);
        ended
    }

    async fn live<T>(&self, work: impl AsyncFnOnce(&Life<'_>) -> T) -> Option<T> {
        let clock = Arc::new(SimClock::starting(self.now.get()));
        let mut cancels = self.stage.begin(Arc::clone(&clock));
        driver::enter(&self.stage);
        let store = Arc::new(StagedStore::new(Arc::clone(&self.rows), Arc::clone(&self.stage)));
        let shared = Arc::clone(&clock);
        let manager = Manager::new(store, shared, self.backends(), settings(self.verify_every.get()));
        manager.start();
        let canceller = manager.clone();
        tokio::spawn(async move {
            while let Some(op) = cancels.recv().await {
                // An operation that has ended meanwhile cannot be cancelled, and that is an answer.
                let _ = canceller.cancel(op).await;
            }
        });
        let life = Life { sim: self, manager, clock };
        let ended = tokio::select! {
            biased;
            () = self.stage.killed() => None,
            done = work(&life) => Some(done),
        };
        // The next life starts a little later: somebody has to notice first.
        self.now.set(life.now().plus(Duration::from_secs(2)));
        ended
    }

    fn backends(&self) -> Vec<BackendConfig> {
        SITES.iter().map(|site| self.backend(site)).collect()
    }

    fn backend(&self, site: &'static str) -> BackendConfig {
        let mut settings = json!({
            "world": self.name,
            "site": site,
            "mode": if self.config.transport == Transport::Storage { "storage" } else { "streamed" },
            "quiesce": self.config.transport != Transport::Plain,
            "chunk_bytes": 200,
        });
        if !self.config.moves {
            settings["migration"] = serde_json::Value::Null;
        }
        let options = Options { repeat: self.config.twice, ..Options::default() };
        let open: OpenBackend = Arc::new(move || {
            let (settings, options) = (settings.clone(), options.clone());
            Box::pin(async move { Library::linked::<driver::Staged>()?.open(site, &settings, options).await })
        });
        BackendConfig {
            name: site.to_owned(),
            driver: "fake".to_owned(),
            driver_version: "0".to_owned(),
            availability_zone: format!("zone-{site}"),
            reserved_percentage: 0,
            max_over_subscription_ratio: 20.0,
            open,
        }
    }
}

/// Short intervals: a simulated minute costs real milliseconds.
fn settings(verify_every: Option<Duration>) -> Settings {
    Settings {
        verify: VerifySettings { interval: verify_every, ..VerifySettings::default() },
        host: "sim".to_owned(),
        pool_interval_seconds: 4,
        heal_interval_seconds: 5,
        call_deadline_seconds: 20,
        stall_deadline_seconds: 30,
        ..Settings::default()
    }
}
