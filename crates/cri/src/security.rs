//! Security contexts of pods and containers, seccomp and AppArmor profiles, SELinux labels, capabilities.

use coracle_domain::{Capabilities, Profile, Refusal, RunAs, SecurityContext, SelinuxOptions, SupplementalGroupsPolicy};

use crate::check::{self, Checked};
use crate::v1;
use crate::v1::security_profile::ProfileType;

/// Where both contexts stand in their requests.
const CONTEXT: &str = "config.linux.security_context";
/// What a node's profile begins with in the deprecated fields.
const LOCALHOST: &str = "localhost/";

/// A pod's own security context.
pub(crate) fn of_pod(message: &v1::LinuxSandboxSecurityContext) -> Checked<SecurityContext> {
    let run_as = match &message.run_as_user {
        Some(user) => RunAs::Uid(check::id(&format!("{CONTEXT}.run_as_user"), user.value)?),
        None => RunAs::ImageUser,
    };
    #[allow(deprecated)]
    let seccomp_path = message.seccomp_profile_path.as_str();
    Ok(SecurityContext {
        run_as_group: group(&run_as, message.run_as_group.as_ref())?,
        run_as,
        supplemental_groups: groups(&message.supplemental_groups)?,
        supplemental_groups_policy: policy(message.supplemental_groups_policy)?,
        privileged: message.privileged,
        read_only_rootfs: message.readonly_rootfs,
        seccomp: seccomp(message.seccomp.as_ref(), seccomp_path)?,
        apparmor: apparmor(message.apparmor.as_ref(), "")?,
        selinux: selinux(message.selinux_options.as_ref())?,
        ..SecurityContext::default()
    })
}

/// A container's security context. Profiles stay as given when it is privileged: what they mean then is
/// decided where the process is planned.
pub(crate) fn of_container(message: &v1::LinuxContainerSecurityContext) -> Checked<SecurityContext> {
    let run_as = run_as(message)?;
    #[allow(deprecated)]
    let (seccomp_path, apparmor_name) = (message.seccomp_profile_path.as_str(), message.apparmor_profile.as_str());
    let paths = |name: &str, paths: &[String]| {
        let field = format!("{CONTEXT}.{name}");
        paths.iter().map(|path| check::absolute(&field, path)).collect::<Checked<Vec<_>>>()
    };
    Ok(SecurityContext {
        run_as_group: group(&run_as, message.run_as_group.as_ref())?,
        run_as,
        supplemental_groups: groups(&message.supplemental_groups)?,
        supplemental_groups_policy: policy(message.supplemental_groups_policy)?,
        privileged: message.privileged,
        read_only_rootfs: message.readonly_rootfs,
        no_new_privileges: message.no_new_privs,
        capabilities: message.capabilities.as_ref().map_or(Ok(Capabilities::default()), capabilities)?,
        masked_paths: paths("masked_paths", &message.masked_paths)?,
        read_only_paths: paths("readonly_paths", &message.readonly_paths)?,
        seccomp: seccomp(message.seccomp.as_ref(), seccomp_path)?,
        apparmor: apparmor(message.apparmor.as_ref(), apparmor_name)?,
        selinux: selinux(message.selinux_options.as_ref())?,
    })
}

fn run_as(message: &v1::LinuxContainerSecurityContext) -> Checked<RunAs> {
    match (&message.run_as_user, message.run_as_username.as_str()) {
        (Some(_), name) if !name.is_empty() => {
            Err(Refusal::invalid(format!("{CONTEXT}.run_as_username"), format!("{name:?} is set beside run_as_user")))
        }
        (Some(user), _) => check::id(&format!("{CONTEXT}.run_as_user"), user.value).map(RunAs::Uid),
        (None, "") => Ok(RunAs::ImageUser),
        (None, name) => check::text(&format!("{CONTEXT}.run_as_username"), name).map(RunAs::Name),
    }
}

fn group(run_as: &RunAs, group: Option<&v1::Int64Value>) -> Checked<Option<u32>> {
    let Some(group) = group else { return Ok(None) };
    let field = format!("{CONTEXT}.run_as_group");
    if *run_as == RunAs::ImageUser {
        return Err(Refusal::invalid(field, "is set without a user"));
    }
    check::id(&field, group.value).map(Some)
}

fn groups(groups: &[i64]) -> Checked<Vec<u32>> {
    let field = format!("{CONTEXT}.supplemental_groups");
    groups.iter().map(|group| check::id(&field, *group)).collect()
}

fn policy(value: i32) -> Checked<SupplementalGroupsPolicy> {
    Ok(match check::known(&format!("{CONTEXT}.supplemental_groups_policy"), value)? {
        v1::SupplementalGroupsPolicy::Merge => SupplementalGroupsPolicy::Merge,
        v1::SupplementalGroupsPolicy::Strict => SupplementalGroupsPolicy::Strict,
    })
}

