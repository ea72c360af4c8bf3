//! Keys of encrypted shares that migrate: proven before anything is carried, loaded where it has arrived.

use tandem_sdk::{Error, OpContext, Result, Retry};

use crate::image::Image;
use crate::stream::content;
use crate::{Inner, carry, tool};

impl Inner {
    /// Makes sure that what will arrive can be mounted: of an encrypted share the key is in a file, and is the right one.
    pub(crate) async fn find_key(&self, cx: &OpContext, there: &Self, source: &Image) -> Result<()> {
        let version = content(source)?;
        if !version.encrypted {
            return Ok(());
        }
        let root = tool::property(cx, "encryptionroot", &version.name).await?;
        let mut last = None;
        for location in self.locations(cx, there, source).await? {
            // Only tried: it is loaded already.
            match tool::zfs(cx, &root, &["load-key", "-n", "-L", &location, &root]).await {
                Ok(_) => return Ok(()),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| {
            Error::conflict(format!(
                "instance {} is encrypted, and where it goes nobody would know its key: give the destination's back end a \
                 `key_location`, or say where the key is read from (`zfs set keylocation=file:///… {root}`)",
                source.meta.spec.instance
            ))
            .retry(Retry::AfterOperator)
        }))
    }

    /// Loads the key of what has arrived.
    pub(crate) async fn unlock(
        &self,
        cx: &OpContext,
        there: &Self,
        source: &Image,
        dest: &mut Image,
    ) -> Result<()> {
        let Some(version) = carry::arrived(dest).filter(|v| v.key_missing) else { return Ok(()) };
        let name = version.name.clone();
        let mut last = None;
        for location in self.locations(cx, there, source).await? {
            if let Err(error) = tool::zfs(cx, &name, &["load-key", "-L", &location, &name]).await {
                last = Some(error);
                continue;
            }
            // What arrives raw asks for its key at a prompt, which nobody answers after a boot.
            tool::zfs(cx, &name, &["set", &format!("keylocation={location}"), &name]).await?;
            return there.refresh(cx, dest).await;
        }
        Err(last.unwrap_or_else(|| {
            Error::conflict(format!(
                "what arrives in `{name}` is encrypted, and its key is not there; load it with `zfs load-key {name}`, or \
                 give the destination's back end a `key_location`"
            ))
            .retry(Retry::AfterOperator)
        }))
    }

    /// Files that may hold the key of a share at its destination: what that back end says, and where the source's came from.
    async fn locations(&self, cx: &OpContext, there: &Self, source: &Image) -> Result<Vec<String>> {
        let root = tool::property(cx, "encryptionroot", &content(source)?.name).await?;
        let ours = tool::property(cx, "keylocation", &root).await?;
        let ours = Some(ours).filter(|location| location.starts_with("file:///"));
        let mut all: Vec<String> = there.config.key_location.clone().into_iter().chain(ours).collect();
        all.dedup();
        Ok(all)
    }
}
