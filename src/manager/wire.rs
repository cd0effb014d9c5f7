//! Requests from and to the wire: clients send them, and nodes to each other.
//!
//! Invariant: a request that is too large, empty or contradictory is refused here,
//! with the field named, before anything is done for it; and one that goes out and
//! comes back is the same request.

use std::collections::{BTreeMap, BTreeSet};

use kiln_proto::{NAMESPACE_RULE, convert, is_namespace, pb};
use tokio::time::Instant;

use super::Request;
use crate::{
    check::Verify,
    compiler::{CompileInput, CudaSource, Piecewise, Source, StaticSize},
    error::Error,
};

/// Most targets in one call.
const MOST_TARGETS: usize = 32;
/// Most compile sizes in one call.
const MOST_SIZES: usize = 64;

impl Request {
    /// One request per target, in request order, each followed by those of its compile
    /// sizes; all end by `deadline`.
    pub fn read(wire: pb::CompileRequest, deadline: Instant) -> Result<Vec<Self>, Error> {
        let invalid = |field, why: &str| Error::from(convert::InvalidField::new(field, why));
        if wire.targets.is_empty() || wire.targets.len() > MOST_TARGETS {
            return Err(invalid("targets", "give 1 to 32 targets"));
        }
        let piecewise = match wire.piecewise() {
            pb::Piecewise::Unspecified | pb::Piecewise::Auto => Piecewise::Auto,
            pb::Piecewise::Always => Piecewise::Always,
            pb::Piecewise::Never => Piecewise::Never,
        };
        if wire.piece.is_some() && piecewise != Piecewise::Always {
            return Err(invalid("piece", "only of what is always compiled in pieces"));
        }
        let verify = match wire.verify() {
            pb::Verify::Unspecified | pb::Verify::Sampled => Verify::Sampled,
            pb::Verify::Always => Verify::Always,
            pb::Verify::Never => Verify::Never,
        };
        let fallback = wire.fallback().into();
        let source = match wire.source.ok_or_else(|| invalid("source", "missing"))? {
            pb::compile_request::Source::Cuda(cuda) => Source::Cuda(CudaSource {
                name: cuda.name,
                source: cuda.source,
                headers: cuda.headers.into_iter().collect(),
                options: cuda.options,
                name_expressions: cuda.name_expressions,
            }),
            pb::compile_request::Source::Program(program) => {
                Source::Program { name: program.name, archive: program.archive, size: None }
            }
        };
        let sources = sized(source, wire.compile_sizes, wire.piece)?;
        let mut options = BTreeMap::new();
        for option in wire.options {
            if options.insert(option.name, option.value).is_some() {
                return Err(invalid("options", "an option is given twice"));
            }
        }
        if !is_namespace(&wire.namespace) {
            return Err(invalid("namespace", NAMESPACE_RULE));
        }
        let backend = match wire.backend.as_str() {
            "" => "auto".to_owned(),
            named => named.to_owned(),
        };
        let request = |target: &pb::Target, source: &Source| {
            Ok(Self {
                input: CompileInput {
                    source: source.clone(),
                    target: convert::target(target)?,
                    options: options.clone(),
                    namespace: wire.namespace.clone(),
                },
                backend: backend.clone(),
                piecewise,
                piece: wire.piece,
                verify,
                disable_cache: wire.disable_cache,
                fallback,
                forwarded: wire.forwarded,
                deadline,
            })
        };
        let each = wire.targets.iter().flat_map(|target| sources.iter().map(move |s| (target, s)));
        each.map(|(target, source)| request(target, source)).collect()
    }

    /// As a node sends it on: to be compiled by `backend`, without a bound of its own.
    pub fn to_wire(&self, backend: &str) -> pb::CompileRequest {
        let input = &self.input;
        let source = match &input.source {
            Source::Cuda(cuda) => pb::compile_request::Source::Cuda(pb::CudaSource {
                name: cuda.name.clone(),
                source: cuda.source.clone(),
                headers: cuda.headers.clone().into_iter().collect(),
                options: cuda.options.clone(),
                name_expressions: cuda.name_expressions.clone(),
            }),
            Source::Program { name, archive, .. } => {
                pb::compile_request::Source::Program(pb::ExportedProgram {
                    name: name.clone(),
                    archive: archive.clone(),
                })
            }
        };
        let compile_sizes = input.source.size().map(|StaticSize { symbol, size }| {
            pb::CompileSizes { symbol: symbol.clone(), sizes: vec![*size], alone: true }
        });
        let piecewise = match self.piecewise {
            Piecewise::Auto => pb::Piecewise::Auto,
            Piecewise::Always => pb::Piecewise::Always,
            Piecewise::Never => pb::Piecewise::Never,
        };
        let verify = match self.verify {
            Verify::Sampled => pb::Verify::Sampled,
            Verify::Always => pb::Verify::Always,
            Verify::Never => pb::Verify::Never,
        };
        let options = input.options.iter();
        pb::CompileRequest {
            source: Some(source),
            targets: vec![input.target.into()],
            backend: backend.to_owned(),
            options: options
                .map(|(name, value)| pb::Field { name: name.clone(), value: value.clone() })
                .collect(),
            namespace: input.namespace.clone(),
            disable_cache: false,
            deadline_ms: 0,
            forwarded: true,
            piecewise: piecewise.into(),
            piece: self.piece,
            verify: verify.into(),
            compile_sizes,
            fallback: pb::FallbackPolicy::from(self.fallback).into(),
        }
    }
}

