//! The driver host's end: opens drivers for servers and carries their calls.
//!
//! A connection that is lost takes its calls with it: each is cancelled in the driver, and keeps its hold on its
//! instance until the driver has returned. The gate is one for the whole process, so no server, and no later
//! connection of the same one, starts a second changing call for an instance before that.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use serde_json::value::RawValue;
use tandem_abi::{Answer, DriverSide, HostSide};
use tandem_contract::{CANCEL_VERB, CONTRACT_VERSION, Cancel, Error, Request, Result, VERBS};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::berths::{Berths, Net};
use super::far::{Line, MOST_CALLS, SILENCE};
use super::frame::{Frame, MOST, Writer};
use super::message::{Document, FarDriver, News, Order, Slot, Welcome, bytes, failed, raw};
use super::relay::{self, Broken};
use super::stop_at::{Side, StopAt};
use crate::gate::Gate;
use crate::layers::instance_of;
use crate::plugin::encode;
use crate::{BoxFuture, Discovery, Library};

/// Messages that wait to be written.
const QUEUE: usize = 1024;
/// A call that was told to stop counts as hung after this.
const GRACE: Duration = Duration::from_secs(10);

/// What every connection of a driver host shares.
pub(crate) struct Station {
    drivers: BTreeMap<String, Library>,
    report: Vec<FarDriver>,
    gate: Arc<Gate>,
    /// Where a test wants the process to stop.
    stop_at: Option<StopAt>,
    /// The connection that serves a server's back end.
    holders: Mutex<HashMap<(String, String), (Uuid, CancellationToken)>>,
    /// Where streams arrive, by connection.
    berths: Mutex<HashMap<Uuid, (String, Arc<Berths>)>>,
    /// Every call that runs, of whatever connection.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when the driver host is to end.
    pub(crate) stop: CancellationToken,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Station {
    pub(crate) fn new(found: Discovery, stop_at: Option<StopAt>) -> Arc<Self> {
        Arc::new(Self {
            report: found.report(),
            drivers: found.drivers,
            gate: Arc::default(),
            stop_at,
            holders: Mutex::default(),
            berths: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        })
    }

    /// What is said to a server that may come in; `session` is new.
    pub(crate) fn welcome(&self, session: Uuid) -> Welcome {
        Welcome { contract: CONTRACT_VERSION, session, drivers: self.report.clone() }
    }

    /// Where the streams of a connection of that server arrive.
    pub(crate) fn berths(&self, server: &str, session: Uuid) -> Option<Arc<Berths>> {
        lock(&self.berths)
            .get(&session)
            .filter(|(owner, _)| owner == server)
            .map(|(_, berths)| Arc::clone(berths))
    }

    /// Serves one connection until it is lost, and leaves its calls behind in [`Station::tasks`].
    pub(crate) async fn serve(self: &Arc<Self>, server: &str, session: Uuid, line: Line) {
        let (out, frames) = mpsc::channel(QUEUE);
        let gone = self.stop.child_token();
        let berths = Arc::<Berths>::default();
        lock(&self.berths).insert(session, (server.to_owned(), Arc::clone(&berths)));
        let serving = Arc::new(Serving {
            station: Arc::clone(self),
            server: server.to_owned(),
            session,
            out,
            gone: gone.clone(),
            driver: OnceLock::new(),
            calls: Mutex::default(),
            asked: Mutex::default(),
            berths,
        });
        let (mut reader, writer) = line;
        tokio::spawn(write(writer, frames, gone.clone()));
        let why = loop {
            let frame = tokio::select! {
                biased;
                () = gone.cancelled() => break "it is over".to_owned(),
                frame = timeout(SILENCE, reader.read(MOST)) => frame,
            };
            let order = match frame {
                Err(_) => break format!("nothing was heard for {} s", SILENCE.as_secs()),
                Ok(Err(e)) => break super::tls::why(&e, ""),
                Ok(Ok(None)) => break "it hung up".to_owned(),
                Ok(Ok(Some(frame))) => match frame.parse::<Order>() {
                    Ok(order) => (order, frame.fds),
                    Err(e) => break e.to_string(),
                },
            };
            serving.take(order.0, order.1);
        };
        tracing::info!(server, "A connection ended: {why}.");
        gone.cancel();
        lock(&self.berths).remove(&session);
        lock(&self.holders).retain(|_, (holder, _)| *holder != session);
        lock(&serving.asked).clear();
    }
}

async fn write(mut writer: Box<dyn Writer>, mut frames: mpsc::Receiver<Frame>, gone: CancellationToken) {
    loop {
        let frame = tokio::select! {
            biased;
            () = gone.cancelled() => return,
            frame = frames.recv() => frame,
        };
        let Some(frame) = frame else { return };
        if !matches!(timeout(SILENCE, writer.write(frame)).await, Ok(Ok(()))) {
            gone.cancel();
            return;
        }
    }
}

/// One connection that is served.
struct Serving {
    station: Arc<Station>,
    server: String,
    session: Uuid,
    out: mpsc::Sender<Frame>,
    gone: CancellationToken,
    driver: OnceLock<Arc<dyn DriverSide>>,
    calls: Mutex<HashMap<u64, Running>>,
    /// Calls of the driver to its host that wait for their answers.
    asked: Mutex<Asked>,
    berths: Arc<Berths>,
}

#[derive(Default)]
struct Asked {
    last: u64,
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
}

impl Asked {
    fn clear(&mut self) {
        self.waiting.clear();
    }
}

/// A call that runs.
struct Running {
    delivery: u64,
    cancel: CancellationToken,
}

impl Serving {
    async fn say(&self, news: &News) {
        let frame = match (Frame::of(news), news) {
            (Ok(frame), _) => frame,
            (Err(e), News::Answer { id, .. }) => {
                let answer =
                    Document::error(&Error::bug(format!("the driver's answer cannot be carried: {e}")));
                Frame::of(&News::Answer { id: *id, answer }).unwrap_or_default()
            }
            (Err(e), _) => return tracing::warn!("A message was not sent: {e}."),
        };
        // Nobody is left to hear it when this fails.
        let _ = self.out.send(frame).await;
    }

