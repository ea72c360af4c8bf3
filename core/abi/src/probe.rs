//! What a loader reads before it trusts a library's layout.

/// The generation of the interface in this crate.
pub const GENERATION: u32 = 1;

/// Name of the static that every driver's library exports.
pub(crate) const SYMBOL: &[u8] = b"tandem_plugin_abi\0";

const MAGIC: [u8; 8] = *b"tandem\0\x01";

/// A static that every driver's library exports as `tandem_plugin_abi`. Its layout holds for all generations.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Probe {
    magic: [u8; 8],
    /// Generation of the binary interface.
    pub generation: u32,
    /// Contract the library was built against: major.
    pub contract_major: u32,
    /// Contract the library was built against: minor.
    pub contract_minor: u32,
}

impl Probe {
    /// The probe of a library built with this crate.
    pub const fn new(contract: (u32, u32)) -> Self {
        Self { magic: MAGIC, generation: GENERATION, contract_major: contract.0, contract_minor: contract.1 }
    }

    /// Whether this is a probe at all, and not another static of that name.
    pub(crate) fn is_genuine(&self) -> bool {
        self.magic == MAGIC
    }
}
