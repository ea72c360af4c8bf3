//! The test's end of a guest's serial line: many commands at once over one line.

use crate::Result;
use crate::host::{Command, Control, Event, Running};
use crate::wire::{Ended, Frame, Kind, LONGEST, Start};
use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The line, shared by all who run something.
#[derive(Debug)]
pub(crate) struct Channel {
    writer: Mutex<UnixStream>,
    calls: Mutex<Option<HashMap<u32, Sender<Event>>>>,
    next: AtomicU32,
}

impl Channel {
    /// Listens on the line until it ends, and waits for the agent's greeting.
    pub(crate) fn open(line: UnixStream, patience: Duration) -> Result<Arc<Self>> {
        let said = |error: std::io::Error| format!("the serial line: {error}.");
        let reader = line.try_clone().map_err(said)?;
        let channel = Arc::new(Self {
            writer: Mutex::new(line),
            calls: Mutex::new(Some(HashMap::new())),
            next: AtomicU32::new(1),
        });
        let (greeted, greeting) = self::channel();
        let own = channel.clone();
        std::thread::spawn(move || own.listen(reader, &greeted));
        match greeting.recv_timeout(patience) {
            Ok(()) => Ok(channel),
            Err(_) => Err("the guest did not greet.".into()),
        }
    }

    fn listen(&self, mut reader: UnixStream, greeted: &Sender<()>) {
        while let Ok(frame) = Frame::read(&mut reader) {
            let event = match frame.kind {
                Kind::Hello => {
                    let _ = greeted.send(());
                    continue;
                }
                Kind::Output => Event::Output(frame.bytes),
                Kind::Error => Event::Error(frame.bytes),
                Kind::Ended => match serde_json::from_slice(&frame.bytes) {
                    Ok(Ended { refused: Some(sentence), .. }) => Event::Refused(sentence),
                    Ok(Ended { status, .. }) => Event::Ended(status),
                    Err(error) => Event::Refused(error.to_string()),
                },
                _ => continue,
            };
            let last = matches!(event, Event::Ended(_) | Event::Refused(_));
            let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(calls) = calls.as_mut() else { return };
            if let Some(call) = calls.get(&frame.id) {
                let _ = call.send(event);
            }
            if last {
                calls.remove(&frame.id);
            }
        }
        // Whoever waits learns that nothing will come.
        *self.calls.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Starts a command.
    pub(crate) fn start(self: &Arc<Self>, command: &Command) -> Result<Running> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let events = self.register(id)?;
        let start = Start {
            argv: command.argv.clone(),
            dir: command.dir.clone(),
            env: command.env.clone(),
            input: command.input,
            terminal: command.terminal,
        };
        let frame = Frame::json(id, Kind::Start, &start).map_err(|error| error.to_string())?;
        self.send(&frame)?;
        let own = self.clone();
        let control = move |control: Control<'_>| match control {
            Control::Kill => own.send(&Frame::new(id, Kind::Kill, "")),
            Control::Input([]) => own.send(&Frame::new(id, Kind::Input, "")),
            Control::Input(bytes) => {
                bytes.chunks(LONGEST).try_for_each(|some| own.send(&Frame::new(id, Kind::Input, some)))
            }
        };
        Ok(Running {
            shown: command.argv.join(" "),
            deadline: command.deadline,
            events,
            control: Arc::new(control),
        })
    }

    fn register(&self, id: u32) -> Result<Receiver<Event>> {
        let (sender, receiver) = channel();
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.as_mut().ok_or("the guest has ended.")?.insert(id, sender);
        Ok(receiver)
    }

    fn send(&self, frame: &Frame) -> Result<()> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        frame.write(&mut *writer).map_err(|error| format!("the serial line of the guest: {error}."))
    }

    /// Ends the line on this side.
    pub(crate) fn close(&self) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writer.shutdown(std::net::Shutdown::Both);
    }
}
