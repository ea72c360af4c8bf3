//! Answers that are kept for as long as nothing is written: whoever polls a long list is not read and rendered anew.
//!
//! Every commit is counted when it begins and when it ends. An answer that was made while no commit was under way, and
//! none began meanwhile, is what the store would say again until the next one begins; from that moment on it is not
//! given any more. Only this process writes to its store, so that its own count is the whole truth.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::store::{Batch, Commits, Result, Store};

/// Bytes kept at most; then all is forgotten, and kept again as it is asked for.
const MOST: usize = 32 << 20;

/// A moment at which nothing was being written, by the number of commits so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quiet(u64);

/// Answers by what was asked, each with the moment it is of.
#[derive(Debug, Default)]
pub struct Kept {
    begun: AtomicU64,
    ended: AtomicU64,
    answers: Mutex<Answers>,
}

#[derive(Debug, Default)]
struct Answers {
    at: HashMap<String, (Quiet, Arc<[u8]>)>,
    bytes: usize,
}

impl Kept {
    /// This moment, when nothing is being written. Take it before reading.
    pub fn moment(&self) -> Option<Quiet> {
        // In this order: commits that had ended by then, and those that had begun by now. When they are as many, none
        // was under way.
        let ended = self.ended.load(Ordering::SeqCst);
        let begun = self.begun.load(Ordering::SeqCst);
        (ended == begun).then_some(Quiet(begun))
    }

    /// The answer to a question, when nothing was written since it was made.
    pub fn get(&self, question: &str) -> Option<Arc<[u8]>> {
        let now = self.moment()?;
        let answers = self.answers();
        answers.at.get(question).filter(|(moment, _)| *moment == now).map(|(_, answer)| Arc::clone(answer))
    }

    /// Keeps an answer that was read from a moment on.
    pub fn put(&self, question: String, since: Option<Quiet>, answer: &[u8]) {
        let Some(moment) = since.filter(|since| self.moment() == Some(*since)) else { return };
        if answer.len() + question.len() > MOST / 4 {
            return;
        }
        let mut answers = self.answers();
        answers.bytes += answer.len() + question.len();
        if answers.bytes > MOST {
            answers.at.clear();
            answers.bytes = answer.len() + question.len();
        }
        // What stood there for an older moment goes; its bytes are counted until all is forgotten, which comes sooner.
        answers.at.insert(question, (moment, answer.into()));
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts the commits of a store. A commit whose caller went away may still be written, so it never counts as ended,
/// and nothing is kept any more.
pub(crate) struct Counting(pub Arc<Kept>);

#[async_trait]
impl Commits for Counting {
    async fn commit(&self, store: &dyn Store, batch: Batch) -> Result<()> {
        self.0.begun.fetch_add(1, Ordering::SeqCst);
        let done = store.commit(batch).await;
        self.0.ended.fetch_add(1, Ordering::SeqCst);
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_lives_until_the_next_commit_begins() {
        let kept = Kept::default();
        let since = kept.moment();
        kept.put("a".into(), since, b"one");
        assert_eq!(kept.get("a").as_deref(), Some(&b"one"[..]));
        assert_eq!(kept.get("b"), None);
        kept.begun.fetch_add(1, Ordering::SeqCst);
        assert_eq!(kept.get("a"), None, "it is being written");
        let during = kept.moment();
        kept.put("b".into(), during, b"torn");
        kept.ended.fetch_add(1, Ordering::SeqCst);
        assert_eq!(kept.get("a"), None, "it was written");
        assert_eq!(kept.get("b"), None, "it was read meanwhile");
        kept.put("c".into(), since, b"late");
        assert_eq!(kept.get("c"), None, "it was read before");
    }

    #[test]
    fn it_forgets_rather_than_grow() {
        let kept = Kept::default();
        let answer = vec![0; MOST / 5];
        for question in 0..20 {
            kept.put(question.to_string(), kept.moment(), &answer);
        }
        assert!(kept.get("19").is_some());
        assert!(kept.answers().at.len() < 6);
    }
}
