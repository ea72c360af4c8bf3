//! The settings file of a driver host. What is unknown is refused with the key's name.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tandem_host::remote::{Listening, TlsFiles, host_name};

/// Everything that an operator decides for a driver host.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// This host's name, as its certificate and the server's settings say it.
    pub(crate) name: String,
    /// Address and port to serve on.
    #[serde(default = "everywhere")]
    pub(crate) listen: SocketAddr,
    /// Folder of the drivers (`*.so`).
    #[serde(default = "plugins")]
    pub(crate) plugins: PathBuf,
    /// Names of the servers that may use this host.
    pub(crate) servers: Vec<String>,
    /// Who this host is, and who says so.
    pub(crate) tls: TlsFiles,
    /// What is logged.
    #[serde(default)]
    pub(crate) log: Log,
}

/// What is logged. The log goes to standard error.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Log {
    /// Levels, by module where needed.
    pub(crate) filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".into() }
    }
}

fn everywhere() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8787))
}

fn plugins() -> PathBuf {
    "/usr/lib/tandem/plugins".into()
}

impl Settings {
    /// Reads and checks a settings file. Relative paths in it start at its folder.
    ///
    /// # Errors
    /// A sentence with the file, and the line and key where there is one.
    pub(crate) fn load(file: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(file)
            .map_err(|e| format!("the settings file {} cannot be read: {e}", file.display()))?;
        let mut settings: Self = toml::from_str(&text).map_err(|e| format!("{}: {e}", file.display()))?;
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = std::path::absolute(folder)
            .map_err(|e| format!("the folder of {} cannot be found: {e}", file.display()))?;
        settings.plugins = folder.join(&settings.plugins);
        settings.tls.within(&folder);
        settings.check().map_err(|why| format!("{}: {why}", file.display()))?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), String> {
        host_name(&self.name).map_err(|why| format!("name: {why}"))?;
        if self.servers.is_empty() {
            return Err(
                "servers is empty, so no server could use this host; name the `host` of a tandemd".into()
            );
        }
        self.servers.iter().try_for_each(|name| host_name(name).map_err(|why| format!("servers: {why}")))
    }

    pub(crate) fn listening(&self) -> Listening {
        Listening { name: self.name.clone(), servers: self.servers.clone(), tls: self.tls.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_loads_and_mistakes_are_named() {
        let sample =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/samples/driver-host/driver-host.toml");
        let settings = Settings::load(&sample).unwrap();
        assert_eq!((settings.name.as_str(), settings.servers.len()), ("storage2", 1));

        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.toml");
        let text = std::fs::read_to_string(&sample).unwrap();
        for (from, to, sentence) in [
            ("servers = [\"storage1\"]", "servers = []", "servers is empty"),
            ("name = \"storage2\"", "name = \"a b\"", "cannot stand in a certificate"),
            ("listen", "lisen", "unknown field `lisen`"),
        ] {
            std::fs::write(&file, text.replace(from, to)).unwrap();
            let refused = Settings::load(&file).unwrap_err();
            assert!(refused.contains(sentence), "{refused}");
        }
        std::fs::write(&file, text.replace("/etc/tandem/tls/storage2.key", "own.key")).unwrap();
        assert_eq!(Settings::load(&file).unwrap().tls.key, folder.path().join("own.key"));
    }
}
