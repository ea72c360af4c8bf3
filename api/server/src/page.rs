//! Pages of a list: `limit` and `offset`, and the link to the next page.

use crate::fault::Fault;

/// The most items in one answer, as Manila's `osapi_max_limit`.
pub(crate) const MAX_LIMIT: u64 = 1000;

/// The parameters of a request's query, decoded, in their order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads the part of an URL after its `?`.
    pub(crate) fn parse(text: Option<&str>) -> Self {
        Self(form_urlencoded::parse(text.unwrap_or_default().as_bytes()).into_owned().collect())
    }

    /// The value of a parameter; of several, the last, as a Python dictionary keeps it.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// As [`Query::get`], but an empty value counts as none.
    pub(crate) fn filled(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|v| !v.is_empty())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }
}

/// One page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Page {
    /// How many items at most, 1 to [`MAX_LIMIT`].
    pub(crate) limit: u64,
    /// How many items to skip.
    pub(crate) offset: u64,
    /// The limit that was written, if any: a next link is given when exactly so many items came.
    asked: Option<u64>,
}

impl Page {
    /// Reads `limit` and `offset`; both must be whole numbers of 0 or more. A limit of 0 is the largest page.
    pub(crate) fn of(query: &Query) -> Result<Self, Fault> {
        let offset = number(query, "offset")?.unwrap_or(0);
        let asked = number(query, "limit")?;
        let limit = asked.filter(|l| *l > 0).unwrap_or(MAX_LIMIT).min(MAX_LIMIT);
        Ok(Self { limit, offset, asked })
    }

    /// The link to the next page, when this one is full.
    pub(crate) fn next_link(
        &self,
        query: &Query,
        collection: &str,
        count: usize,
        last: &str,
    ) -> Option<String> {
        let full = self.asked.is_some_and(|limit| limit > 0 && limit == count as u64);
        full.then(|| {
            let kept =
                query.iter().filter(|(k, _)| *k != "marker").map(|(k, v)| format!("{}={}&", url(k), url(v)));
            format!("{collection}?{}marker={last}", kept.collect::<String>())
        })
    }
}

/// Looks through a list for the entry after which a page is wanted.
pub(crate) struct After {
    marker: String,
    offset: u64,
    end: Option<Option<u64>>,
}

impl After {
    /// The search that a query asks for with `marker`, if it does.
    pub(crate) fn of(query: &Query) -> Option<Self> {
        let marker = query.get("marker").filter(|m| !m.is_empty())?.to_owned();
        Some(Self { marker, offset: 0, end: None })
    }

    /// From where to look next; `None` when the search is over.
    pub(crate) fn next_offset(&self) -> Option<u64> {
        self.end.is_none().then_some(self.offset)
    }

    /// Takes the ids of the largest page from [`After::next_offset`] on.
    pub(crate) fn saw(&mut self, ids: impl ExactSizeIterator<Item = String>) {
        let count = ids.len() as u64;
        let at = ids.enumerate().find(|(_, id)| *id == self.marker).map(|(at, _)| at as u64);
        match at {
            Some(at) => self.end = Some(Some(self.offset + at + 1)),
            None if count < MAX_LIMIT => self.end = Some(None),
            None => self.offset += MAX_LIMIT,
        }
    }

    /// Where the page starts; `None` when the entry is not there (any more).
    pub(crate) fn found(&self) -> Option<u64> {
        self.end.flatten()
    }
}

fn number(query: &Query, name: &str) -> Result<Option<u64>, Fault> {
    let Some(text) = query.get(name) else { return Ok(None) };
    match text.trim().parse::<i64>() {
        Err(_) => Err(Fault::bad_request(format!("{name} param must be an integer"))),
        Ok(n) => match u64::try_from(n) {
            Ok(n) => Ok(Some(n)),
            Err(_) => Err(Fault::bad_request(format!("{name} param must be positive"))),
        },
    }
}

/// Manila writes the values back undecorated; what would break the URL is encoded all the same.
fn url(text: &str) -> String {
    use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
    const UNSAFE: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'#').add(b'&').add(b'%');
    utf8_percent_encode(text, UNSAFE).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(text: &str) -> Result<Page, Fault> {
        Page::of(&Query::parse(Some(text)))
    }

    #[test]
    fn limits_are_whole_positive_and_bounded() {
        assert_eq!(page("").unwrap().limit, MAX_LIMIT);
        assert_eq!(page("limit=0").unwrap().limit, MAX_LIMIT);
        assert_eq!(page("limit=99999&offset=7").map(|p| (p.limit, p.offset)), Ok((MAX_LIMIT, 7)));
        assert_eq!(page("limit=-1").unwrap_err().message, "limit param must be positive");
        assert_eq!(page("offset=-1").unwrap_err().message, "offset param must be positive");
        assert_eq!(page("limit=x").unwrap_err().message, "limit param must be an integer");
    }

    #[test]
    fn a_full_page_links_to_the_next() {
        let query = Query::parse(Some("limit=1&offset=1&name=a%20b"));
        let page = Page::of(&query).unwrap();
        let link = page.next_link(&query, "http://h/v2/shares", 1, "id-1");
        assert_eq!(link.unwrap(), "http://h/v2/shares?limit=1&offset=1&name=a%20b&marker=id-1");
        assert_eq!(page.next_link(&query, "http://h/v2/shares", 0, "id-1"), None);
    }

    #[test]
    fn the_page_after_a_marker_is_found() {
        let look = |marker: &str| {
            let mut search = After::of(&Query::parse(Some(&format!("marker={marker}")))).unwrap();
            while let Some(offset) = search.next_offset() {
                let end = 2500.min(offset + MAX_LIMIT);
                let ids: Vec<String> = (offset..end).map(|n| n.to_string()).collect();
                search.saw(ids.into_iter());
            }
            search.found()
        };
        assert_eq!(look("0"), Some(1));
        assert_eq!(look("2100"), Some(2101));
        assert_eq!(look("nobody"), None);
        assert!(After::of(&Query::parse(Some("marker="))).is_none());
    }

    proptest::proptest! {
        #[test]
        fn no_query_panics(text in "\\PC*") {
            let query = Query::parse(Some(&text));
            if let Ok(page) = Page::of(&query) {
                proptest::prop_assert!((1..=MAX_LIMIT).contains(&page.limit));
                let _ = page.next_link(&query, "x", 1, "y");
            }
        }
    }
}
