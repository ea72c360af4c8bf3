//! A driver under test, and its trials.

use std::path::Path;
use std::sync::Arc;

use libtest_mimic::{Failed, Trial};
use serde_json::Value;
use tandem_abi::{BoxFuture, HostSide, Module, Opened};
use tandem_contract::{CONTRACT_VERSION, Capabilities, Manifest};
use tokio::runtime::Runtime;

use crate::cases;
use crate::scene::Scene;
use crate::side::Side;

/// Opens the driver under test, wherever it runs.
pub trait Opener: Send + Sync + 'static {
    /// Opens a back end; `opening` is JSON of an `Opening`.
    fn open(&self, host: Box<dyn HostSide>, opening: Vec<u8>) -> BoxFuture<'_, Opened>;
}

impl Opener for Module {
    fn open(&self, host: Box<dyn HostSide>, opening: Vec<u8>) -> BoxFuture<'_, Opened> {
        Box::pin(self.open(host, opening))
    }
}

/// A driver with the settings of its back ends.
#[derive(Clone)]
pub struct Subject {
    opener: Arc<dyn Opener>,
    pub(crate) manifest: Arc<Manifest>,
    settings: [Arc<Value>; 2],
}

impl Subject {
    /// Loads a library. `peer` are the settings of a second back end, on the other side of replication; without them,
    /// both sides are on the first.
    ///
    /// # Errors
    /// One sentence on why it is no driver.
    pub fn load(library: &Path, settings: Value, peer: Option<Value>) -> Result<Self, String> {
        let module = Module::load(library, CONTRACT_VERSION).map_err(|e| e.to_string())?;
        let manifest = serde_json::from_slice(&module.manifest())
            .map_err(|e| format!("the manifest of {} does not decode: {e}", library.display()))?;
        Ok(Self::new(Arc::new(module), manifest, settings, peer))
    }

    /// A driver that is opened by other means than loading its library into this process.
    pub fn new(opener: Arc<dyn Opener>, manifest: Manifest, settings: Value, peer: Option<Value>) -> Self {
        let settings = Arc::new(settings);
        let peer = peer.map_or_else(|| Arc::clone(&settings), Arc::new);
        Self { opener, manifest: Arc::new(manifest), settings: [settings, peer] }
    }

    /// What the driver says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(crate) fn settings(&self) -> &Value {
        &self.settings[0]
    }

    pub(crate) fn side(&self, peer: bool, keep: bool) -> Side {
        Side::new(Arc::clone(&self.opener), Arc::clone(&self.settings[usize::from(peer)]), keep)
    }

    fn capabilities(&self, runtime: &Runtime) -> Result<Capabilities, String> {
        runtime
            .block_on(self.side(false, false).capabilities())
            .map_err(|e| format!("the driver cannot be opened with these settings: {e}"))
    }
}

/// The trials that the driver's capabilities call for, each twice: with the driver kept open, and opened for each call.
/// `label` comes before each name.
///
/// # Errors
/// One sentence when the driver cannot be opened.
pub fn trials(subject: &Subject, label: &str) -> Result<Vec<Trial>, String> {
    let runtime = Runtime::new().map_err(|e| format!("no runtime: {e}"))?;
    let runtime = Arc::new(runtime);
    let capabilities = Arc::new(subject.capabilities(&runtime)?);
    let mut trials = Vec::new();
    for case in cases() {
        if !case.needs.met(&capabilities) {
            continue;
        }
        for (mode, keep) in [("kept", true), ("fresh", false)] {
            let name = format!("{label}{mode}::law_{:02}::{}", case.law, case.name.replace(' ', "_"));
            let (subject, runtime, capabilities) =
                (subject.clone(), Arc::clone(&runtime), Arc::clone(&capabilities));
            let (law, run) = (case.law, case.run);
            trials.push(Trial::test(name, move || {
                let scene = Scene::new(&subject, &capabilities, keep);
                runtime.block_on(async {
                    let done = tokio::spawn(run(scene.clone())).await;
                    let done = done.unwrap_or_else(|e| Err(format!("the case itself failed: {e}")));
                    // A case that failed leaves things behind; they go, but its own sentence is what matters.
                    let cleaned = scene.clean().await;
                    done.map_err(|e| Failed::from(format!("law {law}: {e}")))?;
                    cleaned.map_err(Failed::from)
                })
            }));
        }
    }
    Ok(trials)
}
