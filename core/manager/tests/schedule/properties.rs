//! What holds of every request: asking for more never finds more, and what is found satisfies what was asked for.

use std::collections::BTreeSet;

use proptest::prelude::*;
use tandem_contract::Style;
use tandem_manager::model::PoolAddress;
use tandem_manager::schedule::{PlacementRequest, ReplicationRequest, candidates, place};
use tandem_manager::{BackendState, PoolView};

use crate::pools::*;

fn any_pool(n: usize) -> impl Strategy<Value = PoolView> {
    let room = (0_u64..20, 0_u64..20, 0_u64..40, 0_u32..60, any::<bool>());
    let able = (any::<bool>(), proptest::option::of(0_usize..4), 0_u32..4, 0_usize..3);
    (room, able, 0_usize..3, 0_u8..8).prop_map(
        move |((total, free, promised, reserved, thin), (dedupe, style, most, domain), zone, up)| {
            with(pool(&format!("b{n}")), |p| {
                p.pool.total_bytes = Some(total * GIB);
                p.pool.free_bytes = Some(free.min(total) * GIB);
                p.provisioned_bytes = promised * GIB;
                p.backend.reserved_percentage = reserved;
                p.backend.max_over_subscription_ratio = 2.0;
                p.backend.capabilities.thin = thin;
                p.backend.capabilities.extra = object(serde_json::json!({"dedupe": dedupe, "tier": n}));
                p.availability_zone = format!("z{zone}");
                if up == 0 {
                    p.backend.state = BackendState::Down { reason: "gone".into() };
                }
                let Some(style) = style else {
                    p.backend.capabilities.replication = None;
                    return;
                };
                let replication = replicates(p);
                let styles = [Style::Readable, Style::Dr, Style::Writable];
                replication.styles = styles.iter().copied().skip(style).collect();
                replication.max_instances = (most > 0).then_some(most);
                replication.domain = (domain > 0).then(|| format!("d{domain}"));
            })
        },
    )
}

fn any_pools() -> impl Strategy<Value = Vec<PoolView>> {
    (any_pool(0), any_pool(1), any_pool(2), any_pool(3), any_pool(4))
        .prop_map(|(a, b, c, d, e)| vec![a, b, c, d, e])
}

