//! Fingerprints of what an instance holds, read again from its storage.

use tandem_contract::*;
use uuid::Uuid;

use crate::case::list;
use crate::check::{Check, changed, ensure, refused, same, succeeds};
use crate::content::{Content, noise, sample};
use crate::scene::{Pair, Scene};
use crate::side::{SECONDS, Side};

list! {
    20 "an instance and its replica have one fingerprint" Prints alike;
    20 "a fingerprint is of its point, however users write" Prints stands;
    3 "a fingerprint of what is not there is refused" Prints of_nothing;
    5 "a fingerprint changes nothing and leaves nothing" Prints leaves_nothing;
    7 "a cancelled fingerprint stops in seconds" Prints cancelled;
}

fn form(scene: &Scene) -> String {
    let replication = scene.capabilities.replication.as_ref();
    replication.and_then(|r| r.fingerprints.first()).cloned().unwrap_or_default()
}

fn call(scene: &Scene, instance: InstanceId, point: PointId) -> ReadFingerprint {
    ReadFingerprint { instance, point, form: form(scene), bandwidth: None }
}

async fn read(scene: &Scene, side: &Side, instance: InstanceId, point: PointId) -> Check<ContentFingerprint> {
    let read = succeeds("`fingerprint`", side.call(call(scene, instance, point)).await)?;
    same("the form of the fingerprint", &read.form, &form(scene))?;
    ensure(!read.parts.is_empty(), || "the fingerprint has no part".to_owned())?;
    same("what is damaged", &read.damaged, &Vec::new())?;
    Ok(read)
}

/// The aspects that both have and in which they differ.
fn differ(a: &ContentFingerprint, b: &ContentFingerprint) -> Check<Vec<String>> {
    let both: Vec<&String> = a.parts.keys().filter(|part| b.parts.contains_key(*part)).collect();
    ensure(!both.is_empty(), || "two fingerprints have no part in common".to_owned())?;
    Ok(both.into_iter().filter(|part| a.parts.get(*part) != b.parts.get(*part)).cloned().collect())
}

async fn pair(scene: &Scene) -> Check<Pair> {
    let style = scene.style(Style::Readable).ok_or_else(|| "replication without a style".to_owned())?;
    scene.pair(style).await
}

async fn synced(scene: &Scene, content: &Content) -> Check<(Pair, PointInfo, bool)> {
    let pair = pair(scene).await?;
    let seen = scene.fill(&scene.here, pair.active.instance, pair.epoch, content).await?;
    let point = scene.point(&scene.here, pair.active.instance, pair.epoch).await?;
    scene.sync(&pair, &point, None).await?;
    Ok((pair, point, seen))
}

async fn alike(scene: Scene) -> Check {
    let mut content = sample(50);
    let (pair, mut point, can_see) = synced(&scene, &content).await?;
    let mut before: Option<ContentFingerprint> = None;
    for round in 0..3u64 {
        let one = read(&scene, &scene.here, pair.active.instance, point.id).await?;
        let other = read(&scene, &scene.there, pair.replica.instance, point.id).await?;
        same("what differs between an instance and its replica", &differ(&one, &other)?, &Vec::new())?;
        if let Some(before) = before.replace(one.clone()) {
            ensure(!can_see || !differ(&before, &one)?.is_empty(), || {
                "another content has the same fingerprint".to_owned()
            })?;
        }
        content.remove(&format!("file {round}"));
        content.insert(format!("file {}", round + 5), noise(round, 70_000));
        scene.fill(&scene.here, pair.active.instance, pair.epoch, &content).await?;
        let next = scene.point(&scene.here, pair.active.instance, pair.epoch).await?;
        scene.sync(&pair, &next, Some(&point)).await?;
        point = next;
    }
    Ok(())
}

async fn stands(scene: Scene) -> Check {
    let (pair, point, _) = synced(&scene, &sample(51)).await?;
    let before = read(&scene, &scene.here, pair.active.instance, point.id).await?;
    scene.fill(&scene.here, pair.active.instance, pair.epoch, &sample(52)).await?;
    let after = read(&scene, &scene.here, pair.active.instance, point.id).await?;
    same("what differs since users wrote", &differ(&before, &after)?, &Vec::new())?;
    let other = read(&scene, &scene.there, pair.replica.instance, point.id).await?;
    same("what differs between an instance and its replica", &differ(&after, &other)?, &Vec::new())
}

async fn of_nothing(scene: Scene) -> Check {
    let (pair, point, _) = synced(&scene, &sample(53)).await?;
    let gone = [ErrorKind::NotFound];
    let nobody = call(&scene, InstanceId(Uuid::new_v4()), point.id);
    refused("`fingerprint` of no instance", scene.here.call(nobody).await, &gone)?;
    for (side, instance) in [(&scene.here, pair.active.instance), (&scene.there, pair.replica.instance)] {
        let never = call(&scene, instance, PointId(Uuid::new_v4()));
        refused("`fingerprint` of no point", side.call(never).await, &gone)?;
        let other = ReadFingerprint { form: "no such form".to_owned(), ..call(&scene, instance, point.id) };
        let kinds = [ErrorKind::InvalidArgument, ErrorKind::Unsupported];
        refused("`fingerprint` in an unknown form", side.call(other).await, &kinds)?;
    }
    let released = ReleasePoint { instance: pair.active.instance, point: point.id };
    changed("`release_point`", scene.here.call(released).await)?;
    let late = call(&scene, pair.active.instance, point.id);
    refused("`fingerprint` of a point that was released", scene.here.call(late).await, &gone).map(drop)
}

async fn leaves_nothing(scene: Scene) -> Check {
    let (pair, point, _) = synced(&scene, &sample(54)).await?;
    for (side, instance) in [(&scene.here, pair.active.instance), (&scene.there, pair.replica.instance)] {
        let before = scene.observe(side, instance).await?;
        for _ in 0..2 {
            read(&scene, side, instance, point.id).await?;
        }
        let mut after = scene.observe(side, instance).await?;
        // What is written down late counts late.
        after.used_bytes = before.used_bytes;
        same("the observation after a fingerprint", &after, &before)?;
    }
    // And nothing keeps the point, or the instance, from going.
    let next = scene.point(&scene.here, pair.active.instance, pair.epoch).await?;
    scene.sync(&pair, &next, Some(&point)).await?;
    let released = ReleasePoint { instance: pair.active.instance, point: point.id };
    changed("`release_point`", scene.here.call(released).await).map(drop)
}

async fn cancelled(scene: Scene) -> Check {
    let content: Content = (0..4).map(|i| (format!("large {i}"), noise(i, 1 << 20))).collect();
    let (pair, point, _) = synced(&scene, &content).await?;
    for (side, instance) in [(&scene.here, pair.active.instance), (&scene.there, pair.replica.instance)] {
        // An hour's work, where the limit is kept.
        let slow = ReadFingerprint { bandwidth: Some(1000), ..call(&scene, instance, point.id) };
        let mut running = succeeds("starting `fingerprint`", side.start(slow, Vec::new(), None).await)?;
        succeeds("cancelling it", running.cancel().await)?;
        match running.ends::<ReadFingerprint>(SECONDS).await {
            Err(e) if e.kind != ErrorKind::Cancelled => {
                return Err(format!("a cancelled `fingerprint` ended with {e}"));
            }
            _ => {}
        }
        read(&scene, side, instance, point.id).await?;
    }
    Ok(())
}
