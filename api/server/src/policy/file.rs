//! Reads a policy file: YAML, or JSON, which is read as the YAML that it is (as oslo.policy does).
//!
//! A file maps rule names to check strings. A list of lists is the old way of writing a rule: any of the
//! outer list, all of the inner.

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use std::path::Path;

use super::check::Check;
use super::parse::parse;

/// What is wrong with a policy file: a sentence that names file, line and column.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {what}")]
pub struct Mistake {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The column, from 1.
    pub column: usize,
    /// What is wrong there, and what to write instead.
    pub what: String,
}

/// One rule of a file.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// The name, such as `share_replica:promote`.
    pub name: String,
    /// What it asks for.
    pub check: Check,
    /// Line and column of the rule, for mistakes that show only when the rules stand together.
    pub place: (usize, usize),
}

/// Parses a policy file's text.
pub(super) fn entries(path: &Path, text: &str) -> Result<Vec<Entry>, Mistake> {
    Reader { file: path.display().to_string(), events: Parser::new_from_str(text) }.document()
}

struct Reader<'a> {
    file: String,
    events: Parser<'a, saphyr_parser::StrInput<'a>>,
}

type Next<'a> = (Event<'a>, Span);

impl<'a> Reader<'a> {
    fn mistake(&self, place: (usize, usize), what: impl Into<String>) -> Mistake {
        Mistake { file: self.file.clone(), line: place.0, column: place.1, what: what.into() }
    }

    fn next(&mut self) -> Result<Next<'a>, Mistake> {
        loop {
            match self.events.next() {
                Some(Ok((Event::Nothing, _))) => {}
                Some(Ok(event)) => return Ok(event),
                Some(Err(error)) => {
                    let marker = error.marker();
                    let place = (marker.line(), marker.col() + 1);
                    return Err(self.mistake(place, format!("this is not YAML: {}", error.info())));
                }
                None => return Err(self.mistake((1, 1), "the file ends too early")),
            }
        }
    }

    fn document(mut self) -> Result<Vec<Entry>, Mistake> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut documents = 0;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(entries),
                Event::StreamStart | Event::DocumentEnd => {}
                Event::DocumentStart(_) if documents == 0 => documents += 1,
                Event::MappingStart(..) => self.mapping(&mut entries)?,
                // An empty file overrides nothing.
                Event::Scalar(text, ScalarStyle::Plain, ..) if matches!(&*text, "" | "~" | "null") => {}
                _ => {
                    return Err(
                        self.mistake(place(&span), "a policy file maps rule names to rules: name: \"rule\"")
                    );
                }
            }
        }
    }

    fn mapping(&mut self, entries: &mut Vec<Entry>) -> Result<(), Mistake> {
        loop {
            let (name, name_span) = match self.next()? {
                (Event::MappingEnd, _) => return Ok(()),
                (Event::Scalar(name, ..), span) => (name.into_owned(), span),
                (_, span) => return Err(self.mistake(place(&span), "expected the name of a rule")),
            };
            if entries.iter().any(|e| e.name == name) {
                return Err(self.mistake(place(&name_span), format!("the rule '{name}' is written twice")));
            }
            let (event, span) = self.next()?;
            let place = place(&span);
            let check = match event {
                Event::Scalar(text, style, ..) => self.rule(&name, &text, style, place)?,
                Event::SequenceStart(..) => self.list(&name)?,
                _ => return Err(self.mistake(place, format!("the rule '{name}' must be text or a list"))),
            };
            entries.push(Entry { name, check, place });
        }
    }

    fn rule(&self, name: &str, text: &str, style: ScalarStyle, at: (usize, usize)) -> Result<Check, Mistake> {
        if style == ScalarStyle::Plain && matches!(text, "~" | "null" | "true" | "false" | "True" | "False") {
            let what =
                format!("the rule '{name}' must be text in quotes; \"@\" allows all, \"!\" allows none");
            return Err(self.mistake(at, what));
        }
        parse(text).map_err(|wrong| {
            // The column within the text is the column in the file where the text stands on one line unescaped.
            let inside = match style {
                ScalarStyle::Plain => Some(wrong.at),
                ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => Some(wrong.at + 1),
                _ => None,
            };
            let column =
                inside.filter(|_| !text.contains(['\n', '\\', '"', '\''])).map_or(at.1, |n| at.1 + n);
            self.mistake((at.0, column), format!("in the rule '{name}': {}", wrong.what))
        })
    }

    /// `[["role:a", "role:b"], "role:c"]`: (a and b) or c.
    fn list(&mut self, name: &str) -> Result<Check, Mistake> {
        let mut any = Vec::new();
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::SequenceEnd => return Ok(fold(any, Check::Or)),
                Event::Scalar(text, style, ..) => any.push(self.rule(name, &text, style, place(&span))?),
                Event::SequenceStart(..) => any.push(self.all(name)?),
                _ => {
                    return Err(
                        self.mistake(place(&span), format!("the list of the rule '{name}' holds no check"))
                    );
                }
            }
        }
    }

    fn all(&mut self, name: &str) -> Result<Check, Mistake> {
        let mut all = Vec::new();
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::SequenceEnd => return Ok(fold(all, Check::And)),
                Event::Scalar(text, style, ..) => all.push(self.rule(name, &text, style, place(&span))?),
                _ => {
                    return Err(
                        self.mistake(place(&span), format!("the list of the rule '{name}' is too deep"))
                    );
                }
            }
        }
    }
}