/// `source` as it is, and for each size; for sizes alone only these.
fn sized(
    source: Source,
    sizes: Option<pb::CompileSizes>,
    piece: Option<u32>,
) -> Result<Vec<Source>, Error> {
    let Some(pb::CompileSizes { symbol, sizes, alone }) = sizes else { return Ok(vec![source]) };
    let invalid = |why: &str| Err(convert::InvalidField::new("compile_sizes", why).into());
    let Source::Program { name, archive, .. } = &source else {
        return invalid("only of an exported program");
    };
    if sizes.is_empty() || sizes.len() > MOST_SIZES {
        return invalid("give 1 to 64 sizes");
    }
    if sizes.iter().collect::<BTreeSet<_>>().len() < sizes.len() {
        return invalid("a size is given twice");
    }
    if piece.is_some() && !(alone && sizes.len() == 1) {
        return invalid("a piece is one of one size");
    }
    let fixed = |size: &u64| Source::Program {
        name: name.clone(),
        archive: archive.clone(),
        size: Some(StaticSize { symbol: symbol.clone(), size: *size }),
    };
    let fixed: Vec<Source> = sizes.iter().map(fixed).collect();
    Ok(if alone { fixed } else { [vec![source], fixed].concat() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use kiln_proto::Target;

    use super::*;

    fn program() -> pb::CompileRequest {
        let program = pb::ExportedProgram { name: "m".into(), archive: vec![1].into() };
        pb::CompileRequest {
            source: Some(pb::compile_request::Source::Program(program)),
            targets: vec![Target::cubin(90).into()],
            options: vec![pb::Field { name: "fuse".into(), value: "off".into() }],
            namespace: "n".into(),
            ..Default::default()
        }
    }

    #[test]
    fn what_goes_out_comes_back() {
        let deadline = Instant::now();
        for (piecewise, piece, verify) in [(0, None, 0), (2, Some(3), 2), (3, None, 3)] {
            // Each of them has four values.
            let fallback = verify;
            let wire = pb::CompileRequest { piecewise, piece, verify, fallback, ..program() };
            let read = Request::read(wire, deadline).unwrap().remove(0);
            let again = Request::read(read.to_wire("native"), deadline).unwrap().remove(0);
            assert!(again.forwarded);
            assert_eq!(again.backend, "native");
            assert_eq!(again.input, read.input);
            let asked = |request: &Request| {
                (request.piecewise, request.piece, request.verify, request.fallback)
            };
            assert_eq!(asked(&again), asked(&read));
        }
    }

    #[test]
    fn a_program_comes_as_it_is_and_then_for_each_size() {
        let deadline = Instant::now();
        let sizes = |sizes: &[u64], alone| {
            Some(pb::CompileSizes { symbol: "s0".into(), sizes: sizes.to_vec(), alone })
        };
        let targets = vec![Target::cubin(80).into(), Target::cubin(90).into()];
        let wire =
            pb::CompileRequest { targets, compile_sizes: sizes(&[8, 1], false), ..program() };
        let read = Request::read(wire, deadline).unwrap();
        let told: Vec<_> = read
            .iter()
            .map(|r| (r.input.target.compute, r.input.source.size().map(|s| s.size)))
            .collect();
        let of = |compute| [(compute, None), (compute, Some(8)), (compute, Some(1))];
        assert_eq!(told, [of(80), of(90)].concat());
        // A node sends on one of them.
        let again = Request::read(read[4].to_wire("native"), deadline).unwrap();
        assert_eq!(again.len(), 1);
        assert_eq!(again[0].input, read[4].input);
        for bad in [sizes(&[], false), sizes(&[1, 2, 1], false), sizes(&[1; 65], false)] {
            let wire = pb::CompileRequest { compile_sizes: bad, ..program() };
            let refused = Request::read(wire, deadline).unwrap_err().to_string();
            assert!(refused.contains("compile_sizes"), "{refused}");
        }
        let (piecewise, piece) = (pb::Piecewise::Always.into(), Some(0));
        let compile_sizes = sizes(&[1, 2], true);
        let wire = pb::CompileRequest { piecewise, piece, compile_sizes, ..program() };
        assert!(Request::read(wire, deadline).is_err());
    }

    #[test]
    fn contradictions_are_refused_by_field() {
        let twice = vec![pb::Field { name: "a".into(), value: "1".into() }; 2];
        for (wire, field) in [
            (pb::CompileRequest { source: None, ..program() }, "source"),
            (pb::CompileRequest { targets: Vec::new(), ..program() }, "targets"),
            (pb::CompileRequest { options: twice, ..program() }, "options"),
            (pb::CompileRequest { namespace: "a/b".into(), ..program() }, "namespace"),
            (pb::CompileRequest { piece: Some(0), ..program() }, "piece"),
        ] {
            let refused = Request::read(wire, Instant::now()).unwrap_err();
            assert!(matches!(&refused, Error::Invalid(why) if why.contains(field)), "{refused}");
        }
    }
}
