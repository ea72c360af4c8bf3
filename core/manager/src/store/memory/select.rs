//! Queries of the memory store: walk, filter, sort, cut.

use tandem_contract::ResourceId;

use super::super::keys::size_key;
use super::super::{Family, InstanceQuery, OperationQuery, Page, ShareQuery, ShareSort};
use super::state::State;
use crate::clock::Timestamp;
use crate::model::{AccessRule, Instance, InstanceStatus, Operation, PoolAddress, Share};

/// What shares are sorted by. One kind at a time is compared.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum SortKey {
    Time(Option<Timestamp>),
    Text(Option<String>),
    Number(i64),
}

/// Whether `whole` contains `part`, ASCII letters of any case.
fn contains(whole: Option<&String>, part: &str) -> bool {
    whole.is_some_and(|whole| whole.to_ascii_lowercase().contains(&part.to_ascii_lowercase()))
}

fn cut<T>(items: Vec<T>, offset: u64, limit: Option<u64>) -> Vec<T> {
    let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    items.into_iter().skip(size(offset)).take(limit.map_or(usize::MAX, size)).collect()
}

impl State {
    /// The instances of a share, oldest first.
    fn instances_of(&self, share: ResourceId) -> Vec<Instance> {
        let from = (share, tandem_contract::InstanceId(uuid::Uuid::nil()));
        let ids = self.by_share.range(from..).take_while(|((of, _), ())| *of == share);
        let mut all: Vec<_> = ids.filter_map(|((_, id), ())| self.instances.get(id).cloned()).collect();
        all.sort_by_key(|i| (i.created_at, i.id));
        all
    }

    /// The rules of a share, oldest first.
    pub(super) fn rules_of(&self, share: ResourceId) -> Vec<AccessRule> {
        let mut all: Vec<_> = self.rules.values().filter(|r| r.share_id == share).cloned().collect();
        all.sort_by_key(|r| (r.created_at, r.id));
        all
    }

    /// Unfinished operations, oldest first.
    pub(super) fn unfinished(&self, only: impl Fn(&Operation) -> bool) -> Vec<Operation> {
        let ops = self.operations.values();
        let mut all: Vec<_> = ops.filter(|op| !op.status.is_finished() && only(op)).cloned().collect();
        all.sort_by_key(|op| (op.created_at, op.id));
        all
    }

    /// A share with what belongs to it.
    pub(super) fn family(&self, id: ResourceId) -> Family {
        let share = self.shares.get(&id).cloned();
        Family {
            share_type: share.as_ref().and_then(|s| self.types.get(&s.share_type_id).cloned()),
            instances: self.instances_of(id),
            rules: self.rules_of(id),
            operations: self.unfinished(|op| op.share_id == id),
            share,
        }
    }

    fn admits_share(&self, share: &Share, instances: &[Instance], query: &ShareQuery) -> bool {
        let is = |wanted: &Option<String>, value: &Option<String>| wanted.is_none() || wanted == value;
        let has = |part: &Option<String>, value: Option<&String>| {
            part.as_ref().is_none_or(|part| contains(value, part))
        };
        let speaker = || share.representative(instances);
        let zone = || speaker().and_then(|i| i.availability_zone.as_ref());
        query
            .project_id
            .as_ref()
            .is_none_or(|p| *p == share.project_id || (query.or_public && share.is_public))
            && is(&query.name, &share.name)
            && is(&query.description, &share.description)
            && has(&query.name_contains, share.name.as_ref())
            && has(&query.description_contains, share.description.as_ref())
            && query.status.is_none_or(|wanted| speaker().map(|i| i.status) == Some(wanted))
            && query.availability_zone.as_ref().is_none_or(|wanted| zone() == Some(wanted))
            && query.host.as_ref().is_none_or(|h| {
                instances.iter().any(|i| i.pool.as_ref().is_some_and(|p| p.to_string() == *h))
            })
            && query.share_types.as_ref().is_none_or(|types| types.contains(&share.share_type_id))
            && query.protocol.as_ref().is_none_or(|p| p.eq_ignore_ascii_case(&share.protocol))
            && query.is_public.is_none_or(|public| public == share.is_public)
            && query.metadata.iter().all(|(key, value)| share.metadata.get(key) == Some(value))
            && query.export_id.is_none_or(|id| instances.iter().any(|i| i.exports.iter().any(|e| e.id == id)))
            && query
                .export_path
                .as_ref()
                .is_none_or(|path| instances.iter().any(|i| i.exports.iter().any(|e| e.path == *path)))
    }

