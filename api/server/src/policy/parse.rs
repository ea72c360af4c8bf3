//! Reads oslo.policy's check strings.
//!
//! ```text
//! expression := term ("or" term)*          words are split at white space; keywords in any case
//! term       := factor ("and" factor)*
//! factor     := "not" factor | "(" expression ")" | check
//! check      := "@" | "!" | kind ":" match | quoted ":" match
//! ```

use super::check::{Check, Template};

/// What is wrong with a check string, and where (in characters from its start).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// Characters before the place.
    pub at: usize,
    /// A sentence part: what is wrong there.
    pub what: String,
}

/// Deeper nesting than this is refused: nobody writes it, and the parser recurses.
const MAX_DEPTH: usize = 64;

/// Parses a check string. An empty one always holds, as oslo.policy has it.
pub fn parse(text: &str) -> Result<Check, Wrong> {
    let tokens = tokens(text)?;
    if tokens.is_empty() {
        return Ok(Check::Always);
    }
    let mut reader = Reader { tokens, next: 0, end: text.chars().count(), depth: 0 };
    let check = reader.expression()?;
    match reader.peek() {
        None => Ok(check),
        Some(token) => Err(wrong(token.at, format!("unexpected {}", token.name()))),
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Open,
    Close,
    And,
    Or,
    Not,
    Word(String),
}

#[derive(Debug, Clone)]
struct Token {
    at: usize,
    kind: Kind,
}

impl Token {
    fn name(&self) -> String {
        match &self.kind {
            Kind::Open => "'('".into(),
            Kind::Close => "')'".into(),
            Kind::And => "'and'".into(),
            Kind::Or => "'or'".into(),
            Kind::Not => "'not'".into(),
            Kind::Word(word) => format!("'{word}'"),
        }
    }
}

fn wrong(at: usize, what: impl Into<String>) -> Wrong {
    Wrong { at, what: what.into() }
}

/// Parentheses count as such only at the start and end of a word, so that `%(name)s` stays whole.
fn tokens(text: &str) -> Result<Vec<Token>, Wrong> {
    let chars: Vec<char> = text.chars().collect();
    let mut out = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        if chars[at].is_whitespace() {
            at += 1;
        } else if chars[at] == '(' {
            out.push(Token { at, kind: Kind::Open });
            at += 1;
        } else {
            let start = at;
            at = word_end(&chars, at)?;
            let mut word: String = chars[start..at].iter().collect();
            let mut closes = 0;
            while word.ends_with(')') {
                word.pop();
                closes += 1;
            }
            if !word.is_empty() {
                let kind = match word.to_ascii_lowercase().as_str() {
                    "and" => Kind::And,
                    "or" => Kind::Or,
                    "not" => Kind::Not,
                    _ => Kind::Word(word),
                };
                out.push(Token { at: start, kind });
            }
            out.extend((0..closes).map(|n| Token { at: at - closes + n, kind: Kind::Close }));
        }
    }
    Ok(out)
}

/// A word ends at white space; within quotes white space belongs to it.
fn word_end(chars: &[char], start: usize) -> Result<usize, Wrong> {
    let mut at = start;
    let mut quote = None;
    while at < chars.len() {
        match (quote, chars[at]) {
            (None, c) if c.is_whitespace() => return Ok(at),
            (None, c @ ('"' | '\'')) => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            _ => {}
        }
        at += 1;
    }
    match quote {
        Some(_) => Err(wrong(start, "a quote that is not closed")),
        None => Ok(at),
    }
}

struct Reader {
    tokens: Vec<Token>,
    next: usize,
    end: usize,
    depth: usize,
}

impl Reader {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next)
    }

    fn take_if(&mut self, kind: &Kind) -> bool {
        let found = self.peek().is_some_and(|t| t.kind == *kind);
        self.next += usize::from(found);
        found
    }

    fn expression(&mut self) -> Result<Check, Wrong> {
        self.joined(&Kind::Or, Self::term, Check::Or)
    }

    fn term(&mut self) -> Result<Check, Wrong> {
        self.joined(&Kind::And, Self::factor, Check::And)
    }

    fn joined(
        &mut self,
        by: &Kind,
        part: fn(&mut Self) -> Result<Check, Wrong>,
        whole: fn(Vec<Check>) -> Check,
    ) -> Result<Check, Wrong> {
        let first = part(self)?;
        if !self.peek().is_some_and(|t| t.kind == *by) {
            return Ok(first);
        }
        let mut all = vec![first];
        while self.take_if(by) {
            all.push(part(self)?);
        }
        Ok(whole(all))
    }

    fn factor(&mut self) -> Result<Check, Wrong> {
        let Some(token) = self.peek().cloned() else {
            return Err(wrong(self.end, "the rule ends where a check is expected"));
        };
        self.next += 1;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(wrong(token.at, format!("more than {MAX_DEPTH} levels of nesting")));
        }
        let check = match token.kind {
            Kind::Not => Check::Not(Box::new(self.factor()?)),
            Kind::Open => {
                let inner = self.expression()?;
                if !self.take_if(&Kind::Close) {
                    return Err(wrong(token.at, "a '(' that is not closed"));
                }
                inner
            }
            Kind::Word(word) => check(&word, token.at)?,
            Kind::Close | Kind::And | Kind::Or => {
                return Err(wrong(token.at, format!("{} where a check is expected", token.name())));
            }
        };
        self.depth -= 1;
        Ok(check)
    }
}