    fn take(self: &Arc<Self>, order: Order, fds: Vec<OwnedFd>) {
        let this = Arc::clone(self);
        match order {
            Order::Open { driver, backend, opening } => {
                tokio::spawn(async move {
                    let opened = tokio::select! {
                        opened = this.open(&driver, &backend, opening) => opened,
                        () = this.gone.cancelled() => return,
                    };
                    let news = match opened {
                        Ok(capabilities) => News::Opened { capabilities },
                        Err(error) => News::NotOpened { error },
                    };
                    this.say(&news).await;
                });
            }
            Order::Call { id, request, slots } => self.call(id, request, slots, fds),
            Order::Drop { id } => {
                if let Some(running) = lock(&self.calls).get(&id) {
                    running.cancel.cancel();
                }
            }
            Order::HostAnswer { id, answer } => {
                let waiting = lock(&self.asked).waiting.remove(&id);
                if let Some(waiting) = waiting {
                    let _ = waiting.send(answer.into_answer());
                }
            }
            Order::Shutdown => {
                tokio::spawn(async move {
                    if let Some(driver) = this.driver.get() {
                        driver.shutdown().await;
                    }
                    this.say(&News::Ended).await;
                });
            }
            Order::Ping => {
                // When the queue is full, what is in it says that we live.
                if let Ok(frame) = Frame::of(&News::Pong) {
                    let _ = self.out.try_send(frame);
                }
            }
        }
    }

    async fn open(
        self: &Arc<Self>,
        driver: &str,
        backend: &str,
        opening: Box<RawValue>,
    ) -> Result<Box<RawValue>> {
        if self.driver.get().is_some() {
            return Err(Error::conflict("this connection has a back end already"));
        }
        let library = self.station.drivers.get(driver).ok_or_else(|| {
            let known: Vec<&str> = self.station.drivers.keys().map(String::as_str).collect();
            Error::not_found(format!(
                "the driver host has no driver `{driver}` in its folder of drivers; it has {}",
                if known.is_empty() { "none".to_owned() } else { known.join(", ") }
            ))
        })?;
        // A server that connects anew has lost its old connection, whether this side has noticed or not.
        let key = (self.server.clone(), backend.to_owned());
        let before = lock(&self.station.holders).insert(key, (self.session, self.gone.clone()));
        if let Some((_, before)) = before {
            before.cancel();
        }
        let host = Box::new(Uplink { serving: Arc::clone(self) });
        let opened = library.open_side(host, bytes(opening)).await;
        let driver = opened.map_err(|bytes| crate::plugin::decode_error("its answer to `open`", &bytes))?;
        let capabilities = raw(driver.capabilities(), "the capabilities")?;
        if self.driver.set(Arc::from(driver)).is_err() {
            return Err(Error::conflict("this connection has a back end already"));
        }
        tracing::info!(server = self.server, backend, "A back end was opened.");
        Ok(capabilities)
    }

