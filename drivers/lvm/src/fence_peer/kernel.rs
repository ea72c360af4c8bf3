//! What the kernel says of a device, by `/proc/drbd`: no program is started while writes are held back.

/// A device, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// Its users may write, or could if nothing were held back.
    pub(crate) is_primary: bool,
    /// It sees the other side.
    pub(crate) is_connected: bool,
}

/// A device of `/proc/drbd`; `None` where it is not there. A line of one reads ` 1: cs:WFConnection ro:Primary/Unknown …`.
pub(crate) fn device(text: &str, minor: u32) -> Option<Device> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(&format!("{minor}: ")))?;
    let word = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name));
    // The states before the two sides have met: `enum drbd_conns` of the kernel's linux/drbd.h.
    let apart = [
        "StandAlone",
        "Disconnecting",
        "Unconnected",
        "Timeout",
        "BrokenPipe",
        "NetworkFailure",
        "ProtocolError",
        "TearDown",
        "WFConnection",
        "WFReportParams",
        "Unconfigured",
    ];
    let connection = word("cs:")?;
    Some(Device {
        is_primary: word("ro:").is_some_and(|role| role.starts_with("Primary/")),
        is_connected: !apart.contains(&connection),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "version: 8.4.11 (api:1/proto:86-101)\n\
        \x20 0: cs:Unconfigured\n\
        \x20 1: cs:WFConnection ro:Primary/Unknown ds:UpToDate/DUnknown C s-----\n    ns:0 nr:0 dw:4 dr:0 al:1 bm:0 lo:0\n\
        \x2011: cs:SyncTarget ro:Secondary/Primary ds:Inconsistent/UpToDate C r-----\n";

    #[test]
    fn a_device_is_found_by_its_number() {
        assert_eq!(device(TEXT, 0), Some(Device { is_primary: false, is_connected: false }));
        assert_eq!(device(TEXT, 1), Some(Device { is_primary: true, is_connected: false }));
        assert_eq!(device(TEXT, 11), Some(Device { is_primary: false, is_connected: true }));
        assert_eq!(device(TEXT, 2), None);
    }

    proptest! {
        #[test]
        fn any_text_is_harmless(text in "([ 0-9]: |cs:|ro:|[a-zA-Z/ \n])*", minor in 0u32..20) {
            let _ = device(&text, minor);
        }
    }
}
