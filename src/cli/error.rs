//! What can go wrong on the command line, and the exit code of each.
//!
//! Invariant: the one place where errors become exit codes; `EXIT_CODES` is what
//! the help prints and what a test compares with the mapping.

use kiln::node::NodeError;
use kiln_cluster::ClusterError;
use kiln_proto::FailureKind;
use serde::Serialize;
use tonic::{Code, Status};

use super::deadline;

/// Shown by `kiln --help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
   0  done
   1  a local error: a file that cannot be read or written, a process that ended
   2  usage: flags, arguments, configuration
   3  no node reachable, or the cluster cannot serve this now: try again later
  11  C001  compilation failed, or the source is invalid or unsupported
  12  C002  a cache entry is corrupt
  13  C003  incompatible configuration
  14  C004  time-out
  15  C005  compiler not available: toolchain missing, out of memory, crashed
  20  not found
  21  refused in the present state
  22  not allowed: no token, a bad one, or one without the right (A001, A002)";

/// An error that ends the command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The command line or the configuration is wrong.
    #[error("{0}")]
    Usage(String),
    /// No endpoint answered, or none can serve now.
    #[error("{0}")]
    Unreachable(String),
    /// A failure with a stable code.
    #[error("{message}")]
    Failed { code: String, kind: String, message: String },
    /// There is no such key, node or namespace.
    #[error("{0}")]
    NotFound(String),
    /// Who asks may not.
    #[error("{message}")]
    Denied { code: String, kind: String, message: String },
    /// It cannot be done in the present state.
    #[error("{0}")]
    Refused(String),
    /// Anything on this machine.
    #[error("{}", chain(.0))]
    Local(#[from] anyhow::Error),
}

/// The JSON form: `{"error":{"code","kind","message","advice"}}`.
#[derive(Debug, Serialize)]
pub(crate) struct ErrorView<'a> {
    error: ErrorFields<'a>,
}

#[derive(Debug, Serialize)]
struct ErrorFields<'a> {
    code: Option<&'a str>,
    kind: &'a str,
    message: String,
    /// What to do; null where the message says it all.
    advice: Option<&'static str>,
}

/// Why something has no artifact, beside others that have one.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct FailureView {
    pub(crate) code: Option<String>,
    pub(crate) kind: String,
    pub(crate) message: String,
    /// What to do; null where the message says it all.
    pub(crate) advice: Option<&'static str>,
}

impl CliError {
    /// A failure that this side found: its code and exit code are the node's.
    pub(crate) fn failed(kind: FailureKind, message: impl Into<String>) -> Self {
        Self::Failed { code: kind.code().into(), kind: kind.name().into(), message: message.into() }
    }

    /// The node's socket told that who asks may not.
    pub(crate) fn denied(message: String) -> Self {
        // A node of this version names the code; one before it did not.
        let named = message.split_once(": ").and_then(|(named, words)| {
            let (code, kind) = named.split_once(' ')?;
            let is_code = code.len() == 4 && code.starts_with('A') && !kind.contains(' ');
            is_code.then(|| Self::Denied {
                code: code.to_owned(),
                kind: kind.to_owned(),
                message: words.to_owned(),
            })
        });
        named.unwrap_or_else(|| {
            let (code, kind) = (kiln::error::UNAUTHENTICATED.into(), "unauthenticated".into());
            Self::Denied { code, kind, message }
        })
    }

    /// Why a node did not start, or ended.
    pub(crate) fn of_node(error: anyhow::Error) -> Self {
        match error.downcast_ref::<NodeError>() {
            Some(NodeError::Cluster(ClusterError::NotAdmitted(why))) => Self::Denied {
                code: kiln::error::UNAUTHENTICATED.into(),
                kind: kiln::error::NOT_ADMITTED.into(),
                message: why.to_string(),
            },
            _ => Self::Local(error),
        }
    }

