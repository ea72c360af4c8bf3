//! Rebuilds when a migration is added: the compiler sees only those that it embedded before.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
