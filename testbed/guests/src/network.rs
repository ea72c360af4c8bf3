//! The network of a laboratory: a switch in the test process that can delay, lose, cut and heal.
//!
//! Every guest's network card is one end of a packet socket, and the switch holds the others. Frames go to every other
//! port; the guests' cards sort out what is theirs. What happens to a frame depends on the pair of ports it travels between.

use crate::Result;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair, sockopt,
};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Socket buffers, so that a burst is not lost.
const BUFFER: usize = 4 << 20;
/// More than any frame.
const FRAME: usize = 64 * 1024;

/// What the way from one host to another is like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// Nothing gets through.
    pub cut: bool,
    /// A frame takes this much longer.
    pub delay: Duration,
    /// So many of a thousand frames are lost.
    pub lost_per_mille: u16,
    /// After this many more bytes the link cuts itself.
    pub cut_after: Option<u64>,
}

impl Link {
    /// A good link.
    pub const GOOD: Self = Self { cut: false, delay: Duration::ZERO, lost_per_mille: 0, cut_after: None };
    /// A cut one.
    pub const CUT: Self = Self { cut: true, ..Self::GOOD };
}

/// The switch.
#[derive(Debug, Clone, Default)]
pub struct Network {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    later: Mutex<BinaryHeap<Reverse<Late>>>,
    more: Condvar,
    dice: AtomicU64,
    sequence: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    ports: HashMap<usize, Arc<OwnedFd>>,
    links: HashMap<(usize, usize), Link>,
    carried: HashMap<(usize, usize), u64>,
    delaying: bool,
}

/// A frame that is on its way.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Late {
    due: Instant,
    number: u64,
    to: usize,
    frame: Vec<u8>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Network {
    /// Changes the way from the host with one number to that with the other; not the way back.
    pub fn set(&self, from: usize, to: usize, link: Link) {
        lock(&self.inner.state).links.insert((from, to), link);
    }

    /// Changes both ways.
    pub fn set_both(&self, one: usize, other: usize, link: Link) {
        self.set(one, other, link);
        self.set(other, one, link);
    }

    /// Bytes that went from one host to the other so far.
    pub fn carried(&self, from: usize, to: usize) -> u64 {
        lock(&self.inner.state).carried.get(&(from, to)).copied().unwrap_or_default()
    }

    /// The way from one host to the other, as it is now.
    pub fn link(&self, from: usize, to: usize) -> Link {
        lock(&self.inner.state).links.get(&(from, to)).copied().unwrap_or(Link::GOOD)
    }

    /// A cable for the host with this number: the end that goes into its network card. An earlier one is unplugged.
    pub(crate) fn plug(&self, port: usize) -> Result<OwnedFd> {
        let said = |error: rustix::io::Errno| format!("making a cable: {error}.");
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(said)?;
        for end in [&ours, &theirs] {
            // As much as the machine lets us have; root gets it all.
            let _ = sockopt::set_socket_send_buffer_size_force(end, BUFFER)
                .or_else(|_| sockopt::set_socket_send_buffer_size(end, BUFFER));
        }
        let ours = Arc::new(ours);
        lock(&self.inner.state).ports.insert(port, ours.clone());
        let inner = self.inner.clone();
        std::thread::spawn(move || {
            let mut frame = vec![0; FRAME];
            loop {
                match recv(&*ours, frame.as_mut_slice(), RecvFlags::empty()) {
                    Ok((length @ 1.., _)) => inner.carry(port, &frame[..length]),
                    Err(rustix::io::Errno::INTR) => {}
                    _ => break,
                }
            }
            let mut state = lock(&inner.state);
            if state.ports.get(&port).is_some_and(|now| Arc::ptr_eq(now, &ours)) {
                state.ports.remove(&port);
            }
        });
        Ok(theirs)
    }
}

