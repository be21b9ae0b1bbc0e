//! AppArmor: whether the kernel has it, which profiles are loaded, and the runtime's own profile.
//!
//! The runtime's profile is loaded once, when the daemon starts, by `apparmor_parser`: the compiler of profiles is
//! AppArmor's own, and no helper runs on the way to a pod. What a container gets is decided in `coracle-spec`, and
//! the monitor has the kernel enforce it, which finds out again whether a profile is there.
//!
//! Formats: apparmor.d(5); `apparmor/profiles` of securityfs, one `name (mode)` a line.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use coracle_domain::{During, Failure, Profile, Refusal, Result, SecurityContext};
use coracle_spec::AppArmor;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use crate::deadline::within;

/// The name of the runtime's profile.
const DEFAULT: &str = "coracle-default";
/// Its text, but for the lines that depend on the node.
const TEXT: &str = include_str!("coracle-default.apparmor");
/// The features of the kernel by which the text is meant (AppArmor 3): where the file is absent, those the parser knows.
const ABI: &str = "/etc/apparmor.d/abi/3.0";
const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";
/// The compiler, by PATH or where Debian, SUSE and others have it.
const PARSERS: [&str; 2] = ["apparmor_parser", "/sbin/apparmor_parser"];
/// Compiling takes a tenth of a second; a machine can be a hundred times busier.
const COMPILING: Duration = Duration::from_secs(20);

const STAGE: &str = "loading the AppArmor profile";

/// The node's AppArmor with the runtime's profile loaded, if the kernel has it enabled. Where the profile cannot be
/// loaded that is told in the log, and containers that ask for it are refused.
pub(crate) async fn prepare() -> Option<AppArmor> {
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.trim() == "Y");
    if !enabled {
        return None;
    }
    let default_profile = match load_default().await {
        Ok(()) => Some(DEFAULT.to_owned()),
        Err(error) => {
            tracing::warn!(%error, "containers go without the runtime's AppArmor profile");
            None
        }
    };
    Some(AppArmor { default_profile })
}

/// Refuses a profile that is asked for by name and is not loaded.
pub(crate) fn check(security: &SecurityContext, node: Option<&AppArmor>) -> Result<()> {
    let (Some(Profile::Localhost(name)), Some(_)) = (&security.apparmor, node) else { return Ok(()) };
    if is_listed(name, &loaded()?) {
        return Ok(());
    }
    Err(Refusal::invalid("linux.security_context.apparmor", format!("the profile {name:?} is not loaded on this node")).into())
}

/// The kernel's list of profiles.
fn loaded() -> Result<String> {
    fs::read_to_string(PROFILES)
        .map_err(|error| Failure::new("reading the loaded AppArmor profiles", PROFILES, error).hint("is securityfs mounted there?").into())
}

pub(crate) fn is_listed(name: &str, profiles: &str) -> bool {
    profiles.lines().filter_map(|line| line.rsplit_once(" (")).any(|(listed, _)| listed == name)
}

async fn load_default() -> Result<()> {
    if is_listed(DEFAULT, &loaded()?) {
        return Ok(());
    }
    let own = fs::read_to_string("/proc/self/attr/current").unwrap_or_default();
    let source = source(&own, Path::new(ABI).exists());
    within(COMPILING, STAGE, DEFAULT, compile(&source)).await
}

/// The profile with what it needs to know of the node. `own` is the label of this process, as /proc/self/attr/current
/// has it: `name (mode)`, or `unconfined`.
fn source(own: &str, has_abi: bool) -> String {
    let label = own.trim().rsplit_once(" (").map_or("unconfined", |(name, _)| name);
    let abi = if has_abi { "abi <abi/3.0>,\n" } else { "" };
    format!("{abi}@{{runtime}}=unconfined \"{label}\"\n{TEXT}")
}

/// Hands a profile to the compiler, which hands it to the kernel. Replacing, as another daemon may be as far.
async fn compile(source: &str) -> Result<()> {
    let mut parser = start_parser().map_err(|error| {
        Failure::new(STAGE, DEFAULT, format!("apparmor_parser: {error}")).hint("install the distribution's package apparmor")
    })?;
    if let Some(mut input) = parser.stdin.take() {
        // One that does not want to read it all says why below.
        let _ = input.write_all(source.as_bytes()).await;
    }
    let output = parser.wait_with_output().await.during(STAGE, DEFAULT)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(Failure::new(STAGE, DEFAULT, format!("apparmor_parser: {}: {said}", output.status)).into())
}

fn start_parser() -> io::Result<Child> {
    let start = |program: &OsStr| {
        let mut command = Command::new(program);
        command.args(["--replace", "--skip-cache"]).kill_on_drop(true);
        // What systemd gave the daemon is not for its children (sd_notify(3)).
        command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC").env_remove("WATCHDOG_PID");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()
    };
    let [by_path, usual] = PARSERS.map(OsStr::new);
    match start(by_path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => start(usual),
        started => started,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_listed_by_its_whole_name() {
        let profiles = "coracle-default (enforce)\n/usr/bin/man (complain)\nodd (name) (unconfined)\n";
        for name in ["coracle-default", "/usr/bin/man", "odd (name)"] {
            assert!(is_listed(name, profiles), "{name}");
        }
        for name in ["coracle", "default", "", "odd", "coracle-default (enforce)"] {
            assert!(!is_listed(name, profiles), "{name}");
        }
    }

    #[test]
    fn the_profile_lets_the_runtime_signal_under_whatever_label_it_has() {
        assert!(source("unconfined\n", true).starts_with("abi <abi/3.0>,\n@{runtime}=unconfined \"unconfined\"\n"));
        assert!(source("", false).starts_with("@{runtime}=unconfined \"unconfined\"\n"));
        assert!(source("/usr/bin/coracle (enforce)\n", false).starts_with("@{runtime}=unconfined \"/usr/bin/coracle\"\n"));
        assert!(source("", false).contains("\nprofile coracle-default "));
    }

    #[test]
    fn a_name_is_looked_for_only_where_there_is_apparmor() {
        let named = SecurityContext { apparmor: Some(Profile::Localhost("not-there".into())), ..SecurityContext::default() };
        assert!(check(&named, None).is_ok());
        assert!(check(&named, Some(&AppArmor::default())).is_err());
        assert!(check(&SecurityContext::default(), Some(&AppArmor::default())).is_ok());
    }
}