    fn call(self: &Arc<Self>, id: u64, request: Box<RawValue>, slots: Vec<Slot>, fds: Vec<OwnedFd>) {
        let this = Arc::clone(self);
        let parsed = serde_json::from_str::<Request>(request.get())
            .map_err(|e| Error::invalid(format!("the request does not decode: {e}")));
        let started = parsed.and_then(|head| {
            if head.verb == CANCEL_VERB {
                return self.cancel(&head).map(|()| None);
            }
            let cancel = self.gone.child_token();
            let mut calls = lock(&self.calls);
            if calls.len() >= MOST_CALLS {
                return Err(Error::busy(format!("{MOST_CALLS} calls run already")));
            }
            calls.insert(id, Running { delivery: head.delivery, cancel: cancel.clone() });
            Ok(Some((head, cancel)))
        });
        self.station.tasks.spawn(async move {
            let answer = match started {
                Ok(Some((head, cancel))) => {
                    let answer = this.carry(&head, request, slots, fds, &cancel).await;
                    lock(&this.calls).remove(&id);
                    answer
                }
                Ok(None) => Ok(b"null".to_vec()),
                Err(e) => failed(&e),
            };
            this.say(&News::Answer { id, answer: Document::of(answer) }).await;
        });
    }

    /// Cancelling what has ended already is no error: the news crossed.
    fn cancel(&self, head: &Request) -> Result<()> {
        let Cancel { delivery } = serde_json::from_value(head.args.clone())
            .map_err(|e| Error::invalid(format!("the arguments of `{CANCEL_VERB}` do not fit: {e}")))?;
        for running in lock(&self.calls).values().filter(|running| running.delivery == delivery) {
            running.cancel.cancel();
        }
        Ok(())
    }

    /// Makes one call, and stays with it until the driver has returned.
    async fn carry(
        &self,
        head: &Request,
        request: Box<RawValue>,
        slots: Vec<Slot>,
        fds: Vec<OwnedFd>,
        cancel: &CancellationToken,
    ) -> Answer {
        let Some(driver) = self.driver.get() else {
            return failed(&Error::unavailable("the driver is not open yet"));
        };
        let mut moored = match self.moor(slots, fds, cancel).await {
            Ok(moored) => moored,
            Err(e) => return failed(&e),
        };
        let hold = match self.enter(head, cancel).await {
            Ok(hold) => hold,
            Err(e) => return failed(&e),
        };
        let reached = |side| {
            if let Some(point) = &self.station.stop_at {
                point.reached(&head.verb, side);
            }
        };
        reached(Side::Start);
        let mut work = driver.call(bytes(request), std::mem::take(&mut moored.fds));
        let answer = tokio::select! {
            biased;
            answer = &mut work => answer,
            () = cancel.cancelled() => {
                let told = driver.call(cancel_of(head), Vec::new());
                // A driver that hangs may not even take the cancel.
                tokio::spawn(told);
                tokio::select! {
                    biased;
                    answer = &mut work => answer,
                    () = sleep(GRACE) => {
                        if let Some(hold) = &hold {
                            hold.mark().hung();
                        }
                        tracing::error!(verb = head.verb, op = %head.op, "A driver does not end a call that it was told to end.");
                        work.await
                    }
                }
            }
        };
        reached(Side::End);
        drop(hold);
        moored.over.cancel();
        for succeeded in moored.outward {
            // A relay that has ended needs no word.
            let _ = succeeded.send(answer.is_ok());
        }
        match (answer, moored.broken.get()) {
            (Err(said), Some(why)) => {
                let said = crate::plugin::decode_error("its answer", &said);
                failed(
                    &Error::unavailable(format!("the stream broke before its end: {why}"))
                        .with("driver", said),
                )
            }
            (answer, _) => answer,
        }
    }

    /// Waits until nothing else changes the instance.
    async fn enter(&self, head: &Request, cancel: &CancellationToken) -> Result<Option<crate::gate::Hold>> {
        let changes = VERBS.iter().find(|(name, _)| *name == head.verb).is_none_or(|(_, changes)| *changes);
        let Some(instance) = instance_of(&head.args).filter(|_| changes) else { return Ok(None) };
        let within = head.deadline_ms.map_or(Duration::MAX, Duration::from_millis);
        tokio::select! {
            biased;
            hold = self.station.gate.enter(instance, &head.verb, head.op) => hold.map(Some),
            () = cancel.cancelled() => Err(Error::cancelled(format!("`{}` was cancelled before it began", head.verb))),
            () = sleep(within) => Err(Error::busy(format!(
                "`{}` waited until its deadline for an earlier call on instance {instance}", head.verb
            ))),
        }
    }

