//! Which namespaces a pod and its containers share, from CRI's `NamespaceOption`. Absent options are the
//! zero of the enum, POD.

use coracle_domain::{IpcMode, NetworkMode, PidMode, PodRequest, Refusal, UserNamespace};

use crate::check::{self, Checked};
use crate::v1::NamespaceMode;
use crate::{user_namespace, v1};

const OPTIONS: &str = "config.linux.security_context.namespace_options";

/// The modes of a pod.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PodModes {
    pub(crate) network: NetworkMode,
    pub(crate) pid: PidMode,
    pub(crate) ipc: IpcMode,
    pub(crate) user: Option<UserNamespace>,
}

/// A pod's modes. Its pid mode cannot be TARGET: there is no container yet to aim at.
pub(crate) fn of_pod(options: &v1::NamespaceOption) -> Checked<PodModes> {
    let user = user_namespace::parse(options)?;
    let network = match mode("network", options.network)? {
        NamespaceMode::Pod => NetworkMode::Pod,
        NamespaceMode::Node => NetworkMode::Node,
        other => return Err(unsupported("network", other)),
    };
    let ipc = match mode("ipc", options.ipc)? {
        NamespaceMode::Pod => IpcMode::Pod,
        NamespaceMode::Node => IpcMode::Node,
        other => return Err(unsupported("ipc", other)),
    };
    let pid = match mode("pid", options.pid)? {
        NamespaceMode::Target => return Err(Refusal::invalid(format!("{OPTIONS}.pid"), "TARGET is for containers")),
        _ => of_container(options)?,
    };
    user_namespace::fits_pod(user, &pid, ipc)?;
    Ok(PodModes { network, pid, ipc, user })
}

/// A container's pid mode. The other namespaces are its pod's, whatever its options repeat.
pub(crate) fn of_container(options: &v1::NamespaceOption) -> Checked<PidMode> {
    Ok(match mode("pid", options.pid)? {
        NamespaceMode::Pod => PidMode::Pod,
        NamespaceMode::Container => PidMode::Container,
        NamespaceMode::Node => PidMode::Node,
        NamespaceMode::Target => {
            let field = format!("{OPTIONS}.target_id");
            let target = check::required(&field, &options.target_id)?;
            PidMode::Target(target.parse().map_err(|problem| Refusal::invalid(field, problem))?)
        }
    })
}

/// A pod's process ids can be shared only if the pod was made for that.
pub(crate) fn fits(pid: &PidMode, pod: &PodRequest) -> Checked<()> {
    if *pid == PidMode::Pod && pod.pid != PidMode::Pod {
        return Err(Refusal::invalid(format!("{OPTIONS}.pid"), "is POD, but the pod was made without process ids to share"));
    }
    Ok(())
}

/// The options that a pod was made with, for its status.
pub(crate) fn message(request: &PodRequest) -> v1::NamespaceOption {
    let network = match request.network {
        NetworkMode::Pod => NamespaceMode::Pod,
        NetworkMode::Node => NamespaceMode::Node,
    };
    let ipc = match request.ipc {
        IpcMode::Pod => NamespaceMode::Pod,
        IpcMode::Node => NamespaceMode::Node,
    };
    let (pid, target_id) = match &request.pid {
        PidMode::Pod => (NamespaceMode::Pod, String::new()),
        PidMode::Container => (NamespaceMode::Container, String::new()),
        PidMode::Node => (NamespaceMode::Node, String::new()),
        PidMode::Target(id) => (NamespaceMode::Target, id.to_string()),
    };
    let userns_options = request.user_namespace.as_ref().map(user_namespace::message);
    v1::NamespaceOption { network: network.into(), pid: pid.into(), ipc: ipc.into(), target_id, userns_options }
}

fn mode(name: &str, value: i32) -> Checked<NamespaceMode> {
    check::known(&format!("{OPTIONS}.{name}"), value)
}

fn unsupported(name: &str, mode: NamespaceMode) -> Refusal {
    Refusal::unsupported(format!("{OPTIONS}.{name}: {}", mode.as_str_name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pid: NamespaceMode, target: &str) -> v1::NamespaceOption {
        v1::NamespaceOption { pid: pid.into(), target_id: target.to_owned(), ..Default::default() }
    }

    #[test]
    fn absent_options_mean_the_pods_own() {
        let expected = PodModes { network: NetworkMode::Pod, pid: PidMode::Pod, ipc: IpcMode::Pod, user: None };
        assert_eq!(of_pod(&v1::NamespaceOption::default()), Ok(expected));
    }

    #[test]
    fn a_target_needs_a_container_to_aim_at() {
        let id = "0a".repeat(32);
        assert_eq!(of_container(&options(NamespaceMode::Target, &id)), Ok(PidMode::Target(id.parse().unwrap())));
        assert!(matches!(of_container(&options(NamespaceMode::Target, "")), Err(Refusal::Invalid { .. })));
        assert!(matches!(of_container(&options(NamespaceMode::Target, "web")), Err(Refusal::Invalid { .. })));
        assert!(matches!(of_pod(&options(NamespaceMode::Target, &id)), Err(Refusal::Invalid { .. })));
    }

    #[test]
    fn what_no_pod_can_have_is_refused() {
        let container = NamespaceMode::Container.into();
        let network = v1::NamespaceOption { network: container, ..Default::default() };
        assert!(matches!(of_pod(&network), Err(Refusal::Unsupported { .. })));
        let unknown = v1::NamespaceOption { ipc: 17, ..Default::default() };
        assert!(matches!(of_pod(&unknown), Err(Refusal::Invalid { .. })));
    }

    #[test]
    fn a_user_namespace_shares_neither_process_ids_nor_ipc_with_the_node() {
        let ids = vec![v1::IdMapping { host_id: 65_536, container_id: 0, length: 65_536 }];
        let user = v1::UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids };
        let with = |change: fn(&mut v1::NamespaceOption)| {
            let mut options = v1::NamespaceOption { userns_options: Some(user.clone()), ..Default::default() };
            change(&mut options);
            of_pod(&options)
        };
        assert!(with(|_| ()).unwrap().user.is_some());
        assert!(with(|options| options.network = NamespaceMode::Node.into()).is_ok());
        assert!(matches!(with(|options| options.pid = NamespaceMode::Node.into()), Err(Refusal::Invalid { .. })));
        assert!(matches!(with(|options| options.ipc = NamespaceMode::Node.into()), Err(Refusal::Invalid { .. })));
    }
}
