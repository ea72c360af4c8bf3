//! State and lag, from the kernel.

use tandem_sdk::contract::{Health, Progress, ReplicaReport, ReplicaState};
use tandem_sdk::{Epoch, Error, ErrorKind, InstanceId, OpContext, Result, Role};

use super::fence;
use super::generation::Generation;
use super::status::Status;
use crate::Inner;
use crate::image::Image;
use crate::observe::worse;

impl Inner {
    /// What is wrong with the layer of an instance that replicates.
    pub(crate) async fn stack_health(&self, cx: &OpContext, image: &Image) -> Result<Health> {
        if image.meta.record.is_none() || !image.meta.made || image.meta.deleting {
            return Ok(Health::Ok);
        }
        let status = self.status(cx, image.meta.birth.instance).await?;
        self.note_disk(cx, image, status.as_ref()).await;
        let held_back = fence::health(image, status.as_ref());
        Ok(worse(held_back, health(image.meta.role, status.as_ref(), self.lacks_room(&image.pool))))
    }

    pub(crate) async fn report(&self, cx: &OpContext, id: InstanceId, epoch: Epoch) -> Result<ReplicaReport> {
        let image = match self.existing(cx, id).await {
            Err(error) if error.kind == ErrorKind::Unavailable => {
                return self.report_blind(cx, id, error).await;
            }
            other => other?,
        };
        image.meta.epoch.admit(epoch)?;
        let mut status = match image.meta.record {
            Some(_) => self.status(cx, id).await?,
            None => None,
        };
        self.note_disk(cx, &image, status.as_ref()).await;
        self.ask_again(cx, &image, status.as_ref()).await;
        self.end_growth(cx, &image).await;
        if self.attach_again(cx, &image, status.as_ref()).await {
            status = self.status(cx, id).await?;
        }
        let own = match status.as_ref().filter(|s| s.is_attached()).and_then(|s| s.minor) {
            Some(minor) => self.generation(cx, minor).await,
            None => None,
        };
        let mut report = judge(&image, status.as_ref(), own);
        let held_back = fence::health(&image, status.as_ref());
        report.health =
            worse(held_back, health(image.meta.role, status.as_ref(), self.lacks_room(&image.pool)));
        // What came of it changes nothing of what was seen before.
        let why = match self.keep_shown(cx, &image, status.as_ref()).await {
            Ok(why) => why,
            Err(error) => Some(error.message),
        };
        if let Some(why) = why {
            let reason = format!("what its users read is not renewed: {why}");
            report.health = worse(report.health, Health::Degraded { reason });
        }
        report.health = worse(report.health, self.health(&image, true, false));
        Ok(report)
    }
}

impl Inner {
    /// What is known while LVM cannot be asked, as when its devices fail: that the kernel has left the disk.
    async fn report_blind(&self, cx: &OpContext, id: InstanceId, error: Error) -> Result<ReplicaReport> {
        cx.check()?;
        let status = match &self.config.drbd {
            Some(_) => self.status(cx, id).await?,
            None => None,
        };
        let Some(status) = status.filter(|status| status.minor.is_some() && !status.is_attached()) else {
            return Err(error);
        };
        let role = if status.is_primary { Role::Active } else { Role::Secondary };
        let state = if status.is_primary { ReplicaState::Active } else { ReplicaState::OutOfSync };
        let health = match health(role, Some(&status), None) {
            Health::Degraded { reason } => {
                Health::Degraded { reason: format!("{reason} ({})", error.message) }
            }
            Health::Failed { reason } => Health::Failed { reason: format!("{reason} ({})", error.message) },
            other => other,
        };
        Ok(ReplicaReport {
            state,
            newest_point: None,
            changed_since_point: None,
            lag_bytes: None,
            up_to_date: Some(false),
            resync: None,
            split_brain: None,
            position: None,
            health,
        })
    }
}

