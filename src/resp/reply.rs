//! What clients are told, in either version of the protocol.
//!
//! Invariant: nothing but the bytes of a value is copied into a buffer of
//! replies; a client of RESP2 never sees a type of RESP3.

use bytes::{Bytes, BytesMut};
use redis_protocol::{resp2, resp3};

use crate::cache::Blob;

/// The version that a client asked for with HELLO.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Version {
    /// What a connection begins with.
    #[default]
    Two,
    /// With maps and a null of its own.
    Three,
}

/// One reply.
#[derive(Debug, Clone)]
pub(super) enum Reply {
    Simple(&'static str),
    Error(String),
    Integer(i64),
    Bulk(Bytes),
    Null,
    Array(Vec<Reply>),
    /// In RESP2 a flat array.
    Map(Vec<(Reply, Reply)>),
    /// The bytes of a value: written from where they are.
    Value(Blob),
}

impl Reply {
    pub(super) const OK: Self = Self::Simple("OK");

    /// A text of this node's own.
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Bulk(Bytes::from(text.into()))
    }

    pub(super) fn error(text: impl Into<String>) -> Self {
        Self::Error(text.into())
    }

    /// A command had too many words or too few.
    pub(super) fn wrong_arguments(command: &str) -> Self {
        Self::error(format!("ERR wrong number of arguments for '{command}' command"))
    }

    /// 1 or 0, as Redis answers yes or no.
    pub(super) fn flag(yes: bool) -> Self {
        Self::Integer(yes.into())
    }

    /// Appends everything but values to `buffer`.
    pub(super) fn encode(self, version: Version, buffer: &mut BytesMut) {
        let encoded = match version {
            Version::Two => resp2::encode::extend_encode(buffer, &self.into_resp2(), false),
            Version::Three => {
                resp3::encode::complete::extend_encode(buffer, &self.into_resp3(), false)
            }
        };
        // The buffer was made long enough for the frame.
        debug_assert!(encoded.is_ok(), "{encoded:?}");
    }

    fn into_resp2(self) -> resp2::types::BytesFrame {
        use resp2::types::BytesFrame as Frame;
        let list = |replies: Vec<Self>| replies.into_iter().map(Self::into_resp2).collect();
        match self {
            Self::Simple(text) => Frame::SimpleString(Bytes::from_static(text.as_bytes())),
            Self::Error(text) => Frame::Error(text.into()),
            Self::Integer(n) => Frame::Integer(n),
            Self::Bulk(bytes) => Frame::BulkString(bytes),
            Self::Null => Frame::Null,
            Self::Array(replies) => Frame::Array(list(replies)),
            Self::Map(pairs) => {
                Frame::Array(list(pairs.into_iter().flat_map(<[_; 2]>::from).collect()))
            }
            Self::Value(blob) => Frame::BulkString(Bytes::from_owner(blob)),
        }
    }

    fn into_resp3(self) -> resp3::types::BytesFrame {
        use resp3::types::BytesFrame as Frame;
        let attributes = None;
        match self {
            Self::Simple(text) => {
                Frame::SimpleString { data: Bytes::from_static(text.as_bytes()), attributes }
            }
            Self::Error(text) => Frame::SimpleError { data: text.into(), attributes },
            Self::Integer(data) => Frame::Number { data, attributes },
            Self::Bulk(data) => Frame::BlobString { data, attributes },
            Self::Null => Frame::Null,
            Self::Array(replies) => {
                let data = replies.into_iter().map(Self::into_resp3).collect();
                Frame::Array { data, attributes }
            }
            Self::Map(pairs) => {
                let pairs = pairs.into_iter().map(|(k, v)| (k.into_resp3(), v.into_resp3()));
                Frame::Map { data: pairs.collect(), attributes }
            }
            Self::Value(blob) => Frame::BlobString { data: Bytes::from_owner(blob), attributes },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(reply: Reply, version: Version) -> String {
        let mut buffer = BytesMut::from(&b"before "[..]);
        reply.encode(version, &mut buffer);
        String::from_utf8(buffer[7..].to_vec()).unwrap()
    }

    #[test]
    fn each_version_has_its_own_null_and_map() {
        use Version::{Three, Two};
        assert_eq!(encoded(Reply::Null, Two), "$-1\r\n");
        assert_eq!(encoded(Reply::Null, Three), "_\r\n");
        let map = Reply::Map(vec![(Reply::text("proto"), Reply::Integer(3))]);
        assert_eq!(encoded(map.clone(), Two), "*2\r\n$5\r\nproto\r\n:3\r\n");
        assert_eq!(encoded(map, Three), "%1\r\n$5\r\nproto\r\n:3\r\n");
    }

    #[test]
    fn the_plain_replies_are_the_same_in_both() {
        for version in [Version::Two, Version::Three] {
            assert_eq!(encoded(Reply::OK, version), "+OK\r\n");
            assert_eq!(encoded(Reply::error("ERR no"), version), "-ERR no\r\n");
            assert_eq!(encoded(Reply::flag(true), version), ":1\r\n");
            assert_eq!(encoded(Reply::text(""), version), "$0\r\n\r\n");
            let list = Reply::Array(vec![Reply::Integer(-2), Reply::Array(Vec::new())]);
            assert_eq!(encoded(list, version), "*2\r\n:-2\r\n*0\r\n");
        }
    }
}
