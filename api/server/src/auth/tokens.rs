//! Tokens from a file that holds their hashes.
//!
//! ```toml
//! [[token]]
//! hash = "sha256:…"        # printf %s "$TOKEN" | sha256sum      (or "blake3:…", from b3sum)
//! user = "alice"
//! project = "demo"
//! roles = ["member"]
//! ```
//!
//! The file is read again when it changes; an edit that cannot be read is logged and changes nothing. A
//! token that is looked up is hashed first, so the time of the look-up tells nothing about other tokens.

use async_trait::async_trait;
use axum::http::HeaderMap;
use serde::Deserialize;
use sha2::Digest;
use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use super::{Authenticator, Identity, Refusal, Scope, TOKEN_HEADER, text};
use crate::watch::{Change, Watched};

/// Why a tokens file is refused.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// It cannot be read.
    #[error("the tokens file {path} cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Others could write themselves a token.
    #[error("the tokens file {0} can be written by others; take that away with: chmod go-w {0}")]
    Writable(PathBuf),
    /// Its text is wrong.
    #[error("{path}: {what}")]
    Text {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its place.
        what: String,
    },
}

/// Tokens from a file.
#[derive(Debug)]
pub struct Tokens {
    file: Watched,
    known: RwLock<Arc<Known>>,
    trouble: RwLock<Option<String>>,
}

type Known = HashMap<Hash, Identity>;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Hash {
    Sha256([u8; 32]),
    Blake3([u8; 32]),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    #[serde(default)]
    token: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    hash: String,
    user: String,
    project: String,
    #[serde(default)]
    roles: Vec<String>,
}

impl Tokens {
    /// Reads the file.
    pub fn load(path: PathBuf) -> Result<Self, TokensError> {
        let file = Watched::new(path);
        let known = read(&file, None)?;
        Ok(Self { file, known: RwLock::new(Arc::new(known)), trouble: RwLock::new(None) })
    }

