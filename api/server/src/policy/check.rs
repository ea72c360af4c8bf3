//! One rule: the tree that a check string stands for, and whether it holds.
//!
//! The meaning is oslo.policy's: what cannot be resolved (an attribute the target lacks, a rule nobody
//! defined) does not hold.

use std::collections::BTreeMap;

use crate::auth::Scope;

/// Facts about the caller or about the object, by name.
pub type Facts = BTreeMap<String, String>;

/// The caller, as rules see it.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// Roles, in lower case.
    pub roles: Vec<String>,
    /// `user_id`, `project_id`, `is_admin` and the like; booleans are written `True` and `False`.
    pub facts: Facts,
    /// What the roles are for.
    pub scope: Scope,
}

/// A parsed check string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// `@`, or an empty rule: always holds.
    Always,
    /// `!`: never holds.
    Never,
    /// `not x`.
    Not(Box<Check>),
    /// `a and b`.
    And(Vec<Check>),
    /// `a or b`.
    Or(Vec<Check>),
    /// `role:x`: the caller has the role, whatever the case of its letters.
    Role(Template),
    /// `rule:x`: the rule of that name holds.
    Rule(String),
    /// `kind:match`: the caller's attribute `kind` equals the match.
    Attribute(String, Template),
    /// `'text':match` or `True:match`: the literal equals the match.
    Literal(String, Template),
}

/// Text with `%(name)s` holes that the target fills.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Hole(String),
}

impl Template {
    /// Reads text with `%(name)s` holes. `None` when a `%` stands alone (write `%%` for one).
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('%') {
            plain.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                plain.push('%');
                rest = after;
                continue;
            }
            let (name, after) = rest.strip_prefix('(')?.split_once(")s")?;
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(Part::Hole(name.to_owned()));
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() || parts.is_empty() {
            parts.push(Part::Text(plain));
        }
        Some(Self(parts))
    }

    /// The text for this target; `None` when the target lacks what a hole names.
    fn fill(&self, target: &Facts) -> Option<String> {
        let mut out = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Hole(name) => out.push_str(target.get(name)?),
            }
        }
        Some(out)
    }
}

impl Check {
    /// Whether the check holds. `rule` resolves `rule:` references; cycles were refused when the rules were
    /// loaded.
    pub fn holds<'r>(
        &self,
        who: &Credentials,
        target: &Facts,
        rule: &dyn Fn(&str) -> Option<&'r Self>,
    ) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Not(inner) => !inner.holds(who, target, rule),
            Self::And(all) => all.iter().all(|c| c.holds(who, target, rule)),
            Self::Or(any) => any.iter().any(|c| c.holds(who, target, rule)),
            Self::Role(role) => {
                role.fill(target).is_some_and(|r| who.roles.iter().any(|has| has.eq_ignore_ascii_case(&r)))
            }
            Self::Rule(name) => rule(name).is_some_and(|c| c.holds(who, target, rule)),
            Self::Attribute(kind, wanted) => {
                who.facts.get(kind).is_some_and(|has| wanted.fill(target).as_ref() == Some(has))
            }
            Self::Literal(text, wanted) => wanted.fill(target).as_ref() == Some(text),
        }
    }

    /// Whether it asks for this fact about the caller, the rules that it refers to left aside. A rule that holds only
    /// for callers without it does not ask for it.
    pub(super) fn asks_for(&self, fact: &str) -> bool {
        match self {
            Self::And(many) | Self::Or(many) => many.iter().any(|check| check.asks_for(fact)),
            Self::Attribute(kind, _) => kind == fact,
            _ => false,
        }
    }

    /// The rules that this one refers to.
    pub fn references(&self) -> Vec<&str> {
        match self {
            Self::Not(inner) => inner.references(),
            Self::And(many) | Self::Or(many) => many.iter().flat_map(Self::references).collect(),
            Self::Rule(name) => vec![name],
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_fill_or_fail() {
        let target = Facts::from([("project_id".into(), "p".into())]);
        let fill = |text: &str| Template::parse(text).and_then(|t| t.fill(&target));
        assert_eq!(fill("%(project_id)s"), Some("p".into()));
        assert_eq!(fill("a%%-%(project_id)s-b"), Some("a%-p-b".into()));
        assert_eq!(fill("%(other)s"), None);
        assert_eq!(fill(""), Some(String::new()));
        for bad in ["%", "%(x", "%(x)", "100%"] {
            assert_eq!(Template::parse(bad), None, "{bad}");
        }
    }
}
