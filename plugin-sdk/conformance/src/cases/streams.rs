//! Points and streams: full, incremental, cut, damaged, cancelled, dropped, two at once.

use std::time::Duration;

use tandem_contract::*;
use tokio::time::timeout;
use uuid::Uuid;

use crate::case::list;
use crate::check::{Check, changed, ensure, refused, same, succeeds, unchanged};
use crate::content::{Content, noise, sample};
use crate::pipe::{self, Mishap, Watched, watched};
use crate::scene::{Pair, Scene, no_bug};
use crate::side::{LONG, SECONDS};

list! {
    1 "make_point and release_point repeat as unchanged" Streams point_repeats;
    1 "receive and discard_partial repeat as unchanged" Streams receive_repeats;
    13 "progress is honest through a transfer" Streams honest;
    20 "a point keeps its moment" Streams moment;
    20 "points are made on the active instance" Streams on_active;
    21 "a full copy and increments arrive whole" Streams whole;
    21 "a reader sees the last whole point while the next arrives" StreamsReadable atomic;
    21 "a damaged stream is refused and the last point stays" Streams damaged;
    21 "a stream that builds on a missing point is refused" Streams missing_base;
    21 "a stream of another format is refused" Streams other_format;
    22 "an increment carries only what changed" Streams increment;
    23 "a cut transfer continues where it stopped" Resume resumes;
    23 "discard_partial forgets what arrived" Resume forgets;
    5 "a stream that ends at once leaves what was there" Streams ends_at_once;
    7 "a cancelled receive stops in seconds" Streams cancel_receive;
    7 "a cancelled send stops in seconds" Streams cancel_send;
    8 "a receive ends by its deadline" Streams deadline;
    9 "a dropped receive leaves something that works" Streams dropped;
    10 "a stalled transfer holds nobody else up" Streams stalled;
    10 "two syncs at once both arrive" Streams at_once;
}

fn style(scene: &Scene) -> Check<Style> {
    scene.style(Style::Readable).ok_or_else(|| "replication without a style".to_owned())
}

/// A pair whose replica holds `content` as its newest point.
async fn synced(scene: &Scene, content: &Content) -> Check<(Pair, PointInfo)> {
    let pair = scene.pair(style(scene)?).await?;
    scene.fill(&scene.here, pair.active.instance, pair.epoch, content).await?;
    let point = scene.point(&scene.here, pair.active.instance, pair.epoch).await?;
    scene.sync(&pair, &point, None).await?;
    Ok((pair, point))
}

/// Changes the active instance and makes a point of it.
async fn changed_to(scene: &Scene, pair: &Pair, content: &Content) -> Check<PointInfo> {
    scene.fill(&scene.here, pair.active.instance, pair.epoch, content).await?;
    scene.point(&scene.here, pair.active.instance, pair.epoch).await
}

async fn replica_holds(scene: &Scene, pair: &Pair, content: &Content) -> Check {
    scene.holds(&scene.there, pair.replica.instance, pair.epoch, content).await
}

async fn point_repeats(scene: Scene) -> Check {
    let (spec, _) = scene.active().await?;
    let call = MakePoint { instance: spec.instance, epoch: spec.epoch, point: PointId(Uuid::new_v4()) };
    let first = changed("`make_point`", scene.here.call(call.clone()).await)?;
    same("the point's id", &first.id, &call.point)?;
    ensure(!first.fingerprint.is_empty(), || "the point has no fingerprint".to_owned())?;
    for _ in 0..2 {
        let again = unchanged("the repeat of `make_point`", scene.here.call(call.clone()).await)?;
        same("the repeat's value", &again, &first)?;
    }
    let seen = scene.observe(&scene.here, spec.instance).await?;
    same("the points observed", &seen.points, &vec![first])?;
    let call = ReleasePoint { instance: spec.instance, point: call.point };
    changed("`release_point`", scene.here.call(call.clone()).await)?;
    unchanged("the repeat of `release_point`", scene.here.call(call).await)?;
    same("the points observed", &scene.observe(&scene.here, spec.instance).await?.points, &Vec::new())
}