    /// Shares, by a query.
    pub(super) fn select_shares(&self, query: &ShareQuery) -> Page<Share> {
        let mut found = Vec::new();
        for share in self.shares.values() {
            let instances = self.instances_of(share.id);
            if self.admits_share(share, &instances, query) {
                found.push((sort_key(query.sort, share, &instances), share));
            }
        }
        found.sort_by(|(a, x), (b, y)| (a, x.id).cmp(&(b, y.id)));
        if !query.ascending {
            found.reverse();
        }
        let total = query.count.then_some(found.len() as u64);
        let items =
            cut(found, query.offset, query.limit).into_iter().map(|(_, share)| share.clone()).collect();
        Page { items, total }
    }

    fn admits_instance(&self, instance: &Instance, query: &InstanceQuery) -> bool {
        let replicates = || self.shares.get(&instance.share_id).is_some_and(|s| s.replication.is_some());
        query.share_id.is_none_or(|id| id == instance.share_id)
            && query.share_ids.as_ref().is_none_or(|ids| ids.contains(&instance.share_id))
            && query.project_id.as_ref().is_none_or(|p| *p == instance.project_id)
            && query.ids.as_ref().is_none_or(|ids| ids.contains(&instance.id))
            && (!query.replicas_only || replicates())
            && (!query.unfenced || instance.unfenced)
            && query.status.is_none_or(|status| status == instance.status)
            && query.replica_state.is_none_or(|state| Some(state) == instance.replica_state)
            && query.backend.as_ref().is_none_or(|b| Some(b.as_str()) == instance.backend())
            && query.export_id.is_none_or(|id| instance.exports.iter().any(|e| e.id == id))
            && query.export_path.as_ref().is_none_or(|path| instance.exports.iter().any(|e| e.path == *path))
    }

    /// Instances, by a query.
    pub(super) fn select_instances(&self, query: &InstanceQuery) -> Page<Instance> {
        let mut found: Vec<&Instance> =
            self.instances.values().filter(|i| self.admits_instance(i, query)).collect();
        found.sort_by_key(|i| (i.created_at, i.id));
        let total = query.count.then_some(found.len() as u64);
        Page { items: cut(found, query.offset, query.limit).into_iter().cloned().collect(), total }
    }

    /// Operations, by a query.
    pub(super) fn select_operations(&self, query: &OperationQuery) -> Vec<Operation> {
        let admits = |op: &&Operation| {
            query.share_id.is_none_or(|id| id == op.share_id)
                && query.project_id.as_ref().is_none_or(|p| *p == op.project_id)
                && query.instance.is_none_or(|id| Some(id) == op.intent.instance())
                && query.kind.as_ref().is_none_or(|kind| kind == op.intent.kind())
                && query.status.is_none_or(|status| status == op.status)
                && !(query.unfinished && op.status.is_finished())
        };
        let mut found: Vec<&Operation> = self.operations.values().filter(admits).collect();
        found.sort_by_key(|op| std::cmp::Reverse((op.created_at, op.id)));
        cut(found, query.offset, query.limit).into_iter().cloned().collect()
    }

    /// Bytes promised on each pool.
    pub(super) fn promised(&self) -> Vec<(String, u64)> {
        const GIB: u64 = 1 << 30;
        let mut pools = std::collections::BTreeMap::<String, i64>::new();
        for instance in self.instances.values() {
            if let (Some(pool), Some(share)) = (&instance.pool, self.shares.get(&instance.share_id)) {
                *pools.entry(pool.to_string()).or_default() += size_key(share.size_gb);
            }
        }
        let bytes = |gib: i64| u64::try_from(gib).unwrap_or(0).saturating_mul(GIB);
        pools.into_iter().filter(|(_, gib)| *gib > 0).map(|(pool, gib)| (pool, bytes(gib))).collect()
    }
}

fn sort_key(sort: ShareSort, share: &Share, instances: &[Instance]) -> SortKey {
    let speaker = || share.representative(instances);
    match sort {
        ShareSort::CreatedAt => SortKey::Time(Some(share.created_at)),
        ShareSort::UpdatedAt => SortKey::Time(share.updated_at),
        ShareSort::Id => SortKey::Text(Some(share.id.to_string())),
        ShareSort::Name => SortKey::Text(share.name.clone()),
        ShareSort::Size => SortKey::Number(size_key(share.size_gb)),
        ShareSort::Protocol => SortKey::Text(Some(share.protocol.clone())),
        ShareSort::ProjectId => SortKey::Text(Some(share.project_id.clone())),
        ShareSort::ShareType => SortKey::Text(Some(share.share_type_id.to_string())),
        ShareSort::Status => SortKey::Text(speaker().map(|i| InstanceStatus::to_string(&i.status))),
        ShareSort::Host => SortKey::Text(speaker().and_then(|i| i.pool.as_ref()).map(PoolAddress::to_string)),
        ShareSort::AvailabilityZone => SortKey::Text(speaker().and_then(|i| i.availability_zone.clone())),
    }
}
