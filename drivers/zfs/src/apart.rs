//! The kernel's calls that write and read streams: each on a thread of its own, which is left behind when the pool that it
//! waits for has stopped.
//!
//! ```text
//! lzc_send ──> pipe ──> lzc_receive
//! ```
//! The kernel moves the bytes of such a call itself, into the manager's pipe and out of it. It counts them, so that we
//! need not, and a signal ends a call that waits for the other side.
//!
//! A thread has a table of descriptors of its own with what its call needs and nothing more: else a call on a stopped pool
//! would keep the server's sockets and locks open after the server was killed, until the pool goes on.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::thread::JoinHandleExt;
use std::sync::Once;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::thread::{Pid, UnshareFlags, gettid, unshare_unsafe};
use tandem_sdk::{Error, OpContext, Progress, Result, Retry};

use crate::{lzc, names, tool};

/// How long one wait lasts before the pool and the context are looked at again.
const TURN: Duration = Duration::from_millis(500);
/// How long a signal has to end a call before the next one: it may have come a moment too early.
const AGAIN: Duration = Duration::from_millis(20);

/// Which way a call's stream runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// It is read.
    In,
    /// It is written.
    Out,
}

/// A call that runs.
pub(crate) struct Apart<T> {
    answer: Receiver<(T, u64)>,
    thread: JoinHandle<()>,
    id: Pid,
    way: Way,
    pool: String,
}

impl<T: Send + 'static> Apart<T> {
    /// Starts a call on a dataset. The stream is the call's alone, and closed when it ends.
    pub(crate) fn run(
        dataset: &str,
        way: Way,
        stream: OwnedFd,
        call: impl FnOnce(&OwnedFd) -> T + Send + 'static,
    ) -> Result<Self> {
        takes_signals();
        let (told, answer) = sync_channel(1);
        let (begins, begun) = sync_channel(1);
        let number = stream.as_raw_fd();
        let work = move || {
            let stream = own(number, &begins);
            // What is read here is counted as well.
            let before = moved(gettid(), way).map_or(0, |(bytes, by_us)| bytes.saturating_add(by_us));
            let answer = call(&stream);
            let bytes = moved(gettid(), way).map_or(0, |(bytes, _)| bytes.saturating_sub(before));
            drop(stream);
            // Nobody may wait any more.
            let _ = told.send((answer, bytes));
        };
        let thread = std::thread::Builder::new()
            .name("zfs stream".to_owned())
            .spawn(work)
            .map_err(|e| Error::unavailable(format!("no thread for the stream: {e}")).retry(Retry::Safe))?;
        let Ok((id, apart)) = begun.recv() else {
            return Err(Error::bug("a thread of the stream panicked"));
        };
        if !apart {
            // The thread closes it, in the table that it shares with us.
            let _ = stream.into_raw_fd();
        }
        Ok(Self { answer, thread, id, way, pool: names::pool_of(dataset).to_owned() })
    }

    /// Waits for its end, whatever the context says: for calls that end by themselves soon.
    ///
    /// # Errors
    /// `Unavailable` when its pool has stopped: then nobody knows when it ends.
    pub(crate) fn end(self) -> Result<T> {
        loop {
            if let Some((answer, _)) = self.wait(TURN)? {
                return Ok(answer);
            }
        }
    }

    /// Waits for its end, telling how far it is, or ends it: when the context says so, or when the pool of the dataset at
    /// the other end has stopped. Its answer, and the bytes that went through its stream. `before` of them went already.
    ///
    /// # Errors
    /// The reason to stop; as [`end`](Self::end).
    pub(crate) fn watch(
        &self,
        cx: &OpContext,
        before: u64,
        other: Option<&str>,
        total: Option<u64>,
    ) -> Result<(T, u64)> {
        loop {
            if let Some(done) = self.wait(TURN)? {
                return Ok(done);
            }
            if let Err(stop) = cx.check().and_then(|()| other.map_or(Ok(()), tool::alive)) {
                self.stop()?;
                return Err(stop);
            }
            if let Some((bytes, _)) = moved(self.id, self.way) {
                let mut progress = Progress::of("transfer", before.saturating_add(bytes), total);
                progress.estimate = total.is_some();
                cx.progress(progress);
            }
        }
    }

    /// Ends a call that waits for the other side of its stream, and waits until it has ended: its answer.
    ///
    /// # Errors
    /// As [`end`](Self::end).
    pub(crate) fn stop(&self) -> Result<T> {
        loop {
            self.interrupt();
            if let Some((answer, _)) = self.wait(AGAIN)? {
                return Ok(answer);
            }
        }
    }

    #[allow(unsafe_code, reason = "no safe binding sends a signal to a thread")]
    fn interrupt(&self) {
        // SAFETY: the thread was not joined and is not detached while its handle is held, so that its name is valid.
        unsafe { libc::pthread_kill(self.thread.as_pthread_t(), SIGNAL) };
    }

    fn wait(&self, longest: Duration) -> Result<Option<(T, u64)>> {
        match self.answer.recv_timeout(longest) {
            Ok(done) => Ok(Some(done)),
            Err(RecvTimeoutError::Disconnected) => Err(Error::bug("a thread of the stream panicked")),
            Err(RecvTimeoutError::Timeout) => tool::alive(&self.pool).map(|()| None),
        }
    }
}

