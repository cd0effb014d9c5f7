//! Static sizes that a program is compiled for beside the dynamic one.
//!
//! Invariant: a size that the program does not take is an error of the command line,
//! before any node is asked.

use std::{fmt, path::Path, str::FromStr};

use kiln_native::static_size::symbol_of;
use kiln_proto::{FailureKind, pb};
use serde::Serialize;

use super::{
    CliError,
    asking::{SizeEnd, SizeFailed},
    error::FailureView,
    fallback::FallbackView,
    output::seconds,
    pieces::{self, PieceView},
    progress,
};

/// `1,8,512`, or `x.1=1,8,512` where several dimensions are open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CompileSizes {
    /// Which dimension; empty: the only one.
    symbol: String,
    /// In order, none twice.
    sizes: Vec<u64>,
}

impl FromStr for CompileSizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (symbol, sizes) = match text.split_once('=') {
            None => ("", text),
            Some(("", _)) => return Err("write NAME=1,8 or 1,8".into()),
            Some((symbol, sizes)) => (symbol, sizes),
        };
        let size = |text: &str| {
            text.trim().parse::<u64>().map_err(|_| format!("{text:?} is no size; write 1,8,512"))
        };
        let mut sizes = sizes.split(',').map(size).collect::<Result<Vec<_>, _>>()?;
        // One given twice is one.
        sizes.sort_unstable();
        sizes.dedup();
        Ok(Self { symbol: symbol.to_owned(), sizes })
    }
}

impl CompileSizes {
    /// For a node, with the symbol's own name. `archive` is that of `file`.
    pub(crate) fn request(
        &self,
        file: &Path,
        archive: &[u8],
    ) -> Result<pb::CompileSizes, CliError> {
        let Self { symbol, sizes } = self;
        let of = |symbol: &str| pb::CompileSizes {
            symbol: symbol.to_owned(),
            sizes: sizes.clone(),
            alone: false,
        };
        let graph = match kiln_native::read_graph(archive) {
            Ok(graph) => graph,
            // The node says the same of all of the program.
            Err(failure) if failure.kind == FailureKind::UnsupportedOp => return Ok(of(symbol)),
            Err(failure) => return Err(CliError::failed(failure.kind, failure.message)),
        };
        let found = symbol_of(&graph, symbol, sizes)
            .map_err(|e| CliError::Usage(format!("{}: {}", file.display(), e.message)))?;
        Ok(of(&found.name))
    }
}

/// What `--json` prints of one size.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SizeView {
    pub(crate) size: u64,
    /// Null where it is not known.
    pub(crate) key: Option<String>,
    /// `compiled`, `hit`, `coalesced` or `failed`.
    pub(crate) outcome: &'static str,
    /// What the compile took when it ran, wherever that was; null: it did not.
    pub(crate) compile_seconds: Option<f64>,
    pub(crate) elapsed_seconds: Option<f64>,
    /// `full` or `piecewise`.
    pub(crate) strategy: Option<&'static str>,
    pub(crate) pieces: Vec<PieceView>,
    pub(crate) error: Option<FailureView>,
    /// That it is not what was asked for.
    pub(crate) fallback: Option<FallbackView>,
}

impl SizeView {
    /// How a size ended.
    pub(crate) fn new(ended: &SizeEnd) -> Self {
        let size = ended.size;
        match &ended.end {
            Ok((done, manifest)) => Self {
                size,
                key: Some(manifest.key.to_string()),
                outcome: progress::outcome(done.outcome()),
                compile_seconds: Some(manifest.compile_seconds),
                elapsed_seconds: Some(done.elapsed_seconds),
                strategy: done.strategy.as_ref().and_then(pieces::strategy),
                pieces: done.pieces.iter().map(PieceView::new).collect(),
                error: None,
                fallback: done.fallback.as_ref().map(FallbackView::new),
            },
            Err(SizeFailed { key, error, .. }) => Self {
                size,
                key: key.clone(),
                outcome: "failed",
                compile_seconds: None,
                elapsed_seconds: None,
                strategy: None,
                pieces: Vec::new(),
                error: Some(error.clone()),
                fallback: None,
            },
        }
    }
}

/// For people, below the line of the program as it is.
impl fmt::Display for SizeView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size, key, outcome, compile_seconds, error, fallback, .. } = self;
        write!(f, "  size {size:<6} {outcome:<9} {}", key.as_deref().unwrap_or("-"))?;
        if let Some(taken) = compile_seconds {
            write!(f, "  (compile: {})", seconds(*taken))?;
        }
        if let Some(fallback) = fallback {
            write!(f, "  fallback: {}", fallback.rung)?;
        }
        match error {
            Some(error) => write!(f, "  {}", error.message),
            None => Ok(()),
        }
    }
}

/// The first error among sizes: theirs is the exit code where all else is done.
pub(crate) fn error_of(sizes: &[SizeView]) -> Option<CliError> {
    let failed = sizes.iter().find_map(|size| Some((size.size, size.error.clone()?)));
    failed.map(|(size, FailureView { code, kind, message, .. })| {
        let message = format!("size {size}: {message}");
        match code {
            Some(code) => CliError::Failed { code, kind, message },
            None => CliError::Local(anyhow::anyhow!("{message}")),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<CompileSizes, String> {
        text.parse()
    }

    #[test]
    fn sizes_are_in_order_and_none_twice() {
        let of = |symbol: &str, sizes: &[u64]| {
            Ok(CompileSizes { symbol: symbol.into(), sizes: sizes.into() })
        };
        assert_eq!(parse("512,1,8,1"), of("", &[1, 8, 512]));
        assert_eq!(parse("x.1=8, 16"), of("x.1", &[8, 16]));
        for bad in ["", "1,", "=1", "-1", "x=", "1;2", "x.1"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
