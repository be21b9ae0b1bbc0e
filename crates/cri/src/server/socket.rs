//! Listening at a path: a stale socket is replaced, anything else that stands there is left alone.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;

use coracle_domain::{During, Refusal, Result};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;

/// Root and its group may connect.
const MODE: u32 = 0o660;
/// How many callers may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Listens at `path`, whose directory is there. Whoever calls this knows that a socket that is there is nobody's.
///
/// # Errors
/// Something other than a socket is there, or the socket cannot be made.
pub fn listen(path: &Path) -> Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path).during("removing the old socket", path.display())?,
        Ok(_) => return Err(Refusal::wrong_state(format!("{} is there already and is no socket", path.display())).into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).during("looking at", path.display()),
    }
    let listener = bind(path).and_then(UnixListener::from_std).during("listening on", path.display())?;
    // Again, for the umask had its say.
    fs::set_permissions(path, fs::Permissions::from_mode(MODE)).during("setting the mode of", path.display())?;
    Ok(listener)
}

/// The file has the mode of the socket that is bound to it (unix(7)): there is no moment at which others may connect.
fn bind(path: &Path) -> io::Result<StdListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(MODE))?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_nothing_else_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        drop(listen(&path).unwrap());
        let _listener = listen(&path).unwrap();
        let found = fs::symlink_metadata(&path).unwrap();
        assert!(found.file_type().is_socket());
        assert_eq!(found.permissions().mode() & 0o777, MODE);

        let file = directory.path().join("file");
        fs::write(&file, "precious").unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for other in [&file, &link, &directory.path().to_owned()] {
            assert!(listen(other).unwrap_err().to_string().contains("is no socket"), "{}", other.display());
        }
        assert_eq!(fs::read(&file).unwrap(), b"precious");
        assert!(path.exists() && link.is_symlink());
    }
}
