//! A TCP proxy that delays, loses and refuses, and answers 503 for an HTTP server.
//!
//! Invariant: bytes that arrive are in order and unchanged; what is lost arrives late,
//! as TCP has it, or not at all, with its connection.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::sleep,
};

use crate::payload::Chance;

/// What becomes of bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Weather {
    #[default]
    Fair,
    /// Each chunk comes so much later.
    Delay(Duration),
    /// So many chunks in a hundred are sent again, and one in ten of these never arrives.
    Loss(usize),
    /// Nobody answers the door.
    Away,
    /// Every request gets this HTTP status.
    Status(u16),
}

pub(crate) struct Proxy {
    sky: Sky,
    task: JoinHandle<()>,
    pub(crate) address: SocketAddr,
}

impl Proxy {
    /// From `listen` to `to`.
    pub(crate) async fn start(
        listen: SocketAddr,
        to: SocketAddr,
        chance: Chance,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let above = Sky::default();
        let sky = above.clone();
        let task = tokio::spawn(async move {
            let mut n = 0;
            while let Ok((stream, _)) = listener.accept().await {
                n += 1;
                let chance = chance.part(n);
                tokio::spawn(carry(stream, to, sky.clone(), chance));
            }
        });
        Ok(Self { sky: above, task, address })
    }

    /// The weather from now on; how often the last one did something.
    pub(crate) fn set(&self, weather: Weather) -> usize {
        *self.sky.weather.lock() = weather;
        self.sky.touched.swap(0, Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What all connections are under.
#[derive(Clone, Default)]
struct Sky {
    weather: Arc<Mutex<Weather>>,
    touched: Arc<AtomicUsize>,
}

impl Sky {
    fn now(&self) -> Weather {
        let weather = *self.weather.lock();
        if weather != Weather::Fair {
            self.touched.fetch_add(1, Relaxed);
        }
        weather
    }
}

async fn carry(mut here: TcpStream, to: SocketAddr, sky: Sky, chance: Chance) {
    match sky.now() {
        Weather::Away => return,
        Weather::Status(status) => return refuse(&mut here, status).await,
        Weather::Fair | Weather::Delay(_) | Weather::Loss(_) => {}
    }
    let Ok(mut there) = TcpStream::connect(to).await else { return };
    let _ = (here.set_nodelay(true), there.set_nodelay(true));
    let (here_reads, here_writes) = here.split();
    let (there_reads, there_writes) = there.split();
    // Whichever way ends, the connection does.
    tokio::select! {
        () = pass(here_reads, there_writes, &sky, chance.part(1)) => {}
        () = pass(there_reads, here_writes, &sky, chance.part(2)) => {}
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    sky: &Sky,
    mut chance: Chance,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else { return };
        match sky.now() {
            Weather::Fair => {}
            Weather::Delay(time) => sleep(time).await,
            Weather::Loss(percent) if chance.percent(percent) => {
                if chance.percent(10) {
                    return;
                }
                sleep(Duration::from_millis(200 << chance.below(3))).await;
            }
            Weather::Loss(_) => {}
            Weather::Away | Weather::Status(_) => return,
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

async fn refuse(stream: &mut TcpStream, status: u16) {
    let mut asked = vec![0; 16 << 10];
    // What was asked for does not matter.
    let _ = stream.read(&mut asked).await;
    let answer =
        format!("HTTP/1.1 {status} Slow Down\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}
