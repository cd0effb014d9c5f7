//! What a CUBIN says about its kernels: an ELF file with NVIDIA's sections.
//!
//! Invariant: every offset in the file is checked before it is followed; what a
//! file does not say is absent, not guessed.

use std::collections::BTreeMap;

/// `.nv.info` attributes, as `cuobjdump -elf` names them.
const REGCOUNT: u8 = 0x2f;
const FRAME_SIZE: u8 = 0x11;
const PARAM_SIZE: u8 = 0x19;
/// Attributes with so many bytes of their own; the others are a number.
const SIZED: u8 = 4;
/// What the driver keeps of each block's shared memory where the file says so.
const RESERVED_SHARED: u64 = 1024;
const SECTION: usize = 64;
const SYMBOL: usize = 24;

/// What machine code was compiled to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Cubin {
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes of the module's `__constant__` memory.
    pub constant_bytes: u64,
    /// Bytes of the module's other data, constants baked into it among them.
    pub global_bytes: u64,
    /// In the order of their names.
    pub kernels: BTreeMap<String, Resources>,
}

/// What a kernel takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Resources {
    /// Of each thread.
    pub registers: u32,
    /// Bytes of each block, besides what a launch asks for.
    pub shared_bytes: u64,
    /// Bytes of each thread: its stack, spilled registers among it.
    pub local_bytes: u64,
    /// Bytes of its constant bank, the parameters among them.
    pub constant_bytes: u64,
    /// Bytes of its parameters.
    pub parameter_bytes: u64,
    /// Bytes of instructions.
    pub code_bytes: u64,
}

struct Section {
    name: String,
    kind: u32,
    offset: usize,
    size: usize,
    link: usize,
    has_bytes: bool,
}

/// Reads the CUBIN in `bytes`; an error says what is wrong with it.
pub fn read(bytes: &[u8]) -> Result<Cubin, String> {
    let elf = Elf { bytes };
    if bytes.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Err("no machine code: not a little-endian ELF file of 64 bits".to_owned());
    }
    let sections = elf.sections()?;
    let find = |name: &str| sections.iter().find(|section| section.name == name);
    let size = |name: &str| find(name).map_or(0, |section| section.size as u64);
    let reserved = find(".nv.shared.reserved.0").map_or(0, |_| RESERVED_SHARED);
    let mut kernels = BTreeMap::new();
    for section in &sections {
        let Some(name) = section.name.strip_prefix(".text.") else { continue };
        let mut found = Resources {
            shared_bytes: size(&format!(".nv.shared.{name}")).saturating_sub(reserved),
            constant_bytes: size(&format!(".nv.constant0.{name}")),
            code_bytes: section.size as u64,
            ..Resources::default()
        };
        if let Some(info) = find(&format!(".nv.info.{name}")) {
            for (attribute, value, _) in elf.attributes(info)? {
                if attribute == PARAM_SIZE {
                    found.parameter_bytes = u64::from(value);
                }
            }
        }
        kernels.insert(name.to_owned(), found);
    }
    if let Some(info) = find(".nv.info") {
        let symbols = elf.symbols(&sections)?;
        for (attribute, _, words) in elf.attributes(info)? {
            let [symbol, value, ..] = words[..] else { continue };
            let named = symbols.get(symbol as usize).and_then(|name| kernels.get_mut(name));
            match (named, attribute) {
                (Some(kernel), REGCOUNT) => kernel.registers = value,
                (Some(kernel), FRAME_SIZE) => kernel.local_bytes = u64::from(value),
                _ => {}
            }
        }
    }
    Ok(Cubin {
        bytes: bytes.len() as u64,
        constant_bytes: size(".nv.constant3"),
        global_bytes: size(".nv.global.init") + size(".nv.global"),
        kernels,
    })
}

struct Elf<'a> {
    bytes: &'a [u8],
}

