//! Reaching a node.
//!
//! Invariant: endpoints are tried in the order given; a call moves on to the
//! next only where this one cannot be reached or cannot serve now.

use std::{path::PathBuf, time::Duration};

use hyper_util::rt::TokioIo;
use kiln::net::{Conn, tls::ClientTls};
use kiln_proto::{MAX_MESSAGE_BYTES, NodeId, pb, pb::kiln_client::KilnClient};
use tonic::{
    metadata::{Ascii, MetadataValue},
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint, Uri},
};

use super::{
    CliError,
    belief::PinArgs,
    credential::CredentialArgs,
    output,
    traced::{Carried, TraceArgs},
};

pub(crate) const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:7400";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A node that died without a word is noticed after this and the next time-out.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// The nodes that the command line names.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Endpoints {
    /// Nodes to ask, in this order, separated by commas.
    #[arg(
        long = "endpoint",
        value_name = "URL",
        env = "KILN_ENDPOINT",
        default_value = DEFAULT_ENDPOINT,
        value_delimiter = ',',
        value_parser = parse_endpoint,
        global = true
    )]
    endpoints: Vec<Node>,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    token: CredentialArgs,
    #[command(flatten)]
    trace: TraceArgs,
    #[command(flatten)]
    pub(super) pinned: PinArgs,
}

/// TLS with the nodes that are named `https://`.
#[derive(Debug, Clone, Default, clap::Args)]
struct TlsArgs {
    /// The authority of the nodes' certificates, in PEM, for https:// endpoints.
    #[arg(long, value_name = "FILE", env = "KILN_CA", global = true)]
    ca: Option<PathBuf>,
    /// This client's certificate, in PEM, where the nodes want one.
    #[arg(long, value_name = "FILE", env = "KILN_CERT", global = true)]
    cert: Option<PathBuf>,
    /// Its private key.
    #[arg(
        id = "cert_key",
        long = "cert-key",
        value_name = "FILE",
        env = "KILN_CERT_KEY",
        global = true
    )]
    key: Option<PathBuf>,
}

impl TlsArgs {
    /// What connects to an https:// endpoint.
    fn client(&self) -> Result<ClientTls, String> {
        let Some(ca) = &self.ca else {
            return Err(
                "https:// needs --ca (or KILN_CA), the authority of the node's certificate".into(),
            );
        };
        let own = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some((&**cert, &**key)),
            (None, None) => None,
            _ => return Err("--cert and --cert-key belong together".into()),
        };
        ClientTls::new(ca, own).map_err(|e| e.to_string())
    }
}

/// A connected client.
pub(crate) type Client = KilnClient<InterceptedService<Channel, Carried>>;

/// A node as it is named: by TCP, or by its socket on this machine.
#[derive(Debug, Clone)]
struct Node {
    url: url::Url,
    endpoint: Endpoint,
}

fn parse_endpoint(text: &str) -> Result<Node, String> {
    let text = text.trim();
    let whole = text.contains("://") || text.starts_with("unix:");
    let url = if whole { text.to_owned() } else { format!("http://{text}") };
    let parsed = url::Url::parse(&url).map_err(|e| e.to_string())?;
    let named = match parsed.scheme() {
        "http" | "https" => parsed.host_str().is_some(),
        "unix" => parsed.host_str().is_none() && parsed.path().starts_with('/'),
        _ => false,
    };
    if !named {
        let forms = "an endpoint is http://HOST:PORT, https://HOST:PORT or unix:/PATH/TO/SOCKET";
        return Err(forms.into());
    }
    let endpoint = Endpoint::from_shared(url).map(timed).map_err(|e| e.to_string())?;
    Ok(Node { url: parsed, endpoint })
}

impl Endpoints {
    /// The node at that `host:port` alone.
    pub(crate) fn one(address: &str) -> Result<Self, String> {
        let (tls, trace, token) =
            (TlsArgs::default(), TraceArgs::default(), CredentialArgs::from_env());
        let (endpoints, pinned) = (vec![parse_endpoint(address)?], PinArgs::from_env()?);
        Ok(Self { endpoints, tls, token, trace, pinned })
    }

