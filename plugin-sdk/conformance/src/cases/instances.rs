//! Instances: made, resized, observed, removed.

use tandem_contract::*;
use uuid::Uuid;

use crate::case::list;
use crate::check::{Check, changed, ensure, refused, same, succeeds, unchanged};
use crate::content::{folder_of, sample};
use crate::scene::{SIZE, Scene};

list! {
    1 "create_instance repeats as unchanged" Nothing create_repeats;
    1 "resize_instance repeats as unchanged" Nothing resize_repeats;
    1 "ensure_instance repeats as unchanged" Nothing ensure_repeats;
    1 "delete_instance repeats as unchanged" Nothing delete_repeats;
    1 "attach and detach repeat as unchanged" Attach attach_repeats;
    2 "create_instance with other arguments is a conflict" Nothing create_conflicts;
    2 "attach the other way is a conflict" Attach attach_conflicts;
    3 "verbs on an unknown instance say not found" Nothing unknown;
    4 "what was made is known to a driver opened later" Nothing remembered;
    5 "observe describes an instance after each step" Nothing observed;
    6 "a stale epoch is refused by each verb of an instance" Nothing stale;
    6 "a stale epoch is refused by attach" Attach stale_attach;
    17 "a deleted instance leaves nothing and its id can be used again" Nothing leaves_nothing;
    19 "an active instance can be written and read" Nothing active_serves;
}

async fn create_repeats(scene: Scene) -> Check {
    let (spec, first) = scene.active().await?;
    for _ in 0..2 {
        let again = scene.here.call(CreateInstance { spec: spec.clone() }).await;
        same("the repeat's value", &unchanged("the repeat of `create_instance`", again)?, &first)?;
    }
    Ok(())
}

async fn resize_repeats(scene: Scene) -> Check {
    if !scene.capabilities.extend {
        return Ok(());
    }
    let (spec, _) = scene.active().await?;
    let call = ResizeInstance { instance: spec.instance, epoch: spec.epoch, size_bytes: 2 * SIZE };
    let first = changed("`resize_instance`", scene.here.call(call.clone()).await)?;
    for _ in 0..2 {
        let again = unchanged("the repeat of `resize_instance`", scene.here.call(call.clone()).await)?;
        same("the repeat's value", &again, &first)?;
    }
    if scene.capabilities.shrink {
        let smaller = ResizeInstance { size_bytes: SIZE, ..call };
        changed("shrinking an empty instance", scene.here.call(smaller).await)?;
        same("the size", &scene.observe(&scene.here, spec.instance).await?.size_bytes, &SIZE)?;
    }
    Ok(())
}

async fn ensure_repeats(scene: Scene) -> Check {
    let (spec, made) = scene.active().await?;
    for _ in 0..3 {
        let call = EnsureInstance { instance: spec.instance, epoch: spec.epoch };
        let served = unchanged("`ensure_instance` of what is served", scene.here.call(call).await)?;
        same("its exports", &served.exports, &made.exports)?;
    }
    Ok(())
}

async fn delete_repeats(scene: Scene) -> Check {
    let (spec, _) = scene.active().await?;
    let call = DeleteInstance { instance: spec.instance };
    changed("`delete_instance`", scene.here.call(call.clone()).await)?;
    for _ in 0..2 {
        unchanged("the repeat of `delete_instance`", scene.here.call(call.clone()).await)?;
    }
    Ok(())
}

async fn attach_repeats(scene: Scene) -> Check {
    let (spec, _) = scene.active().await?;
    let call = Attach { instance: spec.instance, epoch: spec.epoch, read_only: true };
    let first = changed("`attach`", scene.here.call(call.clone()).await)?;
    ensure(first.path.starts_with('/'), || format!("`{}` is no absolute path", first.path))?;
    same("the repeat's value", &unchanged("the repeat of `attach`", scene.here.call(call).await)?, &first)?;
    let call = Detach { instance: spec.instance };
    changed("`detach`", scene.here.call(call.clone()).await)?;
    unchanged("the repeat of `detach`", scene.here.call(call).await)?;
    Ok(())
}

async fn create_conflicts(scene: Scene) -> Check {
    let (spec, _) = scene.active().await?;
    let before = scene.observe(&scene.here, spec.instance).await?;
    let others = [
        InstanceSpec { resource: ResourceId(Uuid::new_v4()), ..spec.clone() },
        InstanceSpec { size_bytes: 2 * SIZE, ..spec.clone() },
    ];
    for spec in others {
        let answer = scene.here.call(CreateInstance { spec }).await;
        refused("`create_instance` with other arguments", answer, &[ErrorKind::Conflict])?;
    }
    same("the observation afterwards", &scene.observe(&scene.here, spec.instance).await?, &before)
}

async fn attach_conflicts(scene: Scene) -> Check {
    let (spec, _) = scene.active().await?;
    let call = Attach { instance: spec.instance, epoch: spec.epoch, read_only: true };
    changed("`attach`", scene.here.call(call.clone()).await)?;
    let other = scene.here.call(Attach { read_only: false, ..call }).await;
    refused("`attach` the other way", other, &[ErrorKind::Conflict])?;
    Ok(())
}

