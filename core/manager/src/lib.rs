//! The manager: operations, state machines, recovery, placement.
