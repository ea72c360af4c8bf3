//! Requests to the server's `/v1`.

use crate::{Failure, config::Config};
use serde_json::Value;
use std::time::Duration;

/// The largest answer that is taken.
const LARGEST: u64 = 256 << 20;

/// A connection to one server.
#[derive(Debug)]
pub(crate) struct Client {
    agent: ureq::Agent,
    config: Config,
}

impl Client {
    pub(crate) fn new(config: Config) -> Self {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(60)))
            .user_agent(concat!("tandem/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Self { agent, config }
    }

    /// Asks for something; parameters without a value are left out.
    pub(crate) fn get(&self, path: &str, query: &[(&str, Option<String>)]) -> Result<Value, Failure> {
        let mut request = self.agent.get(self.url(path));
        for (name, value) in query {
            if let Some(value) = value {
                request = request.query(name, value);
            }
        }
        if let Some(token) = &self.config.token {
            request = request.header("X-Auth-Token", token);
        }
        self.answer(request.call())
    }

    /// Asks for something to be done.
    pub(crate) fn post(&self, path: &str) -> Result<Value, Failure> {
        let mut request = self.agent.post(self.url(path));
        if let Some(token) = &self.config.token {
            request = request.header("X-Auth-Token", token);
        }
        self.answer(request.send_empty())
    }

    fn url(&self, path: &str) -> String {
        format!("{}/v1/{path}", self.config.endpoint)
    }

    fn answer(
        &self,
        outcome: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Value, Failure> {
        let endpoint = &self.config.endpoint;
        let mut response = outcome.map_err(|error| {
            Failure::Unreachable(format!("{endpoint} does not answer: {error}. Is tandemd running there?"))
        })?;
        let status = response.status();
        let text =
            response.body_mut().with_config().limit(LARGEST).read_to_string().map_err(|error| {
                Failure::Unreachable(format!("The answer of {endpoint} broke off: {error}."))
            })?;
        let body: Value = serde_json::from_str(&text).map_err(|_| {
            Failure::Refused(format!("{endpoint} answered {status} without JSON; is that tandemd?"))
        })?;
        if status.is_success() {
            return Ok(body);
        }
        let sentence = body.pointer("/error/message").and_then(Value::as_str).unwrap_or("no reason given");
        let hint = match status.as_u16() {
            401 => " Give a token with --token, TANDEM_TOKEN or the file tandem/cli.toml.",
            _ => "",
        };
        Err(Failure::Refused(format!("{sentence}{hint}")))
    }
}

/// A path segment that a person typed.
pub(crate) fn segment(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => char::from(b).to_string(),
            // A segment of dots alone would change the path.
            _ => format!("%{b:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::segment;

    #[test]
    fn what_is_typed_stays_one_segment() {
        assert_eq!(segment("../a b?"), "%2E%2E%2Fa%20b%3F");
        assert_eq!(segment("0198-ab"), "0198-ab");
    }
}
