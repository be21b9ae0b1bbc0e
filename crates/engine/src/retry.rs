//! What a request gets that comes again: what the first one made, or a refusal if it asks for something else under the
//! same name. Pure.

use std::path::{Path, PathBuf};

use coracle_domain::{ContainerId, ContainerRequest, MountSource, PodId, PodPhase, PodRequest, PodView, Refusal, Result};

use crate::record::ContainerRecord;

/// The kubelet's annotation for where in the container the termination message is written.
const TERMINATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";

/// The answer to a request for a pod whose name is taken.
pub(crate) fn same_pod(pod: &PodView, request: &PodRequest) -> Result<PodId> {
    let name = format!("{}/{} attempt {}", request.metadata.namespace, request.metadata.name, request.metadata.attempt);
    if pod.phase != PodPhase::Ready {
        return Err(Refusal::wrong_state(format!("pod sandbox {name} was stopped and is still here, as {}", pod.id)).into());
    }
    if *pod.request != *request {
        return Err(Refusal::wrong_state(format!("pod sandbox {name} is here already, as {}, made from another request", pod.id)).into());
    }
    Ok(pod.id.clone())
}

/// The answer to a request for a container whose name is taken.
pub(crate) fn same_container(container: &ContainerRecord, request: &ContainerRequest) -> Result<ContainerId> {
    if essence(&container.request) == essence(request) {
        return Ok(container.id.clone());
    }
    let name = format!("{} attempt {}", request.metadata.name, request.metadata.attempt);
    Err(Refusal::wrong_state(format!("container {name} is here already, as {}, made from another request", container.id)).into())
}

/// A request without what the kubelet makes anew for each try of the same: it names a new file for the termination
/// message, and lists the variables of services in no particular order.
fn essence(request: &ContainerRequest) -> ContainerRequest {
    let mut essence = request.clone();
    // Of variables with one name the order counts, and this sort keeps it.
    essence.environment.sort_by(|one, other| one.name.cmp(&other.name));
    let message = request.annotations.get(TERMINATION_MESSAGE_PATH).map(Path::new);
    for mount in essence.mounts.iter_mut().filter(|mount| Some(mount.target.as_path()) == message) {
        mount.source = MountSource::Host(PathBuf::new());
    }
    essence
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use coracle_domain::{EnvironmentVariable, Mount, Propagation};

    use super::*;
    use crate::testing;

    fn mount(source: &str, target: &str) -> Mount {
        Mount {
            target: target.into(),
            source: MountSource::Host(source.into()),
            read_only: false,
            recursive_read_only: false,
            propagation: Propagation::Private,
            relabel: false,
            options: Vec::new(),
            mapping: None,
        }
    }

    fn kubelets() -> (ContainerRecord, ContainerRequest) {
        let mut record = testing::record(1).containers.remove(0);
        let mut request = (*record.request).clone();
        let variable = |name: &str, value: &str| EnvironmentVariable { name: name.into(), value: value.into() };
        request.environment = vec![variable("A", "1"), variable("B", "2"), variable("B", "3")];
        request.mounts = vec![mount("/volume", "/data"), mount("/pods/1/app/00112233", "/dev/termination-log")];
        request.annotations.insert(TERMINATION_MESSAGE_PATH.into(), "/dev/termination-log".into());
        record.request = Arc::new(request.clone());
        (record, request)
    }

    #[test]
    fn a_kubelets_retry_is_the_same_request() {
        let (record, mut request) = kubelets();
        request.environment.rotate_left(1);
        request.mounts[1] = mount("/pods/1/app/44556677", "/dev/termination-log");
        assert_eq!(same_container(&record, &request).unwrap(), record.id);
    }

    #[test]
    fn anything_else_makes_another_request() {
        let changes: [fn(&mut ContainerRequest); 4] = [
            |request| request.environment[0].value = "2".into(),
            |request| request.environment.swap(1, 2),
            |request| request.mounts[0] = mount("/other", "/data"),
            |request| request.image.asked = "other".into(),
        ];
        for change in changes {
            let (record, mut request) = kubelets();
            change(&mut request);
            assert!(same_container(&record, &request).unwrap_err().to_string().contains(record.id.as_str()));
        }
    }
}
