//! The table of routes: which method and path is which call, in which versions.
//!
//! One table instead of a router's macros, because Manila answers an unknown path, a path that it knows
//! without the method, and a call of another version in three different ways.

use axum::http::Method;

use crate::call::{Call, Handler, Result, handler};
use crate::microversion::{Microversion, Window};

/// One line of the table.
pub(crate) struct Route {
    method: Method,
    pattern: Vec<Segment>,
    pub(crate) target: Target,
}

enum Segment {
    Text(&'static str),
    Hole(&'static str),
    /// Whatever follows, also nothing.
    Rest,
}

/// What a route leads to.
pub(crate) enum Target {
    /// A call, in some versions.
    Call(Vec<(Window, Handler)>),
    /// One of several calls, named by the body's only key.
    Actions(Vec<Action>),
    /// Manila knows the path; here nothing answers.
    Absent,
}

/// An action of an object.
pub(crate) struct Action {
    pub(crate) name: &'static str,
    pub(crate) window: Window,
    pub(crate) handler: Handler,
}

impl Action {
    pub(crate) fn new<F, R>(name: &'static str, window: Window, f: F) -> Self
    where
        F: Fn(Call) -> R + Send + Sync + 'static,
        R: Future<Output = Result> + Send + 'static,
    {
        Self { name, window, handler: handler(f) }
    }
}

/// The parts of a path, by the names that the table gives them.
pub(crate) type Params = Vec<(&'static str, String)>;

/// What a path came to.
pub(crate) struct Found<'a> {
    pub(crate) target: &'a Target,
    pub(crate) params: Params,
    pub(crate) project: Option<String>,
}

/// All routes.
#[derive(Default)]
pub(crate) struct Routes(Vec<Route>);

impl Routes {
    /// Adds a call.
    pub(crate) fn on<F, R>(&mut self, method: Method, path: &'static str, window: Window, f: F)
    where
        F: Fn(Call) -> R + Send + Sync + 'static,
        R: Future<Output = Result> + Send + 'static,
    {
        let pattern = pattern(path);
        let same = |r: &&mut Route| r.method == method && print(&r.pattern) == path;
        if let Some(Route { target: Target::Call(calls), .. }) = self.0.iter_mut().find(same) {
            calls.push((window, handler(f)));
        } else {
            self.0.push(Route { method, pattern, target: Target::Call(vec![(window, handler(f))]) });
        }
    }

    pub(crate) fn get<F, R>(&mut self, path: &'static str, window: Window, f: F)
    where
        F: Fn(Call) -> R + Send + Sync + 'static,
        R: Future<Output = Result> + Send + 'static,
    {
        self.on(Method::GET, path, window, f);
    }

    pub(crate) fn post<F, R>(&mut self, path: &'static str, window: Window, f: F)
    where
        F: Fn(Call) -> R + Send + Sync + 'static,
        R: Future<Output = Result> + Send + 'static,
    {
        self.on(Method::POST, path, window, f);
    }

    pub(crate) fn put<F, R>(&mut self, path: &'static str, window: Window, f: F)
    where
        F: Fn(Call) -> R + Send + Sync + 'static,
        R: Future<Output = Result> + Send + 'static,
    {
        self.on(Method::PUT, path, window, f);
    }

    pub(crate) fn delete<F, R>(&mut self, path: &'static str, window: Window, f: F)
    where
        F: Fn(Call) -> R + Send + Sync + 'static,
        R: Future<Output = Result> + Send + 'static,
    {
        self.on(Method::DELETE, path, window, f);
    }

    /// Adds the actions of an object.
    pub(crate) fn actions(&mut self, path: &'static str, actions: Vec<Action>) {
        self.0.push(Route { method: Method::POST, pattern: pattern(path), target: Target::Actions(actions) });
    }

    /// The paths that a collection has in Manila whether or not something answers there. Add it last.
    pub(crate) fn collection(&mut self, list: &'static str, member: &'static str) {
        for method in [Method::GET, Method::POST] {
            self.0.push(Route { method, pattern: pattern(list), target: Target::Absent });
        }
        for method in [Method::GET, Method::PUT, Method::DELETE] {
            self.0.push(Route { method, pattern: pattern(member), target: Target::Absent });
        }
    }

    /// A path that Manila knows and that nothing answers here, by any method.
    pub(crate) fn absent(&mut self, path: &'static str) {
        for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE] {
            self.0.push(Route { method, pattern: pattern(path), target: Target::Absent });
        }
    }

    /// As [`Routes::absent`], for a path and everything below it.
    pub(crate) fn absent_below(&mut self, path: &'static str) {
        for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE] {
            let mut pattern = pattern(path);
            pattern.push(Segment::Rest);
            self.0.push(Route { method, pattern, target: Target::Absent });
        }
    }

    /// Finds the route of a path below `/v2`. A project may stand before it; `own` is the caller's, which is
    /// taken whatever it looks like, others only in the form that Keystone gives projects.
    pub(crate) fn find(&self, method: &Method, segments: &[String], own: &str) -> Option<Found<'_>> {
        let look = |segments: &[String], project: Option<String>| {
            self.0.iter().find_map(|route| {
                let params = (route.method == *method).then(|| fit(&route.pattern, segments))??;
                Some(Found { target: &route.target, params, project: project.clone() })
            })
        };
        look(segments, None).or_else(|| {
            let (first, rest) = segments.split_first()?;
            let project = first == own
                || (!first.is_empty() && first.bytes().all(|b| b"0123456789abcdef-".contains(&b)));
            project.then(|| look(rest, Some(first.clone())))?
        })
    }

    /// Every call as `METHOD /path` and, of an action, its name.
    fn list(&self) -> Vec<(String, Option<&'static str>)> {
        let mut out = Vec::new();
        for route in &self.0 {
            let line = format!("{} {}", route.method, print(&route.pattern));
            match &route.target {
                Target::Call(_) => out.push((line, None)),
                Target::Actions(actions) => {
                    out.extend(actions.iter().map(|a| (line.clone(), Some(a.name))));
                }
                Target::Absent => {}
            }
        }
        out
    }
}

/// Every call served under `/v2`, as `METHOD /path` or `METHOD /path {action}`, in the order of the table. Calls
/// that answer only that they are not there are left out.
pub fn calls() -> Vec<String> {
    let later =
        |action: &Option<&str>| action.is_some_and(|name| crate::manila::LATER_ACTIONS.contains(&name));
    let served = crate::manila::routes().list().into_iter().filter(|(_, action)| !later(action));
    served.map(|(line, action)| action.map_or(line.clone(), |name| format!("{line} {{{name}}}"))).collect()
}

/// The paths and actions of Manila that answer 404 until a later issue serves them.
pub fn later_calls() -> Vec<String> {
    let paths = crate::manila::LATER.iter().map(|path| (*path).to_owned());
    let actions = crate::manila::LATER_ACTIONS.iter().map(|name| format!("/shares/{{id}}/action {{{name}}}"));
    paths.chain(actions).collect()
}

/// The handler for a version; `None` when the call does not exist in it.
pub(crate) fn pick<'a>(calls: &'a [(Window, Handler)], version: &Microversion) -> Option<&'a Handler> {
    calls.iter().find(|(window, _)| window.admits(version)).map(|(_, handler)| handler)
}

fn pattern(path: &'static str) -> Vec<Segment> {
    let hole = |s: &'static str| s.strip_prefix('{').and_then(|s| s.strip_suffix('}'));
    path.split('/').skip(1).map(|s| hole(s).map_or(Segment::Text(s), Segment::Hole)).collect()
}

fn print(pattern: &[Segment]) -> String {
    pattern
        .iter()
        .map(|segment| match segment {
            Segment::Text(text) => format!("/{text}"),
            Segment::Hole(name) => format!("/{{{name}}}"),
            Segment::Rest => "/…".into(),
        })
        .collect()
}

fn fit(pattern: &[Segment], segments: &[String]) -> Option<Params> {
    let (pattern, segments) = match pattern {
        [fixed @ .., Segment::Rest] => (fixed, segments.get(..fixed.len())?),
        whole => (whole, segments),
    };
    if pattern.len() != segments.len() {
        return None;
    }
    let mut params = Vec::new();
    for (wanted, segment) in pattern.iter().zip(segments) {
        match wanted {
            Segment::Text(text) if text == segment => {}
            Segment::Hole(name) if !segment.is_empty() => params.push((*name, segment.clone())),
            _ => return None,
        }
    }
    Some(params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Reply;

    fn table() -> Routes {
        let mut routes = Routes::default();
        let yes = |_: Call| async { Reply::accepted() };
        routes.get("/shares/detail", Window::ALWAYS, yes);
        routes.get("/shares/{id}", Window::ALWAYS, yes);
        routes.put("/shares/{id}/metadata/{key}", Window::ALWAYS, yes);
        routes
    }

    fn find(path: &str) -> Option<(Params, Option<String>)> {
        let segments: Vec<String> = path.split('/').map(str::to_owned).collect();
        table().find(&Method::GET, &segments, "My Project").map(|f| (f.params, f.project))
    }

    #[test]
    fn projects_before_the_path_are_seen() {
        assert_eq!(find("shares/x").unwrap(), (vec![("id", "x".into())], None));
        assert_eq!(find("shares/detail").unwrap(), (vec![], None));
        assert_eq!(find("3b75-ab/shares/x").unwrap().1, Some("3b75-ab".into()));
        assert_eq!(find("My Project/shares/x").unwrap().1, Some("My Project".into()));
        assert!(find("other/shares/x").is_none());
        assert!(find("shares").is_none() && find("shares/").is_none() && find("").is_none());
        assert!(find("shares/x/metadata/k").is_none(), "only PUT");
    }
}
