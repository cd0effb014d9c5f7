//! The unix sockets: are they sockets, who may use them, and does somebody listen.
//!
//! Invariant: nothing is sent to whoever listens there.

use std::{
    io::ErrorKind,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
    time::Duration,
};

use kiln::config::Config;
use tokio::{net::UnixStream, time::timeout};

use super::Check;

const CONNECTS: Duration = Duration::from_secs(3);

pub(super) async fn check(config: &Config) -> Vec<Check> {
    let mut found = Vec::new();
    for (key, path) in [("socket", &config.socket_path()), ("resp_socket", &config.resp_socket)] {
        found.push(match path {
            None => Check::off(key, "not set", ""),
            Some(path) => one(key, path, config).await,
        });
    }
    found
}

async fn one(key: &str, path: &Path, config: &Config) -> Check {
    let shown = path.display();
    let found = match tokio::fs::metadata(path).await {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new("."));
            return match tokio::fs::metadata(parent).await.is_ok_and(|found| found.is_dir()) {
                true => Check::off(key, format!("{shown} is not there"), "kiln serve makes it"),
                false => Check::problem(
                    key,
                    format!("{} is no folder", parent.display()),
                    "make the folder of the socket",
                ),
            };
        }
        Err(e) => {
            let advice = "let this user into the folders above it";
            return Check::problem(key, format!("{shown}: {e}"), advice);
        }
        Ok(found) => found,
    };
    if !found.file_type().is_socket() {
        let advice = "remove it, or name another path";
        return Check::problem(key, format!("{shown} is no socket"), advice);
    }
    let mode = found.permissions().mode() & 0o777;
    let wanted = config.socket_permissions();
    match timeout(CONNECTS, UnixStream::connect(path)).await {
        Err(_) => Check::problem(key, format!("{shown} takes no connection"), "see its node's log"),
        Ok(Err(e)) if e.kind() == ErrorKind::PermissionDenied => Check::problem(
            key,
            format!("{shown} has mode {mode:04o}: this user may not connect"),
            "set socket_mode (KILN_SOCKET_MODE) to 0660 or 0666, and restart the node",
        ),
        Ok(Err(e)) if e.kind() == ErrorKind::ConnectionRefused => {
            let advice = "kiln serve replaces it";
            Check::off(key, format!("{shown} is left of a node that ended"), advice)
        }
        Ok(Err(e)) => Check::problem(key, format!("{shown}: {e}"), "see its node's log"),
        Ok(Ok(_)) if wanted.is_some_and(|wanted| wanted != mode) => Check::problem(
            key,
            format!("{shown} has mode {mode:04o}, and the settings say {}", config.socket_mode),
            "restart the node, or set socket_mode (KILN_SOCKET_MODE) to what is wanted",
        ),
        Ok(Ok(_)) => Check::ok(key, format!("{shown}, mode {mode:04o}: a node listens")),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    #[tokio::test]
    async fn a_socket_is_told_from_what_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = super::super::settings(folder.path());
        let path = folder.path().join("kiln.sock");
        config.socket = Some(path.clone());
        let state = async |config: &Config| check(config).await.remove(0).state;
        assert_eq!(state(&config).await, State::Off, "not there yet");
        let listening = tokio::net::UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(state(&config).await, State::Ok);
        config.socket_mode = "0666".into();
        assert_eq!(state(&config).await, State::Problem, "others may not use it");
        drop(listening);
        assert_eq!(state(&config).await, State::Off, "nobody listens");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "x").unwrap();
        assert_eq!(state(&config).await, State::Problem, "a file");
    }
}
