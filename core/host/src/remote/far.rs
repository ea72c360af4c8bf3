//! The server's end of a connection to a driver elsewhere: looks like an opened driver.
//!
//! One task reads, one writes and keeps the other side awake; the calls in between wait in a table. When the connection
//! is lost, every call that was not answered fails as `Unavailable`: it may have been done, and only the storage knows.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl};
use tandem_abi::{Answer, DriverSide, HostSide};
use tandem_contract::{CANCEL_VERB, CONTRACT_VERSION, Cancel, Error, ErrorKind, Request, Result};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::dial::Dialer;
use super::frame::{Frame, MOST, Reader, Writer};
use super::message::{
    Document, Greeting, Hello, News, Order, Slot, VERSION, Wants, Welcome, bytes, failed, raw,
};
use super::relay::{self, Broken};
use crate::BoxFuture;

/// A quiet connection is asked whether it is alive this often.
const ASK_EVERY: Duration = Duration::from_secs(3);
/// A connection without any word for this long is lost.
pub(crate) const SILENCE: Duration = Duration::from_secs(15);
/// Calls that may wait for their answers.
pub(crate) const MOST_CALLS: usize = 4096;

/// Both directions of a connection.
pub(crate) type Line = (Box<dyn Reader>, Box<dyn Writer>);

/// Why a connection ended, from whoever knows more than the socket.
pub(crate) type Epitaph = BoxFuture<'static, Option<String>>;

/// A connection that was welcomed, on which nothing was opened yet.
pub(crate) struct Welcomed {
    line: Line,
    pub(crate) welcome: Welcome,
}

/// Says hello, and reads the greeting.
///
/// # Errors
/// `Unavailable` when the other side does not answer, `Conflict` when it refuses.
pub(crate) async fn greet(
    mut line: Line,
    place: &str,
    names: (&str, &str),
    wants: Wants,
    fds: Vec<OwnedFd>,
) -> Result<Welcomed> {
    let hello = Hello {
        version: VERSION,
        contract: CONTRACT_VERSION,
        from: names.0.to_owned(),
        to: names.1.to_owned(),
        wants,
    };
    let greeting = async {
        line.1.write(Frame { fds, ..Frame::of(&hello)? }).await?;
        let frame = line.0.read(MOST).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        frame.parse::<Greeting>()
    };
    let greeting = timeout(SILENCE, greeting)
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer")))
        .map_err(|e| Error::unavailable(format!("{place} is away: {}", super::tls::why(&e, names.1))))?;
    match greeting {
        Greeting::Welcome(welcome) => Ok(Welcomed { line, welcome }),
        Greeting::Refused(reason) => {
            Err(Error::new(ErrorKind::Unavailable, format!("{place} refuses: {reason}")))
        }
    }
}

/// What a connection is opened with.
pub(crate) struct Terms {
    /// For sentences: ``host `storage2` ``.
    pub(crate) place: String,
    /// Opens the connections of streams; without it, descriptors are passed on.
    pub(crate) dialer: Option<Dialer>,
    /// Knows why the connection ended.
    pub(crate) epitaph: Option<Epitaph>,
}

/// A connection on which a driver was opened.
pub(crate) struct Far {
    terms: FarTerms,
    out: mpsc::UnboundedSender<Frame>,
    state: Mutex<State>,
    lost: CancellationToken,
    runtime: Handle,
    capabilities: OnceLock<Vec<u8>>,
}

struct FarTerms {
    place: String,
    dialer: Option<Dialer>,
    session: Uuid,
}

#[derive(Default)]
struct State {
    last: u64,
    calls: HashMap<u64, oneshot::Sender<Answer>>,
    /// Calls with streams, by delivery: what stops the streams.
    streams: HashMap<u64, CancellationToken>,
    opening: Option<oneshot::Sender<Answer>>,
    ending: Option<oneshot::Sender<()>>,
    why: Option<String>,
}

/// Keeps the connection; it ends with this.
pub(crate) struct Held(pub(crate) Arc<Far>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.lose("it was closed here");
    }
}

