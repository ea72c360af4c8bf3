//! `tandem-fence-peer fence-peer RESOURCE`: the kernel starts it (DRBD's `usermode_helper`) when a side of a share in the style
//! `writable` has lost the other one, and holds all writes back until it has ended. It asks the arbiter whether this side goes
//! on, and tells the kernel by how it ends.
//!
//! It asks until there is an answer, for as long as the two sides do not see each other: the kernel starts it once, and takes a
//! yes only while the loss that it asks for lasts (`conn_try_outdate_peer` of drbd_nl.c). So a late yes that is given through it
//! can never set free a side that was connected again meanwhile, which one by `drbdsetup resume-io` could. Who waits for the
//! kernel's own word on becoming primary waits less long, and the kernel asks for him several times.
//!
//! `tandem-fence-peer ask RESOURCE` asks once. The driver does so where writes are held back and whoever asked may have been
//! ended; the server acts on the answer by itself.

mod ask;
mod kernel;
#[path = "../note.rs"]
mod note;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::ask::Verdict;
use crate::kernel::Device;
use crate::note::{Answered, FOLDER, Note};

/// `P_FENCING` of the kernel: the other side takes no writes any more, this one may.
const GOES_ON: u8 = 7;
/// Means nothing to the kernel, which goes on holding writes back.
const STAYS: u8 = 1;
/// Between two questions that got no answer.
const PAUSE: Duration = Duration::from_secs(1);
/// So long somebody who is to become primary waits for an answer. The kernel asks four times, within the deadline of one call.
const SHORT: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["fence-peer", resource] => ExitCode::from(fence(resource, false)),
        ["ask", resource] => {
            fence(resource, true);
            ExitCode::SUCCESS
        }
        // Everything else is told only: `disabled` would answer the same.
        [_, _] => ExitCode::SUCCESS,
        _ => ExitCode::from(64),
    }
}

fn fence(resource: &str, once: bool) -> u8 {
    let folder = Path::new(FOLDER);
    if resource.contains('/') {
        return STAYS;
    }
    if !once {
        // Of an earlier loss.
        let _ = fs::remove_file(note::answered(folder, resource));
    }
    let until = Instant::now() + SHORT;
    let mut told = String::new();
    loop {
        // It may be changed meanwhile: another epoch, another file of the secret.
        let (device, note) = match look(folder, resource) {
            Ok(Some(found)) => found,
            // It is not Tandem's, or the two sides see each other again.
            Ok(None) => {
                let _ = fs::remove_file(note::answered(folder, resource));
                return STAYS;
            }
            Err(why) => {
                say(&mut told, resource, &why);
                return STAYS;
            }
        };
        match ask::ask(&note) {
            // Decided for what it was before: it may have joined another one since.
            Ok(Verdict::Won) if !stands(folder, resource, &note) => {}
            Ok(Verdict::Won) => {
                let _ = fs::remove_file(note::answered(folder, resource));
                let why = format!("instance {} goes on: it asked at epoch {}", note.instance, note.epoch);
                say(&mut told, resource, &why);
                return GOES_ON;
            }
            Ok(Verdict::Lost(why)) => {
                keep(folder, resource, &Answered { lost: true, why: why.clone() });
                say(&mut told, resource, &format!("instance {} does not go on: {why}", note.instance));
                return STAYS;
            }
            Err(why) => {
                keep(folder, resource, &Answered { lost: false, why: why.clone() });
                say(&mut told, resource, &format!("instance {} waits: {why}", note.instance));
            }
        }
        if once || (!device.is_primary && Instant::now() >= until) {
            return STAYS;
        }
        std::thread::sleep(PAUSE);
    }
}

/// What there is to ask for; `None` where there is nothing.
fn look(folder: &Path, resource: &str) -> Result<Option<(Device, Note)>, String> {
    let file = note::path(folder, resource);
    let note =
        note::read::<Note>(&file).map_err(|error| format!("{} cannot be read: {error}", file.display()))?;
    let Some(note) = note else { return Ok(None) };
    let text =
        fs::read_to_string("/proc/drbd").map_err(|error| format!("/proc/drbd cannot be read: {error}"))?;
    let device = kernel::device(&text, note.minor).filter(|device| !device.is_connected);
    Ok(device.map(|device| (device, note)))
}

/// Whether it is still at the epoch at which it asked.
fn stands(folder: &Path, resource: &str, asked: &Note) -> bool {
    let now = note::read::<Note>(&note::path(folder, resource));
    now.is_ok_and(|now| now.is_some_and(|now| now.epoch == asked.epoch))
}

/// Leaves word for the driver. It is only told to people: what cannot be written is not.
fn keep(folder: &Path, resource: &str, answered: &Answered) {
    let _ = note::write(&note::answered(folder, resource), answered);
}

/// Into the kernel's log, where it stands beside what the kernel says; each sentence once.
fn say(told: &mut String, resource: &str, sentence: &str) {
    if told.as_str() == sentence {
        return;
    }
    sentence.clone_into(told);
    if let Ok(mut log) = File::options().write(true).open("/dev/kmsg") {
        let line: String = sentence.chars().filter(|c| !c.is_control()).take(800).collect();
        // Each write is a line of its own.
        let _ = log.write_all(format!("<4>tandem-fence-peer {resource}: {line}\n").as_bytes());
    }
}
