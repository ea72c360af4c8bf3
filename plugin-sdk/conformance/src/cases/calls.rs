//! Calls as such: absurd arguments, errors, unknown verbs.

use serde_json::{Value, json};
use tandem_contract::*;
use uuid::Uuid;

use crate::case::list;
use crate::check::{Check, refused, succeeds};
use crate::scene::{Scene, no_bug};
use crate::side::LONG;

list! {
    11 "absurd arguments are refused or done and never a defect" Nothing absurd;
    11 "an unknown verb is unsupported and arguments that do not fit are invalid" Nothing unfit;
    12 "an unknown pool is refused in a sentence" Nothing unknown_pool;
}

async fn absurd(scene: Scene) -> Check {
    let spec = scene.spec(&scene.here, None).await?;
    let specs = [
        InstanceSpec { size_bytes: 0, ..spec.clone() },
        InstanceSpec { size_bytes: u64::MAX, ..spec.clone() },
        InstanceSpec { pool: String::new(), ..spec.clone() },
        InstanceSpec { pool: "../../../etc".to_owned(), ..spec.clone() },
        InstanceSpec { pool: "a\0b\n'\"; $(true) \u{202e}".to_owned(), ..spec.clone() },
        InstanceSpec { protocol: "../x y\n".to_owned(), ..spec.clone() },
        InstanceSpec { kind: ResourceKind::Unknown, ..spec.clone() },
        InstanceSpec { epoch: Epoch(u64::MAX), ..spec.clone() },
        InstanceSpec {
            replication: Some(ReplicationSpec { style: Style::Unknown, instances: u32::MAX }),
            ..spec.clone()
        },
        InstanceSpec {
            options: json!({"a b": {"c": ["d"]}}).as_object().cloned().unwrap_or_default(),
            ..spec.clone()
        },
    ];
    for spec in specs {
        let spec = InstanceSpec { instance: InstanceId(Uuid::new_v4()), ..spec };
        scene.will_make(spec.instance);
        let made = scene.here.call(CreateInstance { spec: spec.clone() }).await;
        no_bug("create_instance", made.as_ref().err())?;
        let sizes = [0, u64::MAX];
        for size_bytes in sizes {
            let call = ResizeInstance { instance: spec.instance, epoch: Epoch(u64::MAX), size_bytes };
            no_bug("resize_instance", scene.here.call(call).await.err().as_ref())?;
        }
        let gone = scene.here.call(DeleteInstance { instance: spec.instance }).await;
        succeeds("deleting it", gone)?;
    }
    let (spec, _) = scene.active().await?;
    let odd = AccessRule {
        id: Uuid::nil(),
        access_type: "no such type".to_owned(),
        access_to: "' ; $(true) \n\0 ../..".to_owned(),
        access_level: AccessLevel::Rw,
    };
    let access = AccessSpec { rules: vec![odd], read_only: false };
    let call = UpdateAccess { instance: spec.instance, epoch: spec.epoch, access };
    no_bug("update_access", scene.here.call(call).await.err().as_ref())?;
    // And it still works.
    scene.active().await.map(drop)
}

async fn unfit(scene: Scene) -> Check {
    let calls = [
        ("no_such_verb", json!({}), ErrorKind::Unsupported),
        (ObserveInstance::NAME, json!({"instance": 3}), ErrorKind::InvalidArgument),
        (ObserveInstance::NAME, json!({}), ErrorKind::InvalidArgument),
        (CreateInstance::NAME, Value::Null, ErrorKind::InvalidArgument),
    ];
    for (verb, args, kind) in calls {
        let running =
            succeeds("starting a call", scene.here.start_raw(verb, args.clone(), Vec::new(), None).await)?;
        let answer = tokio::time::timeout(LONG, running.answer).await;
        let answer = answer.map_err(|_| format!("`{verb}` has not returned"))?;
        refused(&format!("`{verb}` with {args}"), answer, &[kind])?;
    }
    Ok(())
}

async fn unknown_pool(scene: Scene) -> Check {
    let spec = scene.spec(&scene.here, None).await?;
    let spec = InstanceSpec { pool: "no-such-pool".to_owned(), ..spec };
    let answer = scene.here.call(CreateInstance { spec }).await;
    refused(
        "`create_instance` in an unknown pool",
        answer,
        &[ErrorKind::InvalidArgument, ErrorKind::NotFound],
    )?;
    Ok(())
}