fn check(word: &str, at: usize) -> Result<Check, Wrong> {
    match word {
        "@" => return Ok(Check::Always),
        "!" => return Ok(Check::Never),
        _ => {}
    }
    if let Some((literal, rest)) = quoted(word) {
        let wanted =
            rest.strip_prefix(':').ok_or_else(|| wrong(at, format!("{word} lacks ':' and a value")))?;
        return Ok(Check::Literal(literal, template(wanted, at)?));
    }
    let Some((kind, wanted)) = word.split_once(':') else {
        return Err(wrong(at, format!("'{word}' is no check: write kind:value, @ or !")));
    };
    match kind {
        "" => Err(wrong(at, format!("'{word}' lacks the kind before ':'"))),
        "rule" if wanted.is_empty() => Err(wrong(at, "'rule:' lacks the name of a rule")),
        "rule" => Ok(Check::Rule(wanted.to_owned())),
        "role" => Ok(Check::Role(template(wanted, at)?)),
        "http" | "https" => {
            Err(wrong(at, format!("'{kind}:' checks are not supported: no rule asks another server")))
        }
        literal if matches!(literal, "True" | "False" | "None") || literal.parse::<i64>().is_ok() => {
            Ok(Check::Literal(literal.to_owned(), template(wanted, at)?))
        }
        kind => Ok(Check::Attribute(kind.to_owned(), template(wanted, at)?)),
    }
}

fn quoted(word: &str) -> Option<(String, &str)> {
    let quote = word.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let (text, rest) = word[1..].split_once(quote)?;
    Some((text.to_owned(), rest))
}

fn template(text: &str, at: usize) -> Result<Template, Wrong> {
    Template::parse(text).ok_or_else(|| wrong(at, format!("'{text}' has a '%' that starts no %(name)s")))
}

#[cfg(test)]
mod tests {
    use super::super::check::{Credentials, Facts};
    use super::*;
    use proptest::prelude::*;

    fn holds(text: &str) -> bool {
        let who = Credentials {
            roles: vec!["member".into()],
            facts: Facts::from([("project_id".into(), "p1".into()), ("is_admin".into(), "False".into())]),
            scope: crate::auth::Scope::Project,
        };
        let target = Facts::from([("project_id".into(), "p1".into())]);
        parse(text).unwrap().holds(&who, &target, &|name| (name == "yes").then_some(&Check::Always))
    }

    #[test]
    fn the_language_means_what_oslo_means() {
        for yes in [
            "",
            "@",
            "role:member",
            "role:MEMBER",
            "project_id:%(project_id)s",
            "is_admin:False",
            "rule:yes",
            "not !",
            "not role:admin",
            "role:admin or role:member",
            "(role:admin) or (role:member)",
            "role:member and project_id:%(project_id)s",
            "! or (! or @)",
            "@ or ! and !",
            "NOT ! AND @",
            "'p1':%(project_id)s",
            "True:True",
            "not (! or !)",
            "((@))",
        ] {
            assert!(holds(yes), "{yes}");
        }
        for no in [
            "!",
            "role:admin",
            "project_id:p2",
            "is_admin:True",
            "rule:nobody",
            "not @",
            "user_id:%(user_id)s",
            "project_id:%(domain)s",
            "(@ or !) and !",
            "'p2':%(project_id)s",
            "not not !",
        ] {
            assert!(!holds(no), "{no}");
        }
    }

    #[test]
    fn mistakes_are_shown_where_they_are() {
        for (text, at) in [
            ("role:admin or", 13),
            ("role", 0),
            ("@ @", 2),
            ("(@", 0),
            ("@)", 1),
            ("and @", 0),
            ("@ or 'x", 5),
            ("@ and http://x", 6),
            ("role:%x", 0),
            (":x", 0),
            ("@ or rule:", 5),
            ("'x'y", 0),
        ] {
            assert_eq!(parse(text).unwrap_err().at, at, "{text}");
        }
    }

    #[test]
    fn deep_nesting_is_refused() {
        assert!(parse(&format!("{}@{}", "(".repeat(100_000), ")".repeat(100_000))).is_err());
        assert!(parse(&format!("{} @", "not ".repeat(100_000))).is_err());
    }

    /// Prints a tree as a check string.
    fn print(check: &Check) -> String {
        let join =
            |all: &[Check], by: &str| format!("({})", all.iter().map(print).collect::<Vec<_>>().join(by));
        match check {
            Check::Always => "@".into(),
            Check::Never => "!".into(),
            Check::Not(inner) => format!("not {}", print(inner)),
            Check::And(all) => join(all, " and "),
            Check::Or(all) => join(all, " or "),
            Check::Rule(name) => format!("rule:{name}"),
            _ => "role:x".into(),
        }
    }

    fn tree() -> impl Strategy<Value = Check> {
        let leaf =
            prop_oneof![Just(Check::Always), Just(Check::Never), "[a-z][a-z:_-]{0,8}".prop_map(Check::Rule),];
        leaf.prop_recursive(5, 40, 4, |inner| {
            prop_oneof![
                inner.clone().prop_map(|c| Check::Not(Box::new(c))),
                proptest::collection::vec(inner.clone(), 2..4).prop_map(Check::And),
                proptest::collection::vec(inner, 2..4).prop_map(Check::Or),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_tree_reads_back(tree in tree()) {
            prop_assert_eq!(parse(&print(&tree)), Ok(tree));
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            if let Err(wrong) = parse(&text) {
                prop_assert!(wrong.at <= text.chars().count());
            }
        }

        #[test]
        fn no_words_panic(words in proptest::collection::vec(
            prop_oneof![Just("("), Just(")"), Just("and"), Just("or"), Just("not"), Just("@"), Just("a:b"), Just("'")],
            0..12,
        )) {
            let _ = parse(&words.join(" "));
        }
    }
}