    /// The token that goes along with each call, if there is one.
    pub(crate) fn token(&self) -> Result<Option<String>, CliError> {
        self.token.secret()
    }

    /// The first node that can be reached. For calls that must not run twice.
    pub(crate) async fn connect(&self) -> Result<Client, CliError> {
        self.attempt(async |client| Ok(client)).await
    }

    /// How many are named.
    pub(crate) fn count(&self) -> usize {
        self.endpoints.len()
    }

    /// The node with that id, whichever of the endpoints is its own.
    pub(crate) async fn of_node(&self, node: NodeId) -> Result<Client, CliError> {
        let mut others = Vec::new();
        for endpoint in &self.endpoints {
            let one = Self { endpoints: vec![endpoint.clone()], ..self.clone() };
            let asked = one.attempt(async |mut client| {
                let answer = client.status(pb::StatusRequest::default()).await;
                let answer = answer.map_err(|e| CliError::from_status(&e))?;
                Ok((answer.into_inner().node, client))
            });
            match asked.await {
                Ok((id, client)) if id == node => return Ok(client),
                Ok((id, _)) => others.push(format!("{} is node {id}", endpoint.url)),
                Err(CliError::Unreachable(why)) => others.push(why),
                Err(e) => return Err(e),
            }
        }
        let others = others.join("; ");
        Err(CliError::Unreachable(format!(
            "node {node} is not found at the endpoints ({others}): name its own by --endpoint"
        )))
    }

    /// Runs `call` on the first node that can serve it. `call` may run on
    /// several nodes in turn, so it must do no harm when repeated.
    pub(crate) async fn attempt<T>(
        &self,
        call: impl AsyncFn(Client) -> Result<T, CliError>,
    ) -> Result<T, CliError> {
        let (mut tried, mut reached) = (Vec::new(), false);
        for endpoint in &self.endpoints {
            let token = self.token.header(&endpoint.url)?;
            match self.reach(endpoint, token).await {
                Ok(client) => match call(client).await {
                    Err(CliError::Unreachable(why)) => {
                        reached = true;
                        tried.push((endpoint, why));
                    }
                    settled => return settled,
                },
                Err(why) => tried.push((endpoint, why)),
            }
        }
        let all: Vec<_> = tried.iter().map(|(at, why)| format!("{}: {why}", at.url)).collect();
        let all = all.join("; ");
        Err(CliError::Unreachable(match reached {
            true => format!("no node can serve this now ({all}); kiln status says more"),
            false => format!(
                "no node can be reached ({all}); is `kiln serve` or `kiln dev` running, and is \
                 --endpoint or KILN_ENDPOINT right?"
            ),
        }))
    }

    /// The node at that `host:port`, as a node names it; in TLS where the endpoints are.
    pub(crate) async fn at(&self, address: &str) -> Result<Client, String> {
        let tls = self.endpoints.iter().any(is_https);
        let scheme = if tls { "https" } else { "http" };
        let node = parse_endpoint(&format!("{scheme}://{address}"))?;
        let token = self.token.header(&node.url).map_err(|error| error.to_string())?;
        self.reach(&node, token).await
    }

