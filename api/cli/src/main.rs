//! `tandem`: the operator's command line. It asks the server's `/v1` and prints tables for people or JSON for scripts.
//!
//! It ends with 0 when all is well, 1 when the server refuses or the doctor finds a broken law, 2 when the command
//! line makes no sense, and 3 when no server answers.
#![allow(clippy::print_stdout, reason = "a command line tool talks on standard output")]

mod cert;
mod client;
mod config;
mod human;
mod migration;
mod show;
mod table;
mod watch;
mod wire;

use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};
use client::{Client, segment};
use config::Config;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// The operator's command line for Tandem, which mirrors and moves storage.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, max_term_width = 100)]
struct Arguments {
    /// Where the server is [default: http://127.0.0.1:8786].
    #[arg(long, global = true, value_name = "URL", env = "TANDEM_ENDPOINT")]
    endpoint: Option<String>,
    /// The token to come in with; not needed where the server takes everybody (`noauth`).
    #[arg(long, global = true, value_name = "TOKEN", env = "TANDEM_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// The file with `endpoint` and `token` [default: tandem/cli.toml in the user's configuration folder].
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How to print what the server answers.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For scripts: what the server answered.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The server at a glance.
    Status,
    /// Shares of every project.
    Shares(Part),
    /// Replicas, and how far behind they are.
    Replicas {
        /// Only of this share.
        #[arg(long, value_name = "ID")]
        share: Option<String>,
        #[command(flatten)]
        part: Part,
    },
    /// One replica.
    Replica {
        #[command(subcommand)]
        verb: OfReplica,
    },
    /// Operations, newest first.
    Operations(Operations),
    /// One operation.
    Operation {
        #[command(subcommand)]
        verb: Verb,
    },
    /// Migrations of shares.
    Migration {
        #[command(subcommand)]
        verb: Moving,
    },
    /// Back ends, and why one is down.
    Backends,
    /// What the folders of drivers hold, here and on other hosts: what was loaded, what was refused, which host is away.
    Drivers,
    /// Checks the laws of the manager; ends with 1 when one is broken.
    Doctor,
    /// Makes certificates, so that hosts know each other; asks no server.
    Cert {
        #[command(subcommand)]
        what: cert::Cert,
    },
    /// Prints completions for a shell: `tandem completions bash > /etc/bash_completion.d/tandem`.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Which part of a list.
#[derive(Debug, clap::Args)]
struct Part {
    /// At most so many rows.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Skip so many rows.
    #[arg(long, value_name = "N", default_value_t = 0)]
    offset: u32,
}

/// Which operations.
#[derive(Debug, clap::Args)]
struct Operations {
    /// Stay, and show how they get on.
    #[arg(long)]
    watch: bool,
    /// Only of this share.
    #[arg(long, value_name = "ID")]
    share: Option<String>,
    /// Only those that concern this replica.
    #[arg(long, value_name = "ID")]
    replica: Option<String>,
    /// Only of this kind, such as `sync` or `promote`.
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
    /// Only with this status, such as `failed`.
    #[arg(long, value_name = "STATUS")]
    status: Option<String>,
    /// Only those that have not ended.
    #[arg(long)]
    unfinished: bool,
    #[command(flatten)]
    part: Part,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Shows an operation with its plan and its log.
    Show {
        /// The operation.
        id: String,
    },
    /// Asks for an operation to end; what it began is taken back.
    Cancel {
        /// The operation.
        id: String,
    },
}

#[derive(Debug, Subcommand)]
enum OfReplica {
    /// Shows a replica, and when it was last verified.
    Show {
        /// The replica.
        id: String,
    },
    /// Reads what a replica and the active one hold again, and compares; the operation says what came of it.
    Verify {
        /// The replica.
        id: String,
    },
}

#[derive(Debug, Subcommand)]
enum Moving {
    /// Says what a migration would do, and by which way, without doing it; ends with 1 when it cannot be.
    Check {
        /// The share.
        share: String,
        /// Where to: `host@backend#pool`, or `host@backend` for any pool there.
        host: String,
        /// The share type (its id) that the share is to have then.
        #[arg(long, value_name = "ID")]
        share_type: Option<String>,
        /// Not by the driver, even where it could.
        #[arg(long)]
        host_assisted: bool,
        /// Users must be able to write during the first phase.
        #[arg(long)]
        writable: bool,
        /// Users must notice nothing.
        #[arg(long)]
        nondisruptive: bool,
        /// All metadata of files must be kept.
        #[arg(long)]
        preserve_metadata: bool,
        /// Snapshots must move along.
        #[arg(long)]
        preserve_snapshots: bool,
    },
    /// Shows the migrations there were, newest first, and how those get on that run.
    List {
        /// Stay, and show how they get on.
        #[arg(long)]
        watch: bool,
        /// Only of this share.
        #[arg(long, value_name = "ID")]
        share: Option<String>,
        #[command(flatten)]
        part: Part,
    },
    /// Asks a share's migration to end, at any time before the switch.
    Cancel {
        /// The share.
        share: String,
    },
}

/// Why the program ends badly.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server refuses, or something is broken.
    Refused(String),
    /// The command line or the configuration makes no sense.
    Usage(String),
    /// No server answers.
    Unreachable(String),
    /// Everything was said already.
    Said,
    /// Nobody reads what we print any more; nothing is wrong.
    Unread,
}

