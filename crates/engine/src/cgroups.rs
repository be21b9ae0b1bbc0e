//! cgroup operations off the runtime's threads: the kernel may make them wait.

use std::sync::Arc;

use coracle_cgroup::{Cgroup, Hierarchy, Location};
use coracle_domain::{ContainerId, During, PodId, Result};

/// Runs what may block where it delays only its caller.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.during("running", "a blocking operation")?
}

/// Kills all processes of a cgroup.
pub(crate) async fn kill(cgroup: Arc<Cgroup>) -> Result<()> {
    blocking(move || cgroup.kill()).await
}

/// Makes sure that a container's cgroup is gone.
pub(crate) async fn remove_container(hierarchy: &Arc<Hierarchy>, location: &Result<Location>) -> Result<()> {
    // A location that is refused now was refused when the container was to be made.
    let Ok(location) = location else { return Ok(()) };
    let (hierarchy, location) = (Arc::clone(hierarchy), location.clone());
    blocking(move || Cgroup::open(&hierarchy, location).remove()).await
}

/// Makes sure that the cgroups of containers are gone, whatever they are in.
pub(crate) async fn remove_wherever(hierarchy: &Arc<Hierarchy>, containers: &[ContainerId]) -> Result<()> {
    let (hierarchy, containers) = (Arc::clone(hierarchy), containers.to_vec());
    blocking(move || hierarchy.remove_wherever(&containers)).await
}

/// Makes sure that the cgroup above a pod's containers is gone, where it is ours.
pub(crate) async fn remove_pod(hierarchy: &Arc<Hierarchy>, id: &PodId) -> Result<()> {
    let (hierarchy, id) = (Arc::clone(hierarchy), id.clone());
    blocking(move || hierarchy.remove_pod(&id)).await
}
