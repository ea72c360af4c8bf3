//! What is stored: plain rows. Each carries the `version` that its next write must name (compare-and-set).

mod access;
mod instance;
mod migration;
mod operation;
mod quota;
mod share;
mod share_type;

pub use access::*;
pub use instance::*;
pub use migration::*;
pub use operation::*;
pub use quota::*;
pub use share::*;
pub use share_type::*;