    fn current(&self) -> Arc<Known> {
        let fresh = match self.file.change() {
            Change::None => None,
            Change::Text(text) => Some(read(&self.file, Some(text))),
            Change::Unreadable(source) => {
                Some(Err(TokensError::Read { path: self.file.path().to_owned(), source }))
            }
        };
        match fresh {
            None => {}
            Some(Ok(known)) => {
                tracing::info!(tokens = known.len(), "The tokens file changed and is in force.");
                *self.known.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(known);
                *self.trouble.write().unwrap_or_else(PoisonError::into_inner) = None;
            }
            Some(Err(error)) => {
                tracing::error!(%error, "The tokens file changed but cannot be used; the tokens before it stay valid.");
                *self.trouble.write().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
            }
        }
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl Authenticator for Tokens {
    async fn authenticate(&self, headers: &HeaderMap) -> Result<Identity, Refusal> {
        let token = text(headers, TOKEN_HEADER).filter(|t| !t.is_empty()).ok_or(Refusal::Unauthorized)?;
        let known = self.current();
        let sha256 = Hash::Sha256(sha2::Sha256::digest(token.as_bytes()).into());
        let blake3 = Hash::Blake3(blake3::hash(token.as_bytes()).into());
        known.get(&sha256).or_else(|| known.get(&blake3)).cloned().ok_or(Refusal::Unauthorized)
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn read(file: &Watched, text: Option<String>) -> Result<Known, TokensError> {
    let path = file.path();
    let unreadable = |source| TokensError::Read { path: path.to_owned(), source };
    let text = match text {
        Some(text) => text,
        None => file.read().map_err(unreadable)?,
    };
    let mode = std::fs::metadata(path).map_err(unreadable)?.permissions().mode();
    if mode & 0o022 != 0 {
        return Err(TokensError::Writable(path.to_owned()));
    }
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<Known, TokensError> {
    let wrong = |what: String| TokensError::Text { path: path.to_owned(), what };
    let read: Text = toml::from_str(text).map_err(|e| wrong(e.to_string().trim().to_owned()))?;
    let mut known = Known::new();
    for (n, entry) in read.token.into_iter().enumerate() {
        let which = format!("token {} (user '{}')", n + 1, entry.user);
        let hash = hash(&entry.hash).ok_or_else(|| {
            wrong(format!("{which}: 'hash' must be sha256: or blake3: and 64 hexadecimal digits"))
        })?;
        if entry.user.is_empty() || entry.project.is_empty() {
            return Err(wrong(format!("{which}: 'user' and 'project' must not be empty")));
        }
        let identity = Identity {
            user_id: entry.user,
            project_id: entry.project,
            roles: entry.roles.iter().map(|r| r.to_lowercase()).collect(),
            is_admin: false,
            scope: Scope::Project,
            facts: BTreeMap::new(),
        };
        if known.insert(hash, identity).is_some() {
            return Err(wrong(format!("{which}: its hash is in the file twice")));
        }
    }
    Ok(known)
}

fn hash(text: &str) -> Option<Hash> {
    let (kind, digits) = text.split_once(':')?;
    if digits.len() != 64 || !digits.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    match kind {
        "sha256" => Some(Hash::Sha256(bytes)),
        "blake3" => Some(Hash::Blake3(bytes)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // sha256 of "secret", blake3 of "other".
    const SHA: &str = "sha256:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

    fn entry(hash: &str, user: &str) -> String {
        format!("[[token]]\nhash = \"{hash}\"\nuser = \"{user}\"\nproject = \"p\"\nroles = [\"Member\"]\n")
    }

    async fn who(tokens: &Tokens, token: &str) -> Result<String, Refusal> {
        let mut headers = HeaderMap::new();
        headers.insert(TOKEN_HEADER, token.parse().unwrap());
        tokens
            .authenticate(&headers)
            .await
            .map(|i| format!("{}:{}:{}", i.user_id, i.project_id, i.roles.join(",")))
    }

    #[tokio::test]
    async fn only_known_tokens_pass_and_edits_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.toml");
        let blake3 = format!("blake3:{}", blake3::hash(b"other").to_hex());
        std::fs::write(&path, entry(SHA, "alice") + &entry(&blake3, "bob")).unwrap();
        let tokens = Tokens::load(path.clone()).unwrap();
        assert_eq!(who(&tokens, "secret").await.unwrap(), "alice:p:member");
        assert_eq!(who(&tokens, "other").await.unwrap(), "bob:p:member");
        assert_eq!(who(&tokens, "nobody").await, Err(Refusal::Unauthorized));
        assert_eq!(tokens.authenticate(&HeaderMap::new()).await, Err(Refusal::Unauthorized));

        std::fs::write(&path, "[[token]]\nhash = \"x\"\n").unwrap();
        assert_eq!(who(&tokens, "secret").await.unwrap(), "alice:p:member");
        assert!(tokens.trouble().is_some());

        std::fs::write(&path, entry(&blake3, "carol")).unwrap();
        assert_eq!(who(&tokens, "secret").await, Err(Refusal::Unauthorized));
        assert_eq!(who(&tokens, "other").await.unwrap(), "carol:p:member");
        assert_eq!(tokens.trouble(), None);
    }

    #[test]
    fn files_that_others_may_write_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.toml");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(matches!(Tokens::load(path.clone()), Err(TokensError::Writable(_))));
        assert!(matches!(Tokens::load(dir.path().join("none")), Err(TokensError::Read { .. })));
    }

    #[test]
    fn mistakes_are_sentences() {
        let refuse = |text: &str| parse(Path::new("t"), text).unwrap_err().to_string();
        assert!(refuse(&entry("md5:00", "alice")).contains("token 1 (user 'alice')"));
        assert!(refuse(&(entry(SHA, "a") + &entry(SHA, "b"))).contains("twice"));
        assert!(refuse("[[token]]\nhash = 1\n").contains("line 2"));
        assert!(refuse(&entry(SHA, "")).contains("must not be empty"));
    }
}