    /// The driver's ends of a call's streams, with relays behind those that come over the network.
    async fn moor(&self, slots: Vec<Slot>, fds: Vec<OwnedFd>, cancel: &CancellationToken) -> Result<Moored> {
        let broken = |e: io::Error| Error::unavailable(format!("no stream for the call: {e}"));
        let mut moored = Moored::default();
        let mut passed = fds.into_iter();
        for slot in slots {
            let Some(stream) = slot.stream else {
                let fd = passed.next().ok_or_else(|| Error::invalid("the call lacks a descriptor"))?;
                moored.fds.push(fd);
                continue;
            };
            let net = tokio::select! {
                net = self.berths.wait(stream) => net?,
                () = cancel.cancelled() => return Err(Error::cancelled("cancelled before its stream came")),
            };
            let gone = self.gone.clone();
            let (write, read) = relay::new_pipe().map_err(broken)?;
            if slot.out {
                let (say, succeeded) = oneshot::channel();
                moored.fds.push(write);
                moored.outward.push(say);
                let succeeded = async move { succeeded.await.unwrap_or(false) };
                tokio::spawn(async move {
                    tokio::select! {
                        done = relay::outward(read, net, succeeded) => tracing::debug!(?done, "A stream has left."),
                        () = gone.cancelled() => {}
                    }
                });
            } else {
                let write = pipe::Sender::from_owned_fd(write).map_err(broken)?;
                moored.fds.push(read);
                let (cancel, over) = (cancel.clone(), moored.over.clone());
                let why = Arc::clone(&moored.broken);
                tokio::spawn(feed(write, net, gone, cancel, over, why));
            }
        }
        Ok(moored)
    }
}

/// The driver's ends of a call's streams.
#[derive(Default)]
struct Moored {
    fds: Vec<OwnedFd>,
    /// Tells each relay outward whether the call that wrote has succeeded.
    outward: Vec<oneshot::Sender<bool>>,
    /// Why a stream that the driver reads has broken.
    broken: Arc<OnceLock<String>>,
    /// Cancelled once the call is over.
    over: CancellationToken,
}

/// Feeds a driver from the network. A stream that breaks cancels its call, and only then the pipe ends.
async fn feed(
    mut write: pipe::Sender,
    net: Box<Net>,
    gone: CancellationToken,
    cancel: CancellationToken,
    over: CancellationToken,
    why: Arc<OnceLock<String>>,
) {
    let done = tokio::select! {
        done = relay::inward(&mut write, net) => done,
        () = gone.cancelled() => Err(Broken::There(io::ErrorKind::ConnectionAborted.into())),
    };
    tracing::debug!(?done, "A stream has arrived.");
    if let Err(Broken::There(e)) = done {
        let _ = why.set(super::tls::why(&e, ""));
        cancel.cancel();
        over.cancelled().await;
    }
}

fn cancel_of(head: &Request) -> Vec<u8> {
    let cancel = Cancel { delivery: head.delivery };
    let request = Request {
        op: head.op,
        delivery: head.delivery,
        deadline_ms: None,
        verb: CANCEL_VERB.to_owned(),
        args: serde_json::to_value(cancel).unwrap_or_default(),
    };
    encode(&request).unwrap_or_default()
}

/// A driver's host, on the other side of the connection.
struct Uplink {
    serving: Arc<Serving>,
}

impl HostSide for Uplink {
    fn signal(&self, signal: Vec<u8>) {
        let frame = raw(signal, "the news").map(|signal| Frame::of(&News::Signal { signal }));
        if let Ok(Ok(frame)) = frame {
            // Must not block: news that nobody takes in time are lost, answers never.
            let _ = self.serving.out.try_send(frame);
        }
    }

    fn call(&self, call: Vec<u8>) -> BoxFuture<'static, Answer> {
        let serving = Arc::clone(&self.serving);
        Box::pin(async move {
            let call = match raw(call, "the call to the host") {
                Ok(call) => call,
                Err(e) => return failed(&e),
            };
            let (say, answer) = oneshot::channel();
            let id = {
                let mut asked = lock(&serving.asked);
                if asked.waiting.len() >= MOST_CALLS {
                    return failed(&Error::busy("too many calls to the host wait for their answers"));
                }
                asked.last += 1;
                let id = asked.last;
                asked.waiting.insert(id, say);
                id
            };
            if !serving.gone.is_cancelled() {
                serving.say(&News::HostCall { id, call }).await;
            }
            let answered = tokio::select! {
                answered = answer => answered.ok(),
                () = serving.gone.cancelled() => None,
            };
            lock(&serving.asked).waiting.remove(&id);
            answered.unwrap_or_else(|| failed(&Error::unavailable("the connection to the server was lost")))
        })
    }
}
