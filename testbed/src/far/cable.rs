//! A cable between two hosts that can be cut and healed: a small proxy.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::wait;

/// A cable to one address.
#[derive(Debug)]
pub struct Cable {
    address: String,
    inside: Arc<Inside>,
}

#[derive(Debug)]
struct Inside {
    to: String,
    /// Nothing passes, and nobody is told.
    silent: AtomicBool,
    /// New connections are refused.
    cut: AtomicBool,
    /// Cut after so many more bytes, of all connections together.
    fuse: AtomicU64,
    /// Silent after so many.
    hold: AtomicU64,
    passed: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

impl Cable {
    /// A whole cable to `address`.
    pub fn to(address: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap().to_string();
        let inside = Arc::new(Inside {
            to: address.to_owned(),
            silent: AtomicBool::new(false),
            cut: AtomicBool::new(false),
            fuse: AtomicU64::new(u64::MAX),
            hold: AtomicU64::new(u64::MAX),
            passed: AtomicU64::new(0),
            open: Mutex::default(),
        });
        let serving = Arc::clone(&inside);
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                serving.connect(&socket);
            }
        });
        Self { address: own, inside }
    }

    /// Where to plug in.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Cuts every connection, and refuses new ones.
    pub fn cut(&self) {
        self.inside.cut();
    }

    /// Takes connections again.
    pub fn heal(&self) {
        self.inside.fuse.store(u64::MAX, Ordering::SeqCst);
        self.inside.hold.store(u64::MAX, Ordering::SeqCst);
        self.inside.cut.store(false, Ordering::SeqCst);
        self.inside.silent.store(false, Ordering::SeqCst);
    }

    /// Nothing passes any more, and nobody is told: a switch that lost its power.
    pub fn silence(&self) {
        self.inside.silent.store(true, Ordering::SeqCst);
    }

    /// Cuts after so many more bytes.
    pub fn cut_after(&self, bytes: u64) {
        self.inside.fuse.store(self.inside.passed.load(Ordering::SeqCst) + bytes, Ordering::SeqCst);
    }

    /// Silent after so many more bytes: what flows then is surely in its midst, until it heals.
    pub fn hold_after(&self, bytes: u64) {
        self.inside.hold.store(self.inside.passed.load(Ordering::SeqCst) + bytes, Ordering::SeqCst);
    }

    /// Waits until it is silent.
    pub fn is_held(&self) {
        wait::until("the cable to be silent", || self.inside.silent.load(Ordering::SeqCst).then_some(()));
    }

    /// Bytes that passed, both ways.
    pub fn passed(&self) -> u64 {
        self.inside.passed.load(Ordering::SeqCst)
    }

    /// Whether it is cut.
    pub fn is_cut(&self) -> bool {
        self.inside.cut.load(Ordering::SeqCst)
    }
}

impl Inside {
    fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
        for socket in self.open.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn connect(self: &Arc<Self>, socket: &TcpStream) {
        if self.cut.load(Ordering::SeqCst) {
            let _ = socket.shutdown(Shutdown::Both);
            return;
        }
        let Ok(other) = TcpStream::connect(&self.to) else { return };
        let mut open = self.open.lock().unwrap();
        for (from, to) in [(socket, &other), (&other, socket)] {
            let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            open.push(from.try_clone().unwrap());
            let this = Arc::clone(self);
            std::thread::spawn(move || this.carry(from, to));
        }
    }

    fn carry(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(n) = from.read(&mut buffer) {
            while self.silent.load(Ordering::SeqCst) && !self.cut.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(20));
            }
            if n == 0 || to.write_all(&buffer[..n]).is_err() {
                break;
            }
            let passed = self.passed.fetch_add(n as u64, Ordering::SeqCst) + n as u64;
            if passed >= self.fuse.load(Ordering::SeqCst) {
                self.cut();
            }
            if passed >= self.hold.load(Ordering::SeqCst) {
                self.silent.store(true, Ordering::SeqCst);
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    }
}
