//! Attestations of artifacts, signed by this node.
//!
//! Invariant: what is attested was read, verified and believed here, as for any client.

use kiln_proto::{convert, pb};

use super::{guard::Asks, parts::Parts};
use crate::error::Error;

/// Attests the artifact of a key.
pub(super) async fn attest(
    parts: &Parts,
    asks: &Asks,
    request: pb::AttestRequest,
) -> Result<pb::AttestResponse, Error> {
    let key = convert::key("key", &request.key)?;
    let namespace = parts.namespace(&request.namespace);
    parts.may(asks, asks.reads(namespace))?;
    let envelope = parts.manager.attest(&key, namespace).await?;
    parts.did(asks, "attest", |event| event.of(key).within(namespace));
    Ok(pb::AttestResponse { envelope })
}
