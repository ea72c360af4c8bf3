//! The first process of a guest: builds the world, starts the agent, buries the dead.

use super::{LINE, SERVE, SETUP, world};
use crate::Result;
use rustix::process::WaitOptions;
use rustix::system::RebootCommand;
use std::process::Command;

/// Never returns while the guest lives.
pub(crate) fn main() -> Result<()> {
    let outcome = live();
    if let Err(sentence) = &outcome {
        // Onto the console, whose last lines the test shows when a guest ends early.
        eprintln!("tandem-guest: {sentence}");
    }
    rustix::fs::sync();
    let _ = rustix::system::reboot(RebootCommand::PowerOff);
    outcome
}

fn live() -> Result<()> {
    let folder = std::env::var(SETUP).map_err(|error| format!("{SETUP}: {error}."))?;
    let setup = world::setup(&folder)?;
    world::build(&setup)?;
    // Not by its path: after the change of the root it may lead nowhere.
    let mut agent = Command::new("/proc/self/exe")
        .arg(SERVE)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("LANG", "C.UTF-8")
        // There is no udev: device-mapper's library makes its own nodes.
        .env("DM_DISABLE_UDEV", "1")
        .current_dir("/root")
        .spawn()
        .map_err(|error| format!("starting the agent on {LINE}: {error}."))?;
    let agent_id = agent.id() as i32;
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, _))) if pid.as_raw_nonzero().get() == agent_id => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(format!("waiting for processes: {error}.")),
        }
    }
    let _ = agent.try_wait();
    Ok(())
}
