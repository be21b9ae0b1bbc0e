//! The files a pod's containers see in /etc. A kubelet mounts its own `hosts`; ours is for those that do not.

use std::fmt::Write;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::Path;

use coracle_domain::{DnsConfig, During, NetworkMode, PodRequest, Result, UserNamespace};
use coracle_failpoint::{Point, reach};

use crate::layout::PodDirectory;

/// Writes `resolv.conf`, `hostname` and `hosts` of a pod whose first address is `address`.
pub(crate) fn write(directory: &PodDirectory, request: &PodRequest, address: Option<IpAddr>) -> Result<()> {
    let resolver = match &request.dns {
        Some(dns) => resolv_conf(dns),
        None => node_file("/etc/resolv.conf")?,
    };
    put(&directory.etc("resolv.conf"), resolver.as_bytes())?;
    let hostname = match (&request.hostname, request.network) {
        (Some(name), NetworkMode::Pod) => name.clone(),
        _ => rustix::system::uname().nodename().to_string_lossy().into_owned(),
    };
    put(&directory.etc("hostname"), format!("{hostname}\n").as_bytes())?;
    let hosts = match address {
        Some(address) => own_hosts(address, &hostname),
        None => node_file("/etc/hosts")?,
    };
    put(&directory.etc("hosts"), hosts.as_bytes())?;
    match request.user_namespace {
        Some(users) => give(directory, users),
        None => Ok(()),
    }
}

/// Root of the pod may write to its files, as it may without a user namespace.
fn give(directory: &PodDirectory, users: UserNamespace) -> Result<()> {
    for path in ["resolv.conf", "hostname", "hosts"].map(|name| directory.etc(name)) {
        chown(&path, Some(users.uids.host()), Some(users.gids.host())).during("giving to the pod's root", path.display())?;
    }
    Ok(())
}

/// hosts(5) of a pod with a network of its own.
fn own_hosts(address: IpAddr, hostname: &str) -> String {
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{address}\t{hostname}\n")
}

/// resolv.conf(5) from CRI's fields.
fn resolv_conf(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        let _ = writeln!(text, "search {}", dns.searches.join(" "));
    }
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    text
}

/// The node's own file, or nothing where the node has none.
fn node_file(path: &str) -> Result<String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).during("reading", path),
    }
}

/// Containers of any user read these files.
fn put(path: &Path, content: &[u8]) -> Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path);
    file.and_then(|mut file| file.write_all(content)).during("writing", path.display())?;
    reach(Point::PodFile);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_says_what_the_request_says() {
        let dns = DnsConfig {
            servers: vec!["10.0.0.10".into(), "fd00::a".into()],
            searches: vec!["default.svc.cluster.local".into(), "svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            resolv_conf(&dns),
            "search default.svc.cluster.local svc.cluster.local\nnameserver 10.0.0.10\nnameserver fd00::a\noptions ndots:5\n"
        );
    }
}
