//! Kernel parameters that a pod may set: those that its own namespaces hold. Any other would change the
//! node (namespaces(7); sysctl documentation of the kernel, `net`, `kernel` and `fs.mqueue`).

use std::collections::BTreeMap;

use coracle_domain::{IpcMode, NetworkMode, Refusal};

use crate::check::{self, Checked};

const FIELD: &str = "config.linux.sysctls";

/// Parameters of the IPC namespace beside `fs.mqueue.*`.
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
];

/// The parameters as given, once each is known to be of a namespace that the pod has to itself.
pub(crate) fn parse(sysctls: &BTreeMap<String, String>, network: NetworkMode, ipc: IpcMode) -> Checked<BTreeMap<String, String>> {
    for (name, value) in sysctls {
        check::text(FIELD, value)?;
        let dotted = dotted(name).ok_or_else(|| Refusal::invalid(FIELD, format!("{name:?} is not the name of a kernel parameter")))?;
        let of_network = dotted.starts_with("net.");
        let of_ipc = IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.");
        // A pod has host and domain name to itself where it has the network.
        let of_names = dotted == "kernel.domainname";
        if (of_network || of_names) && network == NetworkMode::Node || of_ipc && ipc == IpcMode::Node {
            return Err(Refusal::invalid(FIELD, format!("{name:?} would change the node, whose namespace the pod shares")));
        }
        if !of_network && !of_ipc && !of_names {
            return Err(Refusal::invalid(FIELD, format!("{name:?} belongs to no namespace and would change the node")));
        }
        if is_of_interface(&dotted) {
            let feature = format!("{FIELD}: {name:?}, of an interface that the pod has only after its parameters are set,");
            return Err(Refusal::unsupported(feature));
        }
    }
    Ok(sysctls.clone())
}

/// Whether it is one of a single network interface, other than that which every network namespace is made with.
fn is_of_interface(dotted: &str) -> bool {
    let parts: Vec<&str> = dotted.split('.').collect();
    matches!(parts[..], ["net", _, "conf" | "neigh", interface, ..] if !matches!(interface, "all" | "default" | "lo"))
}

/// The name with dots between its parts. Written with slashes, a dot belongs to a part, as in an
/// interface's name (sysctl(8)): whichever comes first separates.
fn dotted(name: &str) -> Option<String> {
    let separator = name.chars().find(|c| matches!(c, '.' | '/'))?;
    let sane = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_./@:".contains(c));
    let parts: Vec<&str> = name.split(separator).collect();
    let climbs = parts.iter().any(|part| part.split(['.', '/']).any(str::is_empty));
    (parts.iter().all(|part| sane(part)) && !climbs).then(|| parts.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_one(name: &str, network: NetworkMode, ipc: IpcMode) -> Checked<BTreeMap<String, String>> {
        parse(&BTreeMap::from([(name.to_owned(), "1".to_owned())]), network, ipc)
    }

    #[test]
    fn parameters_of_the_pods_own_namespaces_pass_verbatim() {
        for name in
            ["net.ipv4.ip_forward", "net/ipv4/conf/lo/forwarding", "kernel.shm_rmid_forced", "kernel.domainname", "fs.mqueue.msg_max"]
        {
            let taken = parse_one(name, NetworkMode::Pod, IpcMode::Pod).unwrap();
            assert_eq!(taken.keys().collect::<Vec<_>>(), [name]);
        }
    }

    #[test]
    fn parameters_of_the_node_are_refused() {
        assert!(parse_one("net.ipv4.ip_forward", NetworkMode::Node, IpcMode::Pod).is_err());
        assert!(parse_one("kernel.domainname", NetworkMode::Node, IpcMode::Pod).is_err());
        assert!(parse_one("kernel/shmmax", NetworkMode::Pod, IpcMode::Node).is_err());
        for name in ["vm.swappiness", "kernel.panic", "kernel.hostname", "fs.file-max"] {
            assert!(parse_one(name, NetworkMode::Pod, IpcMode::Pod).is_err(), "{name}");
        }
    }

    #[test]
    fn parameters_of_an_interface_that_is_not_there_yet_are_refused() {
        for name in ["net.ipv4.conf.eth0.rp_filter", "net/ipv4/conf/eth0.100/rp_filter", "net.ipv6.neigh.eth0.retrans_time_ms"] {
            let refused = parse_one(name, NetworkMode::Pod, IpcMode::Pod).unwrap_err().to_string();
            assert!(refused.contains(name), "{refused}");
        }
        for name in ["net.ipv4.conf.all.rp_filter", "net/ipv4/conf/default/rp_filter", "net.ipv6.conf.lo.forwarding", "net.ipv4.neigh"] {
            assert!(parse_one(name, NetworkMode::Pod, IpcMode::Pod).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_name_is_no_path_out_of_proc_sys() {
        for name in
            ["", "net", "net..ipv4", "net/../vm/swappiness", "net.ipv4/../../vm", "net.ipv4.", ".net.a", "/net/a", "net.a\0b", "net.a b"]
        {
            assert!(parse_one(name, NetworkMode::Pod, IpcMode::Pod).is_err(), "{name:?}");
        }
    }
}