    async fn reach(
        &self,
        node: &Node,
        token: Option<MetadataValue<Ascii>>,
    ) -> Result<Client, String> {
        let endpoint = &node.endpoint;
        let channel = match is_https(node) {
            false => endpoint.connect().await,
            true => {
                let tls = self.tls.client()?;
                endpoint
                    .connect_with_connector(tower::service_fn(move |to: Uri| {
                        let tls = tls.clone();
                        async move { connect(&tls, &to).await.map(TokioIo::new) }
                    }))
                    .await
            }
        };
        let channel = channel.map_err(|e| innermost(&e))?;
        Ok(KilnClient::with_interceptor(channel, self.trace.carried(token))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }
}

fn is_https(node: &Node) -> bool {
    node.url.scheme() == "https"
}

async fn connect(tls: &ClientTls, to: &Uri) -> std::io::Result<Conn> {
    let host = to.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    tls.connect(host, to.port_u16().unwrap_or(443)).await
}

/// No call waits for a node that cannot be reached, or went away without a word.
fn timed(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .tcp_nodelay(true)
}

/// Refuses a request, made of `what`, that no node takes, before one is asked.
pub(crate) fn check_size(request: &impl prost::Message, what: &str) -> Result<(), CliError> {
    let size = request.encoded_len();
    if size <= MAX_MESSAGE_BYTES {
        return Ok(());
    }
    let (size, most) = (output::size(size as u64), output::size(MAX_MESSAGE_BYTES as u64));
    Err(CliError::Usage(format!("{what} is too large: {size}, and a node takes at most {most}")))
}

/// "connection refused" rather than the library's "transport error".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut at = error;
    while let Some(source) = at.source() {
        at = source;
    }
    at.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_http_or_https_with_a_host() {
        for good in [
            "http://127.0.0.1:7400",
            "https://a:1",
            "127.0.0.1:7400",
            " kiln-0.kiln:7400",
            "unix:/run/kiln.sock",
            "unix:///run/kiln.sock",
        ] {
            assert!(parse_endpoint(good).is_ok(), "{good}");
        }
        for bad in ["ftp://a", "http://", "", "unix:", "unix://run/kiln.sock", "unix:kiln.sock"] {
            assert!(parse_endpoint(bad).is_err(), "{bad}");
        }
    }

    fn at(listener: &tokio::net::TcpListener) -> Endpoints {
        let endpoint = parse_endpoint(&listener.local_addr().unwrap().to_string()).unwrap();
        Endpoints {
            endpoints: vec![endpoint],
            tls: TlsArgs::default(),
            token: CredentialArgs::default(),
            trace: TraceArgs::default(),
            pinned: PinArgs::default(),
        }
    }

    async fn asked(endpoints: &Endpoints) -> String {
        let status = endpoints.attempt(async |mut client| {
            let asked = client.status(kiln_proto::pb::StatusRequest::default()).await;
            asked.map_err(|e| CliError::from_status(&e))
        });
        let error = status.await.unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
        error.to_string()
    }

    /// Whoever mixed up the ports is told so, and not what the library makes of it.
    #[tokio::test]
    async fn another_kind_of_port_is_named() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let redis = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoints = at(&redis);
        let serving = tokio::spawn(async move {
            while let Ok((mut client, _)) = redis.accept().await {
                let _ = client.write_all(b"-ERR unknown command 'PRI'\r\n").await;
                // It goes on until its client leaves.
                let _ = client.read_to_end(&mut Vec::new()).await;
            }
        });
        let told = asked(&endpoints).await;
        assert!(told.contains("does not speak HTTP/2") && told.contains("7400"), "{told}");
        assert!(!told.contains("is `kiln serve`"), "something runs there: {told}");
        serving.abort();

        let http = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoints = at(&http);
        let router = axum::Router::new();
        let serving = tokio::spawn(async move { axum::serve(http, router).await });
        let told = asked(&endpoints).await;
        assert!(told.contains("speaks HTTP and no gRPC") && told.contains("7400"), "{told}");
        serving.abort();
    }

    #[tokio::test]
    async fn a_node_that_answers_nothing_ends_the_command() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let told = asked(&at(&silent)).await;
        assert!(told.contains("takes connections and does not answer"), "{told}");
    }

    #[tokio::test]
    async fn every_endpoint_tried_is_named() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = closed.local_addr().unwrap();
        drop(closed);
        let endpoint = parse_endpoint(&address.to_string()).unwrap();
        let endpoints = vec![endpoint.clone(), endpoint];
        let endpoints = Endpoints {
            endpoints,
            tls: TlsArgs::default(),
            token: CredentialArgs::default(),
            trace: TraceArgs::default(),
            pinned: PinArgs::default(),
        };
        let error = endpoints.connect().await.unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert_eq!(error.to_string().matches(&address.to_string()).count(), 2, "{error}");
    }
}
