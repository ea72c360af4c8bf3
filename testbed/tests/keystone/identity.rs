//! A real Keystone of the test's own, and its people.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tandem_testbed::client::Openstack;
use tandem_testbed::{artifacts, server, wait};
use tempfile::TempDir;

/// The password of everybody but the service user; it must never be in a log.
pub(crate) const PASSWORD: &str = "correct-horse-battery";

/// A Keystone with its state in a folder of its own; it ends with its owner.
pub(crate) struct Keystone {
    folder: TempDir,
    address: String,
    child: Option<Child>,
    agent: ureq::Agent,
}

/// A person in a project, or in the whole system.
#[derive(Clone, Copy)]
pub(crate) struct Person {
    pub(crate) name: &'static str,
    /// The system where there is none.
    pub(crate) project: Option<&'static str>,
}

impl Keystone {
    /// Sets one up with a database and keys, and starts it.
    pub(crate) fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("tandem-keystone-").tempdir().unwrap();
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(60)))
            .max_idle_connections(0)
            .proxy(None)
            .build()
            .into();
        let mut keystone = Self { folder, address: server::free_address(), child: None, agent };
        keystone.configure(3600);
        let (user, group) = (id("-un"), id("-gn"));
        let owner = ["--keystone-user", &user, "--keystone-group", &group];
        keystone.manage(&["db_sync"]);
        keystone.manage(&[&["fernet_setup"], &owner[..]].concat());
        keystone.manage(&[&["credential_setup"], &owner[..]].concat());
        let url = keystone.url();
        let region = ["--bootstrap-region-id", "RegionOne", "--bootstrap-public-url", &url];
        keystone.manage(&[&["bootstrap", "--bootstrap-password", PASSWORD], &region[..]].concat());
        keystone.launch();
        keystone
    }

    /// Tokens that are issued after the next start are good for so many seconds.
    pub(crate) fn configure(&self, expiration: u32) {
        let folder = self.folder.path().display();
        let text = format!(
            "[DEFAULT]\nuse_stderr = true\n\
             [database]\nconnection = sqlite:///{folder}/keystone.db\n\
             [token]\nprovider = fernet\nexpiration = {expiration}\n\
             [fernet_tokens]\nkey_repository = {folder}/fernet-keys\n\
             [fernet_receipts]\nkey_repository = {folder}/fernet-keys\n\
             [credential]\nkey_repository = {folder}/credential-keys\n"
        );
        std::fs::write(self.folder.path().join("keystone.conf"), text).unwrap();
    }

    /// Starts it (again) and waits until it answers.
    pub(crate) fn launch(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let log = std::fs::File::options().create(true).append(true).open(self.log()).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keystone/serve.py");
        let mut command = self.command("python3");
        command.arg(script).arg(&self.address);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        wait::until("Keystone to answer", || {
            self.agent.get(self.url()).call().ok().filter(|answer| answer.status().is_success())
        });
    }

    /// Ends it without a word.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("no Keystone runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/v3", self.address)
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("keystone.log")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(artifacts::keystone().join("bin").join(program));
        command.env("OS_KEYSTONE_CONFIG_DIR", self.folder.path()).current_dir(self.folder.path());
        command
    }

    fn manage(&self, arguments: &[&str]) {
        let file = self.folder.path().join("keystone.conf");
        let output =
            self.command("keystone-manage").arg("--config-file").arg(file).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "keystone-manage {}: {said}", arguments[0]);
    }

    /// Makes projects, and people with a role in one of them each.
    pub(crate) fn populate(&self, people: &[(Person, &str)]) {
        let token = self.token(ADMIN);
        for (person, role) in people {
            let project = person.project.expect("a project");
            let project = self.named(&token, "projects", "project", project, json!({}));
            let secret = json!({"password": PASSWORD});
            let user = self.named(&token, "users", "user", person.name, secret);
            let role = self.named(&token, "roles", "role", role, json!({}));
            let path = format!("projects/{project}/users/{user}/roles/{role}");
            let request = self.agent.put(format!("{}/{path}", self.url())).header("X-Auth-Token", &token);
            assert_eq!(request.send_empty().unwrap().status(), 204, "{path}");
        }
    }

    /// The id of something by its name; it is made where it is not there.
    fn named(&self, token: &str, list: &str, one: &str, name: &str, more: Value) -> String {
        let url = format!("{}/{list}", self.url());
        let found = self.agent.get(&url).query("name", name).header("X-Auth-Token", token).call();
        let found = json_of(found.unwrap());
        if let Some(id) = found[list][0]["id"].as_str() {
            return id.to_owned();
        }
        let mut new = json!({"name": name, "domain_id": "default"});
        new.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let request = self.agent.post(&url).header("X-Auth-Token", token).content_type("application/json");
        let made = json_of(request.send(json!({ one: new }).to_string()).unwrap());
        made[one]["id"].as_str().unwrap_or_else(|| panic!("{url}: {made}")).to_owned()
    }

    /// A token of a person.
    pub(crate) fn token(&self, person: Person) -> String {
        let domain = json!({"id": "default"});
        let user = json!({"name": person.name, "domain": domain, "password": PASSWORD});
        let scope = match person.project {
            Some(project) => json!({"project": {"name": project, "domain": domain}}),
            None => json!({"system": {"all": true}}),
        };
        let identity = json!({"methods": ["password"], "password": {"user": user}});
        let body = json!({"auth": {"identity": identity, "scope": scope}});
        let request = self.agent.post(format!("{}/auth/tokens", self.url()));
        let answer = request.content_type("application/json").send(body.to_string()).unwrap();
        assert_eq!(answer.status(), 201, "{} logs in", person.name);
        answer.headers()["X-Subject-Token"].to_str().unwrap().to_owned()
    }

    /// Revokes a token.
    pub(crate) fn revoke(&self, token: &str) {
        let request = self.agent.delete(format!("{}/auth/tokens", self.url()));
        let request = request.header("X-Auth-Token", token).header("X-Subject-Token", token);
        assert_eq!(request.call().unwrap().status(), 204);
    }

    /// The stock client of a person, who logs in by password.
    pub(crate) fn client(&self, person: Person) -> Openstack {
        let mut environment = vec![
            ("OS_AUTH_TYPE", "password".to_owned()),
            ("OS_AUTH_URL", self.url()),
            ("OS_IDENTITY_API_VERSION", "3".into()),
            ("OS_REGION_NAME", "RegionOne".into()),
            ("OS_USERNAME", person.name.into()),
            ("OS_USER_DOMAIN_NAME", "Default".into()),
            ("OS_PASSWORD", PASSWORD.into()),
        ];
        match person.project {
            None => environment.push(("OS_SYSTEM_SCOPE", "all".into())),
            Some(project) => {
                environment.push(("OS_PROJECT_NAME", project.into()));
                environment.push(("OS_PROJECT_DOMAIN_NAME", "Default".into()));
            }
        }
        Openstack::with(environment)
    }
}

impl Drop for Keystone {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(40).collect();
            println!("--- the last lines of Keystone's log, the newest first\n{}", last.join("\n"));
        }
    }
}

/// The administrator that Keystone begins with.
pub(crate) const ADMIN: Person = Person { name: "admin", project: Some("admin") };

fn id(what: &str) -> String {
    let output = Command::new("id").arg(what).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn json_of(mut answer: ureq::http::Response<ureq::Body>) -> Value {
    serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap_or_default()
}
