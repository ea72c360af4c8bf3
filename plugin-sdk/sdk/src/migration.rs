//! The ability to migrate by the driver's own means: shares and servers alike.

use std::future::Future;

use tandem_contract::{
    Compatibility, InstanceInfo, MigrationCancel, MigrationCheckCompatibility, MigrationComplete,
    MigrationContinue, MigrationForceComplete, MigrationGetProgress, MigrationProgress, MigrationRelease,
    MigrationRevert, MigrationStart, Outcome, PrepareDestination, Result, Switched,
};

use crate::{OpContext, Reachable};

/// Moves a resource to another instance. Claimed by `Capabilities::migration`.
///
/// `prepare_destination` is asked of the destination's driver, everything else of the source's. Until
/// `migration_complete` has switched, the source is as it was; after it, `migration_release` or `migration_revert`
/// ends the migration.
pub trait Migration: Reachable {
    /// Makes an empty, unserved instance that a migration fills.
    fn prepare_destination(
        &self,
        cx: &OpContext,
        call: PrepareDestination,
    ) -> impl Future<Output = Result<Outcome<InstanceInfo>>> + Send;

    /// What can be promised for this destination. Changes nothing.
    fn migration_check_compatibility(
        &self,
        cx: &OpContext,
        call: MigrationCheckCompatibility,
    ) -> impl Future<Output = Result<Compatibility>> + Send;

    /// Starts the first phase and returns.
    fn migration_start(
        &self,
        cx: &OpContext,
        call: MigrationStart,
    ) -> impl Future<Output = Result<Outcome<()>>> + Send;

    /// One more round of the first phase.
    fn migration_continue(
        &self,
        cx: &OpContext,
        call: MigrationContinue,
    ) -> impl Future<Output = Result<MigrationProgress>> + Send;

    /// The last round with the source held back, then the switch.
    fn migration_complete(
        &self,
        cx: &OpContext,
        call: MigrationComplete,
    ) -> impl Future<Output = Result<Outcome<Switched>>> + Send;

    /// After the switch: lets the source go.
    fn migration_release(
        &self,
        cx: &OpContext,
        call: MigrationRelease,
    ) -> impl Future<Output = Result<Outcome<()>>> + Send;

    /// After the switch: goes back to the source.
    fn migration_revert(
        &self,
        cx: &OpContext,
        call: MigrationRevert,
    ) -> impl Future<Output = Result<Outcome<Switched>>> + Send;

    /// Stops the first phase; the source is as before.
    fn migration_cancel(
        &self,
        cx: &OpContext,
        call: MigrationCancel,
    ) -> impl Future<Output = Result<Outcome<()>>> + Send;

    /// How far it is.
    fn migration_get_progress(
        &self,
        cx: &OpContext,
        call: MigrationGetProgress,
    ) -> impl Future<Output = Result<MigrationProgress>> + Send;

    /// Finishes a running first phase at the users' cost.
    fn migration_force_complete(
        &self,
        cx: &OpContext,
        call: MigrationForceComplete,
    ) -> impl Future<Output = Result<Outcome<()>>> + Send;
}
