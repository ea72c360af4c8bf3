//! Where the server is, and who we are: from a flag, the environment, or a file, in this order.

use crate::Failure;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// What is used when nothing says otherwise: the server's own default.
const ENDPOINT: &str = "http://127.0.0.1:8786";

/// The file `tandem/cli.toml` in the user's configuration folder.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    endpoint: Option<String>,
    token: Option<String>,
}

/// A server to talk to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) endpoint: String,
    pub(crate) token: Option<String>,
}

impl Config {
    /// Puts together what flags and environment (both already in the arguments) and the file say.
    pub(crate) fn load(
        endpoint: Option<&str>,
        token: Option<&str>,
        file: Option<&Path>,
    ) -> Result<Self, Failure> {
        let from_file = match file.map(Path::to_path_buf).or_else(usual_file) {
            Some(path) => read(&path, file.is_some())?,
            None => File::default(),
        };
        let endpoint = endpoint.map(String::from).or(from_file.endpoint).unwrap_or_else(|| ENDPOINT.into());
        let endpoint = endpoint.trim_end_matches('/').to_string();
        if !endpoint.starts_with("http://") {
            return Err(Failure::Usage(format!(
                "The endpoint {endpoint} does not start with http://. This program speaks plain HTTP; reach a \
                 distant server through a tunnel."
            )));
        }
        Ok(Self { endpoint, token: token.map(String::from).or(from_file.token) })
    }
}

fn usual_file() -> Option<PathBuf> {
    let folder = match std::env::var_os("XDG_CONFIG_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".config"),
    };
    Some(folder.join("tandem/cli.toml"))
}

/// The file's content; a file that was not named may be missing.
fn read(path: &Path, named: bool) -> Result<File, Failure> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            toml::from_str(&text).map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !named => Ok(File::default()),
        Err(error) => Err(Failure::Usage(format!("{} cannot be read: {error}.", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cli.toml");
        std::fs::write(&file, "endpoint = \"http://storage1:8786/\"\ntoken = \"secret\"\n").unwrap();
        let config = Config::load(None, None, Some(&file)).unwrap();
        assert_eq!(config.endpoint, "http://storage1:8786");
        assert_eq!(config.token.as_deref(), Some("secret"));
        let config = Config::load(Some("http://here:1"), Some("other"), Some(&file)).unwrap();
        assert_eq!((config.endpoint.as_str(), config.token.as_deref()), ("http://here:1", Some("other")));
    }

    #[test]
    fn what_cannot_be_used_is_a_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cli.toml");
        assert!(Config::load(None, None, Some(&file)).is_err(), "a named file must exist");
        std::fs::write(&file, "endpiont = \"x\"").unwrap();
        let Err(Failure::Usage(why)) = Config::load(None, None, Some(&file)) else { panic!() };
        assert!(why.contains("unknown field `endpiont`"), "{why}");
        assert!(Config::load(Some("https://there"), None, None).is_err());
    }
}
