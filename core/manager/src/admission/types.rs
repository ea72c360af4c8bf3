//! Share types and quotas: plain rows, changed at once.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::core::Core;
use crate::denied::Denied;
use crate::face::{NewType, TypeChange};
use crate::model::{Intent, Operation, Quota, ShareType};
use crate::store::{Batch, Gone, OperationQuery, Row, ShareQuery, StoreError};

impl Core {
    /// Makes a share type.
    pub(crate) async fn create_type(&self, new: NewType) -> Result<ShareType, Denied> {
        let row = ShareType {
            id: crate::ids::random(),
            version: 0,
            name: new.name,
            description: new.description,
            is_public: new.is_public,
            extra_specs: new.extra_specs,
            created_at: self.clock.now(),
            updated_at: None,
        };
        self.put_type(row).await
    }

    /// Changes a share type.
    pub(crate) async fn update_type(&self, id: Uuid, change: TypeChange) -> Result<ShareType, Denied> {
        self.change_type(id, |row| {
            if let Some(name) = &change.name {
                row.name.clone_from(name);
            }
            if let Some(description) = &change.description {
                row.description.clone_from(description);
            }
            if let Some(public) = change.is_public {
                row.is_public = public;
            }
        })
        .await
    }

    /// Adds or replaces extra specs.
    pub(crate) async fn set_extra_specs(
        &self,
        id: Uuid,
        specs: BTreeMap<String, String>,
    ) -> Result<ShareType, Denied> {
        self.change_type(id, |row| row.extra_specs.extend(specs.clone())).await
    }

    /// Takes an extra spec away.
    pub(crate) async fn unset_extra_spec(&self, id: Uuid, key: &str) -> Result<ShareType, Denied> {
        self.change_type(id, |row| {
            row.extra_specs.remove(key);
        })
        .await
    }

    /// Removes a share type that nothing uses.
    pub(crate) async fn delete_type(&self, id: Uuid) -> Result<(), Denied> {
        loop {
            let row = self.store.share_type(id).await?.ok_or_else(|| Denied::NoType(id.to_string()))?;
            let users = ShareQuery { share_types: Some(vec![id]), limit: Some(1), ..ShareQuery::default() };
            if !self.store.shares(&users).await?.items.is_empty() {
                return Err(Denied::TypeInUse(id));
            }
            let kind = Some("migrate".to_owned());
            let migrations = OperationQuery { kind, unfinished: true, ..OperationQuery::default() };
            let becomes = |op: &Operation| matches!(&op.intent, Intent::Migrate { request, .. } if request.new_type == Some(id));
            if self.store.operations(&migrations).await?.iter().any(becomes) {
                return Err(Denied::TypeInUse(id));
            }
            let batch = Batch { gone: vec![Gone::Type(id, row.version)], ..Batch::default() };
            match self.store.commit(batch).await {
                Err(StoreError::Conflict(_)) => {}
                other => return other.map_err(Denied::from),
            }
        }
    }

    /// Sets some of a project's limits.
    pub(crate) async fn set_quota(
        &self,
        project: &str,
        limits: BTreeMap<String, i64>,
    ) -> Result<Quota, Denied> {
        loop {
            let mut row = self
                .store
                .quota(project)
                .await?
                .unwrap_or_else(|| Quota { project_id: project.to_owned(), ..Quota::default() });
            row.limits.extend(limits.clone());
            match self.store.commit(Batch { put: vec![Row::Quota(row.clone())], ..Batch::default() }).await {
                Err(StoreError::Conflict(_)) => {}
                other => return other.map(|()| row).map_err(Denied::from),
            }
        }
    }

    /// Gives a project the default limits again.
    pub(crate) async fn delete_quota(&self, project: &str) -> Result<(), Denied> {
        loop {
            let Some(row) = self.store.quota(project).await? else { return Ok(()) };
            let batch = Batch { gone: vec![Gone::Quota(row.project_id, row.version)], ..Batch::default() };
            match self.store.commit(batch).await {
                Err(StoreError::Conflict(_)) => {}
                other => return other.map_err(Denied::from),
            }
        }
    }

    async fn change_type(&self, id: Uuid, change: impl Fn(&mut ShareType)) -> Result<ShareType, Denied> {
        loop {
            let mut row = self.store.share_type(id).await?.ok_or_else(|| Denied::NoType(id.to_string()))?;
            change(&mut row);
            row.updated_at = Some(self.clock.now());
            match self
                .store
                .commit(Batch { put: vec![Row::Type(Box::new(row.clone()))], ..Batch::default() })
                .await
            {
                Err(StoreError::Conflict(_)) => {}
                Err(StoreError::Exists(_)) => return Err(Denied::TypeExists(row.name)),
                other => {
                    // Its shares follow by another interval now, perhaps.
                    self.board.watched.forget_all();
                    return other.map(|()| row).map_err(Denied::from);
                }
            }
        }
    }

    async fn put_type(&self, row: ShareType) -> Result<ShareType, Denied> {
        match self
            .store
            .commit(Batch { put: vec![Row::Type(Box::new(row.clone()))], ..Batch::default() })
            .await
        {
            Err(StoreError::Exists(_)) => Err(Denied::TypeExists(row.name)),
            other => other.map(|()| row).map_err(Denied::from),
        }
    }
}
