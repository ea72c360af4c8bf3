//! `auth.mode = "keystone"` against a real Keystone: its people come in by password through the stock client, and keep
//! what they may do while it goes away and comes back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)] // helpers of tests are tests

mod identity;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use identity::{ADMIN, Keystone, PASSWORD, Person};
use serde_json::Value;
use tandem_testbed::client::Openstack;
use tandem_testbed::server::Server;
use tandem_testbed::{artifacts, wait};

const MEMBER: Person = Person { name: "ada", project: Some("red") };
const READER: Person = Person { name: "rita", project: Some("red") };
const MANAGER: Person = Person { name: "mona", project: Some("red") };
const STRANGER: Person = Person { name: "bob", project: Some("blue") };
const ONLOOKER: Person = Person { name: "olga", project: Some("blue") };
const SYSTEM: Person = Person { name: "admin", project: None };

/// The service user's password.
const SERVICE: &str = "staple-of-the-service";

struct Lab {
    keystone: Keystone,
    server: Server,
    agent: ureq::Agent,
}

struct Answer {
    status: u16,
    challenge: Option<String>,
    text: String,
}

impl Lab {
    /// A Keystone with people, and a server that does not know the service user's password yet.
    fn start() -> Self {
        let keystone = Keystone::start();
        keystone.populate(&[
            (MEMBER, "member"),
            (READER, "reader"),
            (MANAGER, "manager"),
            (STRANGER, "member"),
            (ONLOOKER, "reader"),
        ]);
        let server = Server::prepare_with("directory", |_, root| format!("{{ root = {root:?} }}"), "");
        let settings = std::fs::read_to_string(server.settings()).unwrap();
        let auth = format!(
            "mode = \"keystone\"\n[auth.keystone]\nurl = \"{}\"\npassword_file = \"password\"\ncheck_seconds = 5\n\
             [policy]\nfile = \"policy.yaml\"\n[log]\nfilter = \"trace\"\n",
            keystone.url()
        );
        std::fs::write(server.settings(), settings.replace("mode = \"noauth\"\n", &auth)).unwrap();
        std::fs::write(
            server.folder().join("policy.yaml"),
            "\"share_type:create\": \"rule:context_is_admin or role:manager\"\n",
        )
        .unwrap();
        let agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().into();
        Self { keystone, server, agent }
    }

    fn password_file(&self) -> PathBuf {
        self.server.folder().join("password")
    }

    fn set_password(&self, password: &str) {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut options = std::fs::File::options();
        let options = options.create(true).truncate(true).write(true).mode(0o600);
        writeln!(options.open(self.password_file()).unwrap(), "{password}").unwrap();
    }

    /// Asks the server with a token, or without one.
    fn get(&self, path: &str, token: Option<&str>) -> Answer {
        let mut request = self.agent.get(format!("{}{path}", self.server.endpoint()));
        if let Some(token) = token {
            request = request.header("X-Auth-Token", token);
        }
        let mut answer = request.header("X-OpenStack-Manila-API-Version", "2.80").call().unwrap();
        let challenge = answer.headers().get("WWW-Authenticate");
        Answer {
            status: answer.status().as_u16(),
            challenge: challenge.map(|value| value.to_str().unwrap().to_owned()),
            text: answer.body_mut().read_to_string().unwrap(),
        }
    }

    /// Asks until the answer has this status.
    fn until(&self, token: &str, status: u16) {
        wait::until_else(|| {
            let answer = self.get("/v2/shares", Some(token));
            // Often enough, and not so often that the log is about nothing else.
            std::thread::sleep(Duration::from_millis(200));
            if answer.status == status { Ok(()) } else { Err(format!("{status}; it is {}", answer.status)) }
        });
    }

