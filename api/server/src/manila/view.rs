//! Views: what an object looks like in a version, for a caller.
//!
//! One table per resource says from which version to which a field is shown, and to whom. The order of a
//! table is the order on the wire.

use serde_json::{Map, Value};
use tandem_manager::clock::Timestamp;

use crate::call::Call;
use crate::microversion::MAX_MINOR;

/// Who sees a field.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    Everyone,
    /// Administrators, by the rule `context_is_admin`.
    Admin,
    /// Those whom the rule `context_is_host_admin` admits.
    HostAdmin,
}

/// One field of a view.
pub(super) struct Field<T: ?Sized> {
    name: &'static str,
    from: u32,
    to: u32,
    audience: Audience,
    value: fn(&T, &Call) -> Value,
}

impl<T: ?Sized> Field<T> {
    /// A field of every version.
    pub(super) const fn new(name: &'static str, value: fn(&T, &Call) -> Value) -> Self {
        Self { name, from: 0, to: MAX_MINOR, audience: Audience::Everyone, value }
    }

    /// Shown from this version on.
    pub(super) const fn since(mut self, minor: u32) -> Self {
        self.from = minor;
        self
    }

    /// Shown up to this version, included.
    pub(super) const fn until(mut self, minor: u32) -> Self {
        self.to = minor;
        self
    }

    /// Shown to these only.
    pub(super) const fn only(mut self, audience: Audience) -> Self {
        self.audience = audience;
        self
    }
}

/// The view of one object.
pub(super) fn render<T: ?Sized>(fields: &[Field<T>], object: &T, call: &Call) -> Value {
    let shown = |f: &&Field<T>| {
        let seen = match f.audience {
            Audience::Everyone => true,
            Audience::Admin => call.who.is_admin,
            Audience::HostAdmin => call.is_host_admin(),
        };
        seen && (f.from..=f.to).contains(&call.version.minor)
    };
    let shown: Map<String, Value> =
        fields.iter().filter(shown).map(|f| (f.name.to_owned(), (f.value)(object, call))).collect();
    Value::Object(shown)
}

/// A time, as Manila writes it.
pub(super) fn time(at: Timestamp) -> Value {
    Value::String(at.iso())
}

/// A time that may not be.
pub(super) fn maybe_time(at: Option<Timestamp>) -> Value {
    at.map_or(Value::Null, time)
}

/// The links of an object.
pub(super) fn links(call: &Call, collection: &str, id: &str) -> Value {
    serde_json::json!([
        {"rel": "self", "href": call.href(collection, id)},
        {"rel": "bookmark", "href": call.bookmark(collection, id)},
    ])
}