fn main() -> ExitCode {
    let (code, sentence) = match run(&Arguments::parse()) {
        Ok(()) | Err(Failure::Unread) => return ExitCode::SUCCESS,
        Err(Failure::Said) => return ExitCode::from(1),
        Err(Failure::Refused(sentence)) => (1, sentence),
        Err(Failure::Usage(sentence)) => (2, sentence),
        Err(Failure::Unreachable(sentence)) => (3, sentence),
    };
    eprintln!("tandem: {}", human::safe(&sentence));
    ExitCode::from(code)
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    if let Command::Completions { shell } = arguments.command {
        clap_complete::generate(shell, &mut Arguments::command(), "tandem", &mut std::io::stdout());
        return Ok(());
    }
    if let Command::Cert { what } = &arguments.command {
        return cert::run(what);
    }
    let config =
        Config::load(arguments.endpoint.as_deref(), arguments.token.as_deref(), arguments.config.as_deref())?;
    let client = Client::new(config);
    let out = arguments.output;
    match &arguments.command {
        Command::Status => print(out, &client.get("status", &[])?, "status", show::status),
        Command::Shares(part) => print(out, &client.get("shares", &part.query())?, "shares", show::shares),
        Command::Replicas { share, part } => {
            let mut query = part.query().to_vec();
            query.push(("share_id", share.clone()));
            print(out, &client.get("replicas", &query)?, "replicas", show::replicas)
        }
        Command::Replica { verb: OfReplica::Show { id } } => {
            let answer = client.get(&format!("replicas/{}", segment(id)), &[])?;
            print(out, &answer, "replica", show::replica)
        }
        Command::Replica { verb: OfReplica::Verify { id } } => {
            let answer = client.post(&format!("replicas/{}/verify", segment(id)))?;
            print(out, &answer, "operation", show::begun)
        }
        Command::Operations(which) if which.watch => watch::run(&client, &which.query(), out),
        Command::Operations(which) => {
            print(out, &client.get("operations", &which.query())?, "operations", show::operations)
        }
        Command::Operation { verb: Verb::Show { id } } => {
            let answer = client.get(&format!("operations/{}", segment(id)), &[])?;
            print(out, &answer, "operation", show::operation)
        }
        Command::Operation { verb: Verb::Cancel { id } } => {
            let answer = client.post(&format!("operations/{}/cancel", segment(id)))?;
            print(out, &answer, "operation", show::cancelled)
        }
        Command::Migration { verb } => migration::run(&client, verb, out),
        Command::Backends => print(out, &client.get("backends", &[])?, "backends", show::backends),
        Command::Drivers => print(out, &client.get("drivers", &[])?, "drivers", show::drivers),
        Command::Doctor => {
            let answer = client.get("doctor", &[])?;
            print(out, &answer, "doctor", show::doctor)?;
            let healthy = answer.pointer("/doctor/healthy").and_then(Value::as_bool) == Some(true);
            if healthy { Ok(()) } else { Err(Failure::Said) }
        }
        Command::Completions { .. } | Command::Cert { .. } => Ok(()),
    }
}

impl Part {
    fn query(&self) -> [(&'static str, Option<String>); 2] {
        [("limit", Some(self.limit.to_string())), ("offset", Some(self.offset.to_string()))]
    }
}

impl Operations {
    fn query(&self) -> Vec<(&'static str, Option<String>)> {
        let mut query = self.part.query().to_vec();
        query.extend([
            ("share_id", self.share.clone()),
            ("instance_id", self.replica.clone()),
            ("kind", self.kind.clone()),
            ("status", self.status.clone()),
            ("unfinished", self.unfinished.then(|| "true".to_string())),
        ]);
        query
    }
}

/// Prints the part of an answer that stands under `key`.
fn print<T: DeserializeOwned>(
    output: Output,
    answer: &Value,
    key: &str,
    table: impl FnOnce(T) -> String,
) -> Result<(), Failure> {
    let part = answer.get(key).cloned().unwrap_or_default();
    match output {
        Output::Json => say(&format!("{part:#}\n")),
        Output::Table => say(&table(parse(part)?)),
    }
}

/// Reads an answer into what the tables show.
pub(crate) fn parse<T: DeserializeOwned>(value: Value) -> Result<T, Failure> {
    serde_json::from_value(value).map_err(|error| {
        Failure::Refused(format!(
            "The server's answer is not what this program expects ({error}); is one of them older?"
        ))
    })
}

/// Prints; a reader that went away (`| head`) ends the program quietly.
pub(crate) fn say(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|_| Failure::Unread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_flag_and_command_says_what_it_is_for() {
        fn check(command: &clap::Command) {
            let silent = |what: &str| panic!("{} {what} has no sentence", command.get_name());
            for argument in
                command.get_arguments().filter(|a| !["help", "version"].contains(&a.get_id().as_str()))
            {
                if argument.get_help().is_none() {
                    silent(argument.get_id().as_str());
                }
            }
            for inner in command.get_subcommands() {
                if inner.get_about().is_none() {
                    silent(inner.get_name());
                }
                check(inner);
            }
        }
        check(&Arguments::command());
    }
}
