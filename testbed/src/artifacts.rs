//! Where the built programs, the drivers and the stock client are.

use std::path::{Path, PathBuf};

/// The folder with `tandemd`, `tandem` and the drivers: named by `TANDEM_ARTIFACTS`, or where cargo built this test.
pub fn folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("TANDEM_ARTIFACTS") {
        return folder.into();
    }
    let test = std::env::current_exe().unwrap();
    // target/debug/deps/test-0123456789abcdef
    test.parent().and_then(Path::parent).unwrap().into()
}

/// A built program.
pub fn program(name: &str) -> PathBuf {
    let path = folder().join(name);
    assert!(
        path.exists(),
        "{} is not built; run `cargo xtask test` or `cargo build --workspace`.",
        path.display()
    );
    path
}

/// The loadable library of a driver.
pub fn driver(name: &str) -> PathBuf {
    program(&format!("libtandem_driver_{name}.so"))
}

/// The folder of the virtual environment with the stock client: named by `TANDEM_CLIENT`, or where `cargo xtask test`
/// keeps it.
pub fn client() -> PathBuf {
    environment("client", "TANDEM_CLIENT", "bin/openstack")
}

/// The folder of the virtual environment with a Keystone: named by `TANDEM_KEYSTONE`, or where `cargo xtask test` keeps
/// it.
pub fn keystone() -> PathBuf {
    environment("keystone", "TANDEM_KEYSTONE", "bin/keystone-manage")
}

fn environment(name: &str, variable: &str, program: &str) -> PathBuf {
    let folder = match (std::env::var_os(variable), std::env::var_os("XDG_CACHE_HOME")) {
        (Some(folder), _) => PathBuf::from(folder),
        (_, Some(cache)) => Path::new(&cache).join("tandem").join(name),
        _ => Path::new(&std::env::var_os("HOME").unwrap()).join(".cache/tandem").join(name),
    };
    assert!(
        folder.join(program).exists(),
        "{} has no {name}; run `cargo xtask test` once, or name a virtual environment in {variable}.",
        folder.display()
    );
    folder
}

/// The README, whose tour is executed: named by `TANDEM_README`, or the one of this repository.
pub fn readme() -> String {
    let path = std::env::var_os("TANDEM_README")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md"), PathBuf::from);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
