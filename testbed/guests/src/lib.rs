//! Hosts with real kernels for the testbed, on any Linux machine, without root and without hardware.
//!
//! A [`Lab`] holds up to two [`Guest`]s: Debian's user-mode Linux, whose root is the outside world's own file system below a
//! layer of memory, so that programs that were just built run in it. Each has named [disks](Disk) that can fail and
//! stall, a place on a [network](Network) that can delay, lose, cut and heal, a power switch and a clock of its own.
//! Nothing outlives its test: the program `tandem-guest` stands beside it and ends all when it is gone, however it went.
//!
//! Environment: `KEEP=1` leaves the folders where they are, `TANDEM_LAB_ROOM` says where they lie, `TANDEM_UML_MODULES` where the
//! ZFS modules are.

mod agent;
mod channel;
pub mod disk;
pub mod forward;
mod guest;
pub mod host;
mod keeper;
pub mod kind;
mod lab;
pub mod lvm;
mod network;
pub mod nfs;
pub mod place;
pub mod program;
mod records;
mod wire;
pub mod zfs;

pub use disk::{Behaviour, Disk};
pub use forward::Forward;
pub use guest::{Guest, Plan};
pub use host::{Command, Host, Output, Running};
pub use kind::Kind;
pub use lab::{Lab, MOST_GUESTS};
pub use network::{Link, Network};

/// Every failure is a sentence for the person who runs the test.
pub type Result<T> = std::result::Result<T, String>;