    /// What a node answered.
    pub(crate) fn from_status(status: &Status) -> Self {
        let text = |name| status.metadata().get(name).and_then(|value| value.to_str().ok());
        // What the node logged about the call has the same id.
        let message = match text(kiln::telemetry::trace::ID) {
            Some(trace) => format!("{} (trace {trace})", status.message()),
            None => status.message().to_owned(),
        };
        if let Some(code) = text("kiln-code") {
            let kind = text("kiln-kind").unwrap_or("unknown");
            // Said once: here the code is not part of the message.
            let plain = message.strip_prefix(&format!("{code} {kind}: ")).unwrap_or(&message);
            let (code, kind, message) = (code.to_owned(), kind.to_owned(), plain.to_owned());
            return match code.starts_with('A') {
                true => Self::Denied { code, kind, message },
                false => Self::Failed { code, kind, message },
            };
        }
        // The deadline passed, here or there: see `deadline`.
        if status.code() == Code::Cancelled {
            return Self::Unreachable(format!(
                "no answer within {} s: the node takes calls and does not answer this one; look \
                 at its log, or ask another node with --endpoint",
                deadline::ANSWER.as_secs()
            ));
        }
        // Made on this side, of a connection that broke: no node said this.
        if let Some(source) = std::error::Error::source(status) {
            return Self::Unreachable(broken(status.message(), source));
        }
        if message.starts_with("grpc-status header missing") {
            return Self::Unreachable(
                "what answers there speaks HTTP and no gRPC: give the node's gRPC port (7400 where \
                 none is set), not its HTTP port"
                    .into(),
            );
        }
        // A node that left its cluster: another endpoint may be a member.
        if text("kiln-kind") == Some(kiln::error::LEFT) {
            return Self::Unreachable(message);
        }
        match status.code() {
            Code::NotFound => Self::NotFound(message),
            Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented => Self::Usage(message),
            Code::Unavailable | Code::ResourceExhausted | Code::Aborted => {
                Self::Unreachable(message)
            }
            Code::DeadlineExceeded => Self::failed(FailureKind::Timeout, message),
            Code::DataLoss => Self::failed(FailureKind::Corrupt, message),
            Code::FailedPrecondition | Code::AlreadyExists | Code::PermissionDenied => {
                Self::Refused(message)
            }
            code => Self::Local(anyhow::anyhow!("the node answered {code:?}: {message}")),
        }
    }

    /// See [`EXIT_CODES`].
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Local(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 3,
            Self::Failed { code, .. } => {
                code.strip_prefix('C').and_then(|n| n.parse::<u8>().ok()).map_or(1, |n| 10 + n)
            }
            Self::NotFound(_) => 20,
            Self::Refused(_) => 21,
            Self::Denied { .. } => 22,
        }
    }

    fn code(&self) -> Option<&str> {
        match self {
            Self::Failed { code, .. } | Self::Denied { code, .. } => Some(code),
            _ => None,
        }
    }

    fn kind(&self) -> &str {
        match self {
            Self::Local(_) => "local",
            Self::Usage(_) => "usage",
            Self::Unreachable(_) => "unreachable",
            Self::Failed { kind, .. } | Self::Denied { kind, .. } => kind,
            Self::NotFound(_) => "not_found",
            Self::Refused(_) => "refused",
        }
    }

    /// What to do, of a failure with a kind that this version knows.
    fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Failed { kind, .. } => advice(kind),
            Self::Denied { kind, .. } if kind == kiln::error::NOT_ADMITTED => {
                Some(kiln::error::SHOW_A_JOIN_TOKEN)
            }
            Self::Denied { code, .. } if code == kiln::error::UNAUTHENTICATED => {
                Some(kiln::error::SHOW_A_TOKEN)
            }
            Self::Denied { .. } => Some(kiln::error::ASK_ANOTHER),
            _ => None,
        }
    }

    /// For stderr: `C001 compile_error: …` and what to do, or the message alone.
    pub(crate) fn for_people(&self) -> String {
        let said = match self.code() {
            Some(code) => format!("{code} {}: {self}", self.kind()),
            None => self.to_string(),
        };
        match self.advice() {
            Some(advice) => format!("{said}\nwhat to do: {advice}"),
            None => said,
        }
    }

    /// As a part of what `--json` prints of something else.
    pub(crate) fn fields(&self) -> FailureView {
        let code = self.code().map(str::to_owned);
        let advice = self.advice();
        FailureView { code, kind: self.kind().to_owned(), message: self.to_string(), advice }
    }

    /// For `--json`.
    pub(crate) fn view(&self) -> ErrorView<'_> {
        let message = self.to_string();
        let advice = self.advice();
        ErrorView { error: ErrorFields { code: self.code(), kind: self.kind(), message, advice } }
    }
}

/// An error with its causes, each said once: some have their cause in their own words.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// How a connection broke, for whoever does not know HTTP/2.
fn broken(message: &str, source: &(dyn std::error::Error + 'static)) -> String {
    let mut causes = vec![message.to_owned()];
    let mut at = Some(source);
    while let Some(error) = at {
        causes.push(error.to_string());
        at = error.source();
    }
    let said = |part: &str| causes.iter().any(|cause| cause.contains(part));
    if said("timed out") {
        "it takes connections and does not answer".into()
    } else if said("h2 protocol error") || said("frame with invalid size") {
        "what answers there does not speak HTTP/2: give the node's gRPC port (7400 where none is \
         set), not its Redis port"
            .into()
    } else {
        causes.pop().unwrap_or_default()
    }
}

/// What to do about a failure of the kind of that name.
pub(crate) fn advice(kind: &str) -> Option<&'static str> {
    FailureKind::named(kind).map(FailureKind::advice)
}

impl From<std::io::Error> for CliError {
    fn from(e: std::io::Error) -> Self {
        Self::Local(e.into())
    }
}

