//! Who may do what: oslo.policy's rules, with Manila's names and defaults.
//!
//! A request takes one [`Rules`] at its start and uses it to its end, so that an edit of the policy file
//! never splits a request in two. An edit is seen by the next request; one that cannot be read is logged,
//! shown by [`Policy::trouble`], and changes nothing.

mod check;
mod defaults;
mod file;
mod parse;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

pub use check::{Check, Credentials, Facts};
pub use file::Mistake;
pub use parse::{Wrong, parse};

use crate::auth::{Identity, Scope};
use crate::watch::{Change, Watched};

/// The rules in force.
#[derive(Debug)]
pub struct Rules(BTreeMap<String, Check>);

impl Rules {
    /// Manila's defaults.
    pub fn defaults() -> Self {
        // A default that does not parse never holds; `the_defaults_parse` proves that there is none.
        Self(defaults::rules().map(|(name, text)| (name, parse(text).unwrap_or(Check::Never))).collect())
    }

    /// The defaults with the rules of a policy file over them.
    pub fn with_file(path: &Path, text: &str) -> Result<Self, Mistake> {
        let mut rules = Self::defaults();
        let known: Vec<String> = rules.0.keys().cloned().collect();
        let entries = file::entries(path, text)?;
        for entry in &entries {
            rules.0.insert(entry.name.clone(), entry.check.clone());
        }
        for entry in &entries {
            let mistake = |what: String| Mistake {
                file: path.display().to_string(),
                line: entry.place.0,
                column: entry.place.1,
                what: format!("in the rule '{}': {what}", entry.name),
            };
            if let Some(missing) =
                entry.check.references().into_iter().find(|name| !rules.0.contains_key(*name))
            {
                return Err(mistake(format!("there is no rule named '{missing}'")));
            }
            if rules.reaches(&entry.name, &entry.name, &mut Vec::new()) {
                return Err(mistake("it refers to itself".into()));
            }
            let used = entries.iter().any(|e| e.check.references().contains(&entry.name.as_str()));
            if !known.contains(&entry.name) && !used {
                tracing::warn!(
                    file = %path.display(), line = entry.place.0, rule = %entry.name,
                    "No call asks for this rule; is its name misspelt?"
                );
            }
        }
        Ok(rules)
    }

    fn reaches<'a>(&'a self, from: &str, goal: &str, seen: &mut Vec<&'a str>) -> bool {
        let Some(check) = self.0.get(from) else { return false };
        check.references().into_iter().any(|name| {
            if name == goal {
                return true;
            }
            if seen.contains(&name) {
                return false;
            }
            seen.push(name);
            self.reaches(name, goal, seen)
        })
    }

    /// Whether the caller may do `action` to an object of these facts. An action without a rule of its own
    /// falls to the rule `default`.
    ///
    /// Rules are about roles in a project. For callers of another scope they hold only where they speak of it
    /// (`system_scope:all`, `domain_id:…`): `role:admin` alone never lets in who is an administrator of something else.
    pub fn allow(&self, action: &str, who: &Credentials, target: &Facts) -> bool {
        let Some(check) = self.0.get(action).or_else(|| self.0.get("default")) else { return false };
        let meant = match who.scope {
            Scope::Project => true,
            Scope::System => self.speaks_of(check, "system_scope", &mut Vec::new()),
            Scope::Domain => self.speaks_of(check, "domain_id", &mut Vec::new()),
            Scope::Nothing => false,
        };
        meant && check.holds(who, target, &|name| self.0.get(name))
    }

    /// Whether a rule, or one that it refers to, asks for this fact about the caller.
    fn speaks_of<'a>(&'a self, check: &'a Check, fact: &str, seen: &mut Vec<&'a str>) -> bool {
        check.asks_for(fact)
            || check.references().into_iter().any(|name| {
                if seen.contains(&name) {
                    return false;
                }
                seen.push(name);
                self.0.get(name).is_some_and(|check| self.speaks_of(check, fact, seen))
            })
    }
}

/// The caller's credentials and the default target of a check: the caller's own project and user.
pub(crate) fn credentials(who: &Identity) -> (Credentials, Facts) {
    let mut own = Facts::from([("user_id".to_owned(), who.user_id.clone())]);
    if who.scope == Scope::Project {
        own.insert("project_id".into(), who.project_id.clone());
    }
    let mut facts = who.facts.clone();
    facts.extend(own.clone());
    if who.scope == Scope::System {
        facts.insert("system_scope".into(), "all".into());
    }
    facts.insert("is_admin".into(), if who.is_admin { "True" } else { "False" }.into());
    (Credentials { roles: who.roles.clone(), facts, scope: who.scope }, own)
}

