//! Minors and ports: chosen from the configured ranges, noted in tags, never what anything else has.

use std::collections::BTreeSet;
use std::net::TcpListener;

use tandem_sdk::{Error, InstanceId, Lock, OpContext, Result};
use uuid::Uuid;

use super::record::Record;
use super::settings::Drbd;
use super::{status, tools};
use crate::Inner;
use crate::meta::Meta;
use crate::names;
use crate::report::Report;

/// What is taken already.
#[derive(Clone, Debug, Default)]
pub(crate) struct Taken {
    pub(crate) minors: BTreeSet<u32>,
    pub(crate) ports: BTreeSet<u16>,
}

impl Taken {
    /// What the tags of a group say is taken.
    pub(crate) fn by_tags(report: &Report) -> Self {
        let mut taken = Self::default();
        for volume in &report.0 {
            let Some(id) = names::instance_of(&volume.name) else { continue };
            // One that cannot be read is somebody's to set right; its numbers show in the kernel while it is used.
            if let Ok(Some(Meta { record: Some(Record { minor, port, .. }), .. })) =
                Meta::read(id, &volume.name, &volume.tags)
            {
                taken.minors.insert(minor);
                taken.ports.insert(port);
            }
        }
        taken
    }

    /// The lowest free minor and port.
    pub(crate) fn free(&self, drbd: &Drbd, port_is_free: impl Fn(u16) -> bool) -> Result<(u32, u16)> {
        let all_taken = |what: &str| {
            Error::out_of_space(format!(
                "every {what} of the setting `drbd.{what}s` is taken; widen it, or delete shares that replicate"
            ))
        };
        let minor = (drbd.minors[0]..=drbd.minors[1]).find(|minor| !self.minors.contains(minor));
        let port =
            (drbd.ports[0]..=drbd.ports[1]).find(|port| !self.ports.contains(port) && port_is_free(*port));
        Ok((minor.ok_or_else(|| all_taken("minor"))?, port.ok_or_else(|| all_taken("port"))?))
    }
}

/// How often, and how far apart, the lock of the numbers is tried.
const TRIES: u32 = 600;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

impl Inner {
    /// Held from the choice of numbers until they are noted.
    pub(crate) async fn lock_numbers(&self, cx: &OpContext) -> Result<Lock> {
        // No instance bears this id.
        let all = InstanceId(Uuid::nil());
        for _ in 0..TRIES {
            match Lock::at(&self.config.run, all) {
                Err(e) if tools::is_busy(&e) => cx.sleep(PAUSE).await?,
                other => return other,
            }
        }
        Err(Error::busy("the numbers of DRBD are being chosen by another call for too long"))
    }

    /// A minor and a port that nothing has: no tag of the group, no resource of the kernel, no program.
    pub(crate) async fn free_numbers(&self, cx: &OpContext, drbd: &Drbd) -> Result<(u32, u16)> {
        let mut taken = Taken::by_tags(&self.tags(cx).await?);
        taken.minors.extend(kernel_minors(cx).await?);
        taken.ports.extend(status::ports(&tools::setup(cx, &["show"]).await?));
        let address = drbd.address;
        if let Err(e) = TcpListener::bind((address, 0)) {
            return Err(Error::unavailable(format!(
                "peers could not reach this host at {address}, which the setting `drbd.address` names: {e}"
            )));
        }
        taken.free(drbd, |port| TcpListener::bind((address, port)).is_ok())
    }
}

/// The minors of every resource in the kernel, whoever made it.
pub(crate) async fn kernel_minors(cx: &OpContext) -> Result<BTreeSet<u32>> {
    Ok(status::minors(&tools::setup(cx, &["events2", "--now"]).await?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drbd::record::Protocol;
    use crate::meta::Birth;
    use crate::report::Volume;
    use proptest::prelude::*;
    use tandem_sdk::{ResourceId, Style};

    fn drbd(ports: [u16; 2], minors: [u32; 2]) -> Drbd {
        let address = "192.0.2.1".parse().unwrap();
        Drbd { address, ports, minors, resync_mib: 100, readable_seconds: 60, writable: None }
    }

    proptest! {
        #[test]
        fn what_is_free_is_taken_by_nobody(
            minors in prop::collection::btree_set(0u32..600, 0..500),
            ports in prop::collection::btree_set(7000u16..7600, 0..500),
            used in prop::collection::btree_set(7000u16..7600, 0..20),
        ) {
            let drbd = drbd([7000, 7599], [0, 599]);
            let taken = Taken { minors: minors.clone(), ports: ports.clone() };
            let (minor, port) = taken.free(&drbd, |port| !used.contains(&port)).unwrap();
            prop_assert!(!minors.contains(&minor) && !ports.contains(&port) && !used.contains(&port));
            prop_assert!((0..600).contains(&minor) && (7000..7600).contains(&port));
        }
    }

    #[test]
    fn five_hundred_shares_have_numbers_of_their_own() {
        let drbd = drbd([7000, 7499], [100, 599]);
        let mut taken = Taken::default();
        for _ in 0..500 {
            let (minor, port) = taken.free(&drbd, |_| true).unwrap();
            assert!(taken.minors.insert(minor) && taken.ports.insert(port));
        }
        let full = taken.free(&drbd, |_| true).unwrap_err();
        assert!(full.message.contains("drbd.minors"), "{full}");
    }

    /// A share with these numbers, as a group reports it.
    fn noted(number: u128, minor: u32, port: u16) -> Volume {
        let (instance, resource) =
            (InstanceId(Uuid::from_u128(number)), ResourceId(Uuid::from_u128(!number)));
        let birth = Birth { instance, resource, size_bytes: 1 << 30, filesystem: crate::Filesystem::Ext4 };
        let (style, protocol) = (Style::Dr, Protocol::C);
        let record = Record { style, protocol, minor, port, peer: None, last: false, diskless: false };
        let tags = Meta { record: Some(record), ..Meta::blank(birth) }.tags().unwrap();
        Volume { name: names::of_instance(instance), tags: tags.into_iter().collect(), ..Volume::default() }
    }

    #[test]
    fn what_five_hundred_shares_have_noted_is_given_to_nobody() {
        let drbd = drbd([7000, 7519], [100, 619]);
        let (mut report, mut minors, mut ports) = (Report::default(), BTreeSet::new(), BTreeSet::new());
        for number in 1..=500 {
            // What was removed meanwhile is given anew.
            if number % 50 == 0 {
                let (gone, _) = (report.0.remove(7), report.0.remove(11));
                let left = Taken::by_tags(&report);
                assert!(!left.ports.is_empty() && !gone.tags.is_empty());
                (minors, ports) = (left.minors, left.ports);
            }
            let taken = Taken::by_tags(&report);
            assert_eq!((&taken.minors, &taken.ports), (&minors, &ports));
            let (minor, port) = taken.free(&drbd, |port| port % 97 != 0).unwrap();
            assert!(minors.insert(minor) && ports.insert(port), "{minor} and {port} were taken");
            report.0.push(noted(number, minor, port));
        }
        assert_eq!(Taken::by_tags(&report).minors.len(), report.0.len());
    }
}
