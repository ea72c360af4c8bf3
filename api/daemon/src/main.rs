//! The Tandem server.

fn main() {}