impl<'a> Elf<'a> {
    fn at(&self, offset: usize, size: usize) -> Result<&'a [u8], String> {
        let end = offset.checked_add(size);
        let found = end.and_then(|end| self.bytes.get(offset..end));
        found.ok_or_else(|| format!("the machine code is cut off: {size} bytes at {offset}"))
    }

    fn number(&self, offset: usize, size: usize) -> Result<u64, String> {
        let bytes = self.at(offset, size)?;
        Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn text(&self, table: &Section, offset: usize) -> Result<String, String> {
        let table = self.at(table.offset, table.size)?;
        let rest = table.get(offset..).unwrap_or_default();
        let text = rest.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    fn sections(&self) -> Result<Vec<Section>, String> {
        let start = self.number(40, 8)? as usize;
        let (count, names) = (self.number(60, 2)? as usize, self.number(62, 2)? as usize);
        let mut sections = Vec::with_capacity(count);
        let mut titles = Vec::with_capacity(count);
        for index in 0..count {
            let header = start.saturating_add(index * SECTION);
            self.at(header, SECTION)?;
            let field = |offset, size| self.number(header + offset, size).map(|n| n as usize);
            titles.push(field(0, 4)?);
            let kind = field(4, 4)? as u32;
            // Of memory that is only reserved (NOBITS) there is nothing in the file.
            let has_bytes = kind != 8;
            let (offset, size, link) = (field(24, 8)?, field(32, 8)?, field(40, 4)?);
            if has_bytes && kind != 0 {
                self.at(offset, size)?;
            }
            let name = String::new();
            sections.push(Section { name, kind, offset, size, link, has_bytes });
        }
        for (index, title) in titles.into_iter().enumerate() {
            let table = sections.get(names).filter(|table| table.has_bytes);
            let table = table.ok_or("the machine code has no names of sections")?;
            let name = self.text(table, title)?;
            sections[index].name = name;
        }
        Ok(sections)
    }

    /// The names of all symbols.
    fn symbols(&self, sections: &[Section]) -> Result<Vec<String>, String> {
        let Some(table) = sections.iter().find(|section| section.kind == 2) else {
            return Ok(Vec::new());
        };
        let names = sections.get(table.link).filter(|names| names.has_bytes);
        let names = names.ok_or("the machine code has no names of symbols")?;
        let symbol = |index: usize| {
            let name = self.number(table.offset + index * SYMBOL, 4)?;
            self.text(names, name as usize)
        };
        (0..table.size / SYMBOL).map(symbol).collect()
    }

    /// Attribute, its number, and its words where it has bytes of its own.
    fn attributes(&self, section: &Section) -> Result<Vec<(u8, u16, Vec<u32>)>, String> {
        let mut rest = self.at(section.offset, section.size)?;
        let mut found = Vec::new();
        while let [format, attribute, low, high, after @ ..] = rest {
            let value = u16::from_le_bytes([*low, *high]);
            let size = if *format == SIZED { usize::from(value) } else { 0 };
            let payload = after.get(..size).ok_or("the machine code's attributes are cut off")?;
            let word = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            found.push((*attribute, value, payload.chunks_exact(4).map(word).collect()));
            rest = &after[size..];
        }
        Ok(found)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Of `tests/fixtures/resources.cu`, by NVRTC 12.9 and 13.5.
    fn fixture(name: &str) -> Vec<u8> {
        let path = format!("{}/../../tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read(path).unwrap()
    }

    #[test]
    fn what_a_kernel_takes_is_what_ptxas_said() {
        let plain = |registers, constant_bytes, code_bytes| Resources {
            registers,
            shared_bytes: 512,
            local_bytes: 0,
            constant_bytes,
            parameter_bytes: 24,
            code_bytes,
        };
        let cases = [
            ("resources_12_sm90.cubin", plain(12, 0x228, 0x380)),
            ("resources_13_sm90.cubin", plain(12, 0x228, 0x380)),
            ("resources_13_sm80.cubin", plain(10, 0x178, 0x300)),
        ];
        for (name, expected) in cases {
            let cubin = read(&fixture(name)).unwrap();
            assert_eq!(cubin.kernels["plain"], expected, "{name}");
            assert_eq!((cubin.constant_bytes, cubin.global_bytes), (64, 256), "{name}");
            let stack = cubin.kernels["stack"];
            assert_eq!((stack.local_bytes, stack.shared_bytes), (256, 0), "{name}");
        }
    }

    #[test]
    fn a_file_that_is_cut_off_or_lies_is_refused_or_read_in_part() {
        let whole = fixture("resources_13_sm90.cubin");
        assert!(read(b"text").is_err() && read(&[]).is_err());
        for length in (0..whole.len()).step_by(7) {
            // Whatever comes out: no panic.
            let _ = read(&whole[..length]);
        }
        assert!(read(&whole[..whole.len() / 2]).is_err());
        for at in 0..whole.len() {
            let mut broken = whole.clone();
            broken[at] ^= 0xff;
            let _ = read(&broken);
        }
    }
}
