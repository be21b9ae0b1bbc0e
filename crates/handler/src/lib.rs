//! How a container is run. A RuntimeClass names a handler; the default one has no name.
//!
//! There is one way today, `native`: a description becomes a Plan, which the pod's monitor carries out. [`Handler`] is
//! where others will stand beside it (OCI runtime binaries on the same description); whoever calls it asks what to do
//! for a container and does not look which one it is. Pure: nothing is run here.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use coracle_domain::{HandlerName, Refusal, Result};
use coracle_plan::Plan;
use coracle_spec::{Description, Placement};

/// The name under which the native handler can be asked for.
pub const NATIVE: &str = "native";

/// A way to run containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Handler {
    /// By our own Plan.
    Native,
}

/// What the kubelet is told of a handler (CRI's RuntimeHandlerFeatures).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandlerInfo {
    /// Its name; empty for the default.
    pub name: String,
    /// Whether it can make mounts read-only with all that is mounted beneath (KEP-3857).
    pub recursive_read_only: bool,
    /// Whether it can give pods user namespaces (KEP-127).
    pub user_namespaces: bool,
}

/// The node's handlers by name.
#[derive(Debug, Clone)]
pub struct Handlers {
    default: Handler,
    named: BTreeMap<HandlerName, Handler>,
}

impl Default for Handlers {
    /// The native handler, with its name and as the default.
    fn default() -> Self {
        Self { default: Handler::Native, named: BTreeMap::from([(HandlerName(NATIVE.to_owned()), Handler::Native)]) }
    }
}

impl Handlers {
    /// The handler called `name`; without a name, the default. Refused: a name there is no handler for.
    pub fn resolve(&self, name: Option<&HandlerName>) -> Result<&Handler> {
        let Some(name) = name.filter(|name| !name.0.is_empty()) else { return Ok(&self.default) };
        self.named.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.named.keys().map(|known| known.0.as_str()).collect();
            let problem = format!("there is no handler {:?}; known are: {}", name.0, known.join(", "));
            Refusal::invalid("runtime_handler", problem).into()
        })
    }

    /// All handlers for CRI's Status on a kernel of that version, the default one first; and whether the node can give pods
    /// user namespaces.
    pub fn infos(&self, kernel: (u32, u32), user_namespaces: bool) -> Vec<HandlerInfo> {
        let named = self.named.iter().map(|(name, handler)| handler.info(&name.0, kernel, user_namespaces));
        std::iter::once(self.default.info("", kernel, user_namespaces)).chain(named).collect()
    }
}

impl Handler {
    /// What to do to start the described container. Refused or failed: see [`coracle_spec::plan`].
    pub fn plan(&self, description: &Description, placement: Placement) -> Result<Plan> {
        match self {
            Self::Native => coracle_spec::plan(description, placement),
        }
    }

    fn info(self, name: &str, kernel: (u32, u32), user_namespaces: bool) -> HandlerInfo {
        let recursive_read_only = coracle_spec::has_recursive_read_only(kernel);
        match self {
            Self::Native => HandlerInfo { name: name.to_owned(), recursive_read_only, user_namespaces },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_an_empty_name_and_native_are_the_native_handler() {
        let handlers = Handlers::default();
        for name in [None, Some(HandlerName(String::new())), Some(HandlerName(NATIVE.to_owned()))] {
            assert_eq!(handlers.resolve(name.as_ref()).unwrap(), &Handler::Native);
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let message = Handlers::default().resolve(Some(&HandlerName("kata".to_owned()))).unwrap_err().to_string();
        assert!(message.contains("runtime_handler") && message.contains("kata") && message.contains(NATIVE), "{message}");
    }

    #[test]
    fn the_default_is_told_of_by_its_empty_name_too() {
        let names: Vec<String> = Handlers::default().infos((6, 12), true).into_iter().map(|info| info.name).collect();
        assert_eq!(names, ["", NATIVE]);
    }
}
