//! A server of values behind Redis's protocol, as a process: a node, or another one.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

/// Clock ticks a second in `/proc/PID/stat` on Linux.
const TICKS: f64 = 100.0;
/// Of the value that all GETs are for.
pub(crate) const GET: &[u8] = b"*2\r\n$3\r\nGET\r\n$5\r\nvalue\r\n";

pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) process: Child,
    pub(crate) address: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.process.id() as i32).unwrap();
        let _ = kill_process(pid, Signal::TERM);
        let _ = self.process.wait();
    }
}

impl Server {
    /// A node of one, with `more` arguments.
    pub(crate) fn kiln(name: &'static str, program: &str, data: &Path, more: &[String]) -> Self {
        let mut command = Command::new(program);
        command.args(["serve", "--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]);
        command.args(["--transfer-listen", "127.0.0.1:0", "--resp-listen", "127.0.0.1:0"]);
        command.arg("--data-dir").arg(data).args(more);
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
        let address = ready["resp"].as_str().unwrap().parse().unwrap();
        Self { name, process, address }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// Time that the process had on any core, in user and kernel mode.
    pub(crate) fn core_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        // Behind the name, which may hold anything: 11 fields on, utime and stime.
        let fields = stat.rsplit_once(')').unwrap().1;
        let ticks = fields.split_whitespace().skip(11).take(2);
        ticks.map(|field| field.parse::<f64>().unwrap()).sum::<f64>() / TICKS
    }

    /// Stores the value that [`GET`] asks for.
    pub(crate) fn set(&self, value: &[u8]) {
        let head = format!("*3\r\n$3\r\nSET\r\n$5\r\nvalue\r\n${}\r\n", value.len());
        let mut stream = self.connect();
        stream.write_all(&[head.as_bytes(), value, b"\r\n"].concat()).unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"+OK\r\n", "{}", self.name);
    }
}
