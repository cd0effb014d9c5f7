//! A real S3 server behind a proxy.
//!
//! Invariant: the server's process and folder end with this value.

use crate::{
    payload::Chance,
    proxy::Proxy,
    seaweed::{ACCESS_KEY_ID, BUCKET, SECRET_ACCESS_KEY, Seaweed},
};

pub(crate) struct Store {
    pub(crate) proxy: Proxy,
    _server: Seaweed,
}

impl Store {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let server = Seaweed::start().await;
        let endpoint = server.endpoint();
        let to = endpoint.trim_start_matches("http://").parse()?;
        let proxy = Proxy::start("127.0.0.1:0".parse()?, to, Chance::new(1)).await?;
        Ok(Self { proxy, _server: server })
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.proxy.address)
    }

    pub(crate) fn url() -> String {
        format!("s3://{BUCKET}/faults")
    }

    pub(crate) fn environment() -> Vec<(String, String)> {
        let of = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        vec![of("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID), of("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY)]
    }
}
