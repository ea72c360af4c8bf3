//! A host that lacks what the settings ask for: refused as the back end is opened, by a sentence that names it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use serde_json::json;
use tandem_sdk::{ErrorKind, Value};

use crate::HOSTS;
use crate::common::{Backend, run};

const PROGRAMS: &str = "/usr/sbin";
/// All programs; and those that are not hidden, as links.
const FOLDERS: [&str; 2] = ["/run/all-programs", "/run/other-programs"];
/// The parameter of DRBD's module that a back end with `drbd.writable` sets.
const HELPER: &str = "/sys/module/drbd/parameters/usermode_helper";

/// What lies above something of the host, until it is dropped.
struct Hidden(Vec<String>);

impl Hidden {
    fn program(name: &str) -> Self {
        let [all, others] = FOLDERS;
        for folder in FOLDERS {
            fs::create_dir_all(folder).unwrap();
        }
        run("mount", &["--bind", PROGRAMS, all]);
        assert!(Path::new(all).join(name).exists(), "{name} is not installed");
        for entry in fs::read_dir(all).unwrap().map(|entry| entry.unwrap()) {
            if entry.file_name() != name {
                symlink(entry.path(), Path::new(others).join(entry.file_name())).unwrap();
            }
        }
        run("mount", &["--bind", others, PROGRAMS]);
        Self(vec![PROGRAMS.to_owned(), all.to_owned()])
    }

    fn file(path: &str) -> Self {
        run("mount", &["--bind", "/dev/null", path]);
        Self(vec![path.to_owned()])
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        for path in &self.0 {
            run("umount", &[path]);
        }
        let _ = fs::remove_dir_all(FOLDERS[1]);
    }
}

fn drbd() -> Value {
    json!({"drbd": {"address": HOSTS[0], "ports": [7850, 7860], "minors": [900, 910]}})
}

fn writable() -> Value {
    let secret = "/run/arbiter.secret";
    fs::write(secret, "of a test").unwrap();
    fs::set_permissions(secret, fs::Permissions::from_mode(0o600)).unwrap();
    let mut settings = drbd();
    settings["drbd"]["writable"] =
        json!({"hosts": HOSTS, "arbiter": {"url": "http://127.0.0.1:1", "secret_file": secret}});
    settings
}

pub async fn what_a_host_lacks_is_named() {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let modules = format!("/lib/modules/{}/modules.dep", release.trim());
    let helper = fs::read_to_string(HELPER).unwrap();
    type Hide<'h> = Box<dyn Fn() -> Hidden + 'h>;
    let program = |name: &'static str| -> Hide<'_> { Box::new(move || Hidden::program(name)) };
    let file = |path: &str| -> Hide<'_> {
        let path = path.to_owned();
        Box::new(move || Hidden::file(&path))
    };
    let cases: [(Hide<'_>, Value, &[&str]); 6] = [
        (program("mkfs.ext4"), json!({}), &["mkfs.ext4"]),
        (program("drbdmeta"), drbd(), &["drbdmeta", "drbd-utils"]),
        (program("mkfs.ocfs2"), writable(), &["mkfs.ocfs2"]),
        (program("mount.ocfs2"), writable(), &["mount.ocfs2", "ocfs2-tools"]),
        (file("/proc/drbd"), drbd(), &["modprobe drbd"]),
        (file(&modules), writable(), &["no module `ocfs2", "drbd.writable"]),
    ];
    for (hide, settings, words) in cases {
        let hidden = hide();
        let refused = Backend::fails("alpha", settings).await;
        drop(hidden);
        assert_eq!(refused.kind, ErrorKind::Unavailable, "{refused}");
        assert!(words.iter().all(|word| refused.message.contains(word)), "{refused}");
    }
    fs::write(HELPER, helper.trim()).unwrap();
}
