//! The public gRPC API.
//!
//! Invariant: until the node is a member every call answers UNAVAILABLE; after
//! that, calls translate, ask the manager, the index or the cluster, and stream. While the
//! node leaves, what it would have to keep is UNAVAILABLE; once it knows that it left, every
//! call but Status and Overview answers FAILED_PRECONDITION.

use std::{
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use kiln_cluster::Caller;
use kiln_proto::{convert, pb, pb::kiln_server::Kiln};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument;

use super::{
    attest, blocking::blocking, compile, explain, fetch, gather, guard, leases, list, monitor,
    overview, parts::Parts, plan, publish, recheck, restore, status, tokens, trust, wire,
};
use crate::error::Error;

/// What one call may say of what a client restored in vain.
const MOST_UNUSED: usize = 64;
/// Messages buffered towards a client that reads slowly.
const STREAM_DEPTH: usize = 8;

/// The service; [`Api::open`] connects it once the node is a member.
#[derive(Clone, Default)]
pub struct Api {
    parts: Arc<OnceLock<Parts>>,
    leases: leases::ClientLeases,
}

type Reply<T> = Result<Response<T>, Status>;

impl Api {
    /// From now on calls are answered from `parts`.
    pub fn open(&self, parts: Parts) {
        // A second call would be a second node in one process: the first one stays.
        let _ = self.parts.set(parts);
    }

    /// For calls of a member.
    fn parts(&self) -> Result<&Parts, Error> {
        let parts = self.opened()?;
        if parts.cluster.has_left() { Err(Error::Left) } else { Ok(parts) }
    }

    /// For what a node answers that left, too.
    fn opened(&self) -> Result<&Parts, Error> {
        let starting = || Error::Unavailable("this node is still joining".into());
        self.parts.get().ok_or_else(starting)
    }
}

#[tonic::async_trait]
impl Kiln for Api {
    type CompileStream = ReceiverStream<Result<pb::CompileEvent, Status>>;
    type FetchStream = ReceiverStream<Result<pb::FetchChunk, Status>>;
    type PlanStream = ReceiverStream<Result<pb::PlanEvent, Status>>;
    type RecompileStream = Self::CompileStream;
    type LeaseStream = ReceiverStream<Result<pb::LeaseEvent, Status>>;

    async fn compile(&self, request: Request<pb::CompileRequest>) -> Reply<Self::CompileStream> {
        let parts = self.parts()?;
        let (asks, request) = guard::asks(request)?;
        let namespace = parts.namespace(&request.namespace).to_owned();
        parts.may(&asks, asks.writes(&namespace))?;
        let requests = parts.requests(request)?;
        let begun = parts.compiles(&asks, "compile", &namespace);
        let (sender, receiver) = mpsc::channel(STREAM_DEPTH);
        let compiling =
            compile::compile(parts.manager.clone(), parts.node, requests, sender, begun);
        tokio::spawn(compiling.in_current_span());
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn lookup(&self, request: Request<pb::LookupRequest>) -> Reply<pb::LookupResponse> {
        let parts = self.parts()?;
        let (asks, request) = guard::asks(request)?;
        parts.may(&asks, asks.reads(parts.namespace(&request.namespace)))?;
        let key = convert::key("key", &request.key).map_err(Error::from)?;
        let found = match request.linearizable {
            true => parts.index.lookup_linearizable(&key).await,
            false => parts.index.lookup(&key).await,
        };
        let found = found.map_err(Error::from)?;
        let namespace = parts.namespace(&request.namespace);
        let visible = found.filter(|entry| {
            let manifest = entry.manifest.read_unverified();
            let is_here = manifest.is_ok_and(|manifest| manifest.namespace == namespace);
            is_here && parts.manager.believes_entry(entry)
        });
        let mut entry = visible.as_ref().map(wire::entry);
        if let Some(entry) = &mut entry {
            let used = parts.index.usage(&key).await.map_err(Error::from)?;
            (entry.hits, entry.last_used_unix_ms) = (used.hits, used.last_unix_ms);
        }
        Ok(Response::new(pb::LookupResponse { entry }))
    }

    async fn fetch(&self, request: Request<pb::FetchRequest>) -> Reply<Self::FetchStream> {
        let parts = self.parts()?;
        let (asks, request) = guard::asks(request)?;
        let key = convert::key("key", &request.key).map_err(Error::from)?;
        let namespace = parts.namespace(&request.namespace);
        parts.may(&asks, asks.reads(namespace))?;
        // Before the pack is in memory.
        let size = parts.size(&key, namespace).await?;
        let held = size.map(|size| parts.hold(&asks, size)).transpose()?;
        let answer = match request.look {
            true => parts.manager.view(&key, namespace).await?,
            false => parts.manager.load(&key, namespace).await?,
        };
        // One that this replica had not heard of.
        let held = match held {
            Some(held) => held,
            None => parts.hold(&asks, answer.pack.len() as u64)?,
        };
        let (sender, receiver) = mpsc::channel(STREAM_DEPTH);
        let header = pb::FetchHeader {
            manifest: Some((&*answer.signed).into()),
            tier: answer.origin.unwrap_or_default().into(),
        };
        let sending = async move {
            fetch::send(header, answer.pack, sender, fetch::PATIENCE).await;
            drop(held);
        };
        tokio::spawn(sending.in_current_span());
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn lease(&self, request: Request<pb::LeaseRequest>) -> Reply<Self::LeaseStream> {
        let parts = self.parts()?;
        let (asks, request) = guard::asks(request)?;
        let key = leases::key(&request)?;
        parts.not_anothers(&asks, &key).await?;
        let limit = wire::bound(request.deadline_ms, parts.default_deadline);
        parts.manager.gate().check()?;
        let (sender, receiver) = mpsc::channel(STREAM_DEPTH);
        let client = leases::Client::new(parts.access.clone(), asks);
        let leases = self.leases.clone();
        let serving =
            leases.serve(client, parts.manager.clone(), parts.index.clone(), key, limit, sender);
        tokio::spawn(serving.in_current_span());
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn publish(
        &self,
        request: Request<Streaming<pb::PublishChunk>>,
    ) -> Reply<pb::PublishResponse> {
        Ok(Response::new(publish::receive(self.parts()?, &self.leases, request).await?))
    }

    async fn list(&self, request: Request<pb::ListRequest>) -> Reply<pb::ListResponse> {
        let parts = self.parts()?;
        let (asks, request) = guard::asks(request)?;
        if !request.namespace.is_empty() {
            parts.may(&asks, asks.reads(&request.namespace))?;
        }
        let index = parts.index.clone();
        let listing = list::Listing::new(request, asks.grant)?;
        // A client that leaves ends the search.
        let stop = CancellationToken::new();
        let (_ended, stopped) = (stop.clone().drop_guard(), stop);
        Ok(Response::new(blocking(move || listing.read(&index, &stopped)).await??))
    }

    async fn explain(&self, request: Request<pb::ExplainRequest>) -> Reply<pb::ExplainResponse> {
        let parts = self.parts()?;
        let (asks, request) = guard::asks(request)?;
        Ok(Response::new(explain::answer(parts, asks, request).await?))
    }

    async fn pin(&self, request: Request<pb::PinRequest>) -> Reply<pb::PinResponse> {
        let parts = self.parts()?;
        let (asks, request) = guard::asks(request)?;
        let key = convert::key("key", &request.key).map_err(Error::from)?;
        let namespace = parts.own(&asks, &key).await?;
        match parts.index.set_pinned(&key, request.pinned).await.map_err(Error::from)? {
            true => {
                let what = if request.pinned { "pin" } else { "unpin" };
                parts.did(&asks, what, |event| event.of(key).within(&namespace));
                Ok(Response::new(pb::PinResponse {}))
            }
            false => Err(Error::NotFound(key).into()),
        }
    }

    async fn tombstone(
        &self,
        request: Request<pb::TombstoneRequest>,
    ) -> Reply<pb::TombstoneResponse> {
        let parts = self.parts()?;
        let from = request.extensions().get::<Caller>().and_then(|caller| caller.from);
        let (asks, request) = guard::asks(request)?;
        let key = convert::key("key", &request.key).map_err(Error::from)?;
        let reason = explain::removal(&request.reason, parts.node, from, SystemTime::now())?;
        let namespace = match parts.own(&asks, &key).await {
            // As of a key that there is not.
            Err(Error::NotFound(_)) => {
                return Ok(Response::new(pb::TombstoneResponse { existed: false }));
            }
            own => own?,
        };
        let existed = parts.index.tombstone(&key, reason).await.map_err(Error::from)?;
        if existed {
            parts.did(&asks, "remove", |event| {
                event.of(key).within(&namespace).saying(request.reason)
            });
        }
        Ok(Response::new(pb::TombstoneResponse { existed }))
    }

    async fn loaded(&self, request: Request<pb::LoadedRequest>) -> Reply<pb::LoadedResponse> {
        let pb::LoadedRequest { keys, unused } = request.into_inner();
        let manager = &self.parts()?.manager;
        manager.counters().loaded(keys.len() as u64);
        if unused.len() > MOST_UNUSED {
            let why = format!("at most {MOST_UNUSED} keys are told of as unused in one call");
            return Err(Error::Invalid(why).into());
        }
        for unused in unused {
            let key = convert::key("unused", &unused.key).map_err(Error::from)?;
            let end = unused.moved.floor_char_boundary(256);
            manager.note_unused(&key, &unused.moved[..end]);
        }
        Ok(Response::new(pb::LoadedResponse {}))
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Reply<pb::StatusResponse> {
        let parts = self.opened()?;
        let (asks, request) = guard::asks(request)?;
        let mut status = match request.whole {
            true => status::whole(parts).await,
            false => status::status(parts),
        };
        status.access = Some(tokens::access(parts, &asks.grant));
        Ok(Response::new(status))
    }

    async fn add_node(&self, request: Request<pb::AddNodeRequest>) -> Reply<pb::AddNodeResponse> {
        let parts = self.parts()?;
        let (asks, pb::AddNodeRequest { address }) = guard::asks(request)?;
        let id = parts.cluster.add(&address).await.map_err(Error::from)?;
        parts.did(&asks, "add_node", |event| event.of(id).saying(address));
        Ok(Response::new(pb::AddNodeResponse { id }))
    }

    async fn remove_node(
        &self,
        request: Request<pb::RemoveNodeRequest>,
    ) -> Reply<pb::RemoveNodeResponse> {
        let parts = self.parts()?;
        let (asks, pb::RemoveNodeRequest { id }) = guard::asks(request)?;
        parts.cluster.remove(id).await.map_err(Error::from)?;
        parts.did(&asks, "remove_node", |event| event.of(id));
        Ok(Response::new(pb::RemoveNodeResponse {}))
    }

    async fn leave(&self, request: Request<pb::LeaveRequest>) -> Reply<pb::LeaveResponse> {
        let parts = self.parts()?;
        let (asks, request) = guard::asks(request)?;
        let force = request.force;
        let lost = parts.departure.leave(request.into()).await?;
        parts.did(&asks, "leave_asked", |event| {
            event.of(parts.node).saying(if force { "by force" } else { "" })
        });
        Ok(Response::new(pb::LeaveResponse { lost: lost.map(Into::into) }))
    }

    async fn signers(&self, _: Request<pb::SignersRequest>) -> Reply<pb::SignersResponse> {
        Ok(Response::new(trust::signers(self.parts()?)))
    }

    async fn attest(&self, request: Request<pb::AttestRequest>) -> Reply<pb::AttestResponse> {
        let parts = self.parts()?;
        let (asks, request) = guard::asks(request)?;
        Ok(Response::new(attest::attest(parts, &asks, request).await?))
    }

    async fn root_says(
        &self,
        request: Request<pb::RootSaysRequest>,
    ) -> Reply<pb::RootSaysResponse> {
        let parts = self.parts()?;
        let (asks, request) = guard::asks(request)?;
        let changed = trust::root_says(parts, &asks, request).await?;
        Ok(Response::new(pb::RootSaysResponse { changed }))
    }

    async fn revoke_signer(
        &self,
        request: Request<pb::RevokeSignerRequest>,
    ) -> Reply<pb::RevokeSignerResponse> {
        let parts = self.parts()?;
        let (asks, request) = guard::asks(request)?;
        let removed = trust::revoke(parts, &asks, request).await?;
        Ok(Response::new(pb::RevokeSignerResponse { removed }))
    }

    async fn rotate_signer(
        &self,
        request: Request<pb::RotateSignerRequest>,
    ) -> Reply<pb::RotateSignerResponse> {
        let parts = self.parts()?;
        let (asks, request) = guard::asks(request)?;
        Ok(Response::new(trust::rotate(parts, &asks, request).await?))
    }

    async fn create_token(
        &self,
        request: Request<pb::CreateTokenRequest>,
    ) -> Reply<pb::CreateTokenResponse> {
        let parts = self.parts()?;
        let (asks, request) = guard::asks(request)?;
        let detail = format!("{:?} in {}", request.role(), request.namespaces.join(","));
        let made = tokens::create(parts, &asks.grant, request).await?;
        parts.did(&asks, "create_token", |event| {
            event.of(format_args!("{:016x}", made.id)).saying(detail)
        });
        Ok(Response::new(made))
    }

    async fn revoke_token(
        &self,
        request: Request<pb::RevokeTokenRequest>,
    ) -> Reply<pb::RevokeTokenResponse> {
        let parts = self.parts()?;
        let (asks, request) = guard::asks(request)?;
        let changed = tokens::revoke(parts, &asks.grant, request.id).await?;
        parts.did(&asks, "revoke_token", |event| event.of(format_args!("{:016x}", request.id)));
        Ok(Response::new(pb::RevokeTokenResponse { changed }))
    }

    async fn tokens(&self, _: Request<pb::TokensRequest>) -> Reply<pb::TokensResponse> {
        Ok(Response::new(tokens::list(self.parts()?)))
    }

    async fn audit_head(
        &self,
        request: Request<pb::AuditHeadRequest>,
    ) -> Reply<pb::AuditHeadResponse> {
        let node = request.into_inner().node;
        Ok(Response::new(tokens::audit_head(self.parts()?, node).await?))
    }

    async fn set_joining(
        &self,
        request: Request<pb::SetJoiningRequest>,
    ) -> Reply<pb::SetJoiningResponse> {
        let parts = self.parts()?;
        let (asks, pb::SetJoiningRequest { needs_token }) = guard::asks(request)?;
        let changed = parts.index.need_join_token(needs_token).await.map_err(Error::from)?;
        let said = if needs_token { "needs a token" } else { "needs no token" };
        parts.did(&asks, "set_joining", |event| event.saying(said));
        Ok(Response::new(pb::SetJoiningResponse { changed }))
    }

    async fn set_voters(
        &self,
        request: Request<pb::SetVotersRequest>,
    ) -> Reply<pb::SetVotersResponse> {
        let parts = self.parts()?;
        let (asks, pb::SetVotersRequest { voters }) = guard::asks(request)?;
        let changed = parts.cluster.set_voters(voters).await.map_err(Error::from)?;
        parts.did(&asks, "set_voters", |event| event.of(voters));
        Ok(Response::new(pb::SetVotersResponse { changed }))
    }

    async fn monitor(&self, _: Request<pb::MonitorRequest>) -> Reply<pb::MonitorResponse> {
        let report = self.parts()?.monitor.report();
        Ok(Response::new(monitor::report(&report)))
    }

    async fn undo(&self, request: Request<pb::UndoRequest>) -> Reply<pb::UndoResponse> {
        let parts = self.parts()?;
        let (asks, pb::UndoRequest { decision }) = guard::asks(request)?;
        let told = parts.monitor.undo(decision).await;
        let done = told.map_err(Status::failed_precondition)?;
        parts.did(&asks, "undo", |event| event.of(decision));
        Ok(Response::new(pb::UndoResponse { done }))
    }

    async fn emergency(
        &self,
        request: Request<pb::EmergencyRequest>,
    ) -> Reply<pb::EmergencyResponse> {
        let parts = self.parts()?;
        let (asks, request) = guard::asks(request)?;
        let (turn, reason) = (request.turn(), request.reason.clone());
        monitor::turn(&parts.monitor, request).await?;
        if turn != pb::EmergencyTurn::Unspecified {
            parts.did(&asks, "emergency", |event| event.of(turn.as_str_name()).saying(reason));
        }
        let mode = parts.monitor.emergency().mode();
        Ok(Response::new(pb::EmergencyResponse { mode: Some((&mode).into()) }))
    }

    async fn restore(&self, request: Request<pb::RestoreRequest>) -> Reply<pb::RestoreResponse> {
        let parts = self.parts()?;
        let (asks, request) = guard::asks(request)?;
        let told = restore::restore(&parts.manager, &parts.index, request).await?;
        parts.did(&asks, "restore", |event| event.saying(format!("{} entries", told.restored)));
        Ok(Response::new(told))
    }

    async fn plan(&self, request: Request<pb::PlanRequest>) -> Reply<Self::PlanStream> {
        let parts = self.parts()?;
        let (asks, request) = guard::asks(request)?;
        parts.may(&asks, asks.reads(parts.namespace(&request.namespace)))?;
        let change = plan::Change::read(&request, parts.namespace(&request.namespace))?;
        let planner = plan::Planner {
            index: parts.index.clone(),
            manager: parts.manager.clone(),
            cluster: parts.cluster.clone(),
        };
        let (sender, receiver) = mpsc::channel(STREAM_DEPTH);
        tokio::spawn(plan::serve(planner, change, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn recompile(
        &self,
        request: Request<pb::RecompileRequest>,
    ) -> Reply<Self::RecompileStream> {
        let parts = self.parts()?;
        let (asks, request) = guard::asks(request)?;
        parts.may(&asks, asks.writes(parts.namespace(&request.namespace)))?;
        let key = convert::key("key", &request.key).map_err(Error::from)?;
        let deadline = Instant::now() + wire::bound(request.deadline_ms, parts.default_deadline);
        let namespace = parts.namespace(&request.namespace);
        let kept = parts.manager.kept_request(&key, namespace, deadline).await?;
        let (sender, receiver) = mpsc::channel(STREAM_DEPTH);
        let begun = parts.compiles(&asks, "recompile", namespace);
        let manager = parts.manager.clone();
        let compiling = compile::compile(manager, parts.node, vec![kept], sender, begun);
        tokio::spawn(compiling.in_current_span());
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn recheck(&self, request: Request<pb::RecheckRequest>) -> Reply<pb::RecheckResponse> {
        let parts = self.parts()?;
        let (asks, request) = guard::asks(request)?;
        Ok(Response::new(recheck::recheck(parts, &asks, request).await?))
    }

    async fn metrics(&self, request: Request<pb::MetricsRequest>) -> Reply<pb::MetricsResponse> {
        let cluster = request.into_inner().cluster;
        Ok(Response::new(gather::gather(self.parts()?, cluster).await))
    }

    async fn overview(&self, request: Request<pb::OverviewRequest>) -> Reply<pb::OverviewResponse> {
        let parts = self.opened()?;
        Ok(Response::new(overview::overview(&parts.dashboard, &request.into_inner()).await?))
    }
}
