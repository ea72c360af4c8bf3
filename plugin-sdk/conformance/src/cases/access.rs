//! Access rules.

use tandem_contract::*;
use uuid::Uuid;

use crate::case::list;
use crate::check::{Check, changed, ensure, same, succeeds, unchanged};
use crate::scene::Scene;

list! {
    18 "each rule is reported and none claimed that is not enforced" Nothing reported;
    18 "read only takes write access away and gives it back" Nothing read_only;
    1 "update_access repeats as unchanged" Nothing repeats;
}

fn rule(access_type: &str, access_to: &str, access_level: AccessLevel) -> AccessRule {
    AccessRule {
        id: Uuid::new_v4(),
        access_type: access_type.to_owned(),
        access_to: access_to.to_owned(),
        access_level,
    }
}

/// Rules of types that the driver takes.
fn rules(scene: &Scene) -> Vec<AccessRule> {
    let kind = scene.capabilities.access_types.first().map_or("ip", String::as_str);
    let (one, other) = if kind == "ip" { ("192.0.2.1", "198.51.100.0/24") } else { ("alice", "bob") };
    vec![rule(kind, one, AccessLevel::Rw), rule(kind, other, AccessLevel::Ro)]
}

async fn reported(scene: Scene) -> Check {
    let (spec, _) = scene.active().await?;
    let rules = rules(&scene);
    for rules in [rules.clone(), vec![rules[1].clone()], Vec::new()] {
        let ids: Vec<Uuid> = rules.iter().map(|rule| rule.id).collect();
        let access = AccessSpec { rules, read_only: false };
        let call = UpdateAccess { instance: spec.instance, epoch: spec.epoch, access };
        let report = succeeds("`update_access`", scene.here.call(call).await)?.into_inner();
        same("the rules reported", &report.rules.iter().map(|r| r.id).collect::<Vec<_>>(), &ids)?;
        for rule in &report.rules {
            let enforces = scene.capabilities.access_enforcement == AccessEnforcement::Full;
            ensure(enforces || !rule.enforced, || {
                "a rule is called enforced, but the capabilities say none is".to_owned()
            })?;
            ensure(!enforces || rule.enforced || rule.error.is_some(), || {
                "a rule is neither enforced nor in error, but the capabilities say that all are enforced"
                    .to_owned()
            })?;
        }
    }
    Ok(())
}

async fn read_only(scene: Scene) -> Check {
    let (spec, _) = scene.active().await?;
    for read_only in [true, false] {
        let access = AccessSpec { rules: rules(&scene), read_only };
        let call = UpdateAccess { instance: spec.instance, epoch: spec.epoch, access };
        changed("`update_access`", scene.here.call(call).await)?;
        same("read-only", &scene.observe(&scene.here, spec.instance).await?.read_only, &read_only)?;
    }
    Ok(())
}

async fn repeats(scene: Scene) -> Check {
    let (spec, _) = scene.active().await?;
    let access = AccessSpec { rules: rules(&scene), read_only: true };
    let call = UpdateAccess { instance: spec.instance, epoch: spec.epoch, access };
    let first = succeeds("`update_access`", scene.here.call(call.clone()).await)?.into_inner();
    for _ in 0..2 {
        let again = unchanged("the repeat of `update_access`", scene.here.call(call.clone()).await)?;
        same("the repeat's value", &again, &first)?;
    }
    Ok(())
}
