//! `Module.symvers` of a kernel that is already built: the symbols that modules may use, read from the program itself.
//!
//! `make modules_prepare` does not write that file, and Debian does not ship it for user-mode Linux. A program has the same
//! facts in two sections, `__ksymtab` and `__ksymtab_gpl`: entries of 24 bytes (value, pointer to the name, pointer to the
//! namespace). The kernel is built without versions of symbols, so every checksum is 0.

use crate::Result;
use std::fmt::Write as _;

/// One entry of a symbol table.
const ENTRY: usize = 24;
/// A section header of 64-bit ELF.
const HEADER: usize = 64;
/// A section that takes no room in the file.
const NOBITS: u32 = 8;

/// The text of the file, from the bytes of the program.
pub(super) fn of(program: &[u8]) -> Result<String> {
    let elf = Elf::read(program).ok_or("the kernel is not a 64-bit ELF program.")?;
    let mut text = String::new();
    for (section, export) in [("__ksymtab", "EXPORT_SYMBOL"), ("__ksymtab_gpl", "EXPORT_SYMBOL_GPL")] {
        let section = elf.section(section).ok_or(format!("the kernel has no section {section}."))?;
        for entry in section.bytes.chunks_exact(ENTRY) {
            let pointer = |at| number::<8>(entry, at).unwrap_or_default();
            let name = elf.string(pointer(8)).ok_or("an exported symbol has no name.")?;
            let namespace = elf.string(pointer(16)).unwrap_or_default();
            let _ = writeln!(text, "0x00000000\t{name}\tvmlinux\t{export}\t{namespace}");
        }
    }
    Ok(text)
}

struct Elf<'a> {
    sections: Vec<Section<'a>>,
}

struct Section<'a> {
    name: String,
    address: u64,
    bytes: &'a [u8],
}

impl<'a> Elf<'a> {
    fn read(program: &'a [u8]) -> Option<Self> {
        if program.get(..5)? != b"\x7fELF\x02" {
            return None;
        }
        let table = usize::try_from(number::<8>(program, 0x28)?).ok()?;
        let (count, names) = (number::<2>(program, 0x3c)? as usize, number::<2>(program, 0x3e)? as usize);
        let header = |index: usize| program.get(table.checked_add(index.checked_mul(HEADER)?)?..);
        let body = |header: &[u8]| {
            if number::<4>(header, 4)? as u32 == NOBITS {
                return Some(&program[..0]);
            }
            let start = usize::try_from(number::<8>(header, 0x18)?).ok()?;
            let length = usize::try_from(number::<8>(header, 0x20)?).ok()?;
            program.get(start..start.checked_add(length)?)
        };
        let names = body(header(names)?)?;
        let sections = (0..count).map(|index| {
            let header = header(index)?;
            let name = zero_ended(names.get(number::<4>(header, 0)? as usize..)?)?;
            Some(Section { name, address: number::<8>(header, 0x10)?, bytes: body(header)? })
        });
        Some(Self { sections: sections.collect::<Option<_>>()? })
    }

    fn section(&self, name: &str) -> Option<&Section<'a>> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// The string at an address of the running program; nothing at address 0.
    fn string(&self, address: u64) -> Option<String> {
        let within = |section: &&Section<'_>| {
            address != 0
                && address >= section.address
                && address - section.address < section.bytes.len() as u64
        };
        let section = self.sections.iter().filter(|section| section.address != 0).find(within)?;
        zero_ended(&section.bytes[(address - section.address) as usize..])
    }
}

/// A little-endian number of so many bytes.
fn number<const BYTES: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let mut whole = [0; 8];
    whole[..BYTES].copy_from_slice(bytes.get(at..at.checked_add(BYTES)?)?);
    Some(u64::from_le_bytes(whole))
}

fn zero_ended(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    String::from_utf8(bytes[..end].to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program of four sections: names, strings at address 0x1000, and the two tables.
    fn program() -> Vec<u8> {
        let names = b"\0names\0strings\0__ksymtab\0__ksymtab_gpl\0";
        let strings = b"kmalloc\0crypto_thing\0CRYPTO\0";
        let entry = |name: u64, space: u64| [0u64, name, space].map(u64::to_le_bytes).concat();
        let bodies: [(u32, u64, Vec<u8>); 4] = [
            (1, 0, names.to_vec()),
            (7, 0x1000, strings.to_vec()),
            (15, 0x2000, entry(0x1000, 0)),
            (25, 0x3000, entry(0x1008, 0x1015)),
        ];
        let mut file = vec![0; 64];
        file[..5].copy_from_slice(b"\x7fELF\x02");
        let mut headers = Vec::new();
        for (name, address, body) in bodies {
            let mut header = vec![0; HEADER];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[4..8].copy_from_slice(&1u32.to_le_bytes());
            header[0x10..0x18].copy_from_slice(&address.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&(file.len() as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(body.len() as u64).to_le_bytes());
            file.extend(body);
            headers.extend(header);
        }
        let table = file.len() as u64;
        file[0x28..0x30].copy_from_slice(&table.to_le_bytes());
        file[0x3c..0x3e].copy_from_slice(&4u16.to_le_bytes());
        file.extend(headers);
        file
    }

    #[test]
    fn exported_symbols_are_read() {
        assert_eq!(
            of(&program()).unwrap(),
            "0x00000000\tkmalloc\tvmlinux\tEXPORT_SYMBOL\t\n\
             0x00000000\tcrypto_thing\tvmlinux\tEXPORT_SYMBOL_GPL\tCRYPTO\n"
        );
    }

    #[test]
    fn what_is_no_kernel_is_a_sentence() {
        assert!(of(b"#!/bin/sh").unwrap_err().contains("ELF"));
        let whole = program();
        for length in 0..whole.len() {
            let _ = of(&whole[..length]);
        }
        let mut other = whole.clone();
        let at = other.windows(9).position(|w| w == b"__ksymtab").unwrap();
        other[at] = b'x';
        assert!(of(&other).unwrap_err().contains("__ksymtab"));
    }
}
