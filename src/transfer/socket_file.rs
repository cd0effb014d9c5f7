//! The name of a unix socket in the file system.
//!
//! Invariant: nobody can connect before the socket has its mode, a live
//! socket or a file that is none is never replaced, and only our own is removed.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// A bound socket's name: removed when this is dropped.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode: whether the name is still ours.
    identity: (u64, u64),
}

/// Binds a socket at `path` with `mode` (0o600: this user alone), in the place
/// of one on which nobody answers any more.
///
/// Fails with `AddrInUse` when somebody answers there, and with
/// `AlreadyExists` when there is something else than a socket.
pub fn bind_socket(path: &Path, mode: u32) -> io::Result<(UnixListener, SocketFile)> {
    refuse_to_replace(path)?;
    // Bound under another name, given its mode, listening, and only then named:
    // at no moment may anybody connect who should not.
    let mut unnamed = path.as_os_str().to_owned();
    unnamed.push(format!(".{}", std::process::id()));
    let unnamed = PathBuf::from(unnamed);
    refuse_to_replace(&unnamed)?;
    remove_if_there(&unnamed)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(&unnamed)?)?;
    let named = fs::set_permissions(&unnamed, fs::Permissions::from_mode(mode))
        .and_then(|()| Ok(rustix::net::listen(&socket, BACKLOG)?))
        .and_then(|()| identity(&unnamed))
        .and_then(|identity| fs::rename(&unnamed, path).map(|()| identity));
    let identity = match named {
        Ok(identity) => identity,
        Err(error) => {
            remove_if_there(&unnamed)?;
            return Err(error);
        }
    };
    let file = SocketFile { path: path.to_owned(), identity };
    Ok((UnixListener::from_std(socket.into())?, file))
}

impl SocketFile {
    /// Where clients connect.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "remove the socket");
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

/// Fails unless `path` is free, or a socket on which nobody answers.
fn refuse_to_replace(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let refuse = |kind, why| Err(io::Error::new(kind, format!("{} {why}", path.display())));
    if !found.file_type().is_socket() {
        return refuse(io::ErrorKind::AlreadyExists, "exists and is no socket");
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Ok(_) => refuse(io::ErrorKind::AddrInUse, "is served by another process"),
        Err(e) => Err(e),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn the_socket_has_its_mode_and_goes_with_its_server() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kiln.sock");
        let (listener, file) = bind_socket(&path, 0o600).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        UnixStream::connect(&path).unwrap();
        drop((listener, file));
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kiln.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (listener, file) = bind_socket(&path, 0o600).unwrap();
        assert_eq!(bind_socket(&path, 0o600).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        // Another server takes over; the first one's end leaves its name alone.
        let _second = bind_socket(&path, 0o660).unwrap();
        drop(file);
        UnixStream::connect(&path).unwrap();
    }

    #[tokio::test]
    async fn what_is_no_socket_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kiln.sock");
        fs::write(&path, "precious").unwrap();
        assert_eq!(bind_socket(&path, 0o600).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        std::os::unix::fs::symlink(&path, dir.path().join("link")).unwrap();
        assert!(bind_socket(&dir.path().join("link"), 0o600).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