/// Gives the calling thread a table of descriptors of its own, with `stream` in it, says which thread it is and whether
/// that went well, and takes the stream.
#[allow(unsafe_code, reason = "a descriptor changes hands between tables")]
fn own(stream: RawFd, begins: &SyncSender<(Pid, bool)>) -> OwnedFd {
    // SAFETY: this thread runs nothing but the call of its closure, which owns the stream; what the library has open stays
    // open here too.
    let apart = unsafe { unshare_unsafe(UnshareFlags::FILES) }.is_ok();
    if apart {
        close_all_but([&[0, 1, 2, stream], lzc::devices()].concat());
    }
    let _ = begins.send((gettid(), apart));
    // SAFETY: in its own table it is this thread's; in a shared one whoever started it has let go of it.
    unsafe { OwnedFd::from_raw_fd(stream) }
}

/// Closes all descriptors of this thread but `kept`.
#[allow(unsafe_code, reason = "no safe binding")]
fn close_all_but(mut kept: Vec<RawFd>) {
    kept.sort_unstable();
    let bounds = kept.iter().map(|fd| fd.unsigned_abs());
    let firsts = bounds.clone().map(|fd| fd + 1);
    let lasts = bounds.skip(1).map(|fd| fd.saturating_sub(1)).chain([u32::MAX]);
    let mut between = firsts.zip(lasts).filter(|(first, last)| first <= last);
    // SAFETY: nothing in this thread uses a descriptor that is not kept.
    if between.all(|(first, last)| unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == 0) {
        return;
    }
    // Before Linux 5.9 there is no such call.
    let open = fs::read_dir("/proc/thread-self/fd").into_iter().flatten().flatten();
    let open: Vec<RawFd> = open.filter_map(|fd| fd.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| !kept.contains(fd)) {
        // SAFETY: as above; that of the folder itself is closed by now.
        unsafe { libc::close(fd) };
    }
}

/// Ignored where nobody handles it; a handler makes it end a call that waits.
const SIGNAL: i32 = libc::SIGURG;

/// Lets [`SIGNAL`] interrupt what it is sent to, and do nothing else. (A server that handles it itself keeps its handler,
/// which interrupts as well.)
#[allow(unsafe_code, reason = "no safe binding")]
fn takes_signals() {
    static ONCE: Once = Once::new();
    extern "C" fn nothing(_: i32) {}
    ONCE.call_once(|| {
        // SAFETY: both structures live through the calls; the handler touches nothing.
        unsafe {
            let mut known: libc::sigaction = std::mem::zeroed();
            libc::sigaction(SIGNAL, std::ptr::null(), &raw mut known);
            if [libc::SIG_DFL, libc::SIG_IGN].contains(&known.sa_sigaction) {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = nothing as *const () as usize;
                libc::sigaction(SIGNAL, &raw const action, std::ptr::null_mut());
            }
        }
    });
}

/// Refuses a kernel that does not count what its calls move: nobody could see a stream move, and it would be given up.
pub(crate) fn counted() -> Result<()> {
    match moved(gettid(), Way::Out) {
        Some(_) => Ok(()),
        None => Err(Error::unavailable(
            "this host's kernel does not count what threads read and write (CONFIG_TASK_IO_ACCOUNTING, /proc/self/io); \
             use one that does, such as a distribution's",
        )
        .retry(Retry::AfterOperator)),
    }
}

/// Bytes that a thread of ours has moved so far, as the kernel counts them, and how many of those it took to read that;
/// `None` where the kernel does not count.
fn moved(thread: Pid, way: Way) -> Option<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/self/task/{}/io", thread.as_raw_nonzero())).ok()?;
    let (name, by_us) = match way {
        Way::In => ("rchar: ", text.len() as u64),
        Way::Out => ("wchar: ", 0),
    };
    Some((text.lines().find_map(|line| line.strip_prefix(name))?.parse().ok()?, by_us))
}
