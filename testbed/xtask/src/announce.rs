//! Says what to type next, once the server that `up` became answers.
//!
//! `up` turns into the server itself (so that Ctrl-C and signals reach nobody else); the words are therefore
//! printed by a process of their own, which ends when the server is ready or gone.

use crate::{Result, command::Run};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Not for people: `up` starts it.
pub(crate) const COMMAND: &str = "announce";

/// Leaves a process behind that waits for the server which this process is about to become.
pub(crate) fn leave_behind(address: &str, state: &Path) -> Result<()> {
    let program = std::env::current_exe().map_err(|error| format!("finding our own program: {error}."))?;
    let pid = std::process::id().to_string();
    // Two generations: the middle one ends at once, so the server never has a child it does not know.
    Run::new(program).args([COMMAND, "start", &pid, address]).args([state]).run()
}

/// `start` leaves the second generation behind; `wait` is it.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let [phase, pid, address, state] = arguments else {
        return Err(format!("{COMMAND} is not meant to be typed."));
    };
    if phase == "start" {
        let program =
            std::env::current_exe().map_err(|error| format!("finding our own program: {error}."))?;
        let mut next = Command::new(program);
        next.args([COMMAND, "wait", pid, address, state]).stdin(Stdio::null());
        return next.spawn().map(drop).map_err(|error| format!("starting ourselves: {error}."));
    }
    while Path::new("/proc").join(pid).exists() {
        if ready(address) {
            println!("{}", words(address, state));
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Whether the server says that it is ready to serve.
fn ready(address: &str) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET /v1/ready HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// No text of the README's.
const MARK: &str = "\u{1}";

/// The README's own lines, with the address and folder of this server.
fn words(address: &str, state: &str) -> String {
    let lines = next_lines(include_str!("../../../README.md"));
    let plain = state.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    let word = if plain { state.to_string() } else { format!("'{}'", state.replace('\'', "'\\''")) };
    // Within the README's quotes as it is, elsewhere a word of its own; by the way of a mark, since it may bear that name itself.
    let lines = lines.replace("127.0.0.1:8786", address).replace("$PWD/.tandem", MARK);
    let lines = lines.replace(".tandem", &word).replace(MARK, state);
    format!(
        "\nTandem serves http://{address}; its state is in {state}. Ctrl-C stops it.\n\
         In a second terminal, type:\n\n{lines}\n"
    )
}

/// The fenced block of the README that follows the marker.
fn next_lines(readme: &str) -> String {
    readme
        .lines()
        .skip_while(|line| *line != "<!-- printed by cargo xtask up -->")
        .skip_while(|line| !line.starts_with("```"))
        .skip(1)
        .take_while(|line| !line.starts_with("```"))
        .map(|line| format!("    {line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_has_lines_to_type_and_they_follow_the_address() {
        let words = words("127.0.0.1:9999", "/state");
        assert!(words.contains("openstack share"), "{words}");
        assert!(words.contains("127.0.0.1:9999") && words.contains("/state/"), "{words}");
        assert!(!words.contains("8786") && !words.contains(".tandem"), "{words}");
        let words = super::words("127.0.0.1:9999", "/a folder");
        assert!(words.contains(" '/a folder'/client") && words.contains("\"/a folder/client/bin"), "{words}");
        let words = super::words("127.0.0.1:8786", "/clone/.tandem");
        let path = "export PATH=\"/clone/.tandem/client/bin:/clone/.tandem/bin:$PATH\"";
        assert!(words.contains(path) && words.contains("/clone/.tandem/client/bin/pip install"), "{words}");
    }
}
