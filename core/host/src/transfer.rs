//! Carries a stream from one driver to another.
//!
//! The drivers own the ends of a pipe, one each; of a driver on another host, a relay does. When one side ends, its end closes, and the other sees an end of file
//! or a broken pipe and ends too; a side that does not is cancelled. Both have returned, or count as hung, before the
//! transfer does.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tandem_contract::{
    Error, ErrorKind, Outcome, Progress, Receive, ReceiveSpec, Result, SendSpec, SendStream, TransferReport,
};
use tokio::time::sleep;

use crate::{Backend, CallContext, remote};

/// How long one side has to notice that the other has ended.
const NOTICE: Duration = Duration::from_secs(5);

/// What both sides did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transferred {
    /// What the source says.
    pub sent: TransferReport,
    /// What the destination says; it has proven the content.
    pub received: Outcome<TransferReport>,
}

/// Sends from `source` to `dest`. Succeeds when the destination has proven what arrived.
///
/// # Errors
/// The root cause: not the broken pipe that it led to. What arrived before stays for the next attempt, as far as the
/// drivers can resume.
pub async fn transfer(
    source: &Backend,
    send: SendSpec,
    dest: &Backend,
    receive: ReceiveSpec,
    cx: &CallContext,
) -> Result<Transferred> {
    let no_pipe = |e: std::io::Error| Error::unavailable(format!("no pipe for the transfer: {e}"));
    let (writer, reader) = remote::new_pipe().map_err(no_pipe)?;
    // What comes over a network may end because its carrier died. While this is held, the destination sees no end: it
    // sees one after the source has succeeded, or is cancelled.
    let held = source.crosses_network().then(|| writer.try_clone()).transpose().map_err(no_pipe)?;

    let progress = Arc::new(Mutex::new(Merged::default()));
    let sides = [Side::Sends, Side::Receives].map(|side| {
        let (progress, report) = (Arc::clone(&progress), Arc::clone(&cx.on_progress));
        let mut own = cx.clone().cancel(cx.cancel.child_token());
        own.on_progress = Arc::new(move |news| {
            report(progress.lock().unwrap_or_else(PoisonError::into_inner).take(side, news));
        });
        own
    });
    let [send_cx, receive_cx] = sides;

    let sending = source.call_with(&send_cx, SendStream { spec: send }, vec![writer]);
    let receiving = dest.call_with(&receive_cx, Receive { spec: receive }, vec![reader]);
    tokio::pin!(sending, receiving);

    let (sent, received) = tokio::select! {
        biased;
        sent = &mut sending => {
            // A source that ended well leaves the destination to prove what it got, which takes its time.
            let received = match &sent {
                Ok(_) => {
                    drop(held);
                    receiving.await
                }
                Err(_) if held.is_some() => {
                    receive_cx.cancel.cancel();
                    receiving.await
                }
                Err(_) => ends(receiving, &receive_cx).await,
            };
            return conclude(sent, received, Side::Sends, cx.cancel.is_cancelled());
        }
        received = &mut receiving => (ends(sending, &send_cx).await, received),
    };
    conclude(sent, received, Side::Receives, cx.cancel.is_cancelled())
}

/// Awaits a side after the other has ended, and cancels it when it does not notice.
async fn ends<T>(side: impl Future<Output = Result<T>>, cx: &CallContext) -> Result<T> {
    tokio::pin!(side);
    tokio::select! {
        biased;
        done = &mut side => return done,
        () = sleep(NOTICE) => cx.cancel.cancel(),
    }
    side.await
}

fn conclude(
    sent: Result<TransferReport>,
    received: Result<Outcome<TransferReport>>,
    first: Side,
    cancelled: bool,
) -> Result<Transferred> {
    match (sent, received) {
        (Ok(sent), Ok(received)) => Ok(Transferred { sent, received }),
        // The destination has proven the point; that it needed less of the stream than there was is no failure.
        (Err(e), Ok(received)) => {
            tracing::debug!("the destination was done before the source: {e}");
            Ok(Transferred { sent: TransferReport::default(), received })
        }
        (Ok(_), Err(e)) => Err(e),
        (Err(sent), Err(received)) => Err(root_cause(sent, received, first, cancelled)),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Sends,
    Receives,
}

/// Which of two errors explains the other: the one that says most, and of equals the first. A cancel that was asked for
/// explains the broken pipe at the other side; one that we made, because a side had ended, explains nothing.
fn root_cause(sent: Error, received: Error, first: Side, cancelled: bool) -> Error {
    let tells = |e: &Error| match e.kind {
        ErrorKind::Unavailable => 1,
        ErrorKind::Cancelled if cancelled => 3,
        ErrorKind::Cancelled => 0,
        _ => 2,
    };
    let source_is_root = match tells(&sent).cmp(&tells(&received)) {
        std::cmp::Ordering::Greater => true,
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => first == Side::Sends,
    };
    if source_is_root { sent.with("destination", received) } else { received.with("source", sent) }
}

/// Progress of both sides as one: what has arrived, of what there is to send.
#[derive(Default)]
struct Merged {
    sent: Option<Progress>,
    received: Option<Progress>,
    done: u64,
}

impl Merged {
    fn take(&mut self, side: Side, news: Progress) -> Progress {
        match side {
            Side::Sends => self.sent = Some(news),
            Side::Receives => self.received = Some(news),
        }
        // The destination knows what arrived; until it says anything, the source's word stands.
        let mut shown = self.received.clone().or_else(|| self.sent.clone()).unwrap_or_default();
        if shown.total.is_none()
            && let Some(sent) = &self.sent
        {
            shown.total = sent.total;
            shown.estimate = sent.estimate;
        }
        self.done = self.done.max(shown.done);
        shown.done = self.done;
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_broken_pipe_is_not_the_root_cause() {
        let epipe = || Error::unavailable("the reader went away");
        let full = || Error::out_of_space("the pool is full");
        assert_eq!(root_cause(epipe(), full(), Side::Sends, false).kind, ErrorKind::OutOfSpace);
        assert_eq!(root_cause(full(), epipe(), Side::Receives, false).kind, ErrorKind::OutOfSpace);
        assert_eq!(root_cause(epipe(), Error::unavailable("cut"), Side::Receives, false).message, "cut");
        assert_eq!(
            root_cause(Error::cancelled("told"), epipe(), Side::Sends, false).kind,
            ErrorKind::Unavailable
        );
        assert_eq!(
            root_cause(epipe(), Error::cancelled("asked"), Side::Sends, true).kind,
            ErrorKind::Cancelled
        );
    }

    #[test]
    fn a_destination_that_needed_nothing_is_a_success() {
        let done = conclude(
            Err(Error::unavailable("the reader went away")),
            Ok(Outcome::Unchanged(TransferReport::default())),
            Side::Receives,
            false,
        );
        assert!(done.is_ok());
    }

    #[test]
    fn merged_progress_never_falls() {
        let mut merged = Merged::default();
        assert_eq!(merged.take(Side::Sends, Progress::of("send", 70, Some(100))).done, 70);
        let shown = merged.take(Side::Receives, Progress::of("receive", 20, None));
        assert_eq!((shown.done, shown.total), (70, Some(100)));
        assert_eq!(merged.take(Side::Receives, Progress::of("verify", 100, None)).done, 100);
    }
}
