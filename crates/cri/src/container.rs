//! Containers: from `CreateContainerRequest` to the domain's [`ContainerRequest`].

use coracle_domain::{
    ContainerMetadata, ContainerRequest, EnvironmentVariable, HandlerName, ImageIdentity, Mount, PidMode, PodRequest, Propagation, Refusal,
    Resources, SecurityContext,
};

use crate::check::{self, Checked};
use crate::{mount, namespaces, resources, security, signal, user_namespace, v1};

/// The container that is asked for. Of `sandbox_config` only what may have changed since the pod was made counts: see [`fits`].
pub(crate) fn parse(request: &v1::CreateContainerRequest) -> Checked<ContainerRequest> {
    let config = check::present("config", &request.config)?;
    let default = v1::LinuxContainerConfig::default();
    let linux = config.linux.as_ref().unwrap_or(&default);
    if !config.cdi_devices.is_empty() {
        return Err(Refusal::unsupported("config.CDI_devices: the Container Device Interface"));
    }
    Ok(ContainerRequest {
        metadata: metadata(check::present("config.metadata", &config.metadata)?)?,
        image: image(check::present("config.image", &config.image)?)?,
        command: check::texts("config.command", &config.command)?,
        args: check::texts("config.args", &config.args)?,
        working_directory: check::absolute_or_none("config.working_dir", &config.working_dir)?,
        environment: config.envs.iter().enumerate().map(|(index, variable)| environment(index, variable)).collect::<Checked<_>>()?,
        mounts: config.mounts.iter().enumerate().map(|(index, message)| mount::parse(index, message)).collect::<Checked<_>>()?,
        devices: config.devices.iter().enumerate().map(|(index, message)| mount::device(index, message)).collect::<Checked<_>>()?,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        log_path: check::beneath_or_none("config.log_path", &config.log_path)?,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        terminal: config.tty,
        pid: pid(linux)?,
        resources: linux
            .resources
            .as_ref()
            .map_or(Ok(Resources::default()), |message| resources::parse("config.linux.resources", message))?,
        security: linux.security_context.as_ref().map_or(Ok(SecurityContext::default()), security::of_container)?,
        stop_signal: signal::parse(config.stop_signal)?,
    })
}

/// A pod bounds its containers: a privileged one needs a privileged pod, and all have its users.
pub(crate) fn fits(message: &v1::CreateContainerRequest, container: &ContainerRequest, pod: &PodRequest) -> Checked<()> {
    let linux = message.config.as_ref().and_then(|config| config.linux.as_ref());
    let options = linux.and_then(|linux| linux.security_context.as_ref()?.namespace_options.clone()).unwrap_or_default();
    namespaces::fits(&container.pid, pod)?;
    user_namespace::fits_container(&options, &container.pid, pod)?;
    for (index, mount) in container.mounts.iter().enumerate() {
        mount::fits(index, mount, pod)?;
    }
    if container.security.privileged && !is_privileged(message.sandbox_config.as_ref(), pod) {
        return Err(Refusal::invalid("config.linux.security_context.privileged", "the pod is not for privileged containers"));
    }
    may_share(&container.mounts, &container.security)
}

/// Whether the pod is, as it is described `now`: a privileged container for debugging may come to one that was made without any.
fn is_privileged(now: Option<&v1::PodSandboxConfig>, pod: &PodRequest) -> bool {
    let Some(now) = now else { return pod.security.privileged };
    now.linux.as_ref().and_then(|linux| linux.security_context.as_ref()).is_some_and(|context| context.privileged)
}

/// A container's mounts may reach the node only if it is privileged, as in Kubernetes' own validation.
fn may_share(mounts: &[Mount], security: &SecurityContext) -> Checked<()> {
    let shared = mounts.iter().position(|mount| mount.propagation == Propagation::Bidirectional);
    match shared {
        Some(index) if !security.privileged => Err(Refusal::invalid(
            format!("config.mounts[{index}].propagation"),
            "is bidirectional, which only a privileged container may ask for",
        )),
        _ => Ok(()),
    }
}

fn metadata(metadata: &v1::ContainerMetadata) -> Checked<ContainerMetadata> {
    Ok(ContainerMetadata { name: check::required("config.metadata.name", &metadata.name)?, attempt: metadata.attempt })
}

fn image(spec: &v1::ImageSpec) -> Checked<ImageIdentity> {
    let handler = check::text("config.image.runtime_handler", &spec.runtime_handler)?;
    Ok(ImageIdentity {
        asked: check::required("config.image.image", &spec.image)?,
        user_specified: spec.user_specified_image.clone(),
        annotations: spec.annotations.clone(),
        handler: (!handler.is_empty()).then_some(HandlerName(handler)),
    })
}

/// The image of a container, as its statuses repeat it.
pub(crate) fn image_message(image: &ImageIdentity) -> v1::ImageSpec {
    v1::ImageSpec {
        image: image.asked.clone(),
        annotations: image.annotations.clone(),
        user_specified_image: image.user_specified.clone(),
        runtime_handler: image.handler.as_ref().map(|handler| handler.0.clone()).unwrap_or_default(),
        image_ref: String::new(),
    }
}

/// The problem is told without the value, which may be a secret.
fn environment(index: usize, variable: &v1::KeyValue) -> Checked<EnvironmentVariable> {
    let at = |name: &str| format!("config.envs[{index}].{name}");
    let name = check::required(&at("key"), &variable.key)?;
    if name.contains('=') {
        return Err(Refusal::invalid(at("key"), format!("{name:?} contains \"=\"")));
    }
    if variable.value.contains(&0) {
        return Err(Refusal::invalid(at("value"), format!("of {name:?} contains a NUL byte")));
    }
    Ok(EnvironmentVariable { name, value: variable.value.clone() })
}

fn pid(linux: &v1::LinuxContainerConfig) -> Checked<PidMode> {
    let options = linux.security_context.as_ref().and_then(|context| context.namespace_options.as_ref());
    options.map_or(Ok(PidMode::Pod), namespaces::of_container)
}

#[cfg(test)]
#[path = "container_tests.rs"]
mod tests;
