//! The log bridge: what a driver's library traces arrives in the server's log, under the operation's span.
//!
//! `tracing` does not cross a shared library, so the library has a subscriber of its own. Each call runs in a span that
//! carries a key; an event looks up the key of the nearest such span and goes to that call's host as a `Signal::Log`.
//! An event outside every call goes to the host that opened a back end last.

use std::collections::HashMap;
use std::fmt::{Debug, Write};
use std::panic::PanicHookInfo;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, Once, PoisonError, Weak};

use tandem_contract::Signal;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry, reload};

use crate::Host;

/// Name of the span field that carries the key.
pub(crate) const KEY: &str = "tandem_log_key";
/// A log line longer than this is cut.
const LONGEST: usize = 16 * 1024;

/// Where events of one span go: the host, and the delivery when it is a call.
#[derive(Clone)]
struct Target {
    host: Weak<dyn Host>,
    delivery: Option<u64>,
}

static KEYS: AtomicU64 = AtomicU64::new(1);
static TARGETS: LazyLock<Mutex<Targets>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct Targets {
    by_key: HashMap<u64, Target>,
    last_opened: Option<Target>,
}

fn targets() -> MutexGuard<'static, Targets> {
    TARGETS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While it lives, events in spans with its key reach the host.
pub(crate) struct Route {
    /// The value of the span's field [`KEY`].
    pub(crate) key: u64,
}

impl Route {
    pub(crate) fn new(host: &Arc<dyn Host>, delivery: Option<u64>) -> Self {
        let key = KEYS.fetch_add(1, Ordering::Relaxed);
        let target = Target { host: Arc::downgrade(host), delivery };
        let mut targets = targets();
        if delivery.is_none() {
            targets.last_opened = Some(target.clone());
        }
        targets.by_key.insert(key, target);
        Self { key }
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        targets().by_key.remove(&self.key);
    }
}

/// Installs the bridge as the library's subscriber, once, and from then on only moves its level: the lowest that any
/// host asked for. Panics become log lines too.
pub(crate) fn install(level: &str) {
    static ONCE: Once = Once::new();
    static LEVEL: Mutex<Option<reload::Handle<LevelFilter, Registry>>> = Mutex::new(None);
    let wanted = LevelFilter::from_str(level).unwrap_or(LevelFilter::INFO);
    ONCE.call_once(|| {
        let (filter, handle) = reload::Layer::new(wanted);
        let subscriber = Registry::default().with(filter).with(Bridge);
        if tracing::subscriber::set_global_default(subscriber).is_ok() {
            *LEVEL.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
        }
        std::panic::set_hook(Box::new(log_panic));
    });
    if let Some(handle) = &*LEVEL.lock().unwrap_or_else(PoisonError::into_inner) {
        // It only fails once the subscriber is gone, and that one lives as long as the library.
        let _ = handle.modify(|now| *now = wanted.max(*now));
    }
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let said = crate::guard::said(panic.payload());
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    tracing::error!(place, "panic: {said}");
}

/// The key of a span, in its extensions.
struct Key(u64);

struct Bridge;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Bridge {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut find = FindKey(None);
        attributes.record(&mut find);
        if let (Some(key), Some(span)) = (find.0, context.span(id)) {
            span.extensions_mut().insert(Key(key));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let key = context
            .event_scope(event)
            .and_then(|mut scope| scope.find_map(|span| span.extensions().get::<Key>().map(|key| key.0)));
        let target = {
            let targets = targets();
            key.and_then(|key| targets.by_key.get(&key)).or(targets.last_opened.as_ref()).cloned()
        };
        let Some(Target { host, delivery }) = target else { return };
        let Some(host) = host.upgrade() else { return };
        let mut line = Line::default();
        event.record(&mut line);
        let metadata = event.metadata();
        host.signal(Signal::Log {
            delivery,
            level: metadata.level().as_str().to_ascii_lowercase(),
            target: metadata.target().to_owned(),
            message: line.message,
            fields: line.fields,
        });
    }
}

struct FindKey(Option<u64>);

impl Visit for FindKey {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == KEY {
            self.0 = Some(value);
        }
    }
    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}
}

#[derive(Default)]
struct Line {
    message: String,
    fields: Vec<(String, String)>,
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.to_owned());
    }
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        // Writing to a String cannot fail; a Debug that fails by itself leaves what it wrote.
        let _ = write!(text, "{value:?}");
        self.add(field, text);
    }
}

impl Line {
    fn add(&mut self, field: &Field, mut text: String) {
        if text.len() > LONGEST {
            let end = (0..=LONGEST).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.truncate(end);
            text.push('…');
        }
        if field.name() == "message" {
            self.message = text;
        } else {
            self.fields.push((field.name().to_owned(), text));
        }
    }
}
