//! Users of a site's shares: clients of NFS with addresses of their own, and records that were acknowledged to them.

use std::collections::BTreeSet;
use std::time::Duration;

use tandem_guests::host::Event;
use tandem_guests::{Host, Running, nfs};

use super::Site;

impl Site {
    /// A client that the rules of a share let write, once that holds.
    pub fn user_of(&self, share: &str) -> nfs::Client {
        let client = nfs::Client::create(&*self.guest, "user", "192.0.2.101").unwrap();
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