fn capabilities(message: &v1::Capability) -> Checked<Capabilities> {
    let names = |list: &str, names: &[String]| {
        let field = format!("{CONTEXT}.capabilities.{list}");
        names.iter().map(|name| capability(&field, name)).collect::<Checked<Vec<_>>>()
    };
    Ok(Capabilities {
        add: names("add_capabilities", &message.add_capabilities)?,
        drop: names("drop_capabilities", &message.drop_capabilities)?,
        add_ambient: names("add_ambient_capabilities", &message.add_ambient_capabilities)?,
    })
}

/// `CAP_NET_RAW`, `NET_RAW` and `net_raw` are one.
fn capability(field: &str, name: &str) -> Checked<String> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if bare.is_empty() || !bare.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_') {
        return Err(Refusal::invalid(field, format!("{name:?} is not the name of a capability")));
    }
    Ok(bare.to_owned())
}

/// Without a word of it there is no filter.
fn seccomp(message: Option<&v1::SecurityProfile>, deprecated: &str) -> Checked<Profile> {
    let profile = profile(["seccomp", "seccomp_profile_path"], message, deprecated)?.unwrap_or(Profile::Unconfined);
    if let Profile::Localhost(path) = &profile {
        check::absolute(&format!("{CONTEXT}.seccomp.localhost_ref"), path)?;
    }
    Ok(profile)
}

/// The name of a node's profile may carry the prefix of the deprecated field in the new one as well.
fn apparmor(message: Option<&v1::SecurityProfile>, deprecated: &str) -> Checked<Option<Profile>> {
    let profile = profile(["apparmor", "apparmor_profile"], message, deprecated)?;
    let Some(Profile::Localhost(name)) = profile else { return Ok(profile) };
    let name = name.strip_prefix(LOCALHOST).unwrap_or(&name);
    check::word(&format!("{CONTEXT}.apparmor.localhost_ref"), name).map(Profile::Localhost).map(Some)
}

/// Whether the policy knows such a label is found out where there is one. Only a level has colons and commas in it.
fn selinux(message: Option<&v1::SeLinuxOption>) -> Checked<SelinuxOptions> {
    let Some(message) = message else { return Ok(SelinuxOptions::default()) };
    let part = |name: &str, value: &str, also: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c) || also.contains(c);
        if !value.chars().all(known) {
            return Err(Refusal::invalid(format!("{CONTEXT}.selinux_options.{name}"), format!("{value:?} is no part of a label")));
        }
        Ok((!value.is_empty()).then(|| value.to_owned()))
    };
    Ok(SelinuxOptions {
        user: part("user", &message.user, "")?,
        role: part("role", &message.role, "")?,
        kind: part("type", &message.r#type, "")?,
        level: part("level", &message.level, ":,")?,
    })
}

/// The message counts before the deprecated text; `None` without either.
fn profile(names: [&str; 2], message: Option<&v1::SecurityProfile>, deprecated: &str) -> Checked<Option<Profile>> {
    let [field, deprecated_field] = names.map(|name| format!("{CONTEXT}.{name}"));
    let Some(message) = message else {
        return deprecated_profile(&deprecated_field, deprecated);
    };
    let reference = &message.localhost_ref;
    let profile = match check::known(&format!("{field}.profile_type"), message.profile_type)? {
        ProfileType::Localhost => Profile::Localhost(check::required(&format!("{field}.localhost_ref"), reference)?),
        _ if !reference.is_empty() => {
            return Err(Refusal::invalid(format!("{field}.localhost_ref"), "is set, but the profile's type is not Localhost"));
        }
        ProfileType::RuntimeDefault => Profile::RuntimeDefault,
        ProfileType::Unconfined => Profile::Unconfined,
    };
    Ok(Some(profile))
}

fn deprecated_profile(field: &str, text: &str) -> Checked<Option<Profile>> {
    let profile = match text {
        "" => return Ok(None),
        "unconfined" => Profile::Unconfined,
        "runtime/default" | "docker/default" => Profile::RuntimeDefault,
        text => match text.strip_prefix(LOCALHOST) {
            Some(reference) => Profile::Localhost(check::required(field, reference)?),
            None => return Err(Refusal::invalid(field, format!("unknown profile {text:?}"))),
        },
    };
    Ok(Some(profile))
}

#[cfg(test)]
#[allow(deprecated)]
mod tests {
    use super::*;

    type Context = v1::LinuxContainerSecurityContext;

    fn uid(value: i64) -> Option<v1::Int64Value> {
        Some(v1::Int64Value { value })
    }