async fn receive_repeats(scene: Scene) -> Check {
    let (pair, point) = synced(&scene, &sample(20)).await?;
    let ids = (pair.active.instance, pair.replica.instance);
    for _ in 0..2 {
        // A repeat after a crash may find no stream at all.
        let (_, receive) = scene.halves(ids, &scene.there, pair.epoch, &point, None).await?;
        let (read, _) = pipe::plain().map_err(|e| e.to_string())?;
        let again = scene.there.call_with(Receive { spec: receive }, vec![read]).await;
        let report = unchanged("the repeat of `receive`", again)?;
        same("the bytes it read", &report.bytes, &0)?;
    }
    for _ in 0..2 {
        let none = scene.there.call(DiscardPartial { instance: pair.replica.instance }).await;
        unchanged("`discard_partial` of nothing", none)?;
    }
    replica_holds(&scene, &pair, &sample(20)).await
}

async fn honest(scene: Scene) -> Check {
    // The suite's host listens to every call; what it heard is judged when the case ends.
    synced(&scene, &sample(21)).await.map(drop)
}

async fn moment(scene: Scene) -> Check {
    let pair = scene.pair(style(&scene)?).await?;
    let before = sample(22);
    let can_see = scene.fill(&scene.here, pair.active.instance, pair.epoch, &before).await?;
    let point = scene.point(&scene.here, pair.active.instance, pair.epoch).await?;
    if can_see {
        let mut after = before.clone();
        after.insert("later".to_owned(), noise(1, 5000));
        let next = changed_to(&scene, &pair, &after).await?;
        ensure(next.fingerprint != point.fingerprint, || {
            "another content has the same fingerprint".to_owned()
        })?;
        let call = UpdateReplicaState { instance: pair.active.instance, epoch: pair.epoch };
        let report = succeeds("`update_replica_state`", scene.here.call(call).await)?;
        same("the newest point", &report.newest_point.map(|p| p.id), &Some(next.id))?;
        same("changed since the point", &report.changed_since_point.unwrap_or(false), &false)?;
    }
    let again = MakePoint { instance: pair.active.instance, epoch: pair.epoch, point: point.id };
    let again = unchanged("the repeat of `make_point`", scene.here.call(again).await)?;
    same("the point asked for again", &again, &point)
}

async fn on_active(scene: Scene) -> Check {
    let (pair, _) = synced(&scene, &sample(23)).await?;
    let call =
        MakePoint { instance: pair.replica.instance, epoch: pair.epoch, point: PointId(Uuid::new_v4()) };
    refused("`make_point` on a secondary", scene.there.call(call).await, &[ErrorKind::Conflict])?;
    Ok(())
}

async fn whole(scene: Scene) -> Check {
    let mut content = sample(24);
    let (pair, mut point) = synced(&scene, &content).await?;
    replica_holds(&scene, &pair, &content).await?;
    for round in 0..3u64 {
        content.remove(&format!("file {round}"));
        content.insert(format!("file {}", round + 5), noise(round, 70_000));
        content.insert(format!("new {round}"), Vec::new());
        let next = changed_to(&scene, &pair, &content).await?;
        let carried = scene.sync(&pair, &next, Some(&point)).await?;
        let received = succeeds("`receive`", carried.received)?;
        ensure(received.is_changed(), || "a new point was `Unchanged`".to_owned())?;
        replica_holds(&scene, &pair, &content).await?;
        let released = ReleasePoint { instance: pair.active.instance, point: point.id };
        changed("`release_point`", scene.here.call(released).await)?;
        point = next;
    }
    Ok(())
}

