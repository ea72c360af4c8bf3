//! `cargo xtask up`: from a clone to a running server, without root.

use crate::{Result, announce, command::Run, workspace::Workspace};
use std::fs::Permissions;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

const LISTEN: &str = "127.0.0.1:8786";

/// Builds, installs into the state folder, and becomes the server.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let options = Options::parse(arguments)?;
    let workspace = Workspace::load()?;
    let state = std::path::absolute(options.state.unwrap_or_else(|| workspace.root.join(".tandem")))
        .map_err(|error| format!("the state folder: {error}."))?;
    let settings = state.join("tandem.toml");
    let listen = match options.listen {
        Some(listen) => listen,
        None => listen_setting(&settings)?,
    };
    // Before minutes are spent on a build.
    free(&listen)?;
    build(&workspace, options.release)?;
    install(&workspace, options.release, &state)?;
    write_settings(&settings, &state)?;
    announce::leave_behind(&listen, &state)?;
    let server =
        Run::new(state.join("bin/tandemd")).args(["--listen", &listen, "--settings"]).args([settings]);
    Err(server.become_it())
}

#[derive(Debug, Default)]
struct Options {
    state: Option<PathBuf>,
    listen: Option<String>,
    release: bool,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self::default();
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value."));
            match word.as_str() {
                "--release" => options.release = true,
                "--state" => options.state = Some(value()?.into()),
                "--listen" => options.listen = Some(value()?.clone()),
                _ => {
                    return Err(format!(
                        "up does not know {word}; it takes --state, --listen and --release."
                    ));
                }
            }
        }
        Ok(options)
    }
}

fn build(workspace: &Workspace, release: bool) -> Result<()> {
    let drivers = workspace.drivers();
    let packages = ["tandemd", "tandem"].into_iter().chain(drivers.iter().map(|driver| driver.name.as_str()));
    let mut build = Run::cargo().args(["build", "--locked"]).args(workspace.features());
    for package in packages {
        build = build.args(["--package", package]);
    }
    if release { build.args(["--release"]).run() } else { build.run() }
}

/// Puts the programs and the drivers where the server looks for them, with modes that it accepts.
fn install(workspace: &Workspace, release: bool, state: &Path) -> Result<()> {
    let artifacts = workspace.artifacts(release);
    let (programs, plugins) = (state.join("bin"), state.join("plugins"));
    for folder in [state, &programs, &plugins] {
        std::fs::create_dir_all(folder)
            .map_err(|error| format!("creating {}: {error}.", folder.display()))?;
        mode(folder, 0o755)?;
    }
    for program in ["tandemd", "tandem"] {
        place(&artifacts.join(program), &programs.join(program), 0o755)?;
    }
    for driver in workspace.drivers().into_iter().filter(|driver| !driver.test_only) {
        if let Some(library) = driver.library() {
            place(&artifacts.join(&library), &plugins.join(&library), 0o644)?;
        }
        // What a driver runs lies beside its library.
        for program in driver.programs() {
            place(&artifacts.join(program), &plugins.join(program), 0o755)?;
        }
    }
    Ok(())
}

/// Copies beside the old file and renames: a server that still runs keeps the old one whole.
fn place(from: &Path, to: &Path, bits: u32) -> Result<()> {
    let fresh = to.with_extension("new");
    std::fs::copy(from, &fresh)
        .map_err(|error| format!("copying {} to {}: {error}.", from.display(), fresh.display()))?;
    mode(&fresh, bits)?;
    std::fs::rename(&fresh, to).map_err(|error| format!("renaming {}: {error}.", fresh.display()))
}

fn mode(path: &Path, bits: u32) -> Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(bits))
        .map_err(|error| format!("setting the mode of {}: {error}.", path.display()))
}

/// Writes the settings file, once; then it is yours.
fn write_settings(file: &Path, state: &Path) -> Result<()> {
    if file.exists() {
        return Ok(());
    }
    let mut text = format!(
        "# Written by `cargo xtask up` and never again: change what you like. docs/operating.md explains each line.\n\
         # Relative paths start at the folder of this file.\n\
         listen = \"{LISTEN}\"\n\
         state = \".\"\n\
         plugins = \"plugins\"\n\
         \n\
         [auth]\n\
         mode = \"noauth\"\n"
    );
    for (name, zone) in [("alpha", "zone-a"), ("beta", "zone-a"), ("gamma", "zone-b")] {
        let root = toml::Value::from(state.join("backends").join(name).to_string_lossy().into_owned());
        text.push_str(&format!(
            "\n[[backends]]\nname = \"{name}\"\ndriver = \"directory\"\navailability_zone = \"{zone}\"\n\
             settings = {{ root = {root} }}\n"
        ));
    }
    std::fs::write(file, text).map_err(|error| format!("writing {}: {error}.", file.display()))
}

/// The address in the settings file, or the one that will be written into it.
fn listen_setting(settings: &Path) -> Result<String> {
    if !settings.exists() {
        return Ok(LISTEN.into());
    }
    let text = std::fs::read_to_string(settings)
        .map_err(|error| format!("reading {}: {error}.", settings.display()))?;
    let table: toml::Table = text.parse().map_err(|error| format!("{}: {error}", settings.display()))?;
    Ok(table.get("listen").and_then(toml::Value::as_str).unwrap_or(LISTEN).to_string())
}

fn free(listen: &str) -> Result<()> {
    let address: SocketAddr =
        listen.parse().map_err(|_| format!("{listen:?} is not an address such as {LISTEN}."))?;
    TcpListener::bind(address).map(drop).map_err(|error| {
        format!(
            "{listen} cannot be used: {error}. Perhaps a Tandem runs already; stop it, or choose another \
             address with --listen 127.0.0.1:{}.",
            address.port().wrapping_add(1000)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_strangers_refused() {
        let words = |text: &str| text.split_whitespace().map(String::from).collect::<Vec<_>>();
        let options = Options::parse(&words("--release --state s --listen 127.0.0.1:1")).unwrap();
        assert!(options.release);
        assert_eq!(options.state.as_deref(), Some(Path::new("s")));
        assert_eq!(options.listen.as_deref(), Some("127.0.0.1:1"));
        assert!(Options::parse(&words("--state")).unwrap_err().contains("--state needs a value"));
        assert!(Options::parse(&words("--root")).is_err());
    }

    #[test]
    fn a_taken_port_is_a_sentence() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let sentence = free(&taken.local_addr().unwrap().to_string()).unwrap_err();
        assert!(sentence.contains("cannot be used") && sentence.contains("--listen"), "{sentence}");
        assert!(free("nonsense").unwrap_err().contains("not an address"));
    }
}
