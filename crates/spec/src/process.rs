//! The process of the OCI spec: program, identity, rights.

use coracle_domain::{Profile, Refusal, Result, SecurityContext};
use coracle_plan::Capabilities;
use oci_spec::runtime::{Process, User};

use crate::environment::{Environment, Sources};
use crate::{ContainerSpec, Node, ResolvedUser, args, capabilities};

/// The environment of a container's first process.
pub(crate) fn environment(spec: &ContainerSpec<'_>) -> Result<Environment> {
    Environment::of(&Sources {
        hostname: spec.pod.hostname.as_deref().unwrap_or(&spec.node.hostname),
        terminal: spec.request.terminal,
        image: &spec.image.environment,
        request: &spec.request.environment,
        home: &spec.user.home,
    })
}

/// A container's first process. It inherits the runtime's resource limits: CRI has no word for them.
pub(crate) fn process(spec: &ContainerSpec<'_>, environment: &Environment, sets: &Capabilities) -> Result<Process> {
    let request = spec.request;
    let mut process = Process::default();
    process
        .set_terminal(Some(request.terminal))
        .set_user(user(spec.user))
        .set_args(Some(args::arguments(request, spec.image)?))
        .set_env(Some(environment.entries_as_text()))
        .set_cwd(args::working_directory(request, spec.image)?)
        .set_capabilities(Some(capabilities::to_oci(sets)))
        .set_rlimits(None)
        .set_no_new_privileges(Some(request.security.no_new_privileges))
        .set_apparmor_profile(apparmor(&request.security, spec.node)?)
        .set_oom_score_adj(Some(request.resources.oom_score_adj));
    Ok(process)
}

fn user(resolved: &ResolvedUser) -> User {
    let mut user = User::default();
    user.set_uid(resolved.uid).set_gid(resolved.gid).set_additional_gids(Some(resolved.groups.clone()));
    user
}

/// The profile to change to; `None`: none. A privileged container has none, whatever it asks for.
fn apparmor(security: &SecurityContext, node: &Node) -> Result<Option<String>> {
    match (&security.apparmor, &node.apparmor) {
        _ if security.privileged => Ok(None),
        (Profile::Localhost(name), None) => {
            let problem = format!("profile {name:?} was asked for, but AppArmor is not enabled on this node");
            Err(Refusal::invalid("linux.security_context.apparmor", problem).into())
        }
        (Profile::Localhost(name), Some(_)) => Ok(Some(name.clone())),
        (Profile::RuntimeDefault, Some(apparmor)) => Ok(apparmor.default_profile.clone()),
        (Profile::RuntimeDefault, None) | (Profile::Unconfined, _) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AppArmor;

    #[test]
    fn apparmor_follows_the_request_as_far_as_the_node_has_it() {
        let with = Node { apparmor: Some(AppArmor { default_profile: Some("coracle".into()) }), ..Node::default() };
        let without = Node::default();
        let profile = |profile, privileged, node| {
            apparmor(&SecurityContext { apparmor: profile, privileged, ..SecurityContext::default() }, node).ok()
        };
        let named = || Profile::Localhost("web".into());
        assert_eq!(profile(named(), false, &with), Some(Some("web".into())));
        assert_eq!(profile(named(), false, &without), None);
        assert_eq!(profile(named(), true, &with), Some(None));
        assert_eq!(profile(Profile::RuntimeDefault, false, &with), Some(Some("coracle".into())));
        assert_eq!(profile(Profile::RuntimeDefault, false, &without), Some(None));
        assert_eq!(profile(Profile::Unconfined, false, &with), Some(None));
    }
}