impl Welcomed {
    /// Opens a back end on the other side.
    pub(crate) async fn open(
        self,
        terms: Terms,
        driver: &str,
        backend: &str,
        host: Box<dyn HostSide>,
        opening: Vec<u8>,
    ) -> Result<Held, Vec<u8>> {
        let refuse = |e: Error| failed(&e).unwrap_err_or_default();
        let (out, frames) = mpsc::unbounded_channel();
        let (say, opened) = oneshot::channel();
        let far = Arc::new(Far {
            terms: FarTerms { place: terms.place, dialer: terms.dialer, session: self.welcome.session },
            out,
            state: Mutex::new(State { opening: Some(say), ..State::default() }),
            lost: CancellationToken::new(),
            runtime: Handle::current(),
            capabilities: OnceLock::new(),
        });
        let held = Held(Arc::clone(&far));
        let (reader, writer) = self.line;
        tokio::spawn(read(Arc::clone(&far), reader, Arc::from(host), terms.epitaph));
        tokio::spawn(write(Arc::clone(&far), writer, frames));
        let opening = raw(opening, "the opening").map_err(refuse)?;
        let order = Order::Open { driver: driver.to_owned(), backend: backend.to_owned(), opening };
        far.send(&order).map_err(refuse)?;
        match opened.await {
            Ok(Ok(capabilities)) => {
                let _ = far.capabilities.set(capabilities);
                Ok(held)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(refuse(far.gone())),
        }
    }
}

/// The bytes of a refusal.
trait Refusal {
    fn unwrap_err_or_default(self) -> Vec<u8>;
}

impl Refusal for Answer {
    fn unwrap_err_or_default(self) -> Vec<u8> {
        self.err().unwrap_or_default()
    }
}

impl Far {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, order: &Order) -> Result<()> {
        self.send_with(order, Vec::new())
    }

    fn send_with(&self, order: &Order, fds: Vec<OwnedFd>) -> Result<()> {
        let frame = Frame::of(order).map_err(|e| Error::invalid(e.to_string()))?;
        self.out.send(Frame { fds, ..frame }).map_err(|_| self.gone())
    }

    /// The error of a call that cannot be sent any more, or was not answered.
    fn gone(&self) -> Error {
        let why = self.state().why.clone().unwrap_or_else(|| "it was closed".to_owned());
        Error::unavailable(format!("the connection to {} was lost: {why}", self.terms.place))
    }

    /// Why it was lost; `None` while it works.
    pub(crate) fn why_lost(&self) -> Option<String> {
        self.lost.is_cancelled().then(|| self.gone().message)
    }

    /// Ends once the connection is lost.
    pub(crate) fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// Ends the connection, and every call on it.
    pub(crate) fn lose(&self, why: &str) {
        let (calls, opening) = {
            let mut state = self.state();
            state.why.get_or_insert_with(|| why.to_owned());
            state.ending = None;
            (std::mem::take(&mut state.calls), state.opening.take())
        };
        self.lost.cancel();
        if calls.is_empty() && opening.is_none() {
            return;
        }
        let gone = self.gone();
        for waiting in calls.into_values() {
            let error = Error::unavailable(format!(
                "{}, before the call was answered; whether it was done is looked at when the driver is back",
                gone.message
            ));
            // Who does not wait any more needs no answer.
            let _ = waiting.send(failed(&error));
        }
        if let Some(waiting) = opening {
            let _ = waiting.send(failed(&gone));
        }
    }

    fn answered(&self, id: u64, answer: Answer) {
        let waiting = self.state().calls.remove(&id);
        if let Some(waiting) = waiting {
            let _ = waiting.send(answer);
        }
    }

    /// Notes a call that waits for its answer.
    fn wait(&self) -> Result<(u64, oneshot::Receiver<Answer>)> {
        let (say, answer) = oneshot::channel();
        let mut state = self.state();
        if state.why.is_some() {
            drop(state);
            return Err(self.gone());
        }
        if state.calls.len() >= MOST_CALLS {
            return Err(Error::busy(format!("{MOST_CALLS} calls wait for {} already", self.terms.place)));
        }
        state.last += 1;
        let id = state.last;
        state.calls.insert(id, say);
        Ok((id, answer))
    }