/// What follows from the kernel's words.
fn judge(image: &Image, status: Option<&Status>, own: Option<Generation>) -> ReplicaReport {
    let meta = &image.meta;
    let current = status.is_some_and(Status::is_up_to_date);
    let split_brain = status.and_then(|status| split_brain(image, status, own));
    let state = match meta.role {
        _ if split_brain.is_some() => ReplicaState::Error,
        Role::Active => ReplicaState::Active,
        Role::Secondary if current => ReplicaState::InSync,
        _ => ReplicaState::OutOfSync,
    };
    // Who takes the writes knows how far the other is behind; the other one only while they talk. It is in the bitmap.
    let notes = meta.role == Role::Active && meta.record_has_peer();
    let knows = |status: &&Status| status.is_attached() && (status.is_connected() || notes);
    ReplicaReport {
        state,
        newest_point: None,
        changed_since_point: None,
        lag_bytes: status.filter(knows).map(Status::out_of_sync),
        up_to_date: meta.record.as_ref().map(|_| current),
        resync: status.filter(|status| status.resyncs()).map(|status| {
            let total = status.size_kib.saturating_mul(1024);
            Progress {
                total: Some(total),
                done: total.saturating_sub(status.out_of_sync()),
                phase: "resync".to_owned(),
                ..Progress::default()
            }
        }),
        split_brain,
        position: own.filter(|_| meta.record.is_some()).map(|own| match own.base {
            0 => format!("generation {own}"),
            base => format!("generation {own}, from {base:016X} on"),
        }),
        health: Health::Ok,
    }
}

/// A side that follows, and took writes that the other one lacks.
pub(super) fn split_brain(image: &Image, status: &Status, own: Option<Generation>) -> Option<String> {
    let own = own.filter(|own| own.has_own())?;
    let meta = &image.meta;
    let parted = meta.role == Role::Secondary && !status.is_connected();
    parted.then(|| {
        format!(
            "both sides hold changes that the other lacks: instance {} went on from generation {:016X} to {own}, {} KiB \
             changed since; the other side went on from there by itself. Say with `resync` which side is to follow: what \
             it has of its own is given up",
            meta.birth.instance, own.base, status.out_of_sync_kib
        )
    })
}

