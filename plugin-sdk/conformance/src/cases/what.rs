//! What the driver says of itself: manifest, settings, capabilities.

use serde_json::{Map, Value, json};
use tandem_contract::*;
use uuid::Uuid;

use crate::case::list;
use crate::check::{Check, ensure, refused, same, succeeds};
use crate::pipe;
use crate::scene::Scene;

list! {
    15 "an unknown key of the settings is refused by name" Nothing unknown_key;
    15 "the settings have a schema that describes each key" Nothing schema;
    14 "the same settings give the same capabilities" Nothing capabilities;
    14 "what is not claimed is unsupported" Nothing unclaimed;
    14 "the pools have names and sizes that fit" Nothing pools;
    16 "opening again changes nothing" Nothing reopen;
}

const INVALID: &[ErrorKind] = &[ErrorKind::InvalidArgument];

async fn unknown_key(scene: Scene) -> Check {
    let mut settings = scene.subject.settings().clone();
    let Some(table) = settings.as_object_mut() else { return Err("the settings are no table".to_owned()) };
    table.insert("no_such_setting_xyz".to_owned(), json!(1));
    let answer = scene.here.open_with(&settings).await.map(|_| "an open back end");
    let error = refused("`open` with the unknown key `no_such_setting_xyz`", answer, INVALID)?;
    ensure(error.to_string().contains("no_such_setting_xyz"), || {
        format!("the refusal does not name the key: {error}")
    })
}

async fn schema(scene: Scene) -> Check {
    let schema = &scene.subject.manifest.settings;
    let empty = Map::new();
    let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    for (key, property) in properties {
        let described =
            property.get("description").and_then(Value::as_str).is_some_and(|d| !d.trim().is_empty());
        ensure(described, || format!("the schema does not describe the setting `{key}`"))?;
    }
    same(
        "`additionalProperties` of the schema",
        &schema.get("additionalProperties"),
        &Some(&Value::Bool(false)),
    )?;
    for key in scene.subject.settings().as_object().into_iter().flat_map(|table| table.keys()) {
        ensure(properties.contains_key(key), || format!("the schema does not have the setting `{key}`"))?;
    }
    let manifest = &scene.subject.manifest;
    ensure(!manifest.name.is_empty() && !manifest.version.is_empty() && !manifest.summary.is_empty(), || {
        "the manifest lacks a name, a version or a summary".to_owned()
    })
}

async fn capabilities(scene: Scene) -> Check {
    let again = succeeds("`open`", scene.here.capabilities().await)?;
    same("the capabilities, asked for again,", &again, &*scene.capabilities)?;
    ensure(!again.resources.is_empty(), || "the capabilities name no kind of resource".to_owned())?;
    ensure(again.replication.is_none_or(|r| !r.styles.is_empty()), || {
        "replication without a style".to_owned()
    })
}

/// Each verb that belongs to an ability that is not claimed.
async fn unclaimed(scene: Scene) -> Check {
    let id = Uuid::new_v4().to_string();
    let point = json!({"id": Uuid::new_v4(), "fingerprint": "x", "held": false});
    let endpoint = json!({"instance": id, "protocol": "x", "data": null});
    let migration = json!({
        "resource": id, "kind": "share", "source": id, "destination": id, "epoch": 1, "endpoint": null
    });
    let spec = json!({
        "instance": id, "resource": id, "kind": "share", "pool": "x", "size_bytes": 1, "protocol": "", "epoch": 1,
        "replication": {"style": "readable", "instances": 2}, "options": {}
    });
    let of = |needs: crate::Needs| needs.met(&scene.capabilities);
    let (migrates, storage) = (scene.capabilities.migration.is_some(), of(crate::Needs::Storage));
    let calls = [
        (of(crate::Needs::Attach), Attach::NAME, json!({"instance": id, "epoch": 1, "read_only": true})),
        (of(crate::Needs::Replication), CreateReplica::NAME, json!({"spec": spec})),
        (of(crate::Needs::Quiesce), Quiesce::NAME, json!({"instance": id, "epoch": 1, "wait_seconds": null})),
        (of(crate::Needs::Streams), MakePoint::NAME, json!({"instance": id, "epoch": 1, "point": id})),
        (
            of(crate::Needs::Streams),
            SendStream::NAME,
            json!({"spec": {"instance": id, "epoch": 1, "to": id, "from": point, "format": "x"}}),
        ),
        (
            of(crate::Needs::Prints),
            ReadFingerprint::NAME,
            json!({"instance": id, "point": id, "form": "x", "bandwidth": null}),
        ),
        (storage || migrates, GetEndpoint::NAME, json!({"instance": id})),
        (
            storage,
            ConnectPeers::NAME,
            json!({"instance": id, "epoch": 1, "peer": endpoint, "authoritative": true}),
        ),
        (migrates, MigrationStart::NAME, json!({"migration": migration})),
        (migrates, PrepareDestination::NAME, json!({"spec": spec})),
    ];
    for (claimed, verb, args) in calls {
        if claimed {
            continue;
        }
        let (_read, write) = pipe::plain().map_err(|e| e.to_string())?;
        let fds = if verb == SendStream::NAME { vec![write] } else { Vec::new() };
        let running = succeeds("starting a call", scene.here.start_raw(verb, args, fds, None).await)?;
        refused(
            &format!("`{verb}`, which is not claimed,"),
            running.answer.await,
            &[ErrorKind::Unsupported],
        )?;
    }
    Ok(())
}

async fn pools(scene: Scene) -> Check {
    let pools = succeeds("`pools`", scene.here.call(Pools {}).await)?;
    ensure(!pools.is_empty(), || "the back end has no pool".to_owned())?;
    for pool in pools {
        ensure(!pool.name.is_empty() && !pool.name.contains(['#', '@']), || {
            format!("`{}` cannot be the name of a pool", pool.name)
        })?;
        if let (Some(total), Some(free)) = (pool.total_bytes, pool.free_bytes) {
            ensure(free <= total, || format!("pool `{}` has {free} bytes free of {total}", pool.name))?;
        }
    }
    Ok(())
}

async fn reopen(scene: Scene) -> Check {
    let (spec, _) = scene.active().await?;
    let before = scene.observe(&scene.here, spec.instance).await?;
    succeeds("`open`", scene.here.open_with(scene.subject.settings()).await.map(drop))?;
    let after = scene.observe(&scene.here, spec.instance).await?;
    same("the observation after opening again", &after, &before)
}