async fn atomic(scene: Scene) -> Check {
    let before = sample(25);
    let (pair, point) = synced(&scene, &before).await?;
    let after = sample(26);
    let next = changed_to(&scene, &pair, &after).await?;
    let ids = (pair.active.instance, pair.replica.instance);
    let (send, receive) = scene.halves(ids, &scene.there, pair.epoch, &next, Some(&point)).await?;
    let Watched { write, read, relay, reached, pause } =
        watched(Mishap::Pause(200_000)).map_err(|e| format!("no pipe: {e}"))?;
    let sending =
        succeeds("starting `send`", scene.here.start(SendStream { spec: send }, vec![write], None).await)?;
    let receiving =
        succeeds("starting `receive`", scene.there.start(Receive { spec: receive }, vec![read], None).await)?;
    let half = timeout(LONG, reached).await;
    if matches!(half, Ok(Ok(()))) {
        replica_holds(&scene, &pair, &before)
            .await
            .map_err(|e| format!("half-way through a receive, {e}"))?;
    }
    drop(pause);
    let (sent, received) = tokio::join!(sending.ends::<SendStream>(LONG), receiving.ends::<Receive>(LONG));
    succeeds("`send`", sent)?;
    succeeds("`receive`", received)?;
    relay.await.map_err(|e| e.to_string())?;
    replica_holds(&scene, &pair, &after).await
}

async fn damaged(scene: Scene) -> Check {
    let before = sample(27);
    let (pair, point) = synced(&scene, &before).await?;
    let after = sample(28);
    let next = changed_to(&scene, &pair, &after).await?;
    for at in [0, 9, 1_000, 100_000, 300_000] {
        let hurt = scene.carry(&pair, &next, Some(&point), Mishap::Flip(at)).await?;
        if hurt.received.is_ok() {
            // Not every byte of a stream has to mean something; what arrived must still be right.
            replica_holds(&scene, &pair, &after).await.map_err(|e| format!("with byte {at} damaged, {e}"))?;
            return Ok(());
        }
        replica_holds(&scene, &pair, &before)
            .await
            .map_err(|e| format!("after byte {at} was damaged, {e}"))?;
        let seen = scene.observe(&scene.there, pair.replica.instance).await?;
        let kept = seen.points.iter().any(|p| p.id == point.id && p.fingerprint == point.fingerprint);
        ensure(kept, || format!("after byte {at} was damaged, the last whole point is gone"))?;
        let discard = DiscardPartial { instance: pair.replica.instance };
        succeeds("`discard_partial`", scene.there.call(discard).await)?;
    }
    scene.sync(&pair, &next, Some(&point)).await?;
    replica_holds(&scene, &pair, &after).await
}

async fn missing_base(scene: Scene) -> Check {
    let before = sample(29);
    let (pair, point) = synced(&scene, &before).await?;
    let next = changed_to(&scene, &pair, &sample(30)).await?;
    let kinds = [ErrorKind::Conflict, ErrorKind::NotFound, ErrorKind::InvalidArgument];
    let bases = [
        PointInfo { id: PointId(Uuid::new_v4()), ..point.clone() },
        PointInfo { fingerprint: "another moment".to_owned(), ..point.clone() },
    ];
    for base in bases {
        let ids = (pair.active.instance, pair.replica.instance);
        let (send, receive) = scene.halves(ids, &scene.there, pair.epoch, &next, Some(&base)).await?;
        let (read, write) = pipe::plain().map_err(|e| e.to_string())?;
        refused(
            "`send` from a point that is not here",
            scene.here.call_with(SendStream { spec: send }, vec![write]).await,
            &kinds,
        )?;
        let received = scene.there.call_with(Receive { spec: receive }, vec![read]).await;
        refused("`receive` onto a point that is not here", received, &kinds)?;
    }
    let missing = PointInfo { id: PointId(Uuid::new_v4()), ..next };
    let ids = (pair.active.instance, pair.replica.instance);
    let (send, _) = scene.halves(ids, &scene.there, pair.epoch, &missing, None).await?;
    let (_read, write) = pipe::plain().map_err(|e| e.to_string())?;
    let sent = scene.here.call_with(SendStream { spec: send }, vec![write]).await;
    refused("`send` of a point that is not here", sent, &kinds)?;
    replica_holds(&scene, &pair, &before).await
}

