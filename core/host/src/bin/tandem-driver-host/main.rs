//! `tandem-driver-host`: runs drivers for a `tandemd` on another machine, or as its child. Settings, signals, nothing
//! else.

mod settings;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use rustix::fs::{Mode, OFlags};
use settings::Settings;
use tandem_host::remote::{listen, serve_child};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Runs storage drivers for a Tandem server on another machine.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The settings file.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/tandem/driver-host.toml",
        env = "TANDEM_DRIVER_HOST_SETTINGS"
    )]
    settings: PathBuf,
    /// Check the settings and the certificates, and end.
    #[arg(long)]
    check: bool,
    /// Serve the server that started this process, on standard input, with the drivers of this folder.
    #[arg(long, value_name = "FOLDER", hide = true)]
    child: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("tandem-driver-host: {sentence}.");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), String> {
    if let Some(folder) = &arguments.child {
        start_log("warn")?;
        let folder = folder.clone();
        return on_runtime(async move { child(&folder).await });
    }
    let settings = Settings::load(&arguments.settings)?;
    if arguments.check {
        return settings.listening().check();
    }
    start_log(&settings.log.filter)?;
    on_runtime(async move { serve(&settings).await })
}

fn on_runtime(work: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("its threads cannot be started: {e}"))?;
    let outcome = runtime.block_on(work);
    // A driver that hangs in a thread must not keep the process.
    runtime.shutdown_background();
    outcome
}

/// `TANDEM_LOG` wins over the settings, for one run that needs more detail.
fn start_log(filter: &str) -> Result<(), String> {
    let wanted = std::env::var("TANDEM_LOG").unwrap_or_else(|_| filter.to_owned());
    let filter = EnvFilter::try_new(&wanted)
        .map_err(|e| format!("log.filter is {wanted:?}, which is no filter: {e}"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .try_init()
        .map_err(|e| format!("the log cannot be started: {e}"))
}

async fn serve(settings: &Settings) -> Result<(), String> {
    let found = tandem_host::discover(&settings.plugins);
    for refusal in &found.refused {
        tracing::warn!(file = %refusal.path.display(), "A driver was refused: {}.", refusal.reason);
    }
    for (name, library) in &found.drivers {
        tracing::info!(driver = name, version = library.manifest().version, "A driver was loaded.");
    }
    let listener = TcpListener::bind(settings.listen)
        .await
        .map_err(|e| format!("{} cannot be served: {e}", settings.listen))?;
    let stop = CancellationToken::new();
    stop_on_signal(stop.clone())?;
    // Whoever asked for any free port learns here which one it is.
    let address = listener.local_addr().map_err(|e| e.to_string())?;
    tracing::info!(%address, name = settings.name, "The driver host serves.");
    listen(settings.listening(), listener, found, stop).await
}

/// The first signal ends it in order, the second at once.
fn stop_on_signal(stop: CancellationToken) -> Result<(), String> {
    let listen = |kind| signal(kind).map_err(|e| format!("signals cannot be received: {e}"));
    let (mut term, mut int) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    tokio::spawn(async move {
        for _ in 0..2 {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            if stop.is_cancelled() {
                std::process::exit(1);
            }
            tracing::info!("Ending: running calls are cancelled.");
            stop.cancel();
        }
    });
    Ok(())
}

async fn child(folder: &Path) -> Result<(), String> {
    let alone = |e: rustix::io::Errno| {
        format!("`--child` is for tandemd, which gives a socket as standard input; there is none ({e})")
    };
    // What a driver starts must not get the server's socket as its input.
    let socket: OwnedFd = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).map_err(alone)?;
    rustix::net::sockopt::socket_type(&socket).map_err(alone)?;
    let nothing =
        rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(alone)?;
    rustix::stdio::dup2_stdin(&nothing).map_err(alone)?;
    serve_child(socket.into(), folder).await
}