/// One more thing asked for.
#[derive(Clone, Debug)]
enum Wish {
    Size(u64),
    Zone(usize),
    Zones(usize, usize),
    Host(usize),
    Spec(&'static str, String),
    Style(Style),
    Taken(usize),
    Follow(usize),
}

fn any_wish() -> impl Strategy<Value = Wish> {
    prop_oneof![
        (0_u64..15).prop_map(Wish::Size),
        (0_usize..3).prop_map(Wish::Zone),
        (0_usize..3, 0_usize..3).prop_map(|(a, b)| Wish::Zones(a, b)),
        (0_usize..5).prop_map(Wish::Host),
        prop_oneof![Just("<is> True"), Just("False")].prop_map(|r| Wish::Spec("dedupe", r.into())),
        (0_u64..6).prop_map(|n| Wish::Spec("capabilities:tier", format!(">= {n}"))),
        Just(Wish::Spec("zfs:unheard", "of".into())),
        proptest::sample::select(vec![Style::Readable, Style::Dr, Style::Writable]).prop_map(Wish::Style),
        (0_usize..5).prop_map(Wish::Taken),
        (0_usize..5).prop_map(Wish::Follow),
    ]
}

/// The request with that wish too; `None` when it already wishes for something else there.
fn wish(request: &PlacementRequest, wish: &Wish, pools: &[PoolView]) -> Option<PlacementRequest> {
    let mut more = request.clone();
    match wish {
        Wish::Size(size) => more.size_gb += size,
        Wish::Zone(zone) => {
            if more.availability_zone.replace(format!("z{zone}")).is_some() {
                return None;
            }
        }
        Wish::Zones(a, b) => {
            if more.extra_specs.insert("availability_zones".into(), format!("z{a}, z{b}")).is_some() {
                return None;
            }
        }
        Wish::Host(n) => {
            if more.only_host.replace(pools[*n].address.to_string()).is_some() {
                return None;
            }
        }
        Wish::Spec(key, requirement) => {
            if more.extra_specs.insert((*key).into(), requirement.clone()).is_some() {
                return None;
            }
        }
        Wish::Style(style) => {
            if more.replication.is_some() {
                return None;
            }
            let replication =
                ReplicationRequest { style: *style, existing: Vec::new(), active: None, new_instances: 1 };
            more.replication = Some(replication);
        }
        Wish::Taken(n) => more.replication.as_mut()?.existing.push(pools[*n].address.clone()),
        Wish::Follow(n) => {
            let active = (pools[*n].address.clone(), pools[*n].backend.capabilities.clone());
            if more.replication.as_mut()?.active.replace(active).is_some() {
                return None;
            }
        }
    }
    Some(more)
}

fn found(request: &PlacementRequest, pools: &[PoolView]) -> BTreeSet<PoolAddress> {
    candidates(request, pools).map(|all| all.iter().map(|p| p.address.clone()).collect()).unwrap_or_default()
}

/// The same said once more, straight from the request.
fn satisfies(request: &PlacementRequest, pool: &PoolView) -> bool {
    let able = &pool.backend.capabilities;
    let zones = request.extra_specs.get("availability_zones");
    let dedupe = able.extra["dedupe"].as_bool().unwrap();
    let tier = able.extra["tier"].as_u64().unwrap();
    let wanted_tier = request
        .extra_specs
        .get("capabilities:tier")
        .map(|t| t.trim_start_matches(">= ").parse::<u64>().unwrap());
    let (total, free) = (pool.pool.total_bytes.unwrap() / GIB, pool.pool.free_bytes.unwrap() / GIB);
    let free_after = free as f64 - total as f64 * f64::from(pool.backend.reserved_percentage) / 100.0;
    let promised = pool.provisioned_bytes / GIB + request.size_gb;
    let room = total > 0
        && if able.thin {
            promised <= 2 * total && request.size_gb as f64 <= free_after * 2.0
        } else {
            request.size_gb as f64 <= free_after
        };
    let replicates = request.replication.as_ref().is_none_or(|wanted| {
        able.replication.as_ref().is_some_and(|offered| {
            let most = |r: &tandem_contract::ReplicationCapability| {
                r.max_instances.is_none_or(|most| wanted.existing.len() < most as usize)
            };
            offered.styles.contains(&wanted.style)
                && most(offered)
                && !wanted.existing.contains(&pool.address)
                && wanted.active.as_ref().is_none_or(|(_, able)| {
                    able.replication.as_ref().is_some_and(|r| r.domain == offered.domain && most(r))
                })
        })
    });
    pool.backend.state == BackendState::Up
        && request.only_host.as_ref().is_none_or(|h| *h == pool.address.to_string())
        && request.availability_zone.as_ref().is_none_or(|z| *z == pool.availability_zone)
        && zones.is_none_or(|z| z.split(", ").any(|z| z == pool.availability_zone))
        && request.extra_specs.get("dedupe").is_none_or(|r| r.contains("True") == dedupe)
        && wanted_tier.is_none_or(|wanted| tier >= wanted)
        && room
        && replicates
}

proptest! {
    #[test]
    fn asking_for_more_never_finds_more(
        pools in any_pools(),
        wishes in proptest::collection::vec(any_wish(), 0..8),
    ) {
        let mut asked = request(1);
        let mut before = found(&asked, &pools);
        for one in wishes {
            let Some(more) = wish(&asked, &one, &pools) else { continue };
            let after = found(&more, &pools);
            prop_assert!(after.is_subset(&before), "{one:?} found {after:?} beyond {before:?}");
            (asked, before) = (more, after);
        }
    }

    #[test]
    fn what_is_found_satisfies_what_was_asked_for(
        pools in any_pools(),
        wishes in proptest::collection::vec(any_wish(), 0..5),
        turn in 0_usize..5,
    ) {
        let mut asked = request(1);
        for one in wishes {
            asked = wish(&asked, &one, &pools).unwrap_or(asked);
        }
        let expected: BTreeSet<_> =
            pools.iter().filter(|p| satisfies(&asked, p)).map(|p| p.address.clone()).collect();
        prop_assert_eq!(&found(&asked, &pools), &expected);
        let chosen = place(&asked, &pools);
        prop_assert_eq!(chosen.is_ok(), !expected.is_empty());
        // The order in which pools come decides nothing.
        let mut turned = pools.clone();
        turned.rotate_left(turn);
        prop_assert_eq!(place(&asked, &turned).ok(), chosen.clone().ok());
        if let Err(none) = chosen {
            let removed: usize = none.removed.iter().map(|r| r.pools.len()).sum();
            prop_assert_eq!(removed, pools.len());
        }
    }
}
