//! The calls about the runtime itself: version, conditions, handlers, configuration.

use coracle_domain::Result;
use coracle_engine::{Engine, RuntimeStatus};

use crate::v1;

/// The version of the kubelet's runtime API; kubelets refuse any other.
const KUBELET_API: &str = "0.1.0";
const NAME: &str = "coracle";

pub(super) fn version() -> v1::VersionResponse {
    v1::VersionResponse {
        version: KUBELET_API.to_owned(),
        runtime_name: NAME.to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    }
}

pub(super) async fn status(engine: &Engine, request: &v1::StatusRequest) -> v1::StatusResponse {
    message(engine.status().await, request.verbose)
}

fn message(status: RuntimeStatus, verbose: bool) -> v1::StatusResponse {
    v1::StatusResponse {
        status: Some(v1::RuntimeStatus { conditions: conditions(&status) }),
        runtime_handlers: handlers(&status),
        features: Some(v1::RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: status.handlers.iter().any(|handler| handler.user_namespaces),
            mount_options: true,
        }),
        info: if verbose { status.details } else { Default::default() },
    }
}

/// Both conditions that a kubelet requires. The runtime is ready when it answers at all.
fn conditions(status: &RuntimeStatus) -> Vec<v1::RuntimeCondition> {
    let met = |kind: &str| v1::RuntimeCondition { r#type: kind.to_owned(), status: true, ..Default::default() };
    let network = match &status.network {
        Ok(()) => met("NetworkReady"),
        Err(message) => v1::RuntimeCondition {
            r#type: "NetworkReady".to_owned(),
            status: false,
            reason: "NetworkNotReady".to_owned(),
            message: message.clone(),
        },
    };
    vec![met("RuntimeReady"), network]
}

/// Every handler by name, and the default one, which is the first, without a name as well.
fn handlers(status: &RuntimeStatus) -> Vec<v1::RuntimeHandler> {
    let handler = |name: &str, recursive_read_only_mounts: bool, user_namespaces: bool| v1::RuntimeHandler {
        name: name.to_owned(),
        features: Some(v1::RuntimeHandlerFeatures { recursive_read_only_mounts, user_namespaces }),
    };
    let default = status.handlers.first().map(|first| handler("", first.recursive_read_only, first.user_namespaces));
    let named = status.handlers.iter().filter(|info| !info.name.is_empty());
    default.into_iter().chain(named.map(|info| handler(&info.name, info.recursive_read_only, info.user_namespaces))).collect()
}

pub(super) async fn runtime_config(engine: &Engine) -> v1::RuntimeConfigResponse {
    let systemd = engine.status().await.systemd_cgroups;
    let driver = if systemd { v1::CgroupDriver::Systemd } else { v1::CgroupDriver::Cgroupfs };
    v1::RuntimeConfigResponse { linux: Some(v1::LinuxRuntimeConfiguration { cgroup_driver: driver.into() }) }
}

/// The addresses for pods that a request brings; empty where it brings none.
pub(super) fn pod_cidr(request: &v1::UpdateRuntimeConfigRequest) -> &str {
    let network = request.runtime_config.as_ref().and_then(|config| config.network_config.as_ref());
    network.map(|network| network.pod_cidr.as_str()).unwrap_or_default()
}

pub(super) async fn update_config(engine: &Engine, request: &v1::UpdateRuntimeConfigRequest) -> Result<v1::UpdateRuntimeConfigResponse> {
    match pod_cidr(request) {
        "" => {}
        cidr => engine.set_pod_cidr(cidr).await?,
    }
    Ok(v1::UpdateRuntimeConfigResponse {})
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use coracle_handler::HandlerInfo;

    use super::*;

    fn runtime(network: std::result::Result<(), String>) -> RuntimeStatus {
        let handler = |name: &str, recursive_read_only| HandlerInfo { name: name.to_owned(), recursive_read_only, user_namespaces: false };
        RuntimeStatus {
            network,
            handlers: vec![handler("native", true), handler("runc", false)],
            systemd_cgroups: false,
            details: BTreeMap::from([("config".to_owned(), "{}".to_owned())]),
        }
    }

    #[test]
    fn both_required_conditions_are_always_told() {
        let ready = message(runtime(Ok(())), false).status.unwrap().conditions;
        assert_eq!(
            ready.iter().map(|c| (c.r#type.as_str(), c.status)).collect::<Vec<_>>(),
            [("RuntimeReady", true), ("NetworkReady", true)]
        );
        let waiting = message(runtime(Err("no pod CIDR yet".to_owned())), false).status.unwrap().conditions;
        assert_eq!((waiting[0].status, waiting[1].status), (true, false));
        assert_eq!((waiting[1].reason.as_str(), waiting[1].message.as_str()), ("NetworkNotReady", "no pod CIDR yet"));
    }

    #[test]
    fn the_default_handler_stands_there_without_a_name_too() {
        let handlers = message(runtime(Ok(())), false).runtime_handlers;
        let told: Vec<_> = handlers.iter().map(|h| (h.name.as_str(), h.features.unwrap().recursive_read_only_mounts)).collect();
        assert_eq!(told, [("", true), ("native", true), ("runc", false)]);
    }

    #[test]
    fn details_are_for_verbose_callers() {
        assert!(message(runtime(Ok(())), false).info.is_empty());
        assert!(message(runtime(Ok(())), true).info.contains_key("config"));
    }

    #[test]
    fn kubelets_know_us_by_name_and_version() {
        let version = version();
        assert_eq!(
            (version.version.as_str(), version.runtime_name.as_str(), version.runtime_api_version.as_str()),
            ("0.1.0", "coracle", "v1")
        );
        assert!(!version.runtime_version.is_empty());
    }

    #[test]
    fn a_request_without_a_range_brings_none() {
        assert_eq!(pod_cidr(&v1::UpdateRuntimeConfigRequest::default()), "");
    }
}
