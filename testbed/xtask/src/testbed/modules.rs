//! OpenZFS as modules of the guests' kernel: built once from Debian's sources, kept outside of the repository.
//!
//! Nobody distributes these modules, and neither do we: each machine builds its own, in about nine minutes of processor
//! time, into `uml-modules/KERNEL-ZFS` of the cache. That folder appears whole or not at all, and carries checksums; one that
//! does not agree with them is built anew.

use super::{packages, symvers};
use crate::{Result, command::Run, system, temporary::Temporary};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const KERNEL: &str = "/usr/bin/linux.uml";
const MODULES: [&str; 2] = ["spl.ko", "zfs.ko"];
const SUMS: &str = "SHA256SUMS";
/// Beginning of the name of a folder in which somebody builds; then the number of the process.
const BUILDING: &str = ".building-";
/// How often it says how far it is.
const WORD: Duration = Duration::from_secs(10);

/// Makes sure that the modules are there.
pub(super) fn prepare() -> Result<String> {
    let kernel = Run::new(KERNEL).args(["--version"]).output()?.trim().to_string();
    let packaged = packages::version("zfsutils-linux").ok_or("zfsutils-linux is not installed.")?;
    let zfs = packaged.split('-').next().unwrap_or_default().to_string();
    let all = system::cache()?.join("uml-modules");
    let folder = all.join(format!("{kernel}-{zfs}"));
    if whole(&folder) {
        return Ok(format!("modules of OpenZFS {zfs} for Linux {kernel} are in the cache"));
    }
    if folder.exists() {
        println!("-- {} is damaged, and is built anew", folder.display());
    }
    std::fs::create_dir_all(&all).map_err(|error| format!("creating {}: {error}.", all.display()))?;
    let start = Instant::now();
    sweep(&all);
    let work = Temporary::folder_in(&all, &format!("{BUILDING}{}", std::process::id()))?;
    let outcome = build(work.path(), &kernel, &packaged).and_then(|built| put(&built, &folder));
    outcome.and(work.remove())?;
    Ok(format!("built OpenZFS {zfs} for Linux {kernel} in {} s", start.elapsed().as_secs()))
}

/// Removes what builds left behind that were killed together with what would have removed it.
fn sweep(all: &Path) {
    for entry in std::fs::read_dir(all).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let builder = name.strip_prefix(BUILDING).and_then(|rest| rest.split('-').next());
        if builder.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether a folder has the modules, as they were built.
fn whole(folder: &Path) -> bool {
    MODULES.iter().all(|module| folder.join(module).is_file())
        && Run::new("sha256sum").args(["--check", "--status", "--strict", SUMS]).dir(folder).succeeds()
}

/// Renames the built folder to where it belongs; another run may have been first.
fn put(built: &Path, folder: &Path) -> Result<()> {
    if whole(folder) {
        return Ok(());
    }
    let said = |error: std::io::Error| format!("replacing {}: {error}.", folder.display());
    if folder.exists() {
        std::fs::rename(folder, built.with_extension("damaged")).map_err(said)?;
    }
    std::fs::rename(built, folder).map_err(said)
}

/// Builds in a folder that is thrown away; the folder inside it that holds the modules and their checksums.
fn build(work: &Path, kernel: &str, zfs: &str) -> Result<PathBuf> {
    let series: Vec<&str> = kernel.split('.').take(2).collect();
    let package = format!("linux-source-{}", series.join("."));
    let exact = format!("{kernel}-");
    let version = packages::offered(&package, |version| version.starts_with(&exact)).ok_or(format!(
        "no source of packages has {package} of the version {kernel}, which {KERNEL} is; try after `apt-get update`, or \
         upgrade user-mode-linux."
    ))?;
    println!("-- fetching {package} {version} and zfs-dkms {zfs}");
    fetch(work, &format!("{package}={version}"))?;
    fetch(work, &format!("zfs-dkms={zfs}"))?;
    println!("-- unpacking");
    let (source, object) = (work.join("linux"), work.join("object"));
    for folder in [&source, &object] {
        std::fs::create_dir(folder).map_err(|error| format!("creating {}: {error}.", folder.display()))?;
    }
    for archive in ending(work, ".deb")? {
        Run::new("dpkg-deb").args(["--extract"]).args([&archive, work]).run()?;
    }
    let archive = work.join("usr/src").join(format!("{package}.tar.xz"));
    Run::new("tar")
        .args(["--strip-components=1", "-C"])
        .args([&source])
        .args(["-xf"])
        .args([archive])
        .run()?;
    prepare_kernel(&source, &object)?;
    let tree = std::fs::read_dir(work.join("usr/src"))
        .map_err(|error| format!("looking for the source of OpenZFS: {error}."))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("zfs-")))
        .ok_or("zfs-dkms holds no source.")?;
    compile(&tree, &source, &object)?;
    collect(work, &tree)
}

