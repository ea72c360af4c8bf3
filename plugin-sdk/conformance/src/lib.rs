//! The behaviour suite every Tandem driver must pass.
//!
//! [`Subject`] is a driver's library with the settings of one or two back ends; [`trials`] chooses the cases that its
//! capabilities call for. Each case names the law of `docs/contract.md` that it proves, and runs twice: with the
//! driver kept open, and with the driver opened anew for every single call, since a driver remembers nothing (law 4).
//!
//! The suite looks into contents where an export, or what `attach` gives, is a folder on this host. Whatever it makes, it
//! deletes.

mod case;
mod cases;
mod check;
mod content;
mod host;
mod pipe;
mod scene;
mod side;
mod subject;

pub use case::{Case, Needs, cases};
pub use subject::{Opener, Subject, trials};
