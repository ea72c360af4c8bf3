//! Finds, checks, opens and calls drivers.
