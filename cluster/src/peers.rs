//! Connections to the other nodes: one channel a peer, and where each node is.
//!
//! Invariant: a request for a node that another node answers by now is refused
//! by the receiver: it names its cluster and its target.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use kiln_proto::NodeId;
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, Binary, MetadataMap, MetadataValue},
};

use crate::{
    admission::NotAdmitted,
    codec,
    command::Candidate,
    endorsement::{Admitted, Proof},
    error::ClusterError,
    pb::{Frame, peer_client::PeerClient},
    rpc::{Assignment, Greeting, OfYou},
    secret::Secret,
    store::Owner,
    transport::{Connect, Transport},
};

/// Largest message between nodes, in bytes.
pub(crate) const MOST_MESSAGE: usize = 80 << 20;
/// How long the answer to a hello is waited for.
const HELLO: Duration = Duration::from_secs(2);

const CLUSTER: &str = "kiln-cluster";
const TARGET: &str = "kiln-node";
const FROM: &str = "kiln-from";
/// Who introduces itself asks for no vote. Beside the body, whose bytes older peers
/// read too; one that does not know it takes the candidate for a voter.
const ABSTAINS: &str = "kiln-abstains";
/// What the node that is asked has of the one that asks.
const OF_YOU: &str = "kiln-of-you";
/// How the node that sends proves that it was let in.
const PROOF: &str = "kiln-proof-bin";
/// The token with which a candidate asks to be let in.
const JOIN_TOKEN: &str = "kiln-join-token";

/// The client of one node.
pub(crate) type Client = PeerClient<Transport>;

/// The address book and the channels.
pub(crate) struct Peers {
    network: Arc<dyn Connect>,
    channels: Mutex<HashMap<String, Transport>>,
    addresses: Mutex<HashMap<NodeId, String>>,
    /// Whether it was told that an address is of a port for clients.
    told: AtomicBool,
    /// How this node proves that it was let in.
    proof: ArcSwapOption<MetadataValue<Binary>>,
}

impl Peers {
    /// Nobody is known yet; whoever is, is found over `network`.
    pub(crate) fn new(network: Arc<dyn Connect>) -> Self {
        let (told, proof) = (AtomicBool::new(false), ArcSwapOption::empty());
        Self { network, channels: Mutex::default(), addresses: Mutex::default(), told, proof }
    }

    /// From now on this node shows `proof`.
    pub(crate) fn set_proof(&self, proof: &Proof) -> Result<(), ClusterError> {
        let bytes = codec::encode(proof)?;
        self.proof.store(Some(Arc::new(MetadataValue::from_bytes(&bytes))));
        Ok(())
    }

    /// From now on this node shows none.
    pub(crate) fn clear_proof(&self) {
        self.proof.store(None);
    }

    /// `request` with the proof of this node that sends it: for whoever may not have heard of it.
    pub(crate) fn with_proof<T>(&self, mut request: Request<T>) -> Request<T> {
        if let Some(proof) = &*self.proof.load() {
            request.metadata_mut().insert_bin(PROOF, MetadataValue::<Binary>::clone(proof));
        }
        request
    }

    /// Notes where a node is.
    pub(crate) fn set_address(&self, node: NodeId, address: &str) {
        self.addresses.lock().insert(node, address.to_owned());
    }

    /// Where a node is, if that is known.
    pub(crate) fn address(&self, node: NodeId) -> Option<String> {
        self.addresses.lock().get(&node).cloned()
    }

    /// The client for whoever is at `address`; connects when used.
    pub(crate) fn at(&self, address: &str) -> Result<Client, Status> {
        let mut channels = self.channels.lock();
        let channel = match channels.get(address) {
            Some(channel) => channel.clone(),
            None => {
                let channel = self.network.connect(address)?;
                channels.insert(address.to_owned(), channel.clone());
                channel
            }
        };
        Ok(PeerClient::new(channel)
            .max_decoding_message_size(MOST_MESSAGE)
            .max_encoding_message_size(MOST_MESSAGE))
    }

    /// Asks who is at `address`; `candidate` is the disk that asks.
    pub(crate) async fn hello(
        &self,
        address: &str,
        candidate: Candidate,
    ) -> Result<Greeting, ClusterError> {
        let asking = async {
            let answer = self.at(address)?.hello(frame(&candidate)?).await?;
            let (abstains, of_you) = (abstains(answer.metadata()), of_you(answer.metadata()));
            Ok(Greeting { abstains, of_you, ..unframe(answer.get_ref())? })
        };
        let asked = tokio::time::timeout(HELLO, asking).await?;
        asked.map_err(|status: Status| {
            if status.code() == Code::Unimplemented && !self.told.swap(true, Ordering::Relaxed) {
                tracing::warn!(address, "{}: name its members' port", status.message());
            }
            ClusterError::unavailable(status.message())
        })
    }

