//! Runs what was wired, until it is told to end: take nothing new, let run what runs, hand the rest to the log.

use std::time::Duration;

use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::settings::Settings;
use crate::wire;

/// Serves until a signal, and ends within the settings' time.
///
/// # Errors
/// A sentence, when the server cannot start or its socket breaks.
pub(crate) async fn serve(settings: &Settings) -> Result<(), String> {
    // The port first: it is what most often is taken, and nothing has happened yet.
    let listener = TcpListener::bind(settings.listen)
        .await
        .map_err(|error| format!("{} cannot be served: {error}.", settings.listen))?;
    let wired = wire::wire(settings).await?;
    wired.manager.start();
    tracing::info!(address = %settings.listen, host = wired.manager.host(), "Tandem serves.");

    let (tell, told) = watch::channel(false);
    let mut ending = told.clone();
    // Answers are small and complete; waiting for more to send only adds delay.
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "A connection keeps its delay.");
        }
    });
    let server = axum::serve(listener, wired.router.clone()).with_graceful_shutdown(async move {
        // The sender lives as long as the server.
        let _ = ending.wait_for(|end| *end).await;
    });
    let server = tokio::spawn(server.into_future());

    let first = one_signal().await?;
    tracing::info!(signal = first, "Ending: taking nothing new.");
    let _ = tell.send(true);
    let drain = Duration::from_secs(settings.shutdown.drain_seconds);
    tokio::select! {
        () = drained(server, drain) => {}
        _ = one_signal() => {
            tracing::warn!("A second signal: ending at once; the next start carries everything on.");
            return Ok(());
        }
    }
    tokio::select! {
        () = wired.manager.stop(drain) => tracing::info!("Ended."),
        _ = one_signal() => tracing::warn!("A second signal: ending at once; the next start carries everything on."),
    }
    Ok(())
}

/// Waits for running requests; connections that only idle are cut off.
async fn drained(server: tokio::task::JoinHandle<std::io::Result<()>>, within: Duration) {
    let stop = server.abort_handle();
    match tokio::time::timeout(within, server).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => tracing::error!(%error, "The socket broke."),
        Ok(Err(error)) => tracing::error!(%error, "The server's task broke off; this is a bug."),
        Err(_) => {
            stop.abort();
            tracing::warn!("Some requests did not end in time and were cut off.");
        }
    }
}

/// The name of the next signal that asks for an end.
async fn one_signal() -> Result<&'static str, String> {
    let listen = |kind| signal(kind).map_err(|error| format!("Signals cannot be received: {error}."));
    let (mut term, mut int) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
    })
}
