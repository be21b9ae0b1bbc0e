//! User namespaces: CRI's `UserNamespace` of a pod and the id mappings of its mounts (KEP-127). CRI allows lists of
//! mappings; kubelets send one, from 0 on, and nothing else is taken.

use coracle_domain::{IdMapping, IpcMode, PidMode, PodRequest, Refusal, UserNamespace};

use crate::check::{self, Checked};
use crate::v1;
use crate::v1::NamespaceMode;

const FIELD: &str = "config.linux.security_context.namespace_options.userns_options";

/// The user namespace that options ask for; `None`: the node's.
pub(crate) fn parse(options: &v1::NamespaceOption) -> Checked<Option<UserNamespace>> {
    let Some(asked) = &options.userns_options else { return Ok(None) };
    match check::known(&format!("{FIELD}.mode"), asked.mode)? {
        NamespaceMode::Node if asked.uids.is_empty() && asked.gids.is_empty() => Ok(None),
        NamespaceMode::Node => Err(Refusal::invalid(FIELD, "has mappings, but mode NODE has no use for them")),
        NamespaceMode::Pod => Ok(Some(UserNamespace {
            uids: mapping(&format!("{FIELD}.uids"), &asked.uids)?,
            gids: mapping(&format!("{FIELD}.gids"), &asked.gids)?,
        })),
        other => Err(Refusal::invalid(format!("{FIELD}.mode"), format!("{} is neither POD nor NODE", other.as_str_name()))),
    }
}

/// The mapping of a mount, which has either both lists or none.
pub(crate) fn of_mount(at: &impl Fn(&str) -> String, message: &v1::Mount) -> Checked<Option<UserNamespace>> {
    if message.uid_mappings.is_empty() && message.gid_mappings.is_empty() {
        return Ok(None);
    }
    let (uids, gids) = (mapping(&at("uidMappings"), &message.uid_mappings)?, mapping(&at("gidMappings"), &message.gid_mappings)?);
    Ok(Some(UserNamespace { uids, gids }))
}

fn mapping(field: &str, mappings: &[v1::IdMapping]) -> Checked<IdMapping> {
    let [mapping] = mappings else {
        return Err(Refusal::invalid(field, format!("has {} mappings instead of one", mappings.len())));
    };
    if mapping.container_id != 0 {
        return Err(Refusal::invalid(field, format!("begins at id {} instead of 0, and leaves root out", mapping.container_id)));
    }
    let problem = || Refusal::invalid(field, format!("there are no {} ids from {} on", mapping.length, mapping.host_id));
    IdMapping::new(mapping.host_id, mapping.length).ok_or_else(problem)
}

/// The same as a status tells it.
pub(crate) fn message(namespace: &UserNamespace) -> v1::UserNamespace {
    v1::UserNamespace { mode: NamespaceMode::Pod.into(), uids: mapping_message(namespace.uids), gids: mapping_message(namespace.gids) }
}

/// A mapping as a status tells it.
pub(crate) fn mapping_message(mapping: IdMapping) -> Vec<v1::IdMapping> {
    vec![v1::IdMapping { host_id: mapping.host(), container_id: 0, length: mapping.length() }]
}

/// What a user namespace rules out in a pod: it has no rights over the node's processes and IPC objects.
pub(crate) fn fits_pod(namespace: Option<UserNamespace>, pid: &PidMode, ipc: IpcMode) -> Checked<()> {
    match namespace {
        Some(_) if *pid == PidMode::Node => Err(Refusal::invalid(FIELD, "the node's process ids cannot be shared from a user namespace")),
        Some(_) if ipc == IpcMode::Node => Err(Refusal::invalid(FIELD, "the node's IPC cannot be shared from a user namespace")),
        _ => Ok(()),
    }
}

/// A container has its pod's user namespace. Options that say nothing of one agree with any.
pub(crate) fn fits_container(options: &v1::NamespaceOption, pid: &PidMode, pod: &PodRequest) -> Checked<()> {
    if options.userns_options.is_some() && parse(options)? != pod.user_namespace {
        return Err(Refusal::invalid(FIELD, "differs from the pod's, whose user namespace every container of it has"));
    }
    fits_pod(pod.user_namespace, pid, pod.ipc)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(container_id: u32, host_id: u32, length: u32) -> v1::IdMapping {
        v1::IdMapping { host_id, container_id, length }
    }

    fn options(mode: NamespaceMode, uids: &[v1::IdMapping], gids: &[v1::IdMapping]) -> v1::NamespaceOption {
        let asked = v1::UserNamespace { mode: mode.into(), uids: uids.to_vec(), gids: gids.to_vec() };
        v1::NamespaceOption { userns_options: Some(asked), ..Default::default() }
    }

    #[test]
    fn one_mapping_of_root_is_taken_and_told_again() {
        let asked = options(NamespaceMode::Pod, &[ids(0, 65_536, 65_536)], &[ids(0, 131_072, 1_000)]);
        let taken = parse(&asked).unwrap().unwrap();
        assert_eq!(Some(message(&taken)), asked.userns_options);
        assert_eq!((taken.uids.to_host(5), taken.gids.to_host(1_000)), (Some(65_541), None));
    }

    #[test]
    fn the_nodes_users_need_no_mapping() {
        assert_eq!(parse(&v1::NamespaceOption::default()), Ok(None));
        assert_eq!(parse(&options(NamespaceMode::Node, &[], &[])), Ok(None));
        assert!(parse(&options(NamespaceMode::Node, &[ids(0, 1, 1)], &[])).is_err());
    }

    #[test]
    fn whatever_is_not_one_mapping_of_root_is_refused() {
        let good = ids(0, 65_536, 65_536);
        let bad: [&[v1::IdMapping]; 5] =
            [&[], &[good, ids(0, 200_000, 10)], &[ids(1, 65_536, 65_536)], &[ids(0, 65_536, 0)], &[ids(0, u32::MAX - 5, 6)]];
        for bad in bad {
            for asked in [options(NamespaceMode::Pod, bad, &[good]), options(NamespaceMode::Pod, &[good], bad)] {
                assert!(matches!(parse(&asked), Err(Refusal::Invalid { .. })), "{asked:?}");
            }
        }
        for mode in [NamespaceMode::Container, NamespaceMode::Target] {
            assert!(matches!(parse(&options(mode, &[good], &[good])), Err(Refusal::Invalid { .. })));
        }
    }

    #[test]
    fn a_container_agrees_with_its_pod_or_says_nothing() {
        let good = ids(0, 65_536, 65_536);
        let asked = options(NamespaceMode::Pod, &[good], &[good]);
        let mut pod = crate::samples::pod_request();
        let fits = |options: &v1::NamespaceOption, pid: PidMode, pod: &PodRequest| fits_container(options, &pid, pod).is_ok();
        assert!(!fits(&asked, PidMode::Pod, &pod));
        pod.user_namespace = parse(&asked).unwrap();
        assert!(fits(&asked, PidMode::Pod, &pod) && fits(&v1::NamespaceOption::default(), PidMode::Container, &pod));
        assert!(!fits(&options(NamespaceMode::Node, &[], &[]), PidMode::Pod, &pod));
        assert!(!fits(&options(NamespaceMode::Pod, &[ids(0, 65_537, 65_536)], &[good]), PidMode::Pod, &pod));
        assert!(!fits(&asked, PidMode::Node, &pod));
    }
}
