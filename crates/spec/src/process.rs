//! The process of the OCI spec: program, identity, rights.

use coracle_domain::{During, Profile, Refusal, Result, SecurityContext};
use coracle_plan::Capabilities;
use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, User};

use crate::environment::{Environment, Sources};
use crate::{AppArmor, ContainerSpec, Node, OpenFiles, ResolvedUser, args, capabilities};

/// The kernel's own bound on open files, unless somebody moved it (fs.nr_open).
const MOST_OPEN_FILES: u64 = 1 << 20;

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

/// A container's first process. CRI has no word for resource limits: they are the node's.
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
        .set_rlimits(spec.node.open_files.map(open_files).transpose()?.map(|limit| vec![limit]))
        .set_no_new_privileges(Some(request.security.no_new_privileges))
        .set_selinux_label(spec.selinux_labels().and_then(|labels| labels.process))
        .set_apparmor_profile(apparmor(&request.security, spec.node)?)
        .set_oom_score_adj(Some(request.resources.oom_score_adj));
    Ok(process)
}

/// No more than a million: programs that walk through all numbers a descriptor could have would take minutes.
fn open_files(limit: OpenFiles) -> Result<PosixRlimit> {
    let rlimit = PosixRlimitBuilder::default().typ(PosixRlimitType::RlimitNofile);
    let rlimit = rlimit.soft(limit.soft.min(MOST_OPEN_FILES)).hard(limit.hard.min(MOST_OPEN_FILES));
    rlimit.build().during("describing", "the limit on open files")
}

fn user(resolved: &ResolvedUser) -> User {
    let mut user = User::default();
    user.set_uid(resolved.uid).set_gid(resolved.gid).set_additional_gids(Some(resolved.groups.clone()));
    user
}

/// The profile to change to; `None`: none. What a container gets that asks for nothing is what its node has; a
/// privileged one gets a profile only by its name. One of the node's that is asked for must be there to be enforced.
fn apparmor(security: &SecurityContext, node: &Node) -> Result<Option<String>> {
    let lacking = |profile: &str, problem: &str| {
        let problem = format!("the profile {profile} was asked for, but {problem}");
        Err(Refusal::invalid("linux.security_context.apparmor", problem).into())
    };
    match (&security.apparmor, &node.apparmor) {
        (Some(Profile::Localhost(name)), None) => lacking(&format!("{name:?}"), "AppArmor is not enabled on this node"),
        (Some(Profile::Localhost(name)), Some(_)) => Ok(Some(name.clone())),
        (Some(Profile::Unconfined), _) | (_, None) => Ok(None),
        _ if security.privileged => Ok(None),
        (Some(Profile::RuntimeDefault), Some(AppArmor { default_profile: None })) => {
            lacking("RuntimeDefault", "it could not be loaded when the runtime started; its log says why")
        }
        (Some(Profile::RuntimeDefault) | None, Some(apparmor)) => Ok(apparmor.default_profile.clone()),
    }
}

#[cfg(test)]
mod tests {
    use coracle_plan::Rlimit;

    use super::*;
    use crate::fixture::Fixture;
    use crate::{Placement, oci_spec_for};

    #[test]
    fn the_limit_on_open_files_is_the_nodes_within_bounds() {
        let limits = |open_files| {
            let mut fixture = Fixture::default();
            fixture.node.open_files = open_files;
            let description = oci_spec_for(&fixture.spec()).unwrap();
            crate::plan(&description, Placement::default()).unwrap().process.rlimits
        };
        let expected = |soft, hard| vec![Rlimit { resource: 7, soft, hard }];
        assert_eq!(limits(Some(OpenFiles { soft: 1024, hard: 524_288 })), expected(1024, 524_288));
        assert_eq!(limits(Some(OpenFiles { soft: u64::MAX, hard: u64::MAX })), expected(1 << 20, 1 << 20));
        assert_eq!(limits(None), []);
    }

    /// What comes of a request: a profile, none, or a refusal.
    fn outcome(profile: Option<Profile>, privileged: bool, node: &Node) -> Result<Option<String>, ()> {
        apparmor(&SecurityContext { apparmor: profile, privileged, ..SecurityContext::default() }, node).map_err(|_| ())
    }

    fn node(default_profile: Option<&str>) -> Node {
        Node { apparmor: Some(AppArmor { default_profile: default_profile.map(str::to_owned) }), ..Node::default() }
    }

    #[test]
    fn apparmor_follows_the_request_as_far_as_the_node_has_it() {
        let named = || Some(Profile::Localhost("web".into()));
        let (with, bare, without) = (node(Some("ours")), node(None), Node::default());
        let (web, ours) = (|| Ok(Some("web".into())), || Ok(Some("ours".into())));
        for (profile, expected) in [
            (None, [ours(), Ok(None), Ok(None)]),
            (Some(Profile::RuntimeDefault), [ours(), Err(()), Ok(None)]),
            (Some(Profile::Unconfined), [Ok(None), Ok(None), Ok(None)]),
            (named(), [web(), web(), Err(())]),
        ] {
            assert_eq!([&with, &bare, &without].map(|node| outcome(profile.clone(), false, node)), expected, "{profile:?}");
        }
    }

    #[test]
    fn a_privileged_container_gets_a_profile_only_by_its_name() {
        let with = node(Some("ours"));
        assert_eq!(outcome(None, true, &with), Ok(None));
        assert_eq!(outcome(Some(Profile::RuntimeDefault), true, &with), Ok(None));
        assert_eq!(outcome(Some(Profile::Localhost("web".into())), true, &with), Ok(Some("web".into())));
        assert_eq!(outcome(Some(Profile::Localhost("web".into())), true, &Node::default()), Err(()));
    }
}
