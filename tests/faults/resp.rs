//! A Redis client that takes every failure as an answer.
//!
//! Invariant: after a failure the connection is made anew: an answer is never taken for
//! that of another request.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufStream},
    net::TcpStream,
};

/// Of Redis clients.
pub(crate) const PASSWORD: &str = "faults";

#[derive(Default)]
pub(crate) struct Resp(Option<BufStream<TcpStream>>);

impl Resp {
    /// OK, or why not.
    pub(crate) async fn set(
        &mut self,
        at: SocketAddr,
        key: &str,
        value: &[u8],
    ) -> Result<(), String> {
        self.ask(at, &[b"SET", key.as_bytes(), value]).await.map(drop)
    }

    pub(crate) async fn get(
        &mut self,
        at: SocketAddr,
        key: &str,
    ) -> Result<Option<Vec<u8>>, String> {
        self.ask(at, &[b"GET", key.as_bytes()]).await
    }

    async fn ask(&mut self, at: SocketAddr, words: &[&[u8]]) -> Result<Option<Vec<u8>>, String> {
        // Only a whole answer keeps the connection, also where this future is dropped.
        let stream = match self.0.take() {
            Some(stream) => Ok(stream),
            None => connect(at).await,
        };
        let mut stream = stream.map_err(|e| format!("connect: {e}"))?;
        let answer = exchange(&mut stream, words).await.map_err(|e| e.to_string())?;
        self.0 = Some(stream);
        answer
    }
}

/// A connection of the tenant of every call.
async fn connect(at: SocketAddr) -> std::io::Result<BufStream<TcpStream>> {
    let mut stream = BufStream::new(TcpStream::connect(at).await?);
    let answer = exchange(&mut stream, &[b"AUTH", b"default", PASSWORD.as_bytes()]).await?;
    answer.map(|_| stream).map_err(std::io::Error::other)
}

async fn exchange(
    stream: &mut BufStream<TcpStream>,
    words: &[&[u8]],
) -> std::io::Result<Result<Option<Vec<u8>>, String>> {
    stream.write_all(format!("*{}\r\n", words.len()).as_bytes()).await?;
    for word in words {
        stream.write_all(format!("${}\r\n", word.len()).as_bytes()).await?;
        stream.write_all(word).await?;
        stream.write_all(b"\r\n").await?;
    }
    stream.flush().await?;
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await?);
    }
    let text = String::from_utf8_lossy(&line[1..line.len() - 2]).into_owned();
    match (line[0], text.parse::<i64>()) {
        (b'$', Ok(-1)) | (b'+', _) => Ok(Ok(None)),
        (b'$', Ok(length)) => {
            let mut value = vec![0; length as usize + 2];
            stream.read_exact(&mut value).await?;
            value.truncate(length as usize);
            Ok(Ok(Some(value)))
        }
        _ => Ok(Err(text)),
    }
}
