//! What daemon and worker say to each other over the worker's stdin and stdout.
//!
//! Invariant: each message is its length as four bytes, big-endian, and that
//! many bytes: postcard for NVRTC's workers, whose messages are here, protobuf for
//! Python's (`worker.proto`); a length beyond [`MAX_FRAME`] is never allocated.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    path::PathBuf,
};

use bytes::Bytes;
use kiln_proto::{BinaryKind, Failure, Target};
use memchr::memmem;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::compiler::header_tree::HeaderTree;

/// Largest message in bytes.
pub(crate) const MAX_FRAME: usize = 1 << 30;

/// First message to a worker: the toolchain it is to load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// Absolute path of the NVRTC library.
    pub(crate) library: PathBuf,
    /// Folders to search for CUDA's headers, after those of the request.
    pub(crate) include: Vec<String>,
    /// Write the library's own headers here, if it has any.
    pub(crate) install_headers: Option<PathBuf>,
    /// Hash the headers in `include`: only a probe wants that.
    pub(crate) hash_headers: bool,
}

/// First answer: the library is loaded and has compiled something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ready {
    /// Full version: `13.5.37`.
    pub(crate) version: String,
    /// Compute capabilities times ten that it compiles for.
    pub(crate) architectures: Vec<u32>,
    /// Headers of the library's own.
    pub(crate) bundled: Bundled,
    /// Version and digest of the headers in `include`, where asked for.
    pub(crate) headers: Option<String>,
    /// Whether the kernel keeps sources from reading files of the host.
    pub(crate) confined: bool,
    /// Whether its addresses are those of any other worker.
    pub(crate) fixed: bool,
}

/// The library's own headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Bundled {
    /// It brings none.
    None,
    /// It can write them.
    Brought,
    /// They are where they were asked for.
    Installed,
}

/// Second message: one CUDA C++ program for one target.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Program {
    /// The text, without NUL bytes.
    pub(crate) source: Octets,
    /// Headers by the name that the source includes.
    pub(crate) headers: BTreeMap<String, Octets>,
    /// NVRTC options, without target and folders.
    pub(crate) options: Vec<String>,
    /// How the headers lie, where they are files.
    pub(crate) tree: Option<HeaderTree>,
    /// Names to lower.
    pub(crate) name_expressions: Vec<String>,
    /// What it runs on.
    pub(crate) target: Target,
    /// Bounds that the worker sets on itself.
    pub(crate) memory_bytes: u64,
    /// Backstop for the daemon's wall clock, in seconds of processor time.
    pub(crate) cpu_seconds: u64,
}

impl Program {
    /// All that the compiler reads as text: the source, its headers, options and names.
    pub(crate) fn texts(&self) -> impl Iterator<Item = &[u8]> {
        self.files().chain(self.words())
    }

    fn files(&self) -> impl Iterator<Item = &[u8]> {
        self.headers.values().chain([&self.source]).map(|text| &text.0[..])
    }

    fn words(&self) -> impl Iterator<Item = &[u8]> {
        self.options.iter().chain(&self.name_expressions).map(String::as_bytes)
    }

    /// Whether it may read files that do not come with it.
    pub(crate) fn may_include(&self) -> bool {
        self.files().any(|text| directives(text).any(reads_file) || hides_words(text))
            || self.words().any(reads_file)
    }
}

/// Each directive of `text`, to the end of its line, and what looks like one.
fn directives(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let starts = memchr::memchr_iter(b'#', text).chain(memmem::find_iter(text, b"%:"));
    starts.map(|start| {
        let line = &text[start..];
        &line[..memchr::memchr(b'\n', line).unwrap_or(line.len())]
    })
}

/// Whether a directive or an option names a file, or asks for one. A comment within a directive
/// may go on in the next line.
fn reads_file(line: &[u8]) -> bool {
    let words: [&[u8]; 4] = [b"include", b"import", b"embed", b"/*"];
    words.iter().any(|word| memmem::find(line, word).is_some())
}

/// Whether a word of `text` may stand there in parts: a line that goes on in the next one, by `\`
/// or the three signs that mean it, or two parts that a macro pastes together.
fn hides_words(text: &[u8]) -> bool {
    let breaks = |at: usize| {
        let mut after = text[at + 1..].iter().skip_while(|byte| b" \t\r\x0b\x0c".contains(byte));
        after.next() == Some(&b'\n')
    };
    let signs: [&[u8]; 4] = [b"??/", b"??=", b"##", b"%:%:"];
    memchr::memchr_iter(b'\\', text).any(breaks)
        || signs.iter().any(|sign| memmem::find(text, sign).is_some())
}

/// Second answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Compiled {
    /// CUBIN, or PTX text.
    pub(crate) module: Octets,
    /// Lowered name by expression, in the order asked.
    pub(crate) lowered: Vec<(String, String)>,
    /// Warnings.
    pub(crate) log: String,
    /// Seconds within the compiler.
    pub(crate) seconds: f64,
}

