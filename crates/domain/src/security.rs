//! Who a process is and what it may do.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Whose identity a container's processes take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunAs {
    /// The image's user.
    ImageUser,
    /// A uid.
    Uid(u32),
    /// A name looked up in the image's `/etc/passwd`.
    Name(String),
}

/// A seccomp or AppArmor profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Profile {
    /// No confinement.
    Unconfined,
    /// The runtime's own.
    RuntimeDefault,
    /// One of the node's: a file for seccomp, a loaded profile's name for AppArmor.
    Localhost(String),
}

/// Whether the image's groups count (KEP-3619).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum SupplementalGroupsPolicy {
    /// The request's and those of the image's `/etc/group`.
    #[default]
    Merge,
    /// The request's only.
    Strict,
}

/// Changes to the default set of capabilities; names without `CAP_`, upper case. `ALL` stands for all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Added.
    pub add: Vec<String>,
    /// Dropped.
    pub drop: Vec<String>,
    /// Added, and ambient as well.
    pub add_ambient: Vec<String>,
}

/// The parts of an SELinux label that a caller chooses; the policy says what is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelinuxOptions {
    /// The user, `system_u`.
    pub user: Option<String>,
    /// The role, `system_r`.
    pub role: Option<String>,
    /// The type, `container_t`.
    pub kind: Option<String>,
    /// The level, `s0:c1,c2`.
    pub level: Option<String>,
}

/// The security context of a container, or of a pod's own namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityContext {
    /// The user.
    pub run_as: RunAs,
    /// The group; needs a user.
    pub run_as_group: Option<u32>,
    /// Groups beside the primary one.
    pub supplemental_groups: Vec<u32>,
    /// What the image's groups add.
    pub supplemental_groups_policy: SupplementalGroupsPolicy,
    /// All devices, capabilities and writable kernel interfaces.
    pub privileged: bool,
    /// Whether the root file system refuses writes.
    pub read_only_rootfs: bool,
    /// prctl(PR_SET_NO_NEW_PRIVS).
    pub no_new_privileges: bool,
    /// Changes to the capabilities.
    pub capabilities: Capabilities,
    /// Paths hidden from the container.
    pub masked_paths: Vec<PathBuf>,
    /// Paths that refuse writes.
    pub read_only_paths: Vec<PathBuf>,
    /// The system call filter.
    pub seccomp: Profile,
    /// The AppArmor profile; `None`: the runtime's own, where the node has AppArmor and the process is not privileged.
    pub apparmor: Option<Profile>,
    /// The SELinux label; without meaning where SELinux is not enabled.
    #[serde(default)]
    pub selinux: SelinuxOptions,
}

impl Default for SecurityContext {
    fn default() -> Self {
        Self {
            run_as: RunAs::ImageUser,
            run_as_group: None,
            supplemental_groups: Vec::new(),
            supplemental_groups_policy: SupplementalGroupsPolicy::Merge,
            privileged: false,
            read_only_rootfs: false,
            no_new_privileges: false,
            capabilities: Capabilities::default(),
            masked_paths: Vec::new(),
            read_only_paths: Vec::new(),
            seccomp: Profile::Unconfined,
            apparmor: None,
            selinux: SelinuxOptions::default(),
        }
    }
}
