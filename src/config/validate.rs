//! What must hold between the values of a configuration.
//!
//! Invariant: all problems are told at once, each with what to do about it.

use std::{net::SocketAddr, path::Path};

use kiln_proto::{MAX_PACK_BYTES, NAMESPACE_RULE, is_namespace};

use super::{Config, ConfigError, Copies, MIB};

/// A unix socket's address has 108 bytes, the last of them zero.
const LONGEST_SOCKET_PATH: usize = 107;

impl Config {
    /// Refuses what cannot work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mut wrong = Vec::new();
        self.check_addresses(&mut wrong);
        self.check_start(&mut wrong);
        self.check_timings(&mut wrong);
        self.check_limits(&mut wrong);
        self.check_object(&mut wrong);
        self.check_resp(&mut wrong);
        self.check_tls(&mut wrong);
        self.check_access(&mut wrong);
        self.check_audit(&mut wrong);
        self.check_trust(&mut wrong);
        self.trace.check(&mut wrong);
        self.check_monitor(&mut wrong);
        wrong.extend(self.log.filter().err());
        if wrong.is_empty() { Ok(()) } else { Err(ConfigError::Invalid(wrong)) }
    }

    fn check_addresses(&self, wrong: &mut Vec<String>) {
        let mut listeners = vec![
            ("grpc_listen", self.grpc_listen),
            ("http_listen", self.http_listen),
            ("transfer_listen", self.transfer_listen),
        ];
        listeners.extend(self.resp_listen.map(|address| ("resp_listen", address)));
        for (at, (name, address)) in listeners.iter().enumerate() {
            let same = |other: &&(&str, SocketAddr)| address.port() != 0 && other.1 == *address;
            if let Some((other, _)) = listeners[at + 1..].iter().find(same) {
                wrong
                    .push(format!("{name} and {other} are both {address}: give each its own port"));
            }
        }
        let reached_by_peers = [self.grpc_listen, self.transfer_listen];
        if self.advertise.is_none() && reached_by_peers.iter().any(|a| a.ip().is_unspecified()) {
            wrong.push(
                "a listen address is a wildcard: set `advertise` to the host under which other \
                 nodes reach this one"
                    .into(),
            );
        }
        if self.advertise.as_deref().is_some_and(|host| host.is_empty() || host.contains('/')) {
            wrong.push("advertise is a host name or an IP address, without scheme or path".into());
        }
        for (name, path) in [("socket", &self.socket_path()), ("resp_socket", &self.resp_socket)] {
            let length = path.as_ref().map_or(0, |path| path.as_os_str().len());
            if length > LONGEST_SOCKET_PATH {
                wrong.push(format!(
                    "{name}: {length} bytes are too long for a unix socket's path; use one of at \
                     most {LONGEST_SOCKET_PATH}"
                ));
            }
        }
        if self.socket_permissions().is_none() {
            wrong.push(format!(
                "socket_mode is {:?}: write octal digits, \"0600\" or \"0666\"",
                self.socket_mode
            ));
        }
        if self.resp_socket.is_some() && self.socket_path() == self.resp_socket {
            wrong.push("socket and resp_socket are the same: give each its own path".into());
        }
    }

    fn check_limits(&self, wrong: &mut Vec<String>) {
        let compile = &self.compile;
        let positive = [
            ("memory.bytes", self.memory.bytes),
            ("memory.entries", self.memory.entries as u64),
            ("disk.bytes", self.disk.bytes),
            ("publish.patience", self.publish.patience.as_millis() as u64),
            ("compile.time_limit", compile.time_limit.as_millis() as u64),
            ("object.collect.every", self.object.collect.every.as_millis() as u64),
            ("compile.default_deadline", compile.default_deadline.as_millis() as u64),
        ];
        for (name, _) in positive.iter().filter(|(_, value)| *value == 0) {
            wrong.push(format!("{name} is 0: give it a positive value"));
        }
        if compile.memory_limit < 256 * MIB {
            wrong.push("compile.memory_limit is below 256 MiB, in which NVRTC cannot start".into());
        }
        match &*self.namespace.default {
            "" => wrong.push("namespace.default is empty: name one, such as \"default\"".into()),
            name if !is_namespace(name) => {
                wrong.push(format!("namespace.default is {name:?}: it has {NAMESPACE_RULE}"));
            }
            _ => {}
        }
        if self.data_dir.as_os_str().is_empty() {
            wrong.push("data_dir is empty: name a folder".into());
        }
    }

    fn check_resp(&self, wrong: &mut Vec<String>) {
        let resp = &self.resp;
        let open = self.resp_listen.is_some_and(|address| !address.ip().is_loopback());
        if open && resp.users.is_none() {
            wrong.push(
                "resp_listen is reached from other machines, and anybody who connects could \
                 overwrite values: name a file of users in resp.users, or listen on loopback"
                    .into(),
            );
        }
        if !(1..=MAX_PACK_BYTES).contains(&resp.max_value) {
            wrong.push(format!("resp.max_value must be between 1 and {MAX_PACK_BYTES} bytes"));
        }
        if resp.max_connections == 0 {
            wrong.push("resp.max_connections is 0: give it a positive value".into());
        }
        wrong.extend(resp.family_waits().err());
    }

    fn check_object(&self, wrong: &mut Vec<String>) {
        let object = &self.object;
        match object.url.as_deref().map(url::Url::parse) {
            None if object.endpoint.is_some() => {
                wrong.push("object.endpoint without object.url: set url = \"s3://BUCKET\"".into());
            }
            None if self.publish.copies == Copies::Object => {
                wrong.push("publish.copies is \"object\", and there is no object.url".into());
            }
            None => {}
            Some(Err(e)) => {
                wrong.push(format!("object.url: {e}; write s3://BUCKET/PREFIX or file:///FOLDER"))
            }
            Some(Ok(url)) => match url.scheme() {
                "s3" if url.host_str().is_some_and(|bucket| !bucket.is_empty()) => {}
                "file" if Path::new(url.path()).parent().is_some() => {}
                _ => wrong.push(format!(
                    "object.url is {url}; write s3://BUCKET/PREFIX or file:///FOLDER"
                )),
            },
        }
        if let Some(endpoint) = &object.endpoint {
            let plain = url::Url::parse(endpoint);
            if !plain.is_ok_and(|url| matches!(url.scheme(), "http" | "https")) {
                wrong.push(format!("object.endpoint {endpoint:?} is no http:// or https:// URL"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn refused(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::default();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn what_cannot_work_is_refused_with_what_to_do() {
        type Change = fn(&mut Config);
        let cases: [(Change, &str); 26] = [
            (|c| c.http_listen = c.grpc_listen, "its own port"),
            (|c| c.grpc_listen = ([0, 0, 0, 0], 7400).into(), "set `advertise`"),
            (|c| c.advertise = Some("http://a".into()), "without scheme"),
            (|c| c.socket = Some("x".repeat(108).into()), "too long"),
            (|c| c.start.expect = 2, "1, 3 or 5"),
            (|c| c.start.expect = 3, "start.peers names 0"),
            (|c| c.start.join = vec!["nowhere".into()], "HOST:PORT"),
            (|c| c.cluster.election_min = c.cluster.heartbeat, "two heartbeats"),
            (|c| c.cluster.lease_ttl = c.cluster.election_max, "lease_ttl"),
            (|c| c.cluster.dead_after = c.cluster.election_max, "dead_after"),
            (|c| c.cluster.log_entries = 1, "log_entries is below 64"),
            (|c| c.publish.patience = Duration::ZERO, "publish.patience is 0"),
            (|c| c.memory.bytes = 0, "memory.bytes is 0"),
            (|c| c.compile.memory_limit = 1, "256 MiB"),
            (|c| c.object.collect.every = Duration::ZERO, "object.collect.every is 0"),
            (|c| c.object.url = Some("http://bucket".into()), "s3://BUCKET"),
            (|c| c.object.endpoint = Some("http://127.0.0.1:1".into()), "without object.url"),
            (|c| c.log.level = "a=b=c".into(), "log.level"),
            (|c| c.resp_listen = Some(c.http_listen), "its own port"),
            (|c| c.resp_listen = Some(([0, 0, 0, 0], 7403).into()), "resp.users"),
            (|c| c.resp_listen = Some(([10, 0, 0, 5], 7403).into()), "resp.users"),
            (|c| c.resp.max_value = 0, "resp.max_value"),
            (|c| c.resp.families = vec!["a:*".into()], "PATTERN=DURATION"),
            (|c| c.namespace.default = String::new(), "namespace.default is empty"),
            (|c| c.namespace.default = "a team".into(), "namespace.default is \"a team\""),
            (|c| c.namespace.default = "a".repeat(65), "at most 64 letters"),
        ];
        for (change, told) in cases {
            let error = refused(change);
            assert!(error.contains(told), "{told}: {error}");
        }
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let error = refused(|c| {
            c.memory.bytes = 0;
            c.start.expect = 4;
        });
        assert!(error.contains("memory.bytes") && error.contains("start.expect"), "{error}");
    }

    #[test]
    fn real_clusters_pass() {
        let mut config = Config { insecure: true, ..Config::default() };
        config.start.expect = 3;
        config.start.peers = vec!["dns:kiln.default.svc:7402".into()];
        config.grpc_listen = ([0, 0, 0, 0], 7400).into();
        config.transfer_listen = ([0, 0, 0, 0], 7402).into();
        config.advertise = Some("kiln-0.kiln".into());
        config.object.url = Some("s3://bucket/prefix".into());
        config.object.endpoint = Some("http://127.0.0.1:8333".into());
        config.validate().unwrap();
        config.object = Default::default();
        config.object.url = Some("file:///tmp/l3".into());
        config.validate().unwrap();
    }
}
