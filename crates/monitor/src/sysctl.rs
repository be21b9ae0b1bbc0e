//! Setting kernel parameters through `/proc/sys` (sysctl(8)), which shows those of the writer's namespaces.

use std::path::{Component, Path};

use coracle_failpoint::{Point, reach};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, write};

use crate::fault::{OrFault, Result};

/// Sets one. Which ones a pod may set is not decided here.
pub(crate) fn set(name: &str, value: &str) -> Result<()> {
    let stage = "setting the kernel parameter";
    let path = path_of(name).ok_or(Errno::INVAL).or_fault(stage, name)?;
    let file = open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).or_fault(stage, name)?;
    write(file, value.as_bytes()).or_fault(stage, name)?;
    reach(Point::NamespaceSysctl);
    Ok(())
}

/// Whether only the node's root user may set one, also where another namespace has it: those of the UTS namespace. Of the
/// others it is the root user of the user namespace that owns theirs.
pub(crate) fn is_of_node_root(name: &str) -> bool {
    path_of(name).is_some_and(|path| path == "/proc/sys/kernel/domainname")
}

/// The file of a parameter. The separator that comes first, dot or slash, separates; the other one is part of a
/// name (an interface called `eth0.1`).
fn path_of(name: &str) -> Option<String> {
    let swapped = |letter: char| match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let dots = name.find(['.', '/']).is_some_and(|first| name.as_bytes().get(first) == Some(&b'.'));
    let name: String = if dots { name.chars().map(swapped).collect() } else { name.to_owned() };
    let plain = !name.is_empty() && Path::new(&name).components().all(|part| matches!(part, Component::Normal(_)));
    plain.then(|| format!("/proc/sys/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_lead_to_the_file() {
        for (name, path) in [
            ("net.ipv4.ip_forward", Some("/proc/sys/net/ipv4/ip_forward")),
            ("net/ipv4/ip_forward", Some("/proc/sys/net/ipv4/ip_forward")),
            ("net/ipv4/conf/eth0.1/forwarding", Some("/proc/sys/net/ipv4/conf/eth0.1/forwarding")),
            ("net.ipv4.conf.eth0/1.forwarding", Some("/proc/sys/net/ipv4/conf/eth0.1/forwarding")),
            ("", None),
            ("../../etc/passwd", None),
            ("/etc/passwd", None),
            ("net/../../../etc/passwd", None),
        ] {
            assert_eq!(path_of(name).as_deref(), path, "{name}");
        }
    }
}