    /// Tells the `candidate` at `address` that it is `owner` from now on, and gives it what
    /// proves that.
    pub(crate) async fn assign(
        &self,
        address: &str,
        candidate: Candidate,
        owner: Owner,
        admitted: &Admitted,
        patience: Duration,
    ) -> Result<(), ClusterError> {
        let assignment = Assignment { candidate, owner };
        let assignment = frame(&assignment).map_err(ClusterError::invalid)?;
        let admitted = admitted.encode().map_err(ClusterError::invalid)?;
        let assignment = Frame { admitted, ..assignment };
        let asking = async { self.at(address)?.assign(assignment).await };
        let asked = tokio::time::timeout(patience, asking).await?;
        asked.map(drop).map_err(|status| ClusterError::unavailable(status.message()))
    }
}

/// A message body.
pub(crate) fn frame<T: Serialize>(value: &T) -> Result<Frame, Status> {
    let body = codec::encode(value).map_err(|e| Status::internal(e.to_string()))?;
    Ok(Frame { body: Bytes::from(body), ..Frame::default() })
}

/// What a message body says.
pub(crate) fn unframe<T: DeserializeOwned>(frame: &Frame) -> Result<T, Status> {
    codec::decode(&frame.body).map_err(|e| Status::invalid_argument(e.to_string()))
}

/// A request of the node `from` to the very node `target`.
pub(crate) fn to_target<T>(body: T, from: NodeId, target: Owner) -> Request<T> {
    let mut request = Request::new(body);
    let number = |n: u64| -> MetadataValue<Ascii> { MetadataValue::from(n) };
    request.metadata_mut().insert(CLUSTER, number(target.cluster));
    request.metadata_mut().insert(TARGET, number(target.node));
    request.metadata_mut().insert(FROM, number(from));
    request
}

/// Who says that it asks. Not proven: what keeps strangers out is the peers' port.
pub(crate) fn sender(metadata: &MetadataMap) -> Option<NodeId> {
    metadata.get(FROM)?.to_str().ok()?.parse().ok()
}

/// How whoever sent this proves that it was let in; an empty proof where it shows none that can
/// be read.
pub(crate) fn proof(metadata: &MetadataMap) -> Proof {
    let shown = metadata.get_bin(PROOF).and_then(|value| value.to_bytes().ok());
    shown.and_then(|bytes| codec::decode(&bytes).ok()).unwrap_or_default()
}

/// Says in the metadata of an introduction whether its node abstains.
pub(crate) fn set_abstains(metadata: &mut MetadataMap, abstains: bool) {
    if abstains {
        metadata.insert(ABSTAINS, MetadataValue::from_static("true"));
    }
}

/// Whether who introduces itself with `metadata` abstains.
pub(crate) fn abstains(metadata: &MetadataMap) -> bool {
    metadata.get(ABSTAINS).is_some_and(|value| value == "true")
}

/// Shows a token in the metadata of an introduction.
pub(crate) fn set_join_token(metadata: &mut MetadataMap, id: u64, secret: &Secret) {
    // Hexadecimal digits are a header's value in any case.
    if let Ok(mut value) = secret.token(id).parse::<MetadataValue<Ascii>>() {
        value.set_sensitive(true);
        metadata.insert(JOIN_TOKEN, value);
    }
}

/// The token that is shown in `metadata`.
pub(crate) fn join_token(metadata: &MetadataMap) -> Result<Option<(u64, Secret)>, NotAdmitted> {
    let mut shown = metadata.get_all(JOIN_TOKEN).iter();
    let Some(value) = shown.next() else { return Ok(None) };
    // Two of them: whichever is meant, neither is taken.
    let one = value.to_str().ok().filter(|_| shown.next().is_none());
    one.and_then(Secret::read).map(Some).ok_or(NotAdmitted::Malformed)
}

/// Says in the metadata of a greeting what is known of the node that asks.
pub(crate) fn set_of_you(metadata: &mut MetadataMap, of_you: Option<OfYou>) {
    let text = match of_you {
        Some(OfYou::Left) => "left",
        Some(OfYou::Away) => "away",
        None => return,
    };
    metadata.insert(OF_YOU, MetadataValue::from_static(text));
}

fn of_you(metadata: &MetadataMap) -> Option<OfYou> {
    match metadata.get(OF_YOU)?.to_str().ok()? {
        "left" => Some(OfYou::Left),
        "away" => Some(OfYou::Away),
        _ => None,
    }
}

/// Refuses a request that is meant for another node than `me`.
pub(crate) fn check_target(metadata: &MetadataMap, me: Owner) -> Result<(), Status> {
    let number = |name| metadata.get(name)?.to_str().ok()?.parse::<u64>().ok();
    let (cluster, node) = (number(CLUSTER), number(TARGET));
    if cluster == Some(me.cluster) && node == Some(me.node) {
        return Ok(());
    }
    Err(Status::failed_precondition(format!(
        "this is node {} of cluster {:x}, not the one meant",
        me.node, me.cluster
    )))
}
