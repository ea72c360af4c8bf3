//! Migration by the driver: rounds while users write, one switch, and a source that stays until then.

use serde_json::{Map, Value};
use tandem_contract::*;
use uuid::Uuid;

use crate::case::list;
use crate::check::{Check, changed, ensure, refused, same, succeeds, unchanged};
use crate::content::{Content, sample};
use crate::scene::Scene;

list! {
    28 "a migration carries what users write until it is completed" Migration carries;
    28 "a cancelled migration leaves the source as it was" Migration cancelled;
    28 "a migration that is not complete lets the source not go" Migration not_yet;
    28 "what was not started neither goes on nor switches" Migration not_started;
    28 "a check of compatibility changes nothing" Migration checks;
    1 "verbs of a migration repeat as unchanged" Migration repeats;
    2 "a migration to elsewhere is a conflict while one runs" Migration elsewhere;
    6 "a stale epoch is refused by each verb of migration" Migration stale;
}

/// Rounds that a first phase of little content may take.
const ROUNDS: usize = 200;

/// A source here with `content`, and an empty destination there.
async fn sides(scene: &Scene, content: &Content) -> Check<MigrationSpec> {
    let source = scene.spec(&scene.here, None).await?;
    changed("`create_instance`", scene.here.call(CreateInstance { spec: source.clone() }).await)?;
    scene.fill(&scene.here, source.instance, source.epoch, content).await?;
    prepared(scene, &source).await
}

async fn prepared(scene: &Scene, source: &InstanceSpec) -> Check<MigrationSpec> {
    let pool = scene.spec(&scene.there, None).await?.pool;
    let instance = InstanceId(Uuid::new_v4());
    scene.will_make(instance);
    let spec = InstanceSpec { instance, pool, epoch: source.epoch.next(), ..source.clone() };
    let info =
        changed("`prepare_destination`", scene.there.call(PrepareDestination { spec: spec.clone() }).await)?;
    same("the exports of an empty destination", &info.exports, &Vec::new())?;
    unchanged("its repeat", scene.there.call(PrepareDestination { spec: spec.clone() }).await)?;
    same("the destination's role", &scene.observe(&scene.there, instance).await?.role, &Role::Destination)?;
    let endpoint = succeeds("`get_endpoint`", scene.there.call(GetEndpoint { instance }).await)?;
    let capabilities = serde_json::to_value(&*scene.capabilities).unwrap_or_default();
    let to = scene.capabilities.migration.as_ref().and_then(|m| m.to_drivers.first()).cloned();
    let mut destination_driver = Map::new();
    destination_driver.insert("driver".into(), to.ok_or("the driver understands no destination")?.into());
    destination_driver.insert("backend".into(), "there".into());
    destination_driver.insert("host".into(), format!("host@there#{}", spec.pool).into());
    destination_driver.insert("capabilities".into(), capabilities);
    Ok(MigrationSpec {
        resource: source.resource,
        kind: source.kind,
        source: source.instance,
        destination: instance,
        epoch: source.epoch,
        endpoint: serde_json::to_value(endpoint).unwrap_or_default(),
        destination_driver,
    })
}

/// Rounds until the first phase is done.
async fn first_phase(scene: &Scene, migration: &MigrationSpec) -> Check {
    changed("`migration_start`", scene.here.call(MigrationStart { migration: migration.clone() }).await)?;
    let mut newest = 0;
    for _ in 0..ROUNDS {
        let verb = MigrationContinue { migration: migration.clone() };
        let now = succeeds("`migration_continue`", scene.here.call(verb).await)?;
        let (done, total) = (now.progress.done, now.progress.total);
        ensure(total.is_none_or(|total| done <= total), || format!("{done} bytes are done of {total:?}"))?;
        newest = newest.max(done);
        if now.first_phase_done {
            let verb = MigrationGetProgress { migration: migration.clone() };
            let told = succeeds("`migration_get_progress`", scene.here.call(verb).await)?;
            return same("whether the first phase is done", &told.first_phase_done, &true);
        }
    }
    Err(format!("the first phase is not done after {ROUNDS} rounds ({newest} bytes)"))
}

async fn carries(scene: Scene) -> Check {
    let migration = sides(&scene, &sample(1)).await?;
    first_phase(&scene, &migration).await?;
    let here = scene.observe(&scene.here, migration.source).await?;
    same("the source's role before the switch", &here.role, &Role::Active)?;
    same("whether it is read-only", &here.read_only, &false)?;
    // Written, changed and removed after the first phase.
    let mut content = sample(1);
    content.extend([("late".to_owned(), b"late".to_vec()), ("file 3".to_owned(), b"new".to_vec())]);
    content.remove("file 5");
    scene.fill(&scene.here, migration.source, migration.epoch, &content).await?;
    let verb = MigrationComplete { migration: migration.clone() };
    let switched = changed("`migration_complete`", scene.here.call(verb).await)?;
    let there = scene.observe(&scene.there, migration.destination).await?;
    same("the destination's role", &there.role, &Role::Active)?;
    same("the destination's epoch", &there.epoch, &migration.epoch.next())?;
    same("what the switch says of its exports", &switched.exports, &there.exports)?;
    let here = scene.observe(&scene.here, migration.source).await?;
    ensure(here.role != Role::Active && here.exports.is_empty(), || {
        format!("the source still serves users: {:?} {:?}", here.role, here.exports)
    })?;
    scene.holds(&scene.there, migration.destination, migration.epoch.next(), &content).await?;
    refused(
        "`migration_cancel` after the switch",
        scene.here.call(MigrationCancel { migration: migration.clone() }).await,
        &[ErrorKind::Conflict],
    )?;
    succeeds(
        "`migration_release`",
        scene.here.call(MigrationRelease { migration: migration.clone() }).await,
    )?;
    succeeds(
        "`delete_instance` of the source",
        scene.here.call(DeleteInstance { instance: migration.source }).await,
    )?;
    scene.holds(&scene.there, migration.destination, migration.epoch.next(), &content).await
}