/// Bytes that travel as one run, not one by one.
#[derive(Debug, Clone)]
pub(crate) struct Octets(pub(crate) Bytes);

impl Serialize for Octets {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Octets {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Run;
        impl de::Visitor<'_> for Run {
            type Value = Octets;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Octets, E> {
                Ok(Octets(Bytes::copy_from_slice(bytes)))
            }
        }
        from.deserialize_bytes(Run)
    }
}

/// Either answer is this.
pub(crate) type Answer<T> = Result<T, Failure>;

/// File name of a module of this kind.
pub(crate) const fn module_file(kind: BinaryKind) -> &'static str {
    match kind {
        BinaryKind::Ptx => "module.ptx",
        BinaryKind::Cubin => "module.cubin",
        BinaryKind::Files => "module",
    }
}

/// Writes one message.
pub(crate) fn write(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let body = encode(message)?;
    to.write_all(&announced(&body)?)?;
    to.write_all(&body)?;
    to.flush()
}

/// Reads one message; end of input before its first byte is `UnexpectedEof` too.
pub(crate) fn read<M: de::DeserializeOwned>(from: &mut impl Read) -> io::Result<M> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut body = vec![0; checked(length)?];
    from.read_exact(&mut body)?;
    decode(&body)
}

/// A message of daemon and NVRTC worker as bytes.
pub(crate) fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    postcard::to_stdvec(message).map_err(io::Error::other)
}

/// The message in `body`.
pub(crate) fn decode<M: de::DeserializeOwned>(body: &[u8]) -> io::Result<M> {
    postcard::from_bytes(body)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))
}

/// Writes a message that is encoded already, in whatever form the worker reads.
pub(crate) async fn send(to: &mut (impl AsyncWrite + Unpin), body: &[u8]) -> io::Result<()> {
    to.write_all(&announced(body)?).await?;
    to.write_all(body).await?;
    to.flush().await
}

/// Reads one message as it is. Memory grows with what arrives, not with what is announced.
pub(crate) async fn receive(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length).await?;
    let length = checked(length)?;
    let mut body = Vec::new();
    from.take(length as u64).read_to_end(&mut body).await?;
    match body.len() < length {
        true => Err(io::ErrorKind::UnexpectedEof.into()),
        false => Ok(body),
    }
}

fn announced(body: &[u8]) -> io::Result<[u8; 4]> {
    match u32::try_from(body.len()) {
        Ok(length) if body.len() <= MAX_FRAME => Ok(length.to_be_bytes()),
        _ => Err(io::Error::other(format!("a message of {} bytes", body.len()))),
    }
}

fn checked(length: [u8; 4]) -> io::Result<usize> {
    match u32::from_be_bytes(length) as usize {
        length if length <= MAX_FRAME => Ok(length),
        length => {
            let why = format!("a message of {length} bytes, at most {MAX_FRAME}");
            Err(io::Error::new(io::ErrorKind::InvalidData, why))
        }
    }
}

#[cfg(test)]
mod tests {
    use kiln_proto::BinaryKind;

    use super::*;

    fn program(source: &'static str) -> Program {
        Program {
            source: Octets(Bytes::from_static(source.as_bytes())),
            headers: BTreeMap::new(),
            options: Vec::new(),
            tree: None,
            name_expressions: Vec::new(),
            target: Target {
                compute: 90,
                arch_specific: false,
                kind: BinaryKind::Cubin,
                min_driver: 0,
            },
            memory_bytes: 0,
            cpu_seconds: 0,
        }
    }

    #[test]
    fn what_may_read_another_file_is_known_however_it_says_so() {
        for source in [
            "#include <cuda_fp16.h>",
            "# include_next \"a.h\"",
            "#if __has_include(<mma.h>)",
            "#inc\\\nlude <mma.h>",
            "#inc\\\r\nlude <mma.h>",
            "#inc\\ \t\nlude <mma.h>",
            "#inc??/\nlude <mma.h>",
            "#import <mma.h>",
            "%: import <mma.h>",
            "??=import <mma.h>",
            "# /*\n*/ import <mma.h>",
            "#embed \"a\"",
            "#if __has_embed(\"a\")",
            "#define C(a,b) a##b\n#if C(__has_inc,lude)(<mma.h>)",
            "%:define C(a,b) a%:%:b\n%:if C(__has_inc,lude)(<mma.h>)",
        ] {
            assert!(program(source).may_include(), "{source:?}");
        }
        for source in [
            "",
            "__global__ void k() {}",
            "\\",
            "'\\n' \n \\0",
            "#incl\nude",
            "#pragma unroll\nembed",
        ] {
            assert!(!program(source).may_include(), "{source:?}");
        }
        let plain = program("__global__ void k() {}");
        let octets = |text: &'static str| Octets(Bytes::from_static(text.as_bytes()));
        let headers = BTreeMap::from([("own.h".to_owned(), octets("#include <mma.h>"))]);
        assert!(Program { headers, ..plain.clone() }.may_include());
        assert!(Program { options: vec!["--pre-include=own.h".into()], ..plain }.may_include());
    }
}