async fn other_format(scene: Scene) -> Check {
    let (pair, point) = synced(&scene, &sample(31)).await?;
    let next = changed_to(&scene, &pair, &sample(32)).await?;
    let ids = (pair.active.instance, pair.replica.instance);
    let (send, receive) = scene.halves(ids, &scene.there, pair.epoch, &next, Some(&point)).await?;
    let (read, write) = pipe::plain().map_err(|e| e.to_string())?;
    let kinds = [ErrorKind::InvalidArgument, ErrorKind::Unsupported];
    let send = SendSpec { format: "no such format".to_owned(), ..send };
    refused(
        "`send` in an unknown format",
        scene.here.call_with(SendStream { spec: send }, vec![write]).await,
        &kinds,
    )?;
    let receive = ReceiveSpec { format: "no such format".to_owned(), ..receive };
    let received = scene.there.call_with(Receive { spec: receive }, vec![read]).await;
    refused("`receive` in an unknown format", received, &kinds)?;
    Ok(())
}

async fn increment(scene: Scene) -> Check {
    let mut content = sample(33);
    let pair = scene.pair(style(&scene)?).await?;
    let can_see = scene.fill(&scene.here, pair.active.instance, pair.epoch, &content).await?;
    let point = scene.point(&scene.here, pair.active.instance, pair.epoch).await?;
    let full = scene.sync(&pair, &point, None).await?;
    if !can_see {
        return Ok(());
    }
    content.insert("file 3".to_owned(), noise(3, 1000));
    let next = changed_to(&scene, &pair, &content).await?;
    let part = scene.sync(&pair, &next, Some(&point)).await?;
    ensure(part.bytes * 3 < full.bytes, || {
        format!("a change of 1 of 12 files carried {} bytes, the whole {} bytes", part.bytes, full.bytes)
    })?;
    let report = succeeds("`send`", part.sent)?;
    ensure(report.bytes <= part.bytes && report.bytes * 2 >= part.bytes, || {
        format!("`send` reports {} bytes, {} passed", report.bytes, part.bytes)
    })
}

async fn resumes(scene: Scene) -> Check {
    let content = sample(34);
    let pair = scene.pair(style(&scene)?).await?;
    if !scene.fill(&scene.here, pair.active.instance, pair.epoch, &content).await? {
        return Ok(());
    }
    let point = scene.point(&scene.here, pair.active.instance, pair.epoch).await?;
    let size = size_of(&scene, &pair, &point).await?;
    for (at, part) in [(100, 0), (size / 4, 1), (size * 3 / 4, 3)] {
        let cut = scene.carry(&pair, &point, None, Mishap::Cut(at)).await?;
        ensure(cut.received.is_err(), || format!("a stream cut after {at} bytes was received"))?;
        if part < 3 {
            same("the bytes that passed before the cut", &cut.bytes, &at)?;
        }
        let seen = scene.observe(&scene.there, pair.replica.instance).await?;
        same("the points of a half-filled replica", &seen.points, &Vec::new())?;
        if part > 0 {
            let token = seen.resume.ok_or("nothing of the cut transfer can be observed")?;
            same("the point that it is on the way to", &token.to, &Some(point.id))?;
            let known = scene
                .subject
                .manifest
                .tokens
                .iter()
                .any(|(kind, version)| *kind == token.kind && *version >= token.version);
            ensure(known, || {
                format!("the manifest does not list the token `{}` {}", token.kind, token.version)
            })?;
        }
    }
    let rest = scene.sync(&pair, &point, None).await?;
    ensure(rest.bytes < size * 2 / 3, || {
        format!("{} of {size} bytes were sent again after three quarters had arrived", rest.bytes)
    })?;
    let report = succeeds("`receive`", rest.received)?.into_inner();
    ensure(report.resumed_bytes >= size / 4, || {
        format!("only {} bytes are reported as resumed", report.resumed_bytes)
    })?;
    replica_holds(&scene, &pair, &content).await?;
    same("what is left to resume", &scene.observe(&scene.there, pair.replica.instance).await?.resume, &None)
}