fn fetch(work: &Path, package: &str) -> Result<()> {
    // Never installed: its scripts would build it for the kernel of this machine.
    Run::new("apt-get").args(["-qq", "-o", "APT::Sandbox::User=root", "download", package]).dir(work).run()
}

fn ending(folder: &Path, end: &str) -> Result<Vec<PathBuf>> {
    let entries =
        std::fs::read_dir(folder).map_err(|error| format!("reading {}: {error}.", folder.display()))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(paths.filter(|path| path.to_string_lossy().ends_with(end)).collect())
}

fn prepare_kernel(source: &Path, object: &Path) -> Result<()> {
    println!("-- preparing the kernel's tree");
    let config = Run::new(KERNEL).args(["--showconfig"]).output()?;
    write(&object.join(".config"), config.as_bytes())?;
    let into = format!("O={}", object.display());
    let make = Run::new("make").args(["-C"]).args([source]).args(["ARCH=um", &into, &jobs()?]);
    counted("steps", make.args(["olddefconfig", "modules_prepare"]))?;
    let program = std::fs::read(KERNEL).map_err(|error| format!("reading {KERNEL}: {error}."))?;
    write(&object.join("Module.symvers"), symvers::of(&program)?.as_bytes())
}

fn compile(tree: &Path, source: &Path, object: &Path) -> Result<()> {
    println!("-- OpenZFS: asking the kernel's tree what it can do");
    let um = |run: Run| run.env("ARCH", "um").env("ARCH_UM", "ARCH=um").dir(tree);
    let configure = Run::new(tree.join("configure")).args([
        "--with-config=kernel",
        &format!("--with-linux={}", source.display()),
        &format!("--with-linux-obj={}", object.display()),
        "KERNEL_ARCH=um",
    ]);
    counted("questions", um(configure))?;
    println!("-- OpenZFS: compiling");
    counted("steps", um(Run::new("make").args(["-C", "module", &jobs()?, "modules-Linux"])))
}

fn collect(work: &Path, tree: &Path) -> Result<PathBuf> {
    let ready = work.join("ready");
    std::fs::create_dir(&ready).map_err(|error| format!("creating {}: {error}.", ready.display()))?;
    for module in MODULES {
        Run::new("cp").args([tree.join("module").join(module), ready.join(module)]).run()?;
        Run::new("strip").args(["--strip-debug", module]).dir(&ready).run()?;
    }
    let sums = Run::new("sha256sum").args(MODULES).dir(&ready).output()?;
    write(&ready.join(SUMS), sums.as_bytes())?;
    Ok(ready)
}

fn jobs() -> Result<String> {
    let processors = std::thread::available_parallelism().map_err(|error| error.to_string())?;
    Ok(format!("-j{processors}"))
}

fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(file, bytes).map_err(|error| format!("writing {}: {error}.", file.display()))
}

/// Runs something that prints a line for each step, and shows how many there were instead; the last lines when it fails.
fn counted(what: &str, run: Run) -> Result<()> {
    let (mut count, mut last) = (0, Instant::now());
    let mut tail = std::collections::VecDeque::new();
    let outcome = run.lines(|line| {
        count += 1;
        tail.push_back(line.to_string());
        if tail.len() > 30 {
            tail.pop_front();
        }
        if last.elapsed() >= WORD {
            last = Instant::now();
            println!("   {count} {what}");
        }
    });
    if outcome.is_err() {
        tail.iter().for_each(|line| println!("   | {line}"));
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder as a build leaves it.
    fn built() -> PathBuf {
        let folder = Run::new("mktemp").args(["--directory"]).output().unwrap();
        let folder = PathBuf::from(folder.trim());
        for module in MODULES {
            std::fs::write(folder.join(module), format!("the code of {module}")).unwrap();
        }
        let sums = Run::new("sha256sum").args(MODULES).dir(&folder).output().unwrap();
        std::fs::write(folder.join(SUMS), sums).unwrap();
        folder
    }

    #[test]
    fn only_modules_as_they_were_built_are_whole() {
        let damages: [fn(&Path) -> std::io::Result<()>; 5] = [
            |folder| std::fs::write(folder.join("zfs.ko"), "the code of zfs.kO"),
            |folder| std::fs::write(folder.join("spl.ko"), ""),
            |folder| std::fs::remove_file(folder.join("spl.ko")),
            |folder| std::fs::remove_file(folder.join(SUMS)),
            |folder| std::fs::write(folder.join(SUMS), ""),
        ];
        for damage in damages {
            let folder = built();
            assert!(whole(&folder));
            damage(&folder).unwrap();
            assert!(!whole(&folder));
            std::fs::remove_dir_all(&folder).unwrap();
        }
        assert!(!whole(Path::new("/nowhere")));
    }
}
