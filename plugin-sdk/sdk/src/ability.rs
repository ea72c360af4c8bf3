//! Which verb belongs to which ability, and how a request reaches the method.

use std::os::fd::OwnedFd;

use serde::Serialize;
use serde_json::Value;
use tandem_contract::{Capabilities, Error, Request, Result, Transport, Verb};

use crate::{Driver, OpContext};

/// A request on its way to a method.
pub struct Incoming {
    request: Request,
    fds: Vec<OwnedFd>,
}

impl Incoming {
    pub(crate) fn new(request: Request, fds: Vec<OwnedFd>) -> Self {
        Self { request, fds }
    }

    fn args<V: Verb>(&self) -> Result<V> {
        self.request.args()
    }

    fn stream(&mut self) -> Result<OwnedFd> {
        if self.fds.is_empty() {
            return Err(Error::invalid(format!(
                "`{}` needs a stream in slot 0, and none came",
                self.request.verb
            )));
        }
        Ok(self.fds.swap_remove(0))
    }
}

/// A driver with its abilities wired, by [`export_driver!`](crate::export_driver) or
/// [`wire_driver!`](crate::wire_driver).
pub trait Wired: Driver {
    /// Which abilities are wired.
    const ABILITIES: &'static [Ability];

    /// Hands a request to the method of `ability`.
    fn route(
        &self,
        cx: &OpContext,
        ability: Ability,
        call: Incoming,
    ) -> impl Future<Output = Result<Value>> + Send;
}

fn encode<T: Serialize>(verb: &str, answer: &T) -> Result<Value> {
    serde_json::to_value(answer)
        .map_err(|e| Error::bug(format!("the answer of `{verb}` does not encode: {e}")))
}

macro_rules! abilities {
    ($($ability:ident { $($verb:ident => $method:ident ( $($arg:ident),* );)* })*) => {
        /// The abilities a driver can have; [`Driver`](crate::Driver) is the one that all have.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)] // each is documented as the trait of its name
        pub enum Ability { $($ability),* }

        impl Ability {
            /// The ability that a verb belongs to; `None` for a verb that this SDK does not know.
            pub fn of(verb: &str) -> Option<Self> {
                $($(if verb == tandem_contract::$verb::NAME { return Some(Self::$ability); })*)*
                None
            }

            /// The name of its trait.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$ability => stringify!($ability)),* }
            }
        }

        /// One function for each ability, named as its trait, so that a macro can name it.
        #[doc(hidden)]
        #[allow(non_snake_case, missing_docs, unused_mut)]
        pub mod route {
            use super::*;
            $(
                pub async fn $ability<D: crate::$ability>(driver: &D, cx: &OpContext, mut call: Incoming) -> Result<Value> {
                    $(if call.request.verb == tandem_contract::$verb::NAME {
                        let args = call.args::<tandem_contract::$verb>()?;
                        return encode(cx.verb(), &abilities!(@call driver, cx, call, args, $method, $($arg),*).await?);
                    })*
                    Err(unknown(&call.request.verb))
                }
            )*
        }
    };
    (@call $driver:ident, $cx:ident, $call:ident, $args:ident, $method:ident, ) => {
        { let _ = $args; $driver.$method($cx) }
    };
    (@call $driver:ident, $cx:ident, $call:ident, $args:ident, $method:ident, args) => {
        $driver.$method($cx, $args)
    };
    (@call $driver:ident, $cx:ident, $call:ident, $args:ident, $method:ident, args, stream) => {
        $driver.$method($cx, $args, $call.stream()?)
    };
}

abilities! {
    Driver {
        Pools => pools();
        ListInstances => list_instances();
        ObserveInstance => observe_instance(args);
        CreateInstance => create_instance(args);
        ResizeInstance => resize_instance(args);
        DeleteInstance => delete_instance(args);
        UpdateAccess => update_access(args);
        EnsureInstance => ensure_instance(args);
    }
    Attachable {
        Attach => attach(args);
        Detach => detach(args);
    }
    Replication {
        CreateReplica => create_replica(args);
        UpdateReplicaState => update_replica_state(args);
        PromoteReplica => promote_replica(args);
        DemoteReplica => demote_replica(args);
        DeleteReplica => delete_replica(args);
    }
    Quiescable {
        Quiesce => quiesce(args);
        ResumeWrites => resume_writes(args);
    }
    Streamed {
        MakePoint => make_point(args);
        ReleasePoint => release_point(args);
        SendStream => send(args, stream);
        Receive => receive(args, stream);
        DiscardPartial => discard_partial(args);
    }
    Verifiable {
        ReadFingerprint => fingerprint(args);
    }
    Reachable {
        GetEndpoint => endpoint(args);
    }
    StorageReplicated {
        ConnectPeers => connect_peers(args);
        DisconnectPeers => disconnect_peers(args);
        BeginReplication => begin_replication(args);
        EndReplication => end_replication(args);
    }
    Migration {
        PrepareDestination => prepare_destination(args);
        MigrationCheckCompatibility => migration_check_compatibility(args);
        MigrationStart => migration_start(args);
        MigrationContinue => migration_continue(args);
        MigrationComplete => migration_complete(args);
        MigrationRelease => migration_release(args);
        MigrationRevert => migration_revert(args);
        MigrationCancel => migration_cancel(args);
        MigrationGetProgress => migration_get_progress(args);
        MigrationForceComplete => migration_force_complete(args);
    }
}

/// A verb that this SDK does not know.
pub(crate) fn unknown(verb: &str) -> Error {
    Error::unsupported(format!("this driver does not know the verb `{verb}`"))
}

impl Ability {
    /// Whether `capabilities` claim it.
    pub fn claimed(self, capabilities: &Capabilities) -> bool {
        let replication = capabilities.replication.as_ref();
        let streamed = replication.is_some_and(|r| matches!(r.transport, Transport::Streamed { .. }));
        let storage = replication.is_some_and(|r| matches!(r.transport, Transport::Storage { .. }));
        match self {
            Self::Driver => true,
            Self::Attachable => capabilities.attach.is_some(),
            Self::Replication => replication.is_some(),
            Self::Quiescable => replication.is_some_and(|r| r.quiesce),
            Self::Streamed => streamed,
            Self::Verifiable => replication.is_some_and(|r| !r.fingerprints.is_empty()),
            Self::Reachable => storage || capabilities.migration.is_some(),
            Self::StorageReplicated => storage,
            Self::Migration => capabilities.migration.is_some(),
        }
    }

    /// The abilities that capabilities can claim.
    pub(crate) const OPTIONAL: &'static [Self] = &[
        Self::Attachable,
        Self::Replication,
        Self::Quiescable,
        Self::Streamed,
        Self::Verifiable,
        Self::Reachable,
        Self::StorageReplicated,
        Self::Migration,
    ];
}
