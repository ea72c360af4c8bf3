//! `tandem-guest`: a guest's first process and agent, the keeper beside a test, and guests for people.

use std::process::ExitCode;

fn main() -> ExitCode {
    tandem_guests::program::main()
}