/// The rules of a server, kept in step with their file.
#[derive(Debug)]
pub struct Policy {
    rules: Mutex<Arc<Rules>>,
    file: Option<Watched>,
    trouble: Mutex<Option<String>>,
}

impl Policy {
    /// Manila's defaults and nothing else.
    pub fn defaults() -> Self {
        Self { rules: Mutex::new(Arc::new(Rules::defaults())), file: None, trouble: Mutex::new(None) }
    }

    /// The defaults under the rules of a file, which must be readable now.
    pub fn load(path: PathBuf) -> Result<Self, Mistake> {
        let unreadable = |error: std::io::Error| Mistake {
            file: path.display().to_string(),
            line: 1,
            column: 1,
            what: format!("the policy file cannot be read: {error}"),
        };
        let watched = Watched::new(path.clone());
        let text = watched.read().map_err(unreadable)?;
        let rules = Rules::with_file(&path, &text)?;
        Ok(Self { rules: Mutex::new(Arc::new(rules)), file: Some(watched), trouble: Mutex::new(None) })
    }

    /// The rules in force now. A changed file is read first.
    pub fn current(&self) -> Arc<Rules> {
        if let Some(file) = &self.file {
            match file.change() {
                Change::None => {}
                Change::Text(text) => self.replace(Rules::with_file(file.path(), &text)),
                Change::Unreadable(error) => self.replace(Err(Mistake {
                    file: file.path().display().to_string(),
                    line: 1,
                    column: 1,
                    what: format!("the policy file cannot be read: {error}"),
                })),
            }
        }
        lock(&self.rules).clone()
    }

    fn replace(&self, rules: Result<Rules, Mistake>) {
        match rules {
            Ok(rules) => {
                tracing::info!("The policy file changed and its rules are in force.");
                *lock(&self.rules) = Arc::new(rules);
                *lock(&self.trouble) = None;
            }
            Err(mistake) => {
                tracing::error!(%mistake, "The policy file changed but has a mistake; the rules before it stay in force.");
                *lock(&self.trouble) = Some(mistake.to_string());
            }
        }
    }

