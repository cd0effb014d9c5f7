//! Calls about tokens, of clients and of nodes that join, and about audit logs.
//!
//! Invariant: a secret is in the answer of the call that made it, and nowhere else; nobody
//! makes a token that may do more than itself.

use kiln_cluster::{
    admission::{JoinToken, NewJoinToken},
    tokens::{LONGEST_NAME, NewToken, Role, TokenEnd, TokenInfo},
};
use kiln_proto::pb;

use super::parts::Parts;
use crate::{
    access::{Grant, Secret},
    error::Error,
};

/// Makes a token.
pub(super) async fn create(
    parts: &Parts,
    grant: &Grant,
    request: pb::CreateTokenRequest,
) -> Result<pb::CreateTokenResponse, Error> {
    let (id, secret) = Secret::mint().map_err(|e| Error::Storage(e.to_string()))?;
    let lifetime_ms = Some(request.lifetime_ms).filter(|lifetime| *lifetime != 0);
    if request.role() == pb::AccessRole::Join {
        if !request.namespaces.is_empty() {
            return Err(Error::Invalid("a join token opens no namespace: name none".into()));
        }
        let (digest, uses) = (secret.digest(), request.uses.unwrap_or(1));
        let name = request.name;
        let token = NewJoinToken { id, digest, name, uses, lifetime_ms, by: by(grant) };
        token.check().map_err(Error::Invalid)?;
        parts.index.issue_join_token(token).await?;
        tracing::info!(token = format!("{id:016x}"), by = %grant.who(), "a join token was made");
        return Ok(pb::CreateTokenResponse { id, token: secret.token(id) });
    }
    let role = role(request.role())
        .ok_or_else(|| Error::Invalid("a token has a role: read, write, admin or join".into()))?;
    if request.uses.is_some() {
        return Err(Error::Invalid("only a join token has a number of uses".into()));
    }
    let token = NewToken {
        id,
        digest: secret.digest(),
        name: request.name,
        role,
        namespaces: request.namespaces,
        lifetime_ms,
        by: by(grant),
    };
    token.check().map_err(Error::Invalid)?;
    if role == Role::Admin && token.namespaces != ["*"] {
        let why = "an admin's calls are about all of the cluster: its namespaces are \"*\"";
        return Err(Error::Invalid(why.into()));
    }
    parts.index.issue_token(token).await?;
    tracing::info!(token = format!("{id:016x}"), %role, by = %grant.who(), "a token was made");
    Ok(pb::CreateTokenResponse { id, token: secret.token(id) })
}

/// Ends a token; false where it was revoked before.
pub(super) async fn revoke(parts: &Parts, grant: &Grant, id: u64) -> Result<bool, Error> {
    let by = by(grant);
    tracing::warn!(token = format!("{id:016x}"), by, "a token is revoked");
    Ok(parts.index.revoke_token(id, by).await?)
}

/// Who asks, as long as the index keeps it: a name may be as long by itself.
fn by(grant: &Grant) -> String {
    let mut by = grant.who().to_string();
    by.truncate(by.floor_char_boundary(LONGEST_NAME));
    by
}

/// All tokens, without what would open anything.
pub(super) fn list(parts: &Parts) -> pb::TokensResponse {
    let tokens = parts.index.tokens();
    let admissions = parts.index.admissions();
    let of_clients = tokens.iter().map(|(id, token)| status(*id, token));
    let of_candidates = admissions.tokens.iter().map(|(id, token)| join_status(*id, token));
    let mut tokens: Vec<_> = of_clients.chain(of_candidates).collect();
    tokens.sort_by_key(|token| token.id);
    pb::TokensResponse { tokens }
}

fn join_status(id: u64, token: &JoinToken) -> pb::TokenStatus {
    pb::TokenStatus {
        id,
        name: token.name.clone(),
        role: pb::AccessRole::Join.into(),
        namespaces: Vec::new(),
        by: token.by.clone(),
        node: token.node,
        at_unix_ms: token.at_unix_ms,
        expires_unix_ms: token.expires_unix_ms.unwrap_or_default(),
        revoked: token.revoked.as_ref().map(end),
        uses: token.uses,
        used: token.used,
    }
}

fn end(TokenEnd { by, node, at_unix_ms }: &TokenEnd) -> pb::TokenEnd {
    pb::TokenEnd { by: by.clone(), node: *node, at_unix_ms: *at_unix_ms }
}

fn status(id: u64, token: &TokenInfo) -> pb::TokenStatus {
    pb::TokenStatus {
        id,
        name: token.name.clone(),
        role: wire(token.role).into(),
        namespaces: token.namespaces.clone(),
        by: token.by.clone(),
        node: token.node,
        at_unix_ms: token.at_unix_ms,
        expires_unix_ms: token.expires_unix_ms.unwrap_or_default(),
        revoked: token.revoked.as_ref().map(end),
        uses: 0,
        used: 0,
    }
}

/// What is asked of callers here, and what this one is.
pub(super) fn access(parts: &Parts, grant: &Grant) -> pb::AccessStatus {
    pb::AccessStatus {
        required: parts.access.is_required(),
        caller: grant.who().to_string(),
        role: wire(grant.role()).into(),
        namespaces: grant.namespaces().to_vec(),
        join_needs_token: parts.index.admissions().needs_token == Some(true),
    }
}

/// How far the audit log of `node` has come, as the cluster knows it.
pub(super) async fn audit_head(parts: &Parts, node: u64) -> Result<pb::AuditHeadResponse, Error> {
    let node = if node == 0 { parts.node } else { node };
    let head = parts.index.audit_head(node).await?;
    Ok(match head {
        None => pb::AuditHeadResponse { node, ..Default::default() },
        Some(head) => pb::AuditHeadResponse {
            node,
            sequence: head.sequence,
            digest: head.digest.to_vec().into(),
            at_unix_ms: head.at_unix_ms,
        },
    })
}

fn role(wire: pb::AccessRole) -> Option<Role> {
    match wire {
        pb::AccessRole::Unspecified | pb::AccessRole::Join => None,
        pb::AccessRole::Read => Some(Role::Read),
        pb::AccessRole::Write => Some(Role::Write),
        pb::AccessRole::Admin => Some(Role::Admin),
    }
}

fn wire(role: Role) -> pb::AccessRole {
    match role {
        Role::Read => pb::AccessRole::Read,
        Role::Write => pb::AccessRole::Write,
        Role::Admin => pb::AccessRole::Admin,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Identity;

    #[test]
    fn an_admin_with_the_longest_name_makes_tokens() {
        let name = "ü".repeat(LONGEST_NAME / 2).as_str().into();
        let admin = Grant::all(Identity::Token { id: 7, name }, Vec::new().into());
        let (digest, namespaces) = ([0; 32], vec!["*".to_owned()]);
        let (name, role, lifetime_ms) = (String::new(), Role::Read, None);
        let token = NewToken { id: 1, digest, name, role, namespaces, lifetime_ms, by: by(&admin) };
        assert_eq!(token.check(), Ok(()));
        assert!(token.by.starts_with("token 0000000000000007"));
    }
}
