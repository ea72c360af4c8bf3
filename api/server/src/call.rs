//! One call: what a handler gets, and what it gives back.

use axum::body::Bytes;
use serde_json::{Map, Value};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use tandem_manager::Caller;

use crate::app::{Answer, App};
use crate::auth::Identity;
use crate::fault::{Fault, bytes_response, json_response};
use crate::microversion::Microversion;
use crate::page::{Page, Query};
use crate::policy::{Credentials, Facts, Rules};
use crate::routes::Params;

/// A call that was found and may be handled.
pub(crate) struct Call {
    pub(crate) app: Arc<App>,
    pub(crate) who: Identity,
    pub(crate) version: Microversion,
    pub(crate) query: Query,
    pub(crate) request_id: String,
    pub(super) credentials: Credentials,
    pub(super) own: Facts,
    pub(super) rules: Arc<Rules>,
    pub(super) params: Params,
    pub(super) body: Option<Value>,
    /// `http://host/v2` and, when the path had one, the project.
    pub(super) base: String,
    pub(super) project_in_path: bool,
    /// Whether the rule `context_is_host_admin` holds, once somebody asked: lists ask for every entry.
    pub(super) host_admin: OnceLock<bool>,
}

/// What a handler answers.
pub(crate) type Result<T = Reply> = std::result::Result<T, Fault>;

/// A successful answer.
#[derive(Debug)]
pub(crate) enum Reply {
    /// A JSON body.
    Json(u16, Value),
    /// A JSON body that is written out already, of status 200.
    Kept(Arc<[u8]>),
    /// Nothing, under the content type that Manila's bare responses have.
    Empty(u16),
    /// Nothing, under the content type of JSON: what Manila's actions without a result answer.
    EmptyJson(u16),
}

impl Reply {
    pub(crate) fn ok(body: Value) -> Result {
        Ok(Self::Json(200, body))
    }

    pub(crate) fn accepted() -> Result {
        Ok(Self::Empty(202))
    }

    pub(crate) fn response(&self) -> Answer {
        match self {
            Self::Json(status, body) => json_response(*status, body),
            Self::Kept(body) => bytes_response(200, "application/json", Bytes::from_owner(Arc::clone(body))),
            Self::Empty(status) => bytes_response(*status, "text/html; charset=UTF-8", Vec::new()),
            Self::EmptyJson(status) => bytes_response(*status, "application/json", Vec::new()),
        }
    }
}

impl Call {
    /// A part of the path.
    pub(crate) fn param(&self, name: &str) -> &str {
        self.params.iter().find(|(n, _)| *n == name).map_or("", |(_, value)| value)
    }

    /// The answer of a list that depends on nothing but rows, the caller's sight and the request: that of the last time,
    /// when nothing was written since.
    pub(crate) async fn kept<R>(self, list: &str, make: impl FnOnce(Self) -> R) -> Result
    where
        R: Future<Output = Result>,
    {
        let sight = (self.visible_project(), self.who.is_admin, self.is_host_admin(), self.version.minor);
        let asked: Vec<_> = self.query.iter().collect();
        let question = format!("{list} {} {sight:?} {asked:?}", self.href("", ""));
        let manager = Arc::clone(&self.app.manager);
        if let Some(answer) = manager.kept().get(&question) {
            return Ok(Reply::Kept(answer));
        }
        let since = manager.kept().moment();
        let reply = make(self).await?;
        let Reply::Json(200, body) = &reply else { return Ok(reply) };
        let body = crate::python::dumps(body);
        manager.kept().put(question, since, &body);
        Ok(Reply::Kept(body.into()))
    }

    /// The JSON body; a call that needs one and has none is malformed.
    pub(crate) fn body(&self) -> Result<&Value> {
        self.body.as_ref().ok_or_else(Fault::malformed)
    }

    /// `is_valid_body` of Manila: the body's object under `key`, if there is such an object.
    pub(crate) fn entity(&self, key: &str) -> Result<Option<&Map<String, Value>>> {
        Ok(self.body()?.get(key).and_then(Value::as_object))
    }

    /// Whether the request speaks version 2.`minor` or newer.
    pub(crate) fn since(&self, minor: u32) -> bool {
        self.version.minor >= minor
    }

    /// Whether the caller may do something in its own project.
    pub(crate) fn may(&self, action: &str) -> bool {
        self.rules.allow(action, &self.credentials, &self.own)
    }

    /// Whether the caller sees where things are.
    pub(crate) fn is_host_admin(&self) -> bool {
        *self.host_admin.get_or_init(|| self.may("context_is_host_admin"))
    }

    /// Whether the caller may do something to an object of this project and user.
    pub(crate) fn may_on(&self, action: &str, project: &str, user: &str) -> bool {
        let target = Facts::from([
            ("project_id".to_owned(), project.to_owned()),
            ("user_id".to_owned(), user.to_owned()),
        ]);
        self.rules.allow(action, &self.credentials, &target)
    }

    /// Refuses what the caller may not do in its own project.
    pub(crate) fn authorize(&self, action: &str) -> Result<()> {
        if self.may(action) { Ok(()) } else { Err(Fault::forbidden()) }
    }

    /// The caller, as the manager knows it.
    pub(crate) fn caller(&self) -> Caller {
        Caller {
            user_id: self.who.user_id.clone(),
            project_id: self.who.project_id.clone(),
            admin: self.who.is_admin,
            request_id: Some(self.request_id.clone()),
        }
    }

    /// The project whose objects the caller sees; `None` for an administrator, who sees all.
    pub(crate) fn visible_project(&self) -> Option<String> {
        (!self.who.is_admin).then(|| self.who.project_id.clone())
    }

    /// The link to an object, or to a list without `id`.
    pub(crate) fn href(&self, collection: &str, id: &str) -> String {
        let mut out = format!("{}/v2", self.base);
        self.finish_href(&mut out, collection, id);
        out
    }

    /// The link without the version.
    pub(crate) fn bookmark(&self, collection: &str, id: &str) -> String {
        let mut out = self.base.clone();
        self.finish_href(&mut out, collection, id);
        out
    }

    fn finish_href(&self, out: &mut String, collection: &str, id: &str) {
        let project = if self.project_in_path { self.who.project_id.as_str() } else { "" };
        for part in [project, collection, id].into_iter().filter(|p| !p.is_empty()) {
            out.push('/');
            out.push_str(part);
        }
    }

    /// The links member of a list: the next page, when there may be one.
    pub(crate) fn next_links(
        &self,
        page: &Page,
        collection: &str,
        count: usize,
        last: &str,
    ) -> Option<Value> {
        let href = page.next_link(&self.query, &self.href(collection, ""), count, last)?;
        Some(serde_json::json!([{"rel": "next", "href": href}]))
    }
}

/// A handler, boxed for the table of routes.
pub(crate) type Handler = Arc<dyn Fn(Call) -> Pin<Box<dyn Future<Output = Result> + Send>> + Send + Sync>;

/// Boxes an `async fn(Call) -> Result`.
pub(crate) fn handler<F, R>(f: F) -> Handler
where
    F: Fn(Call) -> R + Send + Sync + 'static,
    R: Future<Output = Result> + Send + 'static,
{
    Arc::new(move |call| Box::pin(f(call)))
}
