//! The stock OpenStack client, unmodified, as a user types it.

use std::process::{Command, Output};

use serde_json::Value;

use crate::artifacts;

/// `openstack`, as one user.
#[derive(Debug)]
pub struct Openstack {
    environment: Vec<(&'static str, String)>,
}

impl Openstack {
    /// A client of the server at `endpoint` (`http://address`), without authentication.
    pub fn new(endpoint: &str) -> Self {
        Self::with([("OS_AUTH_TYPE", "none".into()), ("OS_ENDPOINT", format!("{endpoint}/v2"))])
    }

    /// A client that finds server and user in its environment.
    pub fn with(environment: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        Self { environment: environment.into_iter().collect() }
    }

    /// What is in its environment.
    pub fn environment(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.environment.iter().map(|(name, value)| (*name, value.as_str()))
    }

    /// Runs `openstack` with these arguments.
    pub fn output(&self, arguments: &[&str]) -> Output {
        println!("$ openstack {}", arguments.join(" "));
        // With --wait it waits for ever for what has failed.
        Command::new("timeout")
            .args(["--kill-after=5", "240"])
            .arg(artifacts::client().join("bin/openstack"))
            .args(arguments)
            .envs(self.environment())
            .output()
            .unwrap()
    }

    /// Runs it; it must succeed. What it printed.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        let (said, complained) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "openstack {arguments:?} failed: {said}{complained}");
        said
    }

    /// Runs it; it must fail. What it complained of.
    pub fn refused(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(!output.status.success(), "openstack {arguments:?} succeeded: {said}");
        said
    }

    /// Runs it and reads its answer as JSON.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let said = self.run(&[arguments, &["-f", "json"]].concat());
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("openstack {arguments:?}: {error}: {said}"))
    }

    /// Runs it and reads one field of its answer.
    pub fn field(&self, arguments: &[&str], field: &str) -> String {
        self.run(&[arguments, &["-f", "value", "-c", field]].concat()).trim().to_string()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