    fn refused_field(context: &Context) -> String {
        match of_container(context) {
            Err(Refusal::Invalid { field, .. }) => field.trim_start_matches(CONTEXT).trim_start_matches('.').to_owned(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_empty_context_is_the_default() {
        assert_eq!(of_container(&Context::default()), Ok(SecurityContext::default()));
        assert_eq!(of_pod(&v1::LinuxSandboxSecurityContext::default()), Ok(SecurityContext::default()));
    }

    #[test]
    fn a_user_is_named_once_and_a_group_needs_one() {
        let group = Context { run_as_group: uid(5), ..Context::default() };
        assert_eq!(refused_field(&group), "run_as_group");
        let pod = v1::LinuxSandboxSecurityContext { run_as_group: uid(5), ..Default::default() };
        assert!(of_pod(&pod).is_err());
        let both = Context { run_as_user: uid(0), run_as_username: "root".to_owned(), ..Context::default() };
        assert_eq!(refused_field(&both), "run_as_username");
        let negative = Context { run_as_user: uid(-1), ..Context::default() };
        assert_eq!(refused_field(&negative), "run_as_user");
        let named = of_container(&Context { run_as_username: "www".to_owned(), run_as_group: uid(7), ..Context::default() }).unwrap();
        assert_eq!((named.run_as, named.run_as_group), (RunAs::Name("www".to_owned()), Some(7)));
    }

    #[test]
    fn uid_zero_is_a_user_and_not_the_absence_of_one() {
        assert_eq!(of_container(&Context { run_as_user: uid(0), ..Context::default() }).unwrap().run_as, RunAs::Uid(0));
    }

    #[test]
    fn capabilities_lose_their_prefix_and_their_case() {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let message = v1::Capability { add_capabilities: list(&["CAP_NET_RAW", "sys_time", "ALL"]), ..Default::default() };
        assert_eq!(capabilities(&message).unwrap().add, list(&["NET_RAW", "SYS_TIME", "ALL"]));
        for name in ["", "CAP_", "NET RAW", "net-raw"] {
            let context = Context {
                capabilities: Some(v1::Capability { drop_capabilities: list(&[name]), ..Default::default() }),
                ..Default::default()
            };
            assert_eq!(refused_field(&context), "capabilities.drop_capabilities", "{name:?}");
        }
    }

    #[test]
    fn profiles_are_read_from_the_message_and_from_the_deprecated_text() {
        let message = |profile_type: ProfileType, localhost_ref: &str| {
            Some(v1::SecurityProfile { profile_type: profile_type.into(), localhost_ref: localhost_ref.to_owned() })
        };
        let local = Profile::Localhost("/p.json".to_owned());
        let cases = [
            (None, "", Profile::Unconfined),
            (None, "unconfined", Profile::Unconfined),
            (None, "runtime/default", Profile::RuntimeDefault),
            (None, "localhost//p.json", local.clone()),
            (message(ProfileType::RuntimeDefault, ""), "unconfined", Profile::RuntimeDefault),
            (message(ProfileType::Unconfined, ""), "runtime/default", Profile::Unconfined),
            (message(ProfileType::Localhost, "/p.json"), "", local),
        ];
        for (seccomp, path, expected) in cases {
            let context = Context { seccomp, seccomp_profile_path: path.to_owned(), ..Context::default() };
            assert_eq!(of_container(&context).unwrap().seccomp, expected, "{context:?}");
        }
        for (seccomp, path) in [
            (message(ProfileType::Localhost, ""), ""),
            (message(ProfileType::Localhost, "relative.json"), ""),
            (message(ProfileType::Unconfined, "/p.json"), ""),
            (Some(v1::SecurityProfile { profile_type: 9, localhost_ref: String::new() }), ""),
            (None, "localhost/relative.json"),
            (None, "localhost/"),
            (None, "secure"),
        ] {
            let context = Context { seccomp, seccomp_profile_path: path.to_owned(), ..Context::default() };
            assert!(of_container(&context).is_err(), "{context:?}");
        }
    }

    #[test]
    fn an_selinux_label_is_told_in_parts() {
        let context = |user: &str, level: &str| Context {
            selinux_options: Some(v1::SeLinuxOption { user: user.to_owned(), level: level.to_owned(), ..Default::default() }),
            ..Context::default()
        };
        let selinux = of_container(&context("", "s0:c1,c2")).unwrap().selinux;
        assert_eq!((selinux.user, selinux.level.as_deref()), (None, Some("s0:c1,c2")));
        assert_eq!(refused_field(&context("a:b", "")), "selinux_options.user");
        for level in ["s0 c1", "s0\",size=\"0", "s0\n"] {
            assert_eq!(refused_field(&context("", level)), "selinux_options.level");
        }
    }

    #[test]
    fn an_apparmor_profile_is_a_name() {
        let old = |name: &str| Context { apparmor_profile: name.to_owned(), ..Context::default() };
        let new = |name: &str| {
            let profile = v1::SecurityProfile { profile_type: ProfileType::Localhost.into(), localhost_ref: name.to_owned() };
            Context { apparmor: Some(profile), ..old("localhost/other") }
        };
        for context in [old("localhost/web"), new("web"), new("localhost/web")] {
            assert_eq!(of_container(&context).unwrap().apparmor, Some(Profile::Localhost("web".to_owned())), "{context:?}");
        }
        for context in [old("localhost/web server"), old("localhost/"), old("web"), new(""), new("localhost/")] {
            assert!(of_container(&context).is_err(), "{context:?}");
        }
    }

    #[test]
    fn no_apparmor_profile_is_another_thing_than_none_wanted() {
        let profile = |name: &str| of_container(&Context { apparmor_profile: name.to_owned(), ..Context::default() }).unwrap().apparmor;
        assert_eq!(profile(""), None);
        assert_eq!(profile("unconfined"), Some(Profile::Unconfined));
        assert_eq!(profile("runtime/default"), Some(Profile::RuntimeDefault));
    }
}