impl From<kiln::exec::ExecError> for CliError {
    fn from(e: kiln::exec::ExecError) -> Self {
        let Some(kind) = e.failure() else { return Self::Local(e.into()) };
        // Said once: here the code is not part of the message.
        let coded = format!("{} {}: ", kind.code(), kind.name());
        Self::failed(kind, e.to_string().replacen(&coded, "", 1))
    }
}

impl From<kiln::config::ConfigError> for CliError {
    fn from(e: kiln::config::ConfigError) -> Self {
        Self::Usage(e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coded(code: &'static str, kind: &'static str) -> Status {
        let mut status = Status::invalid_argument("why");
        status.metadata_mut().insert("kiln-code", code.parse().unwrap());
        status.metadata_mut().insert("kiln-kind", kind.parse().unwrap());
        status
    }

    #[test]
    fn each_stable_code_has_its_documented_exit_code() {
        for kind in FailureKind::ALL {
            let error = CliError::from_status(&coded(kind.code(), kind.name()));
            assert_eq!(error.exit_code(), CliError::failed(kind, "").exit_code());
            let documented = format!("  {}  {}", error.exit_code(), kind.code());
            assert!(EXIT_CODES.contains(&documented), "{documented}");
            let said = format!("{} {}: why", kind.code(), kind.name());
            let shown = format!("{said}\nwhat to do: {}", kind.advice());
            assert_eq!(error.for_people(), shown);
            assert_eq!(error.exit_code(), kind.exit_code());
            let mut named = coded(kind.code(), kind.name());
            named = Status::with_metadata(named.code(), &said, named.metadata().clone());
            assert_eq!(CliError::from_status(&named).for_people(), shown, "the code is said once");
        }
    }

    #[test]
    fn a_run_that_fails_has_the_code_of_its_kind() {
        use kiln::exec::ExecError;
        let failure = kiln_proto::Failure::new(FailureKind::Incompatible, "of another kind");
        let alone = CliError::from(ExecError::Program(failure.clone()));
        assert_eq!((alone.exit_code(), alone.to_string().as_str()), (13, "of another kind"));
        let error = Box::new(ExecError::Program(failure));
        let piece = CliError::from(ExecError::Piece { name: "piece 3".into(), error });
        assert_eq!(
            (piece.exit_code(), piece.to_string().as_str()),
            (13, "piece 3: of another kind")
        );
        assert_eq!(CliError::from(ExecError::Inputs("a shape".into())).exit_code(), 1);
    }

    #[test]
    fn statuses_without_a_code_map_by_what_the_caller_should_do() {
        let cases = [
            (Status::not_found("x"), 20),
            (Status::invalid_argument("x"), 2),
            (Status::unavailable("x"), 3),
            (Status::deadline_exceeded("x"), 14),
            (Status::data_loss("x"), 12),
            (Status::failed_precondition("x"), 21),
            (Status::internal("x"), 1),
        ];
        for (status, exit_code) in cases {
            let error = CliError::from_status(&status);
            assert_eq!(error.exit_code(), exit_code, "{status}");
            assert!(EXIT_CODES.contains(&format!("{exit_code:>4}  ")), "{exit_code}");
        }
    }

    #[test]
    fn a_cause_is_said_once() {
        let refused = || std::io::Error::other("Address already in use");
        let io = kiln::node::NodeError::Io { doing: "listen".into(), source: refused() };
        let told = CliError::from(anyhow::Error::from(io)).to_string();
        assert_eq!(told, "listen: Address already in use");
        let chained = anyhow::Error::from(refused()).context("listen on 7400");
        assert_eq!(CliError::from(chained).to_string(), "listen on 7400: Address already in use");
    }

    #[test]
    fn a_connection_that_broke_is_a_node_that_cannot_be_reached() {
        let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let status = Status::from_error(Box::new(broken));
        assert!(matches!(CliError::from_status(&status), CliError::Unreachable(_)), "{status:?}");
    }

    #[test]
    fn a_node_that_left_is_as_good_as_one_that_cannot_be_reached() {
        let error = CliError::from_status(&kiln::error::Error::Left.into());
        assert!(matches!(error, CliError::Unreachable(_)), "{error:?}");
    }

    #[test]
    fn the_json_form_has_code_kind_message_and_advice() {
        let error = CliError::from_status(&coded("C005", "toolchain_missing"));
        assert_eq!(
            serde_json::to_string(&error.view()).unwrap(),
            format!(
                r#"{{"error":{{"code":"C005","kind":"toolchain_missing","message":"why","advice":"{}"}}}}"#,
                FailureKind::ToolchainMissing.advice(),
            )
        );
        let error = CliError::NotFound("no".into());
        assert_eq!(
            serde_json::to_string(&error.view()).unwrap(),
            r#"{"error":{"code":null,"kind":"not_found","message":"no","advice":null}}"#
        );
    }
}
