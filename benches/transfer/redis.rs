//! A real `redis-server`, and the fastest client that a socket allows.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};

use crate::table::Sample;
use kiln::cache::{Blob, BlobWriter};

/// A running server without persistence; it is killed when this is dropped.
pub(crate) struct Redis {
    process: Child,
    port: u16,
    socket: PathBuf,
}

impl Redis {
    pub(crate) fn start(dir: &Path) -> Result<Self> {
        // Redis cannot pick a free port itself: let the system pick one.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let socket = dir.join("redis.sock");
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""]);
        command.args(["--appendonly", "no", "--dir"]).arg(dir).arg("--unixsocket").arg(&socket);
        let process = command.stdout(Stdio::piped()).spawn();
        let process =
            process.context("start redis-server (Debian: apt-get install redis-server)")?;
        let mut redis = Self { process, port, socket };
        let log = BufReader::new(redis.process.stdout.take().context("the log of redis-server")?);
        let mut lines = log.lines();
        for line in &mut lines {
            if line?.contains("Ready to accept connections") {
                return Ok(redis);
            }
        }
        bail!("redis-server ended before it was ready")
    }

    pub(crate) fn tcp(&self) -> Result<Client<TcpStream>> {
        let stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_nodelay(true)?;
        Ok(Client { stream, buffer: Vec::new() })
    }

    pub(crate) fn unix(&self) -> Result<Client<UnixStream>> {
        Ok(Client { stream: UnixStream::connect(&self.socket)?, buffer: Vec::new() })
    }

    pub(crate) fn set(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let head = format!("*3\r\n$3\r\nSET\r\n${}\r\n{name}\r\n", name.len());
        let size = format!("${}\r\n", bytes.len());
        let command = [head.as_bytes(), size.as_bytes(), bytes, b"\r\n"].concat();
        self.tcp()?.command(&command, b"+OK\r\n")
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if let Err(error) = self.process.kill().and_then(|()| self.process.wait().map(|_| ())) {
            eprintln!("end redis-server: {error}");
        }
    }
}

/// One connection and the buffer into which it reads, again and again.
pub(crate) struct Client<S> {
    stream: S,
    buffer: Vec<u8>,
}

impl<S: Read + Write> Client<S> {
    fn command(&mut self, command: &[u8], answer: &[u8]) -> Result<()> {
        self.stream.write_all(command)?;
        let mut got = vec![0; answer.len()];
        self.stream.read_exact(&mut got)?;
        ensure!(got == answer, "redis answers {:?}", String::from_utf8_lossy(&got));
        Ok(())
    }

    /// GETs `name`, which holds the bytes of `blob`, `count` times; each answer
    /// is verified and sealed, as a node would have to, if `keep` is set.
    pub(crate) fn sample(
        &mut self,
        name: &str,
        blob: &Blob,
        count: usize,
        keep: bool,
    ) -> Result<Sample> {
        let command = format!("*2\r\n$3\r\nGET\r\n${}\r\n{name}\r\n", name.len());
        let head = format!("${}\r\n", blob.len());
        let body = head.len()..head.len() + blob.len();
        self.buffer.resize(body.end + 2, 0);
        let (mut sample, all) = (Sample::default(), Instant::now());
        for _ in 0..count {
            let start = Instant::now();
            self.stream.write_all(command.as_bytes())?;
            self.stream.read_exact(&mut self.buffer)?;
            let kept = keep.then(|| {
                let mut writer = BlobWriter::with_size(blob.size())?;
                writer.write(&self.buffer[body.clone()])?;
                writer.finish_as(blob.digest())
            });
            let kept = kept.transpose()?;
            sample.count(start, blob.len());
            drop(kept);
        }
        let sample = sample.since(all);
        ensure!(self.buffer.starts_with(head.as_bytes()), "redis answers something else");
        ensure!(self.buffer[body] == **blob, "redis gives other bytes than it was given");
        Ok(sample)
    }
}