    /// Sends a call, and answers with what will be its answer.
    fn start(self: &Arc<Self>, request: Vec<u8>, fds: Vec<OwnedFd>) -> Result<BoxFuture<'static, Answer>> {
        let request = raw(request, "the request")?;
        let head: Head = serde_json::from_str(request.get())
            .map_err(|e| Error::bug(format!("the request does not decode: {e}")))?;
        let mut slots = Vec::new();
        for fd in &fds {
            let stream = self.terms.dialer.is_some().then(Uuid::new_v4);
            slots.push(Slot { out: driver_writes(fd)?, stream });
        }
        if head.verb == CANCEL_VERB {
            self.cancel_streams(request.get());
        }
        let (id, answer) = self.wait()?;
        let waiting = Waiting { far: Arc::clone(self), id, answer };
        let order = Order::Call { id, request, slots: slots.clone() };
        let Some(dialer) = &self.terms.dialer else {
            self.send_with(&order, fds)?;
            return Ok(Box::pin(waiting));
        };
        self.send(&order)?;
        if fds.is_empty() {
            return Ok(Box::pin(waiting));
        }
        let cancel = self.lost.child_token();
        self.state().streams.insert(head.delivery, cancel.clone());
        let mut delivered = Vec::new();
        for (fd, slot) in fds.into_iter().zip(slots) {
            let (say, done) = oneshot::channel();
            if slot.out {
                delivered.push(done);
            }
            self.runtime.spawn(stream(Arc::clone(self), dialer.clone(), id, fd, slot, say));
        }
        let streamed = Streamed { far: Arc::clone(self), delivery: head.delivery };
        Ok(Box::pin(streamed.finish(waiting, delivered, cancel)))
    }

    /// The driver is told to stop a call; what of its streams is still on its way here stops too.
    fn cancel_streams(&self, request: &str) {
        let delivery = serde_json::from_str::<Request>(request)
            .ok()
            .and_then(|request| serde_json::from_value::<Cancel>(request.args).ok());
        if let Some(Cancel { delivery }) = delivery
            && let Some(cancel) = self.state().streams.get(&delivery)
        {
            cancel.cancel();
        }
    }
}

/// What is read of a request.
#[derive(serde::Deserialize)]
struct Head {
    verb: String,
    delivery: u64,
}

/// Whether the driver writes to a descriptor: a pipe's end says what it is for.
fn driver_writes(fd: &OwnedFd) -> Result<bool> {
    let flags = fcntl_getfl(fd).map_err(|e| Error::invalid(format!("the stream cannot be used: {e}")))?;
    Ok(flags.contains(OFlags::WRONLY))
}

/// A call whose streams cross the network.
struct Streamed {
    far: Arc<Far>,
    delivery: u64,
}

impl Streamed {
    /// A call that writes has succeeded once everything it wrote has been taken here, as with a pipe.
    async fn finish(
        self,
        waiting: Waiting,
        delivered: Vec<oneshot::Receiver<io::Result<()>>>,
        cancel: CancellationToken,
    ) -> Answer {
        let answer = waiting.await?;
        for done in delivered {
            let done = tokio::select! {
                biased;
                done = done => done.unwrap_or_else(|_| Err(io::ErrorKind::ConnectionAborted.into())),
                () = cancel.cancelled() => {
                    return failed(&Error::cancelled("cancelled while the stream was on its way"));
                }
            };
            if let Err(e) = done {
                return failed(&Error::unavailable(format!(
                    "the stream from {} broke: {}",
                    self.far.terms.place,
                    super::tls::why(&e, "")
                )));
            }
        }
        Ok(answer)
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        self.far.state().streams.remove(&self.delivery);
    }
}

/// Carries one stream of a call.
async fn stream(
    far: Arc<Far>,
    dialer: Dialer,
    call: u64,
    fd: OwnedFd,
    slot: Slot,
    say: oneshot::Sender<io::Result<()>>,
) {
    let lost = far.lost.clone();
    let mut say = say;
    let nobody = async {
        // Who waits for what the driver writes has gone: nobody wants it any more.
        if slot.out { say.closed().await } else { std::future::pending().await }
    };
    let work = async {
        let wants = Wants::Stream { session: far.terms.session, stream: slot.stream.unwrap_or_default() };
        let net = match dialer.dial_stream(wants).await {
            Ok(net) => net,
            Err(e) => {
                far.answered(call, failed(&e));
                // When it cannot be sent, the call ends with the connection.
                let _ = far.send(&Order::Drop { id: call });
                return Err(io::Error::other(e.message));
            }
        };
        if slot.out {
            let mut fd = tokio::net::unix::pipe::Sender::from_owned_fd(fd)?;
            relay::inward(&mut fd, net).await.map_err(|(Broken::Here(e) | Broken::There(e))| e)
        } else {
            relay::outward(fd, net, std::future::ready(true)).await.map(drop)
        }
    };
    let carried = tokio::select! {
        carried = work => carried,
        () = lost.cancelled() => Err(io::ErrorKind::ConnectionAborted.into()),
        () = nobody => return,
    };
    if let Err(e) = &carried {
        tracing::debug!("A stream to or from {} ended early: {e}.", far.terms.place);
    }
    let _ = say.send(carried);
}

