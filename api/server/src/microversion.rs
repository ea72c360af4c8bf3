//! Microversions: which version a request speaks, and what exists in which version.

use axum::http::HeaderMap;
use std::fmt;

use crate::fault::Fault;
use crate::python;

/// The header that asks for a version, and answers with it.
pub const VERSION_HEADER: &str = "X-OpenStack-Manila-API-Version";
/// The header that opts in to calls which were experimental in the version asked for.
pub const EXPERIMENTAL_HEADER: &str = "X-OpenStack-Manila-API-Experimental";
/// The newest minor version served. The oldest is 0.
pub const MAX_MINOR: u32 = 99;

/// The version of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Microversion {
    /// The minor number, 0 to [`MAX_MINOR`]; the major number is always 2.
    pub minor: u32,
    /// Whether the caller accepts experimental calls.
    pub experimental: bool,
}

impl fmt::Display for Microversion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "2.{}", self.minor)
    }
}

/// Why a version header is not served.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Not `MajorNum.MinorNum`: answered without the version headers, as Manila does.
    Malformed(String),
    /// Well-formed but outside of 2.0 to 2.99: answered with the text that was asked for.
    OutOfRange {
        /// The version as it was written.
        asked: String,
        /// Whether the experimental header was set.
        experimental: bool,
    },
}

impl Refused {
    /// The answer for it.
    pub(crate) fn fault(&self) -> Fault {
        match self {
            Self::Malformed(text) => Fault::new(
                400,
                format!(
                    "API Version String {text} is of invalid format. Must be of format MajorNum.MinorNum."
                ),
            ),
            Self::OutOfRange { asked, .. } => Fault::new(
                406,
                format!(
                    "Version {asked} is not supported by the API. Minimum is 2.0 and maximum is 2.{MAX_MINOR}."
                ),
            ),
        }
    }
}

/// Reads the version of a request; without a header it is 2.0.
pub(crate) fn negotiate(headers: &HeaderMap) -> Result<Microversion, Refused> {
    let experimental = headers
        .get(EXPERIMENTAL_HEADER)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| python::strict_bool(v) == Some(true));
    let Some(asked) = headers.get(VERSION_HEADER) else {
        return Ok(Microversion { minor: 0, experimental });
    };
    let asked = String::from_utf8_lossy(asked.as_bytes()).into_owned();
    let Some((major, minor)) = asked.split_once('.').filter(|(a, b)| number(a, false) && number(b, true))
    else {
        return Err(Refused::Malformed(asked));
    };
    match minor.parse() {
        Ok(minor) if major == "2" && minor <= MAX_MINOR => Ok(Microversion { minor, experimental }),
        _ => Err(Refused::OutOfRange { asked, experimental }),
    }
}

/// Digits without a leading zero.
fn number(text: &str, zero_allowed: bool) -> bool {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits && (!text.starts_with('0') || (zero_allowed && text == "0"))
}

/// In which versions something exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    from: u32,
    to: u32,
    /// Up to this version only with the experimental header.
    experimental_to: Option<u32>,
}

impl Window {
    /// In every version.
    pub(crate) const ALWAYS: Self = Self { from: 0, to: MAX_MINOR, experimental_to: None };

    /// From `from` on.
    pub(crate) const fn since(from: u32) -> Self {
        Self { from, to: MAX_MINOR, experimental_to: None }
    }

    /// From `from` to `to`, both included.
    pub(crate) const fn between(from: u32, to: u32) -> Self {
        Self { from, to, experimental_to: None }
    }

    /// From `from` on, but experimental before `graduated`.
    pub(crate) const fn graduated(from: u32, graduated: u32) -> Self {
        Self { from, to: MAX_MINOR, experimental_to: Some(graduated - 1) }
    }

    /// From `from` to `to`, always experimental.
    pub(crate) const fn experimental(from: u32, to: u32) -> Self {
        Self { from, to, experimental_to: Some(to) }
    }

    /// The same, not after `to`.
    pub(crate) const fn until(mut self, to: u32) -> Self {
        self.to = to;
        self
    }

    /// Whether a request of this version finds it.
    pub(crate) fn admits(&self, version: &Microversion) -> bool {
        let open = self.experimental_to.is_none_or(|to| version.minor > to || version.experimental);
        (self.from..=self.to).contains(&version.minor) && open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(text: &str) -> Result<Microversion, Refused> {
        let mut headers = HeaderMap::new();
        headers.insert(VERSION_HEADER, text.parse().unwrap());
        negotiate(&headers)
    }

    #[test]
    fn takes_exactly_two_numbers_without_leading_zeros() {
        assert_eq!(ask("2.99").unwrap().minor, 99);
        assert_eq!(ask("2.0").unwrap().minor, 0);
        for bad in ["latest", "2", "2.07", "abc", "02.1", "2.1.1", " 2.1", "2.-1", "", "2.", ".2", "0.1"] {
            assert_eq!(ask(bad), Err(Refused::Malformed(bad.into())), "{bad}");
        }
        for out in ["2.100", "3.0", "1.0", "2.99999999999999999999"] {
            assert!(matches!(ask(out), Err(Refused::OutOfRange { .. })), "{out}");
        }
    }

    #[test]
    fn experimental_calls_want_the_header_until_they_graduate() {
        let window = Window::graduated(11, 56);
        let at = |minor, experimental| window.admits(&Microversion { minor, experimental });
        assert!(
            !at(10, true)
                && !at(11, false)
                && at(11, true)
                && at(55, true)
                && !at(55, false)
                && at(56, false)
        );
    }

    proptest::proptest! {
        #[test]
        fn any_header_is_a_version_or_a_4xx(bytes in proptest::collection::vec(32u8..=255, 0..20)) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = axum::http::HeaderValue::from_bytes(&bytes) {
                headers.insert(VERSION_HEADER, value);
                if let Err(refused) = negotiate(&headers) {
                    proptest::prop_assert!((400..500).contains(&refused.fault().status));
                }
            }
        }
    }
}
