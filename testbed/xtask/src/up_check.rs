//! Does `cargo xtask up` do what the README says? Started, told to end as Ctrl-C does, and started again.

use crate::{Result, command::Run, temporary::Temporary};
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// The first start builds.
const PATIENCE: Duration = Duration::from_secs(1800);

/// Starts and ends it twice on one state folder.
pub(crate) fn run(root: &Path) -> Result<String> {
    let folder = Temporary::folder("tandem-up")?;
    let state = folder.path().join("state folder");
    let outcome = once(root, &state).and_then(|()| once(root, &state));
    outcome.and(folder.remove()).map(|()| "started and ended twice".into())
}

fn once(root: &Path, state: &Path) -> Result<()> {
    let listen = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    let listen = listen.map_err(|error| format!("finding a free port: {error}."))?.to_string();
    // As a person types it; and our own program may have been built anew since it was started. Cargo becomes the
    // program it runs, and that becomes the server: one process from here to the end.
    let mut child = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["xtask", "up", "--listen", &listen, "--state"])
        .arg(state)
        .current_dir(root)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("starting `up`: {error}."))?;
    let outcome = watch(&mut child, &listen);
    if outcome.is_err() {
        // Whatever state it is in; the sentence of the failure matters more than that of the clean-up.
        let _ = child.kill();
        let _ = child.wait();
    }
    outcome
}

/// Waits for the last line to type, then ends the server.
fn watch(child: &mut Child, listen: &str) -> Result<()> {
    let stdout = child.stdout.take().ok_or("`up` has no output to read.")?;
    let (send, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    let mut said = String::new();
    while !said.contains("openstack share") {
        let line =
            lines.recv_timeout(PATIENCE).map_err(|_| format!("`up` never said what to type next: {said}"))?;
        println!("{line}");
        said.push_str(&line);
        said.push('\n');
    }
    if !said.contains(&format!("http://{listen}/v2")) {
        return Err(format!("`up` names another address than {listen}: {said}"));
    }
    Run::new("kill").args(["-INT", &child.id().to_string()]).run()?;
    let status = child.wait().map_err(|error| format!("waiting for `up`: {error}."))?;
    if status.success() { Ok(()) } else { Err(format!("after Ctrl-C, `up` ended with {status}.")) }
}