async fn unknown(scene: Scene) -> Check {
    let instance = InstanceId(Uuid::new_v4());
    let (epoch, missing, here) = (Epoch(1), [ErrorKind::NotFound], &scene.here);
    same(
        "what is observed",
        &succeeds("`observe_instance`", here.call(ObserveInstance { instance }).await)?,
        &None,
    )?;
    unchanged("`delete_instance` of nothing", here.call(DeleteInstance { instance }).await)?;
    let resize = here.call(ResizeInstance { instance, epoch, size_bytes: SIZE }).await;
    refused("`resize_instance` of nothing", resize, &missing)?;
    refused("`ensure_instance` of nothing", here.call(EnsureInstance { instance, epoch }).await, &missing)?;
    let access = AccessSpec { rules: Vec::new(), read_only: false };
    refused(
        "`update_access` of nothing",
        here.call(UpdateAccess { instance, epoch, access }).await,
        &missing,
    )?;
    if scene.capabilities.attach.is_some() {
        refused(
            "`attach` of nothing",
            here.call(Attach { instance, epoch, read_only: true }).await,
            &missing,
        )?;
        unchanged("`detach` of nothing", here.call(Detach { instance }).await)?;
    }
    Ok(())
}

async fn remembered(scene: Scene) -> Check {
    let (spec, _) = scene.active().await?;
    let before = scene.observe(&scene.here, spec.instance).await?;
    let later = scene.subject.side(false, false);
    same("the observation of a driver opened later", &scene.observe(&later, spec.instance).await?, &before)?;
    unchanged("the repeat of `create_instance`", later.call(CreateInstance { spec: spec.clone() }).await)?;
    let listed = succeeds("`list_instances`", later.call(ListInstances {}).await)?;
    ensure(listed.contains(&spec.instance), || {
        "`list_instances` of a driver opened later lacks it".to_owned()
    })
}

async fn observed(scene: Scene) -> Check {
    let (spec, made) = scene.active().await?;
    let seen = scene.observe(&scene.here, spec.instance).await?;
    same("the role", &seen.role, &Role::Active)?;
    same("the epoch", &seen.epoch, &spec.epoch)?;
    same("the resource", &seen.resource, &spec.resource)?;
    same("the size", &seen.size_bytes, &SIZE)?;
    same("the exports", &seen.exports, &made.exports)?;
    same("read-only", &seen.read_only, &false)?;
    same("the points", &seen.points, &Vec::new())?;
    same("the health", &seen.health, &Health::Ok)?;
    let listed = succeeds("`list_instances`", scene.here.call(ListInstances {}).await)?;
    ensure(listed.contains(&spec.instance), || "`list_instances` lacks it".to_owned())
}

async fn stale(scene: Scene) -> Check {
    let (spec, _) = scene.active().await?;
    let before = scene.observe(&scene.here, spec.instance).await?;
    let (instance, epoch, here, kinds) =
        (spec.instance, Epoch(spec.epoch.0 - 1), &scene.here, [ErrorKind::StaleEpoch]);
    let create = here.call(CreateInstance { spec: InstanceSpec { epoch, ..spec.clone() } }).await;
    refused("`create_instance` at a stale epoch", create, &kinds)?;
    let resize = here.call(ResizeInstance { instance, epoch, size_bytes: 2 * SIZE }).await;
    refused("`resize_instance` at a stale epoch", resize, &kinds)?;
    let access = AccessSpec { rules: Vec::new(), read_only: true };
    let access = here.call(UpdateAccess { instance, epoch, access }).await;
    refused("`update_access` at a stale epoch", access, &kinds)?;
    let served = here.call(EnsureInstance { instance, epoch }).await;
    refused("`ensure_instance` at a stale epoch", served, &kinds)?;
    same("the observation afterwards", &scene.observe(here, instance).await?, &before)
}

async fn stale_attach(scene: Scene) -> Check {
    let (spec, _) = scene.active().await?;
    let call = Attach { instance: spec.instance, epoch: Epoch(spec.epoch.0 - 1), read_only: true };
    refused("`attach` at a stale epoch", scene.here.call(call).await, &[ErrorKind::StaleEpoch])?;
    Ok(())
}

async fn leaves_nothing(scene: Scene) -> Check {
    let (spec, made) = scene.active().await?;
    scene.fill(&scene.here, spec.instance, spec.epoch, &sample(1)).await?;
    let folder = folder_of(&made.exports);
    changed("`delete_instance`", scene.here.call(DeleteInstance { instance: spec.instance }).await)?;
    let seen = scene.here.call(ObserveInstance { instance: spec.instance }).await;
    same("what is observed of a deleted instance", &succeeds("`observe_instance`", seen)?, &None)?;
    let listed = succeeds("`list_instances`", scene.here.call(ListInstances {}).await)?;
    ensure(!listed.contains(&spec.instance), || "`list_instances` still has it".to_owned())?;
    if let Some(folder) = folder {
        ensure(!folder.exists(), || format!("its export {} is still there", folder.display()))?;
    }
    changed("`create_instance` with its id", scene.here.call(CreateInstance { spec: spec.clone() }).await)?;
    scene.holds(&scene.here, spec.instance, spec.epoch, &crate::content::Content::new()).await
}

async fn active_serves(scene: Scene) -> Check {
    let (spec, _) = scene.active().await?;
    let content = sample(2);
    if scene.fill(&scene.here, spec.instance, spec.epoch, &content).await? {
        scene.holds(&scene.here, spec.instance, spec.epoch, &content).await?;
        if let Some(used) = scene.observe(&scene.here, spec.instance).await?.used_bytes {
            ensure(used > 0, || "it holds files, but `used_bytes` is 0".to_owned())?;
        }
    }
    Ok(())
}
