//! What each kind of failure means and what to do about it: the one table from which the
//! command line, the status of a call and the page `deploy/ERRORS.md` say it.
//!
//! Invariant: each kind has one class here, whose code and name are the kind's own; the
//! page is this table, and a test compares them.

use std::fmt::Write;

use crate::FailureKind;

/// A kind of failure, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Class {
    /// Which.
    pub kind: FailureKind,
    /// What happened.
    pub meaning: &'static str,
    /// What the caller should do.
    pub advice: &'static str,
    /// What a node does by itself, before it says so.
    pub done: &'static str,
}

/// What a code stands for.
const CODES: [(&str, &str); 5] = [
    ("C001", "compilation failed"),
    ("C002", "a cache entry is corrupt"),
    ("C003", "incompatible configuration"),
    ("C004", "time-out"),
    ("C005", "compiler not available"),
];

/// All of them, by code.
pub const CLASSES: [Class; 11] = [
    Class {
        kind: FailureKind::CompileError,
        meaning: "the compiler refused the source, or ended with an error",
        advice: "mend the source: the message is the compiler's log; of an exported program ask \
                 for another backend, and report the log",
        done: "Inductor with fewer optimisations, the next compiler, eager",
    },
    Class {
        kind: FailureKind::UnsupportedOp,
        meaning: "the graph has an operation that this compiler does not know",
        advice: "ask for backend auto or mixed on a cluster where a node has torch, or replace \
                 the operation that the message names",
        done: "mixed: what is known is compiled, the rest by Inductor; Inductor alone; eager",
    },
    Class {
        kind: FailureKind::InvalidInput,
        meaning: "the source or an option is malformed, or beyond a limit",
        advice: "mend the field that the message names",
        done: "nothing: what cannot be read cannot be compiled in another way",
    },
    Class {
        kind: FailureKind::Corrupt,
        meaning: "bytes or a signature do not match what was committed",
        advice: "ask again: the bad copy is put away and another one is fetched, or the key is \
                 compiled anew; where it happens again and again check that node's disk",
        done: "the bad copy removed, another one fetched, or the key compiled once more; eager",
    },
    Class {
        kind: FailureKind::WrongOutput,
        meaning: "the artifact does not compute what its program does",
        advice: "report it with the program: the artifact was removed from all nodes; ask for \
                 another backend meanwhile",
        done: "removed from every node; the next compiler, eager",
    },
    Class {
        kind: FailureKind::Incompatible,
        meaning: "the request asks for a combination that cannot be",
        advice: "change what the message names: an option, the target, the backend, or the version",
        done: "the default configuration, where options were given, and the answer says so",
    },
    Class {
        kind: FailureKind::Timeout,
        meaning: "the time limit or the caller's deadline passed",
        advice: "ask with a longer deadline, raise compile.time_limit, or have the program \
                 compiled in pieces: --piecewise always",
        done: "the process group is ended; in pieces, eager",
    },
    Class {
        kind: FailureKind::ToolchainMissing,
        meaning: "no node has a usable compiler library",
        advice: "install the library that the message names, or set compile.nvrtc or \
                 compile.python on a node",
        done: "asked of a node that has it; the next compiler, eager",
    },
    Class {
        kind: FailureKind::OutOfMemory,
        meaning: "the compiler exceeded its memory limit",
        advice: "raise compile.memory_limit, lower compile.concurrency, or have the program \
                 compiled in pieces: --piecewise always",
        done: "once more alone on its node with the memory of all compilers; with options that \
               save memory, in pieces, the next compiler, eager",
    },
    Class {
        kind: FailureKind::Crashed,
        meaning: "the compiler process died",
        advice: "ask again; where it happens again and again look at the node's log, and report \
                 the program",
        done: "once more after a pause; with fewer optimisations, in pieces, the next compiler, \
               eager",
    },
    Class {
        kind: FailureKind::Busy,
        meaning: "all compilers are at work and enough requests wait",
        advice: "ask again later, ask another node, or raise compile.concurrency",
        done: "asked again after pauses; eager",
    },
];

impl FailureKind {
    /// What it means and what to do.
    pub fn class(self) -> &'static Class {
        // The table has each kind: a test sees to it.
        CLASSES.iter().find(|class| class.kind == self).unwrap_or(&CLASSES[0])
    }

    /// What the caller should do.
    pub fn advice(self) -> &'static str {
        self.class().advice
    }
}

/// The classes that a code (`C004`), a kind's name (`timeout`) or an exit code (`14`) means,
/// in whatever case; none: it means nothing.
pub fn classes(of: &str) -> Vec<&'static Class> {
    let is_it = |class: &&Class| {
        let kind = class.kind;
        of.eq_ignore_ascii_case(kind.code())
            || of.eq_ignore_ascii_case(kind.name())
            || of.parse() == Ok(kind.exit_code())
    };
    CLASSES.iter().filter(is_it).collect()
}

/// What a code stands for, in words.
pub fn code_meaning(code: &str) -> &'static str {
    CODES.iter().find(|(known, _)| *known == code).map_or("", |(_, meaning)| meaning)
}

/// The page for people: Markdown.
pub fn page() -> String {
    let mut text = String::from(
        "# Errors, and what to do\n\n\
         Generated from `proto/src/classes.rs`: do not edit. `make errors` writes it anew.\n\n\
         A failure has a code, which is stable, and a kind, which says what to do. The command \
         line prints both with the advice (`--json`: `code`, `kind`, `advice`) and ends with \
         the exit code below; a gRPC status has them in the metadata `kiln-code`, `kiln-kind` \
         and `kiln-advice`. `kiln explain timeout` prints one of these rows.\n\n\
         What a node does by itself happens before anybody is told of the failure, as far as \
         the request allows it: see `kiln compile --fallback`. The answer then says what was \
         wanted, what was tried, and for how long it is to be used.\n",
    );
    for (code, meaning) in CODES {
        let _ = write!(text, "\n## {code}: {meaning}\n\n");
        text.push_str(
            "| kind | exit code | what happened | what to do | what Kiln tries first |\n",
        );
        text.push_str("|---|---|---|---|---|\n");
        for class in CLASSES.iter().filter(|class| class.kind.code() == code) {
            let Class { kind, meaning, advice, done } = class;
            let (name, exit) = (kind.name(), kind.exit_code());
            let _ = writeln!(text, "| `{name}` | {exit} | {meaning} | {advice} | {done} |");
        }
    }
    text
}
