//! Users of a site's shares: clients of NFS with addresses of their own, and records that were acknowledged to them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tandem_guests::host::Event;
use tandem_guests::{Command, Guest, Host, Running, nfs};

use super::Site;
use crate::wait;

/// The address of the one who writes.
pub const ADDRESS: &str = "192.0.2.101";
/// Where he mounts what he writes to, on the server's machine.
const AT: &str = "/mnt/user";

impl Site {
    /// A client that the rules of a share let write, once that holds.
    pub fn user_of(&self, share: &str) -> nfs::Client {
        let client = nfs::Client::create(&*self.guest, "user", ADDRESS).unwrap();
        self.allow(share, client.address(), "rw");
        client
    }

    /// What a client mounts to reach a replica.
    pub fn export(&self, replica: &str) -> String {
        let found = self.api.export(replica).unwrap();
        found.unwrap_or_else(|| panic!("{replica} is not exported")).to_str().unwrap().to_owned()
    }

    /// Mounts a replica as a client.
    pub fn mount(&self, client: &nfs::Client, replica: &str, at: &str) {
        client.must_mount(&*self.guest, &self.export(replica), at, "hard").unwrap();
    }

    /// Every record that was acknowledged is in this file of the guest.
    pub fn nothing_is_lost(&self, promised: &BTreeSet<u64>, file: &str) {
        let kept = numbers(self.guest.run(&["cat", file]).unwrap().lines());
        let lost: Vec<&u64> = promised.difference(&kept).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        println!("{} records were acknowledged, none is lost", promised.len());
    }
}

/// What a program in a guest says until it ends, line by line; a last line without its end was cut and does not count.
pub fn said(running: &Running) -> Vec<String> {
    let mut text = Vec::new();
    loop {
        match running.next(Duration::from_secs(180)).unwrap() {
            Some(Event::Output(bytes)) => text.extend(bytes),
            Some(Event::Error(bytes)) => println!("it says: {}", String::from_utf8_lossy(&bytes).trim()),
            Some(Event::Ended(_)) => break,
            other => panic!("it goes on and on: {other:?}"),
        }
    }
    let text = String::from_utf8(text).unwrap();
    text.split_inclusive('\n').filter_map(|line| Some(line.strip_suffix('\n')?.to_owned())).collect()
}

/// The records among these lines.
pub fn numbers<'a>(lines: impl IntoIterator<Item = &'a str>) -> BTreeSet<u64> {
    lines.into_iter().filter_map(|line| line.parse().ok()).collect()
}

/// The records that were acknowledged to a writer until it ended.
pub fn acknowledged(writer: &Running) -> BTreeSet<u64> {
    numbers(said(writer).iter().map(String::as_str))
}

/// Someone who writes records, over NFS or on the host itself, each acknowledged before the next.
pub struct Writer {
    guest: Arc<Guest>,
    /// Where he reaches the share, on that machine.
    at: String,
    file: String,
    said: Arc<Mutex<Vec<u8>>>,
    listening: JoinHandle<()>,
}

impl Writer {
    /// Starts him on a file of the active replica; the rules of its share must let [`ADDRESS`] write.
    pub fn start(site: &Site, active: &str, file: &str) -> Self {
        let guest = &*site.guest;
        if !guest.succeeds(&["ip", "netns", "pids", "user"]).unwrap() {
            nfs::Client::create(guest, "user", ADDRESS).unwrap();
        }
        let user = nfs::Client::known("user", ADDRESS);
        site.mount(&user, active, AT);
        let program = tandem_guests::forward::PROGRAM;
        let command = user.command(&[program, "records", &format!("{AT}/{file}")]);
        Self::run(&site.guest, &command, AT, file)
    }

    /// The same on the host that a replica is on, by its path.
    pub fn on_host(site: &Site, replica: &str, file: &str) -> Self {
        let at = site.path(replica);
        let program = tandem_guests::forward::PROGRAM;
        let command = Command::new(&[program, "records", &format!("{at}/{file}")]);
        Self::run(site.guest_with(replica), &command, &at, file)
    }

    fn run(guest: &Arc<Guest>, command: &Command, at: &str, file: &str) -> Self {
        let running = guest.spawn(&command.clone().deadline(Duration::MAX)).unwrap();
        let said = Arc::<Mutex<Vec<u8>>>::default();
        let heard = Arc::clone(&said);
        let listening = std::thread::spawn(move || {
            while let Ok(event) = running.next(Duration::from_secs(600)) {
                match event {
                    Some(Event::Output(bytes)) => heard.lock().unwrap().extend(bytes),
                    Some(Event::Error(_)) | None => {}
                    Some(Event::Ended(_) | Event::Refused(_)) => break,
                }
            }
        });
        let (at, file) = (at.to_owned(), file.to_owned());
        let writer = Self { guest: Arc::clone(guest), at, file, said, listening };
        writer.goes_on(0);
        writer
    }

    /// What was acknowledged so far; a number that was cut in the middle is not a line.
    pub fn acknowledged(&self) -> BTreeSet<u64> {
        let said = String::from_utf8(self.said.lock().unwrap().clone()).unwrap();
        numbers(said.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')))
    }

    /// Waits until some more than so many records are acknowledged; how many are.
    pub fn goes_on(&self, than: usize) -> usize {
        wait::until("some records", || Some(self.acknowledged().len()).filter(|now| *now > than + 20))
    }

    /// Holds him up between two records, or lets him go on.
    pub fn pause(&self, pause: bool) {
        let signal = if pause { "-STOP" } else { "-CONT" };
        self.guest.run(&["pkill", signal, "-f", &format!("records {}", self.at)]).unwrap();
    }

    /// Ends him; what he was promised must be on the active replica.
    pub fn lost_nothing(self, site: &Site, active: &str) {
        let _ = self.guest.succeeds(&["pkill", "-KILL", "-f", &format!("records {}", self.at)]).unwrap();
        if self.at == AT {
            let _ = self.guest.succeeds(&["umount", "-f", "-l", AT]).unwrap();
        }
        let promised = self.acknowledged();
        self.listening.join().unwrap();
        let file = format!("{}/{}", site.path(active), self.file);
        let kept = numbers(site.guest_with(active).run(&["cat", &file]).unwrap().lines());
        let lost: Vec<&u64> = promised.difference(&kept).collect();
        assert!(lost.is_empty(), "of {} acknowledged records these are lost: {lost:?}", promised.len());
        println!("   {} records were acknowledged, none is lost", promised.len());
        site.guest_with(active).run(&["rm", &file]).unwrap();
    }
}