/// What is wrong with the layer between volume and file system; `pool`: that the thin pool below it has no room.
pub(super) fn health(role: Role, status: Option<&Status>, pool: Option<String>) -> Health {
    let (why, then) = match pool {
        None => ("its disk failed and was detached".to_owned(), "repair the volume group, then "),
        Some(pool) => (
            format!("its disk was detached, for the {pool}"),
            "once there is room it is attached again by itself, or where that takes too long: ",
        ),
    };
    match status {
        Some(status) if status.is_attached() => Health::Ok,
        Some(status) if role == Role::Active && status.is_connected() && status.peer_disk == "UpToDate" => {
            Health::Degraded {
                reason: format!(
                    "{why}, and it is served from its peer; {then}resync the replica or start the server anew"
                ),
            }
        }
        Some(_) => Health::Failed { reason: format!("{why}; {then}resync it or start the server anew") },
        None if role == Role::Secondary => Health::Degraded {
            reason: "it does not follow; it does once the server confirmed its epoch".to_owned(),
        },
        None => Health::Ok,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drbd::record::{Peer, Protocol, Record};
    use crate::meta::{Birth, Meta};
    use crate::report::Volume;
    use tandem_sdk::{ResourceId, Style};
    use uuid::Uuid;

    fn image(role: Role, with_peer: bool) -> Image {
        let peer = Peer {
            instance: InstanceId(Uuid::from_u128(2)),
            at: "192.0.2.2:7000".parse().unwrap(),
            leads: role == Role::Active,
        };
        let record = Record {
            style: Style::Dr,
            protocol: Protocol::C,
            minor: 1,
            port: 7001,
            peer: with_peer.then_some(peer),
            last: false,
            diskless: false,
        };
        let birth = Birth {
            instance: InstanceId(Uuid::from_u128(1)),
            resource: ResourceId(Uuid::from_u128(9)),
            size_bytes: 1 << 30,
            filesystem: crate::Filesystem::Ext4,
        };
        Image {
            meta: Meta { role, record: Some(record), ..Meta::blank(birth) },
            volume: Volume::default(),
            metadata: None,
            views: [None, None],
            stored: std::collections::BTreeSet::default(),
            pool: Volume::default(),
        }
    }

    fn status(connection: &str, replication: &str, disk: &str, out_of_sync_kib: u64) -> Status {
        Status {
            minor: Some(1),
            disk: disk.to_owned(),
            connection: connection.to_owned(),
            replication: replication.to_owned(),
            out_of_sync_kib,
            size_kib: 1 << 20,
            ..Status::default()
        }
    }

    #[test]
    fn a_secondary_is_in_sync_while_it_is_connected_and_lacks_nothing() {
        let secondary = image(Role::Secondary, true);
        let own = Some(Generation { current: 10, base: 0 });
        for (connection, replication, disk, behind, state) in [
            ("Connected", "Established", "UpToDate", 0, ReplicaState::InSync),
            ("Connected", "SyncTarget", "Inconsistent", 8, ReplicaState::OutOfSync),
            ("Connecting", "Off", "UpToDate", 0, ReplicaState::OutOfSync),
            ("StandAlone", "Off", "UpToDate", 0, ReplicaState::OutOfSync),
        ] {
            let report = judge(&secondary, Some(&status(connection, replication, disk, behind)), own);
            assert_eq!((report.state, report.split_brain), (state, None), "{connection} {replication}");
            let knows = connection == "Connected";
            assert_eq!(report.lag_bytes, knows.then_some(behind << 10));
            assert_eq!(report.up_to_date, Some(state == ReplicaState::InSync));
            assert_eq!(
                report.resync.map(|r| r.done),
                (replication == "SyncTarget").then_some((1 << 30) - (8 << 10))
            );
        }
        let diskless = status("Connected", "Established", "Diskless", 0);
        for (pool, words) in
            [(None, "repair the volume group"), (Some("thin pool `g/p` is full"), "`g/p` is full; once")]
        {
            let health = health(Role::Secondary, Some(&diskless), pool.map(str::to_owned));
            assert!(matches!(&health, Health::Failed { reason } if reason.contains(words)), "{health:?}");
        }
        let diskless = judge(&secondary, Some(&diskless), None);
        assert_eq!((diskless.state, diskless.lag_bytes), (ReplicaState::OutOfSync, None));
        assert_eq!(judge(&secondary, None, None).state, ReplicaState::OutOfSync);
    }

    #[test]
    fn the_active_one_counts_what_the_other_lacks() {
        let active = image(Role::Active, true);
        let own = Some(Generation { current: 12, base: 10 });
        let report = judge(&active, Some(&status("Connecting", "Off", "UpToDate", 64)), own);
        assert_eq!(
            (report.state, report.lag_bytes, report.split_brain),
            (ReplicaState::Active, Some(64 << 10), None)
        );
        let alone =
            judge(&image(Role::Active, false), Some(&status("StandAlone", "Off", "UpToDate", 64)), own);
        assert_eq!((alone.state, alone.lag_bytes), (ReplicaState::Active, None));
    }

    #[test]
    fn a_secondary_with_changes_of_its_own_is_a_split_brain_until_it_is_told() {
        let secondary = image(Role::Secondary, true);
        let own = Some(Generation { current: 0x1234, base: 0x10 });
        for connection in ["StandAlone", "Connecting"] {
            let report = judge(&secondary, Some(&status(connection, "Off", "UpToDate", 64)), own);
            assert_eq!(report.state, ReplicaState::Error);
            let words = report.split_brain.unwrap();
            assert!(words.contains("0000000000001234") && words.contains("64 KiB"), "{words}");
        }
        let heals = judge(&secondary, Some(&status("Connected", "SyncTarget", "Inconsistent", 64)), own);
        assert_eq!(heals.split_brain, None);
    }
}