async fn cancelled(scene: Scene) -> Check {
    let content = sample(2);
    let migration = sides(&scene, &content).await?;
    let before = scene.observe(&scene.here, migration.source).await?;
    first_phase(&scene, &migration).await?;
    let verb = MigrationCancel { migration: migration.clone() };
    changed("`migration_cancel`", scene.here.call(verb.clone()).await)?;
    unchanged("its repeat", scene.here.call(verb).await)?;
    let after = scene.observe(&scene.here, migration.source).await?;
    same("the source's role", &after.role, &before.role)?;
    same("its epoch", &after.epoch, &before.epoch)?;
    same("its exports", &after.exports, &before.exports)?;
    same("whether it is read-only", &after.read_only, &before.read_only)?;
    same("its points", &after.points, &before.points)?;
    succeeds(
        "`delete_instance` of the destination",
        scene.there.call(DeleteInstance { instance: migration.destination }).await,
    )?;
    let mut more = content;
    more.insert("still writable".to_owned(), b"yes".to_vec());
    scene.fill(&scene.here, migration.source, migration.epoch, &more).await?;
    scene.holds(&scene.here, migration.source, migration.epoch, &more).await
}

async fn not_yet(scene: Scene) -> Check {
    let content = sample(3);
    let migration = sides(&scene, &content).await?;
    first_phase(&scene, &migration).await?;
    refused(
        "`migration_release` before the switch",
        scene.here.call(MigrationRelease { migration: migration.clone() }).await,
        &[ErrorKind::Conflict],
    )?;
    scene.holds(&scene.here, migration.source, migration.epoch, &content).await
}

async fn not_started(scene: Scene) -> Check {
    let migration = sides(&scene, &sample(4)).await?;
    let verb = MigrationContinue { migration: migration.clone() };
    refused("`migration_continue`", scene.here.call(verb).await, &[ErrorKind::Conflict])?;
    let verb = MigrationComplete { migration: migration.clone() };
    refused("`migration_complete`", scene.here.call(verb).await, &[ErrorKind::Conflict])?;
    unchanged("`migration_cancel`", scene.here.call(MigrationCancel { migration }).await).map(drop)
}

async fn checks(scene: Scene) -> Check {
    let migration = sides(&scene, &sample(5)).await?;
    let before = scene.observe(&scene.here, migration.source).await?;
    // It is asked before there is a destination.
    let early = MigrationSpec { endpoint: Value::Null, ..migration.clone() };
    let verb = MigrationCheckCompatibility { migration: early };
    let found = succeeds("`migration_check_compatibility`", scene.here.call(verb).await)?;
    ensure(found.compatible, || "it does not understand the destination that its capabilities name".into())?;
    let mut strange = migration.clone();
    strange.destination_driver.insert("driver".into(), "some other driver".into());
    let verb = MigrationCheckCompatibility { migration: strange };
    let found = succeeds("`migration_check_compatibility`", scene.here.call(verb).await)?;
    same("whether it understands a driver that it never heard of", &found.compatible, &false)?;
    same("the source", &scene.observe(&scene.here, migration.source).await?, &before)
}

async fn repeats(scene: Scene) -> Check {
    let migration = sides(&scene, &sample(6)).await?;
    first_phase(&scene, &migration).await?;
    unchanged(
        "the repeat of `migration_start`",
        scene.here.call(MigrationStart { migration: migration.clone() }).await,
    )?;
    let verb = MigrationComplete { migration: migration.clone() };
    let first = changed("`migration_complete`", scene.here.call(verb.clone()).await)?;
    for _ in 0..2 {
        let again = unchanged("the repeat of `migration_complete`", scene.here.call(verb.clone()).await)?;
        same("its value", &again, &first)?;
    }
    let verb = MigrationRelease { migration };
    succeeds("`migration_release`", scene.here.call(verb.clone()).await)?;
    unchanged("the repeat of `migration_release`", scene.here.call(verb).await).map(drop)
}

async fn elsewhere(scene: Scene) -> Check {
    let source = scene.spec(&scene.here, None).await?;
    changed("`create_instance`", scene.here.call(CreateInstance { spec: source.clone() }).await)?;
    let one = prepared(&scene, &source).await?;
    let other = prepared(&scene, &source).await?;
    changed("`migration_start`", scene.here.call(MigrationStart { migration: one.clone() }).await)?;
    let verb = MigrationStart { migration: other };
    refused("`migration_start` to elsewhere", scene.here.call(verb).await, &[ErrorKind::Conflict])?;
    changed("`migration_cancel`", scene.here.call(MigrationCancel { migration: one }).await).map(drop)
}

async fn stale(scene: Scene) -> Check {
    let now = sides(&scene, &sample(7)).await?;
    let migration = MigrationSpec { epoch: Epoch(now.epoch.0 - 1), ..now.clone() };
    let stale = [ErrorKind::StaleEpoch];
    let verb = MigrationCheckCompatibility { migration: migration.clone() };
    refused("`migration_check_compatibility`", scene.here.call(verb).await, &stale)?;
    let verb = MigrationStart { migration: migration.clone() };
    refused("`migration_start`", scene.here.call(verb).await, &stale)?;
    first_phase(&scene, &now).await?;
    let verb = MigrationContinue { migration: migration.clone() };
    refused("`migration_continue`", scene.here.call(verb).await, &stale)?;
    let verb = MigrationComplete { migration };
    refused("`migration_complete`", scene.here.call(verb).await, &stale).map(drop)
}