    /// What is wrong with the policy file as it is now, while older rules are in force.
    pub fn trouble(&self) -> Option<String> {
        lock(&self.trouble).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(roles: &[&str], project: &str) -> Identity {
        Identity {
            user_id: "u".into(),
            project_id: project.into(),
            roles: roles.iter().map(|r| (*r).to_owned()).collect(),
            is_admin: roles.contains(&"admin"),
            scope: Scope::Project,
            facts: BTreeMap::new(),
        }
    }

    /// Whether somebody with these roles in the whole system, a domain or nothing may.
    fn allows_beyond(rules: &Rules, action: &str, roles: &[&str], scope: Scope) -> bool {
        let mut who = Identity { scope, is_admin: false, ..identity(roles, "") };
        if scope == Scope::Domain {
            who.facts.insert("domain_id".into(), "d".into());
        }
        let (who, own) = credentials(&who);
        rules.allow(action, &who, &own)
    }

    fn allows(rules: &Rules, action: &str, roles: &[&str], project: &str) -> bool {
        let (who, _) = credentials(&identity(roles, "mine"));
        rules.allow(action, &who, &Facts::from([("project_id".into(), project.into())]))
    }

    #[test]
    fn the_defaults_parse() {
        for (name, text) in defaults::rules() {
            assert!(parse(text).is_ok(), "{name}");
        }
        assert!(Rules::defaults().0.len() > 220);
    }

    #[test]
    fn the_defaults_are_manilas() {
        let rules = Rules::defaults();
        assert!(allows(&rules, "share:create", &["member"], "mine"));
        assert!(!allows(&rules, "share:create", &["reader"], "mine"));
        assert!(!allows(&rules, "share:get", &["reader"], "other"));
        assert!(allows(&rules, "share:get", &["admin"], "other"));
        assert!(!allows(&rules, "share_replica:resync", &["member"], "mine"));
        assert!(allows(&rules, "share_replica:resync", &["ADMIN"], "mine"));
    }

    #[test]
    fn a_role_can_be_granted_a_call() {
        let text = "\"share_replica:reset_status\": \"rule:context_is_admin or role:operator\"\n";
        let rules = Rules::with_file(Path::new("policy.yaml"), text).unwrap();
        assert!(allows(&rules, "share_replica:reset_status", &["operator"], "mine"));
        assert!(!allows(&rules, "share_replica:reset_status", &["member"], "mine"));
        assert!(!allows(&rules, "share_replica:resync", &["operator"], "mine"));
    }

    #[test]
    fn roles_beside_a_project_count_only_where_a_rule_speaks_of_them() {
        let rules = Rules::defaults();
        for scope in [Scope::System, Scope::Domain, Scope::Nothing] {
            for action in ["context_is_admin", "share:create", "share:get", "share_type:index", "no:such"] {
                let roles = ["admin", "manager", "member", "reader"];
                assert!(!allows_beyond(&rules, action, &roles, scope), "{action} {scope:?}");
            }
        }
        assert!(allows_beyond(&rules, "tandem:read", &["reader"], Scope::System));
        assert!(!allows_beyond(&rules, "tandem:operate", &["reader"], Scope::System));
        assert!(allows_beyond(&rules, "tandem:operate", &["admin"], Scope::System));
        assert!(!allows_beyond(&rules, "tandem:read", &["admin"], Scope::Domain));
        assert!(!allows_beyond(&rules, "tandem:read", &["admin"], Scope::Nothing));
        assert!(!allows(&rules, "tandem:read", &["reader"], "mine"));

        let opened = Rules::with_file(
            Path::new("p"),
            "context_is_admin: 'role:admin or role:admin and system_scope:all'\n\
             share_type:index: 'role:reader and domain_id:d'\n",
        );
        let opened = opened.unwrap();
        assert!(allows_beyond(&opened, "share:get", &["admin"], Scope::System));
        assert!(!allows_beyond(&opened, "share:get", &["member"], Scope::System));
        assert!(!allows_beyond(&opened, "share:get", &["admin"], Scope::Domain));
        assert!(allows_beyond(&opened, "share_type:index", &["reader"], Scope::Domain));
    }

    #[test]
    fn roles_of_a_project_are_keystones_four() {
        let rules = Rules::with_file(Path::new("p"), "share_replica:resync: 'role:manager'\n").unwrap();
        // Keystone names the roles that a role implies.
        let (reader, member) = (&["reader"][..], &["member", "reader"][..]);
        let (manager, admin) =
            (&["manager", "member", "reader"][..], &["admin", "manager", "member", "reader"][..]);
        for (action, who) in [
            ("share:get", [true, true, true, true]),
            ("share:create", [false, true, true, true]),
            ("share_replica:resync", [false, false, true, true]),
            ("share:reset_status", [false, false, false, true]),
        ] {
            let may = [reader, member, manager, admin].map(|roles| allows(&rules, action, roles, "mine"));
            assert_eq!(may, who, "{action}");
        }
    }

    #[test]
    fn rules_that_refer_to_nothing_or_to_themselves_are_refused() {
        let refuse = |text| Rules::with_file(Path::new("p"), text).unwrap_err().to_string();
        assert!(refuse("a: '@'\nb: 'rule:nobody'\n").contains("p:2:4"));
        assert!(refuse("a: 'rule:b'\nb: 'not rule:a'\n").contains("refers to itself"));
        assert!(refuse("context_is_admin: 'rule:share:create'\n").contains("refers to itself"));
    }

    #[test]
    fn a_broken_edit_keeps_the_rules_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.yaml");
        std::fs::write(&path, "\"share:create\": \"!\"\n").unwrap();
        let policy = Policy::load(path.clone()).unwrap();
        assert!(!allows(&policy.current(), "share:create", &["admin"], "mine"));

        std::fs::write(&path, "\"share:create\": \"role:x or\"\n").unwrap();
        assert!(!allows(&policy.current(), "share:create", &["admin"], "mine"));
        assert!(policy.trouble().unwrap().contains("policy.yaml:1:"));

        std::fs::write(&path, "\"share:create\": \"@\"\n").unwrap();
        assert!(allows(&policy.current(), "share:create", &[], "mine"));
        assert_eq!(policy.trouble(), None);

        std::fs::remove_file(&path).unwrap();
        assert!(allows(&policy.current(), "share:create", &[], "mine"));
        assert!(policy.trouble().unwrap().contains("cannot be read"));
    }

    #[test]
    fn a_broken_file_stops_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.json");
        std::fs::write(&path, "{\n  \"share:create\": \"role:x and\"\n}").unwrap();
        let mistake = Policy::load(path).unwrap_err();
        assert_eq!((mistake.line, mistake.column), (2, 30), "{mistake}");
        assert!(Policy::load(dir.path().join("none")).is_err());
    }
}
