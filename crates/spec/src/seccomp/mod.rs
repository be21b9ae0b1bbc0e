//! System call filters: which profile a container gets, and its compiled form.
//!
//! `default` is the profile that `RuntimeDefault` stands for, `profile` reads those from files, `compile` makes filters
//! of either, `newer` deals with system calls that libseccomp does not know, and `shorten` makes a filter cheaper to take in
//! (`bpf` has its instructions). Compiling takes some 15 ms, so that
//! filters are kept: of the default profile one for each set of capabilities that makes a difference, of other
//! profiles the latest few.

mod bpf;
mod compile;
mod default;
mod newer;
mod profile;
mod shorten;

#[cfg(test)]
mod shorten_tests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use coracle_domain::{Profile, Result, SecurityContext};
use coracle_plan::Filter;
use oci_spec::runtime::LinuxSeccomp;

use crate::capabilities;

pub use compile::compile;
pub use default::default_profile;
pub use profile::{LARGEST_PROFILE, Surroundings, parse};

/// Filters of the default profile, by the capabilities it depends on.
static DEFAULT_FILTERS: Mutex<BTreeMap<u64, Filter>> = Mutex::new(BTreeMap::new());

/// Filters of the node's profiles, the latest last.
static PROFILE_FILTERS: Mutex<VecDeque<(LinuxSeccomp, Filter)>> = Mutex::new(VecDeque::new());

/// As many of them are kept.
const KEPT: usize = 16;

/// The system call filter of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seccomp {
    /// None.
    Unconfined,
    /// The runtime's own, for a bounding set.
    RuntimeDefault {
        /// The bounding set, as the kernel's bit mask.
        capabilities: u64,
    },
    /// One of the node's.
    Profile(Box<LinuxSeccomp>),
}

impl Seccomp {
    /// What `security` asks for; nothing, if it is privileged. `file` is the content of the profile it names.
    pub(crate) fn chosen(security: &SecurityContext, capabilities: u64, file: Option<&[u8]>, kernel: (u32, u32)) -> Result<Self> {
        match &security.seccomp {
            _ if security.privileged => Ok(Self::Unconfined),
            Profile::Unconfined => Ok(Self::Unconfined),
            Profile::RuntimeDefault => Ok(Self::RuntimeDefault { capabilities }),
            Profile::Localhost(path) => {
                let file = file.ok_or_else(|| profile::refusal(format!("profile {path:?} was not read")))?;
                Ok(Self::Profile(Box::new(parse(file, Surroundings { capabilities, kernel })?)))
            }
        }
    }

    /// As the OCI spec writes it.
    pub fn to_oci(&self) -> Option<LinuxSeccomp> {
        match self {
            Self::Unconfined => None,
            Self::RuntimeDefault { capabilities } => Some(default_profile(*capabilities)),
            Self::Profile(profile) => Some((**profile).clone()),
        }
    }

    /// As the kernel takes it.
    pub fn filter(&self) -> Result<Option<Filter>> {
        match self {
            Self::Unconfined => Ok(None),
            Self::RuntimeDefault { capabilities } => default_filter(*capabilities).map(Some),
            Self::Profile(profile) => profile_filter(profile).map(Some),
        }
    }
}

/// Compiles, ahead of time, the filter that most containers will want: the default capabilities', of what is `held`.
pub fn warm_up(held: u64) -> Result<()> {
    let capabilities = capabilities::sets(&SecurityContext::default(), 0, held)?.bounding;
    default_filter(capabilities).map(drop)
}

fn default_filter(capabilities: u64) -> Result<Filter> {
    let capabilities = default::relevant(capabilities);
    let filters = || DEFAULT_FILTERS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(filter) = filters().get(&capabilities) {
        return Ok(filter.clone());
    }
    // Not under the lock: two that come at once compile twice, and nobody waits for somebody else's profile.
    let filter = compile(&default_profile(capabilities))?;
    filters().insert(capabilities, filter.clone());
    Ok(filter)
}

fn profile_filter(profile: &LinuxSeccomp) -> Result<Filter> {
    let filters = || PROFILE_FILTERS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, filter)) = filters().iter().find(|(known, _)| known == profile) {
        return Ok(filter.clone());
    }
    let filter = compile(profile)?;
    let mut filters = filters();
    if filters.len() >= KEPT {
        filters.pop_front();
    }
    filters.push_back((profile.clone(), filter.clone()));
    Ok(filter)
}
