//! What DRBD's module calls at events: nothing, or `tandem-fence-peer`. Its own tool knows nothing of shares, and breaks their
//! links.

use std::fs;
use std::path::Path;

use tandem_sdk::files::failed;
use tandem_sdk::{Error, Result, Retry};

use super::settings::absent;
use crate::program;

/// The parameter of the kernel's module. It is one for all resources of the host, and lasts until the next boot.
const PARAMETER: &str = "/sys/module/drbd/parameters/usermode_helper";
/// Bytes of a path that it takes: `drbd_usermode_helper` of the kernel's drbd_main.c, without its end.
const LONGEST: usize = 79;

/// Refuses a host whose kernel would call anything else; lets it call `tandem-fence-peer` where shares can be written to on two
/// hosts at once.
pub(super) fn require(writable: bool) -> Result<()> {
    let now = fs::read_to_string(PARAMETER).unwrap_or_default();
    let wanted = if writable { Some(program::find(program::FENCE_PEER, None)?) } else { None };
    match change(now.trim(), wanted.as_deref())? {
        None => Ok(()),
        // No end of line: it would become a part of the name.
        Some(path) => fs::write(PARAMETER, path).map_err(|e| failed("write", Path::new(PARAMETER), &e)),
    }
}

/// What the parameter is to become, if anything.
fn change<'p>(now: &str, wanted: Option<&'p Path>) -> Result<Option<&'p str>> {
    // Another version of it may lie elsewhere.
    let ours = Path::new(now).file_name().is_some_and(|name| name == program::FENCE_PEER);
    if now != "disabled" && !ours {
        return Err(absent(
            "the kernel's module would call `drbdadm`, which knows nothing of these shares and breaks their links; write \
             `options drbd usermode_helper=disabled` into /etc/modprobe.d/tandem.conf and load it anew",
        ));
    }
    let Some(wanted) = wanted else { return Ok(None) };
    match wanted.to_str().filter(|path| path.len() <= LONGEST) {
        None => Err(Error::invalid(format!(
            "the path {} is too long for the kernel's module of DRBD, which takes {LONGEST} bytes; let the folder of drivers \
             lie elsewhere",
            wanted.display()
        ))
        .retry(Retry::AfterOperator)),
        Some(path) => Ok(Some(path).filter(|path| *path != now)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_told_to_do_nothing_is_told_otherwise() {
        let ours = Path::new("/usr/lib/tandem/plugins/tandem-fence-peer");
        let text = ours.to_str();
        assert_eq!(change("disabled", None).unwrap(), None);
        assert_eq!(change("disabled", Some(ours)).unwrap(), text);
        assert_eq!(change("/opt/old/tandem-fence-peer", Some(ours)).unwrap(), text);
        assert_eq!(change("/opt/old/tandem-fence-peer", None).unwrap(), None);
        assert_eq!(change(text.unwrap(), Some(ours)).unwrap(), None);
        for strange in ["/sbin/drbdadm", "", "/usr/lib/drbd/crm-fence-peer.sh"] {
            assert!(change(strange, Some(ours)).is_err() && change(strange, None).is_err(), "{strange}");
        }
        let long = format!("/{}/tandem-fence-peer", "x".repeat(80));
        assert!(change("disabled", Some(Path::new(&long))).unwrap_err().message.contains("too long"));
    }
}