/// An empty list always holds, as an empty rule does.
fn fold(mut checks: Vec<Check>, whole: fn(Vec<Check>) -> Check) -> Check {
    match checks.len() {
        0 => Check::Always,
        1 => checks.remove(0),
        _ => whole(checks),
    }
}

fn place(span: &Span) -> (usize, usize) {
    (span.start.line(), span.start.col() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Entry>, Mistake> {
        entries(Path::new("policy.yaml"), text)
    }

    #[test]
    fn yaml_and_json_say_the_same() {
        let yaml =
            read("# who may promote\n\"share_replica:promote\": \"role:op or role:admin\"\nmine: '@'\n")
                .unwrap();
        let json =
            read("{\n\t\"share_replica:promote\": \"role:op or role:admin\",\n  \"mine\": \"@\"\n}").unwrap();
        assert_eq!(yaml.len(), 2);
        for (a, b) in yaml.iter().zip(&json) {
            assert_eq!((&a.name, &a.check), (&b.name, &b.check));
        }
    }

    #[test]
    fn lists_are_the_old_way() {
        let old = read("a: [[\"role:x\", \"role:y\"], \"role:z\"]\nb: []\n").unwrap();
        let new = read("a: (role:x and role:y) or role:z\nb: '@'\n").unwrap();
        assert_eq!(old[0].check, new[0].check);
        assert_eq!(old[1].check, new[1].check);
    }

    #[test]
    fn an_empty_file_overrides_nothing() {
        for empty in ["", "# nothing\n", "{}", "---\n"] {
            assert_eq!(read(empty).unwrap().len(), 0, "{empty:?}");
        }
    }

    #[test]
    fn mistakes_name_line_and_column() {
        for (text, line, column) in [
            ("a: role:x or\n", 1, 13),
            ("a: '@'\nb: \"role:x and (role:y\"\n", 2, 16),
            ("a: '@'\na: '!'\n", 2, 1),
            ("a:\n  b: c\n", 2, 3),
            ("- a\n", 1, 1),
            ("a: true\n", 1, 4),
            ("a: [[['x:y']]]\n", 1, 6),
        ] {
            let mistake = read(text).unwrap_err();
            assert_eq!((mistake.line, mistake.column), (line, column), "{text:?}: {mistake}");
        }
        assert!(read("a: \"x\nb").unwrap_err().to_string().starts_with("policy.yaml:"));
    }

    proptest::proptest! {
        #[test]
        fn no_file_panics(text in "(?s).{0,200}") {
            let _ = read(&text);
        }
    }
}
