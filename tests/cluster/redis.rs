//! A Redis client: raw bytes out, frames of another codec in.

use std::time::Duration;

use bytes::BytesMut;
use redis_protocol::{
    resp2::{self, types::OwnedFrame as OldFrame},
    resp3::{decode::complete, types::OwnedFrame},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use crate::harness::{SOON, TestNode};

/// One connection.
pub(crate) struct Redis<S = TcpStream> {
    stream: S,
    buffer: BytesMut,
    /// After HELLO 3.
    new: bool,
}

impl Redis {
    pub(crate) async fn connect(node: &TestNode) -> Self {
        let address = node.config.resp_listen.unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        Self { stream, buffer: BytesMut::new(), new: false }
    }

    /// Speaks RESP3, as newer clients do.
    pub(crate) async fn connect3(node: &TestNode) -> Self {
        let mut redis = Self::connect(node).await;
        redis.hello(&["HELLO", "3"]).await;
        redis
    }
}

impl Redis<UnixStream> {
    pub(crate) async fn connect_unix(node: &TestNode) -> Self {
        let path = node.config.resp_socket.as_ref().unwrap();
        let stream = UnixStream::connect(path).await.unwrap();
        Self { stream, buffer: BytesMut::new(), new: false }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Redis<S> {
    /// Sends bytes as they are.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// HELLO 3 with whatever follows.
    pub(crate) async fn hello(&mut self, words: &[&str]) {
        self.new = true;
        let hello = self.command(words).await;
        assert!(matches!(hello, OwnedFrame::Map { .. }), "{hello:?}");
    }

    fn decode(&self) -> Option<(OwnedFrame, usize)> {
        match self.new {
            true => complete::decode(&self.buffer).unwrap(),
            false => {
                let (frame, used) = resp2::decode::decode(&self.buffer).unwrap()?;
                Some((renewed(frame), used))
            }
        }
    }

    /// The next reply; `None`: the connection was closed.
    pub(crate) async fn try_reply(&mut self) -> Option<OwnedFrame> {
        loop {
            if let Some((frame, used)) = self.decode() {
                let _ = self.buffer.split_to(used);
                return Some(frame);
            }
            self.buffer.reserve(1 << 20);
            let read = timeout(SOON, self.stream.read_buf(&mut self.buffer)).await;
            if read.expect("a reply in time").unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    pub(crate) async fn reply(&mut self) -> OwnedFrame {
        self.try_reply().await.expect("a reply")
    }

    /// Whether no reply comes within `time`.
    pub(crate) async fn is_silent_for(&mut self, time: Duration) -> bool {
        timeout(time, self.stream.read_buf(&mut self.buffer)).await.is_err()
    }

    /// The next bytes, as they are.
    pub(crate) async fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count {
            let read = timeout(SOON, self.stream.read_buf(&mut self.buffer)).await;
            assert_ne!(read.expect("bytes in time").unwrap(), 0, "closed");
        }
        self.buffer.split_to(count).to_vec()
    }

    pub(crate) async fn command<W: AsRef<[u8]>>(
        &mut self,
        words: impl IntoIterator<Item = W>,
    ) -> OwnedFrame {
        self.send(&request(words)).await;
        self.reply().await
    }

    /// The value of `key`.
    pub(crate) async fn get(&mut self, key: &str) -> Option<Vec<u8>> {
        value(self.command(["GET", key]).await)
    }

    pub(crate) async fn set(&mut self, key: &str, value: impl AsRef<[u8]>) {
        let answer = self.command([b"SET", key.as_bytes(), value.as_ref()]).await;
        assert_eq!(text(answer), "OK", "SET {key}");
    }
}

fn renewed(frame: OldFrame) -> OwnedFrame {
    let attributes = None;
    match frame {
        OldFrame::SimpleString(data) => OwnedFrame::SimpleString { data, attributes },
        OldFrame::Error(data) => OwnedFrame::SimpleError { data, attributes },
        OldFrame::Integer(data) => OwnedFrame::Number { data, attributes },
        OldFrame::BulkString(data) => OwnedFrame::BlobString { data, attributes },
        OldFrame::Array(frames) => {
            OwnedFrame::Array { data: frames.into_iter().map(renewed).collect(), attributes }
        }
        OldFrame::Null => OwnedFrame::Null,
    }
}

/// A request on the wire.
pub(crate) fn request<W: AsRef<[u8]>>(words: impl IntoIterator<Item = W>) -> Vec<u8> {
    let (mut count, mut body) = (0, Vec::new());
    for word in words {
        let word = word.as_ref();
        body.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        body.extend_from_slice(word);
        body.extend_from_slice(b"\r\n");
        count += 1;
    }
    [format!("*{count}\r\n").as_bytes(), &body].concat()
}

/// What a GET answered.
pub(crate) fn value(frame: OwnedFrame) -> Option<Vec<u8>> {
    match frame {
        OwnedFrame::Null => None,
        OwnedFrame::BlobString { data, .. } => Some(data),
        other => panic!("no value: {other:?}"),
    }
}

/// A status or an error as text.
pub(crate) fn text(frame: OwnedFrame) -> String {
    match frame {
        OwnedFrame::SimpleString { data, .. } => String::from_utf8(data).unwrap(),
        OwnedFrame::SimpleError { data, .. } => data,
        OwnedFrame::BlobString { data, .. } => String::from_utf8(data).unwrap(),
        other => panic!("no text: {other:?}"),
    }
}

pub(crate) fn integer(frame: OwnedFrame) -> i64 {
    match frame {
        OwnedFrame::Number { data, .. } => data,
        other => panic!("no number: {other:?}"),
    }
}

pub(crate) fn array(frame: OwnedFrame) -> Vec<OwnedFrame> {
    match frame {
        OwnedFrame::Array { data, .. } => data,
        other => panic!("no array: {other:?}"),
    }
}
