//! The operator's command line for Tandem.

fn main() {}