    /// Types what the manual says, as the administrator.
    fn follow_the_manual(&self) {
        let manual =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operating.md")).unwrap();
        let part = manual.split("### Keystone").nth(1).expect("the manual speaks of Keystone");
        let part = part.split("\n## ").next().unwrap();
        let script =
            part.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).expect("commands");
        let script = script
            .replace("http://storage1:8786", &self.server.endpoint())
            .replace("/etc/tandem/keystone-password", &self.password_file().display().to_string());
        assert!(script.contains(&self.server.endpoint()) && script.contains("password"), "{script}");
        let path = std::env::join_paths(
            std::iter::once(artifacts::client().join("bin"))
                .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
        );
        let output = Command::new("bash")
            .args(["-e", "-u", "-o", "pipefail", "-c", &script])
            .env("PATH", path.unwrap())
            .envs(self.keystone.client(ADMIN).environment())
            .output()
            .unwrap();
        println!("{script}\n{}", String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn troubles(&self, token: &str) -> String {
        let answer = self.get("/v1/status", Some(token));
        assert_eq!(answer.status, 200, "{}", answer.text);
        let status: Value = serde_json::from_str(&answer.text).unwrap();
        status["status"]["troubles"].to_string()
    }
}

#[test]
fn people_of_a_real_keystone() {
    let mut lab = Lab::start();
    let mut tokens = Vec::new();
    lab.set_password(SERVICE);
    lab.follow_the_manual();
    a_wrong_password_is_a_sentence(&mut lab);
    roles_are_what_they_are_in_manila(&lab);
    the_system_is_looked_after_under_v1(&lab, &mut tokens);
    bad_tokens_are_told_where_to_get_one(&lab);
    a_revoked_token_ends(&lab, &mut tokens);
    keystone_goes_and_comes(&mut lab, &mut tokens);
    tokens_end(&mut lab, &mut tokens);

    let log = lab.server.log();
    assert!(log.contains("Keystone let the service user in."), "the log has every detail");
    for secret in tokens.iter().map(String::as_str).chain([PASSWORD, SERVICE]) {
        assert!(!log.contains(secret), "a secret is in the log");
    }
    assert!(lab.server.stop().success());
}

fn a_wrong_password_is_a_sentence(lab: &mut Lab) {
    lab.set_password("wrong-one-of-the-service");
    lab.server.launch();
    wait::until("the log to say it", || {
        lab.server.log().contains("refuses the user 'tandem': the password is wrong").then_some(())
    });
    let token = lab.keystone.token(MEMBER);
    let refused = lab.get("/v2/shares", Some(&token));
    assert_eq!(refused.status, 503);
    assert!(refused.text.contains("Keystone"), "{}", refused.text);
    // Everybody may read how the server is; for the rest a token is needed that nobody can check.
    assert_eq!((lab.get("/v1/health", None).status, lab.get("/v1/status", Some(&token)).status), (200, 503));
    lab.set_password(SERVICE);
    lab.until(&token, 200);
}

fn roles_are_what_they_are_in_manila(lab: &Lab) {
    let client = |person| lab.keystone.client(person);
    let (admin, member, reader) = (client(ADMIN), client(MEMBER), client(READER));
    let (manager, stranger) = (client(MANAGER), client(STRANGER));
    let new_type = ["share", "type", "create", "plain", "False"];
    assert!(member.refused(&new_type).contains("403"));
    // By the policy file; the role `manager` is Keystone's.
    manager.run(&new_type);

    let share = |name| ["share", "create", "NFS", "1", "--name", name, "--share-type", "plain", "--wait"];
    member.run(&share("of-ada"));
    let id = reader.field(&["share", "show", "of-ada"], "id");
    assert_eq!(names(&reader), ["of-ada"]);
    for forbidden in [&share("of-rita")[..], &["share", "delete", &id], &["share", "replica", "create", &id]]
    {
        let said = reader.refused(forbidden);
        assert!(said.contains("403"), "{forbidden:?}: {said}");
    }
    assert!(member.refused(&["share", "set", &id, "--status", "error"]).contains("403"));

    assert!(names(&stranger).is_empty());
    let said = stranger.refused(&["share", "show", &id]);
    assert!(said.contains("No share") || said.contains("404"), "{said}");
    let token = lab.keystone.token(STRANGER);
    assert_eq!(lab.get(&format!("/v2/shares/{id}"), Some(&token)).status, 404);
    stranger.run(&share("of-bob"));
    assert_eq!(names(&client(ONLOOKER)), ["of-bob"]);
    assert!(client(ONLOOKER).refused(&["share", "delete", "of-bob"]).contains("403"));
    let promises = ["--writable", "--nondisruptive", "--preserve-metadata", "--preserve-snapshots"];
    let promises = promises.iter().flat_map(|promise| [*promise, "False"]);
    let start = ["share", "migration", "start", &id, "nowhere@beta#x"].into_iter().chain(promises);
    let start: Vec<&str> = start.collect();
    assert!(member.refused(&start).contains("403"));
    assert!(admin.refused(&start).contains("nowhere@beta"), "an administrator comes as far as the host");
    let mut all = shown(&admin.json(&["share", "list", "--all-projects"]));
    all.sort();
    assert_eq!(all, ["of-ada", "of-bob"]);
    admin.run(&["share", "set", &id, "--status", "available"]);

    // Older clouds have the older name in their catalogue only.
    let service = admin.field(&["service", "show", "shared-file-system"], "id");
    admin.run(&["service", "delete", &service]);
    assert_eq!(names(&member), ["of-ada"]);
}

fn the_system_is_looked_after_under_v1(lab: &Lab, tokens: &mut Vec<String>) {
    let system = lab.keystone.token(SYSTEM);
    assert_eq!(lab.get("/v1/status", Some(&system)).status, 200);
    let member = lab.keystone.token(MEMBER);
    assert_eq!(lab.get("/v1/status", Some(&member)).status, 403);
    // Manila's rules are about projects.
    assert_eq!(lab.get("/v2/shares", Some(&system)).status, 403);
    let said = lab.server.try_tandem(&["--token", &system, "status"]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    tokens.extend([system, member]);
}

fn bad_tokens_are_told_where_to_get_one(lab: &Lab) {
    for token in [None, Some("nonsense"), Some("gAAAAABnonsense"), Some("a:b")] {
        let refused = lab.get("/v2/shares", token);
        assert_eq!(refused.status, 401, "{token:?}");
        assert_eq!(refused.challenge, Some(format!("Keystone uri=\"{}\"", lab.keystone.url())));
        let body: Value = serde_json::from_str(&refused.text).unwrap();
        assert_eq!(body["error"]["message"], "The request you have made requires authentication.");
    }
    assert_eq!(lab.get("/v1/status", Some("nonsense")).status, 401);
}

fn a_revoked_token_ends(lab: &Lab, tokens: &mut Vec<String>) {
    let token = lab.keystone.token(MEMBER);
    assert_eq!(lab.get("/v2/shares", Some(&token)).status, 200);
    lab.keystone.revoke(&token);
    lab.until(&token, 401);
    tokens.push(token);
}

fn keystone_goes_and_comes(lab: &mut Lab, tokens: &mut Vec<String>) {
    let (admin, member, new) =
        (lab.keystone.token(ADMIN), lab.keystone.token(MEMBER), lab.keystone.token(STRANGER));
    for token in [&admin, &member] {
        assert_eq!(lab.get("/v2/shares", Some(token)).status, 200);
    }
    lab.keystone.kill();
    // Known only once it was asked: by then the tokens are not fresh any more.
    wait::until("the trouble to be seen", || lab.troubles(&admin).contains("does not answer").then_some(()));
    for _ in 0..3 {
        assert_eq!(lab.get("/v2/shares", Some(&member)).status, 200);
        let refused = lab.get("/v2/shares", Some(&new));
        assert_eq!(refused.status, 503);
        let body: Value = serde_json::from_str(&refused.text).unwrap();
        let sentence = body["serviceUnavailable"]["message"].as_str().unwrap();
        assert!(sentence.contains("try again later"), "{sentence}");
    }
    // From here on tokens are short-lived, the service user's too.
    lab.keystone.configure(20);
    lab.keystone.launch();
    lab.until(&new, 200);
    wait::until("the trouble to go", || (lab.troubles(&admin) == "[]").then_some(()));
    tokens.extend([admin, member, new]);
}

fn tokens_end(lab: &mut Lab, tokens: &mut Vec<String>) {
    // The service user logs in anew, and gets a short-lived one as well.
    lab.server.stop();
    lab.server.launch();
    let token = lab.keystone.token(MEMBER);
    lab.until(&token, 200);
    lab.until(&token, 401);
    // The service user's own has ended by now; nobody notices.
    let another = lab.keystone.token(MEMBER);
    assert_eq!(lab.get("/v2/shares", Some(&another)).status, 200);
    let logins = lab.server.log().matches("Keystone let the service user in.").count();
    assert!(logins >= 3, "{logins} logins");
    tokens.extend([token, another]);
}

fn names(client: &Openstack) -> Vec<String> {
    shown(&client.json(&["share", "list"]))
}

fn shown(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|share| share["Name"].as_str().unwrap().to_owned()).collect()
}