/// Bytes of the whole stream of a point.
async fn size_of(scene: &Scene, pair: &Pair, point: &PointInfo) -> Check<u64> {
    let ids = (pair.active.instance, pair.replica.instance);
    let (send, _) = scene.halves(ids, &scene.there, pair.epoch, point, None).await?;
    let Watched { write, read, relay, .. } = watched(Mishap::None).map_err(|e| format!("no pipe: {e}"))?;
    let drain = tokio::task::spawn_blocking(move || {
        let mut buffer = vec![0; 64 << 10];
        while rustix::io::read(&read, &mut buffer).is_ok_and(|n| n > 0) {}
    });
    succeeds("`send`", scene.here.call_with(SendStream { spec: send }, vec![write]).await)?;
    drain.await.map_err(|e| e.to_string())?;
    relay.await.map_err(|e| e.to_string())
}

async fn forgets(scene: Scene) -> Check {
    let (pair, point) = synced(&scene, &sample(35)).await?;
    let after = sample(36);
    let next = changed_to(&scene, &pair, &after).await?;
    let cut = scene.carry(&pair, &next, Some(&point), Mishap::Cut(250_000)).await?;
    if cut.received.is_ok() {
        return Ok(()); // the suite cannot see the content, and so could not make it large enough
    }
    let discard = DiscardPartial { instance: pair.replica.instance };
    changed("`discard_partial`", scene.there.call(discard.clone()).await)?;
    unchanged("the repeat of `discard_partial`", scene.there.call(discard).await)?;
    same("what is left to resume", &scene.observe(&scene.there, pair.replica.instance).await?.resume, &None)?;
    replica_holds(&scene, &pair, &sample(35)).await?;
    scene.sync(&pair, &next, Some(&point)).await?;
    replica_holds(&scene, &pair, &after).await
}

async fn ends_at_once(scene: Scene) -> Check {
    let before = sample(37);
    let (pair, point) = synced(&scene, &before).await?;
    let next = changed_to(&scene, &pair, &sample(38)).await?;
    let cut = scene.carry(&pair, &next, Some(&point), Mishap::Cut(1)).await?;
    // What the pipe holds, the source may call sent.
    ensure(cut.received.is_err(), || "a stream of one byte was received".to_owned())?;
    let seen = scene.observe(&scene.there, pair.replica.instance).await?;
    same("the role", &seen.role, &Role::Secondary)?;
    ensure(seen.points.iter().any(|p| p.id == point.id), || "the last whole point is gone".to_owned())?;
    replica_holds(&scene, &pair, &before).await
}

/// A receive whose stream says nothing.
async fn waiting(
    scene: &Scene,
    deadline: Option<Duration>,
) -> Check<(Pair, crate::side::Running, std::os::fd::OwnedFd)> {
    let (pair, point) = synced(scene, &sample(39)).await?;
    let next = changed_to(scene, &pair, &sample(40)).await?;
    let ids = (pair.active.instance, pair.replica.instance);
    let (_, receive) = scene.halves(ids, &scene.there, pair.epoch, &next, Some(&point)).await?;
    let (read, write) = pipe::plain().map_err(|e| e.to_string())?;
    let running = scene.there.start(Receive { spec: receive }, vec![read], deadline).await;
    Ok((pair, succeeds("starting `receive`", running)?, write))
}

async fn cancel_receive(scene: Scene) -> Check {
    let (pair, mut running, _write) = waiting(&scene, None).await?;
    ensure(running.still_runs().await, || "a `receive` ended without a stream".to_owned())?;
    succeeds("cancelling it", running.cancel().await)?;
    refused("a cancelled `receive`", running.ends::<Receive>(SECONDS).await, &[ErrorKind::Cancelled])?;
    replica_holds(&scene, &pair, &sample(39)).await
}

