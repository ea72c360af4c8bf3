//! cargo xtask: up, test, bench, tidy.

fn main() {}
