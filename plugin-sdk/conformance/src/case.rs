//! Cases, and which of them a driver needs.

use std::future::Future;
use std::pin::Pin;

use tandem_contract::{Capabilities, Style, Transport};

use crate::check::Check;
use crate::scene::Scene;

/// One case: what it proves, when it is needed, and how.
pub struct Case {
    /// The law of `docs/contract.md` that it proves.
    pub law: u8,
    /// What it shows, in a few words.
    pub name: &'static str,
    /// The ability that it takes.
    pub needs: Needs,
    pub(crate) run: fn(Scene) -> Pin<Box<dyn Future<Output = Check> + Send>>,
}

/// What a case takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing beyond `Driver`.
    Nothing,
    /// `attach`.
    Attach,
    /// Replication of any kind.
    Replication,
    /// Streams.
    Streams,
    /// Streams that can be resumed.
    Resume,
    /// Fingerprints of what an instance holds.
    Prints,
    /// Writers that can be held back.
    Quiesce,
    /// Storage that replicates by itself.
    Storage,
    /// Storage that replicates by itself, in the style `readable`.
    StorageReadable,
    /// Storage that replicates by itself, in the style `dr`.
    StorageDr,
    /// Storage that replicates by itself, in the style `writable`.
    StorageWritable,
    /// Storage that replicates by itself, also what was made without.
    StorageConverts,
    /// Migration by the driver.
    Migration,
    /// Streams, in the style `readable`.
    StreamsReadable,
    /// Streams, in the style `dr`.
    StreamsDr,
}

impl Needs {
    /// Whether these capabilities have it.
    pub fn met(self, capabilities: &Capabilities) -> bool {
        let replication = capabilities.replication.as_ref();
        let streams = replication.is_some_and(|r| matches!(r.transport, Transport::Streamed { .. }));
        let style = |style| replication.is_some_and(|r| r.styles.contains(&style));
        let storage = replication.is_some_and(|r| matches!(r.transport, Transport::Storage { .. }));
        match self {
            Self::Nothing => true,
            Self::Attach => capabilities.attach.is_some(),
            Self::Replication => replication.is_some(),
            Self::Streams => streams,
            Self::Resume => replication
                .is_some_and(|r| matches!(r.transport, Transport::Streamed { resumable: true, .. })),
            Self::Prints => streams && replication.is_some_and(|r| !r.fingerprints.is_empty()),
            Self::Quiesce => replication.is_some_and(|r| r.quiesce),
            Self::Storage => storage,
            Self::StorageReadable => storage && style(Style::Readable),
            Self::StorageDr => storage && style(Style::Dr),
            Self::StorageWritable => storage && style(Style::Writable),
            Self::StorageConverts => storage && replication.is_some_and(|r| r.converts),
            Self::Migration => capabilities.migration.is_some(),
            Self::StreamsReadable => streams && style(Style::Readable),
            Self::StreamsDr => streams && style(Style::Dr),
        }
    }
}

/// Every case.
pub fn cases() -> Vec<Case> {
    use crate::cases::{access, calls, convert, instances, migration, prints, roles, storage, streams, what};
    [
        what::CASES,
        instances::CASES,
        access::CASES,
        calls::CASES,
        roles::CASES,
        streams::CASES,
        prints::CASES,
        storage::CASES,
        convert::CASES,
        migration::CASES,
    ]
    .into_iter()
    .flatten()
    .map(|case| Case { law: case.law, name: case.name, needs: case.needs, run: case.run })
    .collect()
}

/// A list of cases: law, name, need, function.
macro_rules! list {
    ($($law:literal $name:literal $needs:ident $run:path;)*) => {
        /// The cases of this file.
        pub(crate) const CASES: &[$crate::case::Case] = &[$($crate::case::Case {
            law: $law,
            name: $name,
            needs: $crate::case::Needs::$needs,
            run: |scene| Box::pin($run(scene)),
        }),*];
    };
}
pub(crate) use list;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The numbers of the laws in the document, and where those begin that no case can see.
    fn laws() -> (BTreeSet<u8>, u8) {
        let text = include_str!("../../../docs/contract.md");
        let number = |line: &str| line.strip_prefix("**")?.split('.').next()?.parse().ok();
        let (seen, unseen) = text.split_once("## What the conformance suite cannot see").unwrap();
        let first_unseen = unseen.lines().find_map(number).unwrap();
        (seen.lines().filter_map(number).collect(), first_unseen)
    }

    #[test]
    fn each_case_names_a_law_and_each_law_has_a_case() {
        let (laws, first_unseen) = laws();
        assert_eq!(laws, (1..first_unseen).collect());
        let named: BTreeSet<u8> = cases().iter().map(|case| case.law).collect();
        assert_eq!(named, laws);
    }

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<_> = cases().iter().map(|case| case.name).collect();
        assert_eq!(names.len(), cases().len());
    }
}