async fn cancel_send(scene: Scene) -> Check {
    let pair = scene.pair(style(&scene)?).await?;
    let content: Content = (0..4).map(|i| (format!("large {i}"), noise(i, 1 << 20))).collect();
    if !scene.fill(&scene.here, pair.active.instance, pair.epoch, &content).await? {
        return Ok(());
    }
    let point = scene.point(&scene.here, pair.active.instance, pair.epoch).await?;
    let ids = (pair.active.instance, pair.replica.instance);
    let (send, _) = scene.halves(ids, &scene.there, pair.epoch, &point, None).await?;
    // Nobody reads: more than the pipe holds cannot be written.
    let (_read, write) = pipe::plain().map_err(|e| e.to_string())?;
    let mut running =
        succeeds("starting `send`", scene.here.start(SendStream { spec: send }, vec![write], None).await)?;
    ensure(running.still_runs().await, || "a `send` ended although nobody reads".to_owned())?;
    succeeds("cancelling it", running.cancel().await)?;
    refused("a cancelled `send`", running.ends::<SendStream>(SECONDS).await, &[ErrorKind::Cancelled])?;
    let seen = scene.observe(&scene.here, pair.active.instance).await?;
    ensure(seen.points.contains(&point), || "the point that was sent is gone".to_owned())
}

async fn deadline(scene: Scene) -> Check {
    let (pair, running, _write) = waiting(&scene, Some(Duration::from_millis(500))).await?;
    let ended = running.ends::<Receive>(SECONDS).await;
    refused("a `receive` at its deadline", ended, &[ErrorKind::Cancelled, ErrorKind::Unavailable])?;
    replica_holds(&scene, &pair, &sample(39)).await
}

async fn dropped(scene: Scene) -> Check {
    let (pair, mut running, write) = waiting(&scene, None).await?;
    ensure(running.still_runs().await, || "a `receive` ended without a stream".to_owned())?;
    drop(running);
    drop(write);
    replica_holds(&scene, &pair, &sample(39)).await?;
    let points = scene.observe(&scene.there, pair.replica.instance).await?.points;
    let Some(base) = points.last() else { return Err("the last whole point is gone".to_owned()) };
    let next = scene.point(&scene.here, pair.active.instance, pair.epoch).await?;
    // The dropped one may take its seconds to let go.
    let started = tokio::time::Instant::now();
    loop {
        let carried = scene.carry(&pair, &next, Some(base), Mishap::None).await?;
        match carried.received {
            Ok(_) => break,
            Err(e) if e.retry == Retry::Safe && started.elapsed() < SECONDS => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(e) => return Err(format!("after a dropped `receive`, the next one fails: {e}")),
        }
    }
    replica_holds(&scene, &pair, &sample(40)).await
}

async fn stalled(scene: Scene) -> Check {
    let (pair, mut running, _write) = waiting(&scene, None).await?;
    let others = async {
        succeeds("`pools`", scene.there.call(Pools {}).await)?;
        scene.observe(&scene.there, pair.replica.instance).await?;
        let call = UpdateReplicaState { instance: pair.replica.instance, epoch: pair.epoch };
        succeeds("`update_replica_state`", scene.there.call(call).await)?;
        let spec = scene.spec(&scene.there, None).await?;
        changed("`create_instance`", scene.there.call(CreateInstance { spec: spec.clone() }).await)?;
        changed("`delete_instance`", scene.there.call(DeleteInstance { instance: spec.instance }).await)
    };
    let others = timeout(SECONDS, others).await;
    succeeds("cancelling it", running.cancel().await)?;
    let ended = running.ends::<Receive>(SECONDS).await;
    no_bug("receive", ended.err().as_ref())?;
    others.map_err(|_| "while a transfer stalls, other calls do not return".to_owned())?.map(drop)
}

async fn at_once(scene: Scene) -> Check {
    let mut pairs = Vec::new();
    for seed in 41..43 {
        let pair = scene.pair(style(&scene)?).await?;
        let point = changed_to(&scene, &pair, &sample(seed)).await?;
        pairs.push((pair, point, seed));
    }
    let [(a, a_point, _), (b, b_point, _)] = pairs.as_slice() else { return Ok(()) };
    let (first, second) = tokio::join!(scene.sync(a, a_point, None), scene.sync(b, b_point, None));
    first?;
    second?;
    for (pair, _, seed) in &pairs {
        replica_holds(&scene, pair, &sample(*seed)).await?;
    }
    Ok(())
}