impl Inner {
    fn carry(self: &Arc<Self>, from: usize, frame: &[u8]) {
        let mut state = lock(&self.state);
        let others: Vec<(usize, Arc<OwnedFd>)> =
            state.ports.iter().filter(|(to, _)| **to != from).map(|(to, fd)| (*to, fd.clone())).collect();
        let mut now = Vec::new();
        let mut late = Vec::new();
        for (to, fd) in others {
            match state.verdict(from, to, frame.len() as u64, || self.roll()) {
                None => {}
                Some(Duration::ZERO) => now.push(fd),
                Some(delay) => late.push((to, delay)),
            }
        }
        let start_clock = !late.is_empty() && !std::mem::replace(&mut state.delaying, true);
        drop(state);
        for fd in now {
            // A full buffer loses frames, as a network does.
            let _ = send(&*fd, frame, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
        for (to, delay) in late {
            let number = self.sequence.fetch_add(1, Ordering::Relaxed);
            lock(&self.later).push(Reverse(Late {
                due: Instant::now() + delay,
                number,
                to,
                frame: frame.into(),
            }));
            self.more.notify_one();
        }
        if start_clock {
            let inner = Arc::downgrade(self);
            std::thread::spawn(move || {
                while let Some(inner) = inner.upgrade() {
                    inner.deliver();
                }
            });
        }
    }

    /// Delivers what is due, or waits a little.
    fn deliver(&self) {
        let mut later = lock(&self.later);
        let now = Instant::now();
        let patience = match later.peek() {
            Some(Reverse(first)) if first.due <= now => Duration::ZERO,
            Some(Reverse(first)) => (first.due - now).min(Duration::from_millis(100)),
            None => Duration::from_millis(100),
        };
        if !patience.is_zero() {
            let _ = self.more.wait_timeout(later, patience);
            return;
        }
        if let Some(Reverse(first)) = later.pop() {
            drop(later);
            let port = lock(&self.state).ports.get(&first.to).cloned();
            if let Some(fd) = port {
                let _ = send(&*fd, &first.frame, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
            }
        }
    }

    /// A number below a thousand, the same sequence in every run.
    fn roll(&self) -> u16 {
        let mut x = self.dice.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((x >> 31) % 1000) as u16
    }
}

impl State {
    /// Nothing when the frame is lost, otherwise how much later it arrives.
    fn verdict(&mut self, from: usize, to: usize, length: u64, roll: impl Fn() -> u16) -> Option<Duration> {
        let mut delay = Duration::ZERO;
        if let Some(link) = self.links.get_mut(&(from, to)) {
            if link.cut || (link.lost_per_mille > 0 && roll() < link.lost_per_mille) {
                return None;
            }
            if let Some(left) = &mut link.cut_after {
                *left = left.saturating_sub(length);
                link.cut = *left == 0;
            }
            delay = link.delay;
        }
        *self.carried.entry((from, to)).or_default() += length;
        Some(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn arrives(fd: &OwnedFd, patience: Duration) -> Option<Vec<u8>> {
        let until = Instant::now() + patience;
        let mut buffer = vec![0; FRAME];
        loop {
            match recv(fd, buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
                Ok((length, _)) => return Some(buffer[..length].to_vec()),
                Err(_) if Instant::now() > until => return None,
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn say(fd: &OwnedFd, what: &[u8]) {
        send(fd, what, SendFlags::empty()).unwrap();
    }

    #[test]
    fn frames_reach_all_others_and_a_cut_is_one_way() {
        let network = Network::default();
        let cables: Vec<OwnedFd> = (0..3).map(|port| network.plug(port).unwrap()).collect();
        say(&cables[0], b"one");
        assert_eq!(arrives(&cables[1], PATIENCE).unwrap(), b"one");
        assert_eq!(arrives(&cables[2], PATIENCE).unwrap(), b"one");
        network.set(0, 1, Link::CUT);
        say(&cables[0], b"two");
        assert_eq!(arrives(&cables[2], PATIENCE).unwrap(), b"two");
        say(&cables[1], b"three");
        assert_eq!(arrives(&cables[0], PATIENCE).unwrap(), b"three");
        network.set(0, 1, Link::GOOD);
        say(&cables[0], b"four");
        assert_eq!(arrives(&cables[1], PATIENCE).unwrap(), b"four", "what was cut off is lost, not late");
    }

    #[test]
    fn a_delayed_frame_is_late_and_whole_and_in_order() {
        let network = Network::default();
        let (one, other) = (network.plug(0).unwrap(), network.plug(1).unwrap());
        network.set(0, 1, Link { delay: Duration::from_millis(120), ..Link::GOOD });
        let start = Instant::now();
        say(&one, b"first");
        say(&one, b"second");
        assert_eq!(arrives(&other, PATIENCE).unwrap(), b"first");
        assert!(start.elapsed() >= Duration::from_millis(120));
        assert_eq!(arrives(&other, PATIENCE).unwrap(), b"second");
    }

    #[test]
    fn a_link_cuts_itself_after_so_many_bytes_and_losses_are_as_many_as_asked() {
        let mut state = State::default();
        state.links.insert((0, 1), Link { cut_after: Some(250), ..Link::GOOD });
        let passed = (0..10).filter(|_| state.verdict(0, 1, 100, || 0).is_some()).count();
        assert_eq!(passed, 3);
        let inner = Inner::default();
        state.links.insert((0, 1), Link { lost_per_mille: 300, ..Link::GOOD });
        let lost = (0..10_000).filter(|_| state.verdict(0, 1, 1, || inner.roll()).is_none()).count();
        assert!((2_600..3_400).contains(&lost), "{lost}");
    }
}