async fn read(far: Arc<Far>, mut reader: Box<dyn Reader>, host: Arc<dyn HostSide>, epitaph: Option<Epitaph>) {
    let why = loop {
        let frame = tokio::select! {
            biased;
            () = far.lost.cancelled() => return,
            frame = timeout(SILENCE, reader.read(MOST)) => frame,
        };
        let news = match frame {
            Err(_) => break format!("nothing was heard for {} s", SILENCE.as_secs()),
            Ok(Err(e)) => break super::tls::why(&e, ""),
            Ok(Ok(None)) => break "it hung up".to_owned(),
            Ok(Ok(Some(frame))) => match frame.parse::<News>() {
                Ok(news) => news,
                Err(e) => break e.to_string(),
            },
        };
        take(&far, &host, news);
    };
    let told = match epitaph {
        Some(epitaph) => timeout(Duration::from_secs(2), epitaph).await.ok().flatten(),
        None => None,
    };
    let why = told.unwrap_or(why);
    if far.why_lost().is_none() {
        tracing::warn!("The connection to {} was lost: {why}.", far.terms.place);
    }
    far.lose(&why);
}

fn take(far: &Arc<Far>, host: &Arc<dyn HostSide>, news: News) {
    match news {
        News::Answer { id, answer } => far.answered(id, answer.into_answer()),
        News::Signal { signal } => host.signal(bytes(signal)),
        News::HostCall { id, call } => {
            let work = host.call(bytes(call));
            let far = Arc::clone(far);
            tokio::spawn(async move {
                let answer = Document::of(work.await);
                // When it cannot be sent, nobody is there to miss it.
                let _ = far.send(&Order::HostAnswer { id, answer });
            });
        }
        News::Opened { capabilities } => {
            if let Some(opening) = far.state().opening.take() {
                let _ = opening.send(Ok(bytes(capabilities)));
            }
        }
        News::NotOpened { error } => {
            if let Some(opening) = far.state().opening.take() {
                let _ = opening.send(failed(&error));
            }
        }
        News::Ended => {
            if let Some(ending) = far.state().ending.take() {
                let _ = ending.send(());
            }
        }
        News::Pong => {}
    }
}

async fn write(far: Arc<Far>, mut writer: Box<dyn Writer>, mut frames: mpsc::UnboundedReceiver<Frame>) {
    loop {
        let next = tokio::select! {
            biased;
            () = far.lost.cancelled() => return,
            next = timeout(ASK_EVERY, frames.recv()) => next,
        };
        let frame = match next {
            Ok(Some(frame)) => frame,
            Ok(None) => return,
            Err(_) => Frame::of(&Order::Ping).unwrap_or_default(),
        };
        // A reader that takes nothing is noticed by the silence that follows.
        let written = tokio::select! {
            biased;
            () = far.lost.cancelled() => return,
            written = writer.write(frame) => written,
        };
        if let Err(e) = written {
            // The reading side knows better why, if it is given the time.
            tokio::time::sleep(Duration::from_millis(500)).await;
            far.lose(&super::tls::why(&e, ""));
            return;
        }
    }
}

/// A call that waits for its answer; the other side is told when it is dropped before.
struct Waiting {
    far: Arc<Far>,
    id: u64,
    answer: oneshot::Receiver<Answer>,
}

impl Future for Waiting {
    type Output = Answer;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        Pin::new(&mut self.answer).poll(cx).map(|done| done.unwrap_or_else(|_| failed(&self.far.gone())))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.far.state().calls.remove(&self.id).is_some() {
            // When it cannot be sent, the call ends with the connection.
            let _ = self.far.send(&Order::Drop { id: self.id });
        }
    }
}

impl DriverSide for Held {
    fn capabilities(&self) -> Vec<u8> {
        self.0.capabilities.get().cloned().unwrap_or_default()
    }

    fn call(&self, request: Vec<u8>, fds: Vec<OwnedFd>) -> BoxFuture<'static, Answer> {
        match self.0.start(request, fds) {
            Ok(answer) => answer,
            Err(e) => Box::pin(std::future::ready(failed(&e))),
        }
    }

    fn shutdown(&self) -> BoxFuture<'static, ()> {
        let (say, ended) = oneshot::channel();
        self.0.state().ending = Some(say);
        let sent = self.0.send(&Order::Shutdown);
        let lost = self.0.lost();
        Box::pin(async move {
            if sent.is_ok() {
                tokio::select! {
                    _ = ended => {}
                    () = lost.cancelled() => {}
                }
            }
        })
    }
}
