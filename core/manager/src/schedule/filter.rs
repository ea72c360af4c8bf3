//! The filters. Each looks at one pool and says why not.

use tandem_contract::{Capabilities, ReplicationCapability, Style, Transport};

use super::{PlacementRequest, ReplicationRequest, facts, room, specs};
use crate::{BackendState, PoolView};

/// A filter: lets a pool through, or says why not.
type Filter = fn(&PlacementRequest, &PoolView) -> Result<(), String>;

/// All filters with their names, in the order in which their reasons help most.
pub(super) const ALL: [(&str, Filter); 10] = [
    ("the state of the back end", is_up),
    ("the host asked for", is_the_host),
    ("the availability zone", is_in_zone),
    ("the protocol", speaks),
    ("the replication type", offers_style),
    ("the share type", satisfies_specs),
    ("the number of replicas", takes_one_more),
    ("one replica a pool", holds_none),
    ("the replication domain", replicates_with_active),
    ("capacity", has_room),
];

fn is_up(_: &PlacementRequest, view: &PoolView) -> Result<(), String> {
    match &view.backend.state {
        BackendState::Up => Ok(()),
        BackendState::Down { reason } => Err(format!("its back end is down: {reason}")),
    }
}

fn is_the_host(request: &PlacementRequest, view: &PoolView) -> Result<(), String> {
    let Some(wanted) = &request.only_host else { return Ok(()) };
    let at = &view.address;
    let names = [at.to_string(), format!("{}@{}", at.host, at.backend), at.host.clone()];
    if names.contains(wanted) { Ok(()) } else { Err(format!("only {wanted} was asked for")) }
}

/// The zone asked for, and the share type's `availability_zones`, a list with commas.
fn is_in_zone(request: &PlacementRequest, view: &PoolView) -> Result<(), String> {
    let zone = view.availability_zone.as_str();
    if let Some(wanted) = request.availability_zone.as_ref().filter(|wanted| *wanted != zone) {
        return Err(format!("it is in {zone}, not in {wanted}"));
    }
    let Some(listed) = request.extra_specs.get("availability_zones") else { return Ok(()) };
    let listed: Vec<&str> = listed.split(',').map(str::trim).filter(|z| !z.is_empty()).collect();
    if listed.is_empty() || listed.contains(&zone) {
        Ok(())
    } else {
        Err(format!("it is in {zone}; the share type wants {}", listed.join(" or ")))
    }
}

fn speaks(request: &PlacementRequest, view: &PoolView) -> Result<(), String> {
    let offered = &view.backend.capabilities.share_protocols;
    if request.protocol.is_empty() || offered.iter().any(|p| p.eq_ignore_ascii_case(&request.protocol)) {
        return Ok(());
    }
    let offered = if offered.is_empty() { "none".into() } else { offered.join(", ") };
    Err(format!("it serves {offered}, not {}", request.protocol))
}

/// Each spec against what is known of the pool; the style has a filter of its own.
fn satisfies_specs(request: &PlacementRequest, view: &PoolView) -> Result<(), String> {
    let replicates = request.replication.is_some();
    specs::satisfied(&facts(view), &request.extra_specs, |name| replicates && name == "replication_type")
}

fn offers_style(request: &PlacementRequest, view: &PoolView) -> Result<(), String> {
    let Some(wanted) = &request.replication else { return Ok(()) };
    let driver = &view.backend.driver;
    let Some(offered) = &view.backend.capabilities.replication else {
        return Err(format!("driver {driver} does not replicate"));
    };
    if wanted.style != Style::Unknown && offered.styles.contains(&wanted.style) {
        return Ok(());
    }
    let styles: Vec<_> = offered.styles.iter().map(|style| style.as_str()).collect();
    Err(format!(
        "driver {driver} offers replication_type {}, not {}",
        if styles.is_empty() { "none".into() } else { styles.join(", ") },
        wanted.style.as_str()
    ))
}

/// What the back end of the pool, and that of the active instance, take at most.
fn takes_one_more(request: &PlacementRequest, view: &PoolView) -> Result<(), String> {
    let Some(wanted) = &request.replication else { return Ok(()) };
    let in_all =
        u32::try_from(wanted.existing.len()).unwrap_or(u32::MAX).saturating_add(wanted.new_instances);
    let of_active = wanted.active.as_ref().map(|(_, able)| able);
    for able in [Some(&view.backend.capabilities), of_active].into_iter().flatten() {
        let most = able.replication.as_ref().and_then(|r| r.max_instances);
        if let Some(most) = most.filter(|most| in_all > *most) {
            return Err(format!("a share can have at most {most} instances there, not {in_all}"));
        }
    }
    Ok(())
}

fn holds_none(request: &PlacementRequest, view: &PoolView) -> Result<(), String> {
    match &request.replication {
        Some(ReplicationRequest { existing, .. }) if existing.contains(&view.address) => {
            Err("it holds an instance of the share already".into())
        }
        _ => Ok(()),
    }
}

fn replicates_with_active(request: &PlacementRequest, view: &PoolView) -> Result<(), String> {
    let Some((at, able)) = request.replication.as_ref().and_then(|r| r.active.as_ref()) else {
        return Ok(());
    };
    let (Some(here), Some(there)) = (replication(&view.backend.capabilities), replication(able)) else {
        return Err(format!("it and {at}, which holds the active instance, do not both replicate"));
    };
    if here.domain != there.domain {
        let name = |domain: &Option<String>| match domain {
            Some(domain) => format!("in the replication domain {domain}"),
            None => "in no replication domain".into(),
        };
        return Err(format!(
            "it is {}, but {at}, which holds the active instance, is {}",
            name(&here.domain),
            name(&there.domain)
        ));
    }
    if understand(&here.transport, &there.transport) {
        return Ok(());
    }
    Err(format!(
        "it replicates by {}, but {at}, which holds the active instance, by {}",
        describe(&here.transport),
        describe(&there.transport)
    ))
}

fn replication(able: &Capabilities) -> Option<&ReplicationCapability> {
    able.replication.as_ref()
}

/// Whether both sides stream a format, or their storage speaks a protocol, that both know.
fn understand(here: &Transport, there: &Transport) -> bool {
    match (here, there) {
        (Transport::Streamed { formats: here, .. }, Transport::Streamed { formats: there, .. })
        | (Transport::Storage { protocols: here }, Transport::Storage { protocols: there }) => {
            here.iter().any(|one| there.contains(one))
        }
        _ => false,
    }
}

fn describe(transport: &Transport) -> String {
    match transport {
        Transport::Streamed { formats, .. } => format!("streams ({})", formats.join(", ")),
        Transport::Storage { protocols } => format!("its storage ({})", protocols.join(", ")),
        _ => "a way that this server does not know".into(),
    }
}

fn has_room(request: &PlacementRequest, view: &PoolView) -> Result<(), String> {
    room::fits(request.size_gb, view)
}
