//! The model driver as a simulated manager's host opens it: linked in, with the stage at every call.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tandem_abi::{Answer, BoxFuture, DriverSide, HostSide, Library, Opened};
use tandem_contract::{CANCEL_VERB, Error, InstanceId, Opening, Request, Signal};
use tandem_driver_fake::Fake;
use tandem_sdk::InProcess;

use super::stage::Stage;

thread_local! {
    /// The stage of the simulation that runs on this thread.
    static STAGE: RefCell<Option<Arc<Stage>>> = const { RefCell::new(None) };
}

/// Drivers that are opened on this thread from now on play on this stage.
pub(super) fn enter(stage: &Arc<Stage>) {
    STAGE.set(Some(Arc::clone(stage)));
}

/// The model driver with the stage at every call.
pub struct Staged;

impl Library for Staged {
    fn manifest() -> Vec<u8> {
        InProcess::<Fake>::manifest()
    }

    fn open(host: Box<dyn HostSide>, opening: Vec<u8>) -> BoxFuture<'static, Opened> {
        let stage = STAGE.with_borrow(Clone::clone).expect("a simulation runs on this thread");
        Box::pin(async move {
            let told: Opening = serde_json::from_slice(&opening).expect("the host's opening decodes");
            let site = told.settings["site"].as_str().expect("a back end has a site").to_owned();
            let host = Box::new(Listening { host, stage: Arc::clone(&stage) });
            let driver = Arc::from(InProcess::<Fake>::open(host, opening).await?);
            Ok(Box::new(Opener { driver, site, stage }) as Box<dyn DriverSide>)
        })
    }
}

/// The host, with the stage at every report of progress.
struct Listening {
    host: Box<dyn HostSide>,
    stage: Arc<Stage>,
}

impl HostSide for Listening {
    fn signal(&self, signal: Vec<u8>) {
        let is_progress = matches!(serde_json::from_slice(&signal), Ok(Signal::Progress { .. }));
        self.host.signal(signal);
        if is_progress {
            self.stage.progress();
        }
    }

    fn call(&self, call: Vec<u8>) -> BoxFuture<'static, Answer> {
        self.host.call(call)
    }
}

struct Opener {
    driver: Arc<dyn DriverSide>,
    site: String,
    stage: Arc<Stage>,
}

impl DriverSide for Opener {
    fn capabilities(&self) -> Vec<u8> {
        self.driver.capabilities()
    }

    fn call(&self, bytes: Vec<u8>, fds: Vec<OwnedFd>) -> BoxFuture<'static, Answer> {
        let request: Request = serde_json::from_slice(&bytes).expect("the host's request decodes");
        if request.verb == CANCEL_VERB {
            return self.driver.call(bytes, fds);
        }
        let (driver, site, stage) = (Arc::clone(&self.driver), self.site.clone(), Arc::clone(&self.stage));
        Box::pin(async move {
            let instance = instance_of(&request);
            let meets = stage.before_call(&site, &request, instance).await;
            let answer = match meets.fail {
                Some(error) => Err(encode(&error)),
                None => {
                    if let Some(hang) = meets.hang {
                        tokio::time::sleep(hang).await;
                    }
                    if meets.panic { Err(Vec::new()) } else { driver.call(bytes, fds).await }
                }
            };
            let end = match &answer {
                Ok(_) => "ok".to_owned(),
                Err(bytes) => serde_json::from_slice::<Error>(bytes)
                    .map_or_else(|_| "panic".to_owned(), |e| format!("{:?} {:?} {e}", e.kind, e.retry)),
            };
            stage.after_call(&site, &request, instance, &end).await;
            if meets.kill_after {
                stage.kill();
                std::future::pending::<()>().await;
            }
            if meets.lose && answer.is_ok() {
                let verb = &request.verb;
                return Err(encode(&Error::unavailable(format!(
                    "simulated: the answer of `{verb}` was lost"
                ))));
            }
            answer
        })
    }

    fn shutdown(&self) -> BoxFuture<'static, ()> {
        self.driver.shutdown()
    }
}

fn encode(error: &Error) -> Vec<u8> {
    serde_json::to_vec(error).expect("an error encodes")
}

/// The instance that a request is about.
fn instance_of(request: &Request) -> Option<InstanceId> {
    let args = &request.args;
    let found = args.get("instance").or_else(|| args.get("spec").and_then(|spec| spec.get("instance")))?;
    found.as_str()?.parse().ok()
}
