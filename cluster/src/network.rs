//! Raft's messages over gRPC.
//!
//! Invariant: a response stream carries the answers in the order of the requests;
//! a peer that cannot be reached is an error, never a granted vote.

use std::{future::Future, sync::Arc};

use bytes::Bytes;
use futures::StreamExt;
use openraft::{
    BasicNode, OptionalSend, RPCTypes, RaftNetworkFactory,
    alias::{SnapshotOf, VoteOf},
    base::{BoxFuture, BoxStream},
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::{
        Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
    },
    raft::{
        AppendEntriesRequest, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
        TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use tonic::Status;

use crate::{
    append::{Unanswered, with_headway},
    pb::Frame,
    peers::{Client, Peers, frame, to_target, unframe},
    quorum::QuorumAge,
    raft::{SnapshotMeta, Types, Vote},
    store::{Direction, Moving, Owner, SnapshotData},
};

type Rpc<T> = Result<T, RPCError<Types>>;

/// Makes connections for the library.
pub(crate) struct Network {
    pub peers: Arc<Peers>,
    pub me: Owner,
    pub quorum: Arc<QuorumAge>,
}

/// One peer, as the library sees it.
pub(crate) struct Connection {
    peers: Arc<Peers>,
    quorum: Arc<QuorumAge>,
    me: Owner,
    target: Owner,
    /// Where the membership says that the node is; the address book knows better.
    address: String,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Connection {
        Connection {
            peers: Arc::clone(&self.peers),
            quorum: Arc::clone(&self.quorum),
            me: self.me,
            target: Owner { node: target, ..self.me },
            address: node.addr.clone(),
        }
    }
}

fn unreachable(status: &Status) -> RPCError<Types> {
    RPCError::Unreachable(Unreachable::from_string(status.message()))
}

impl Connection {
    fn client(&self) -> Rpc<Client> {
        let address = self.peers.address(self.target.node);
        self.peers.at(address.as_ref().unwrap_or(&self.address)).map_err(|e| unreachable(&e))
    }

    /// A request to the node. It may have been away while this one was let in.
    fn to_target<T>(&self, body: T) -> tonic::Request<T> {
        self.peers.with_proof(to_target(body, self.me.node, self.target))
    }

    /// One request and its answer within `option`'s time.
    async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        kind: RPCTypes,
        option: &RPCOption,
        request: &Q,
        send: impl AsyncFnOnce(Client, tonic::Request<Frame>) -> Result<tonic::Response<Frame>, Status>,
    ) -> Rpc<A> {
        let client = self.client()?;
        let request = frame(request).map_err(|e| unreachable(&e))?;
        let request = self.to_target(request);
        let timeout = option.hard_ttl();
        match tokio::time::timeout(timeout, send(client, request)).await {
            Ok(Ok(answer)) => unframe(answer.get_ref()).map_err(|e| unreachable(&e)),
            Ok(Err(status)) => Err(unreachable(&status)),
            Err(_) => Err(RPCError::Timeout(Timeout {
                action: kind,
                id: self.me.node,
                target: self.target.node,
                timeout,
            })),
        }
    }
}

impl NetBackoff<Types> for Connection {
    fn backoff(&self) -> Option<Backoff> {
        None
    }
}

impl NetStreamAppend<Types> for Connection {
    /// One HTTP/2 stream for as long as the library appends to this peer: no
    /// set-up per request, and requests do not wait for answers.
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Rpc<BoxStream<'s, Rpc<StreamAppendResult<Types>>>>>
    where
        S: futures::Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let mut input = input;
            // The library's back-off is in its first request: ask for that before connecting.
            let Some(first) = input.next().await else {
                let none: BoxStream<'s, _> = Box::pin(futures::stream::empty());
                return Ok(none);
            };
            let mut client = self.client()?;
            let input = with_headway(futures::stream::iter([first]).chain(input));
            let quorum = Arc::clone(&self.quorum);
            let unanswered = Unanswered::default();
            let asked = unanswered.clone();
            // A request that cannot be encoded ends the stream; the library retries.
            let requests = input.map(move |request| {
                let quorum_age_ms = quorum.millis();
                asked.asked();
                frame(&request).ok().map(|frame| Frame { quorum_age_ms, ..frame })
            });
            let requests = requests.take_while(|frame| std::future::ready(frame.is_some()));
            let requests = self.to_target(requests.filter_map(std::future::ready));
            let opening = tokio::time::timeout(option.hard_ttl() * 4, client.append(requests));
            let answers = match opening.await {
                Ok(answers) => answers.map_err(|e| unreachable(&e))?.into_inner(),
                Err(_) => {
                    return Err(RPCError::Unreachable(Unreachable::from_string("no answer")));
                }
            };
            let answers = answers.map(|answer| {
                answer.and_then(|frame| unframe(&frame)).map_err(|status| {
                    RPCError::Network(NetworkError::from_string(status.message()))
                })
            });
            let cut = || RPCError::Network(NetworkError::from_string("the stream ended too soon"));
            let answers: BoxStream<'s, _> = Box::pin(unanswered.until_all(answers, cut));
            Ok(answers)
        })
    }
}

impl NetVote<Types> for Connection {
    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<Types>> {
        let send = async |mut client: Client, request| client.vote(request).await;
        self.call(RPCTypes::Vote, &option, &request, send).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<Types>> {
        let send = async |mut client: Client, request| client.pre_vote(request).await;
        self.call(RPCTypes::Vote, &option, &request, send).await
    }
}

impl NetSnapshot<Types> for Connection {
    type SnapshotData = SnapshotData;

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        snapshot: SnapshotOf<Types, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let down = |status: Status| {
            StreamingError::Unreachable(Unreachable::from_string(status.message()))
        };
        let SnapshotData::Live(chunks) = snapshot.snapshot else {
            return Err(down(Status::internal("a received snapshot is not sent on")));
        };
        let header: (Vote, SnapshotMeta) = (vote, snapshot.meta);
        let header = frame(&header).map_err(down)?;
        // An empty body marks the end. A read that failed ends the stream without it.
        let quorum = Arc::clone(&self.quorum);
        let moving = Moving::begin(Direction::Sent);
        let chunks = futures::stream::unfold((Some(chunks), moving), move |(chunks, moving)| {
            let quorum = Arc::clone(&quorum);
            async move {
                let mut chunks = chunks?;
                let quorum_age_ms = quorum.millis();
                match chunks.recv().await {
                    Some(chunk) => {
                        let body: Bytes = chunk.ok()?.into();
                        moving.add(body.len());
                        let frame = Frame { body, quorum_age_ms, ..Frame::default() };
                        Some((frame, (Some(chunks), moving)))
                    }
                    None => Some((Frame { quorum_age_ms, ..Frame::default() }, (None, moving))),
                }
            }
        });
        let frames = futures::stream::iter([header]).chain(chunks);
        let mut client = self.client().map_err(StreamingError::from)?;
        let request = self.to_target(Box::pin(frames));
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            answer = client.snapshot(request) => {
                let answer = answer.map_err(down)?;
                unframe(answer.get_ref()).map_err(down)
            }
        }
    }
}

impl NetTransferLeader<Types> for Connection {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<Types>> {
        let send = async |mut client: Client, request| client.transfer_leader(request).await;
        self.call(RPCTypes::TransferLeader, &option, &request, send).await
    }
}
