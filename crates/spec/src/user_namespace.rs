//! User and time namespaces between the domain's words, the OCI spec's and the Plan's.

use std::collections::HashMap;
use std::path::PathBuf;

use coracle_domain::{IdMapping, Refusal, Result, TimeOffset, TimeOffsets};
use coracle_plan::UserNamespace;
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespaceType, LinuxTimeOffset};

use crate::ContainerSpec;

/// Refuses a user or group that the pod's user namespace does not have.
pub(crate) fn check(spec: &ContainerSpec<'_>) -> Result<()> {
    let Some(users) = spec.pod.user_namespace else { return Ok(()) };
    let user = spec.user;
    let groups = std::iter::once(&user.gid).chain(&user.groups).map(|gid| ("group", *gid, users.gids));
    for (kind, id, mapping) in std::iter::once(("user", user.uid, users.uids)).chain(groups) {
        if mapping.to_host(id).is_none() {
            let problem = format!("{kind} {id} is not among the {} that the pod's user namespace has", mapping.length());
            return Err(Refusal::invalid("linux.security_context", problem).into());
        }
    }
    Ok(())
}

/// A mapping as the OCI spec writes it.
pub(crate) fn to_oci(mapping: IdMapping) -> Vec<LinuxIdMapping> {
    let oci = LinuxIdMappingBuilder::default().container_id(0u32).host_id(mapping.host()).size(mapping.length()).build();
    oci.into_iter().collect()
}

/// Offsets as the OCI spec writes them.
pub(crate) fn time_offsets(offsets: &TimeOffsets) -> Option<HashMap<String, LinuxTimeOffset>> {
    let clocks = [("monotonic", offsets.monotonic), ("boottime", offsets.boottime)];
    let oci: HashMap<_, _> = clocks.into_iter().filter_map(|(clock, offset)| Some((clock.to_owned(), offset_to_oci(offset?)))).collect();
    (!oci.is_empty()).then_some(oci)
}

fn offset_to_oci(offset: TimeOffset) -> LinuxTimeOffset {
    let mut oci = LinuxTimeOffset::default();
    oci.set_secs(Some(offset.seconds)).set_nanosecs(Some(offset.nanoseconds));
    oci
}

/// The Plan's words for the spec's user namespace.
pub(crate) fn of_oci(linux: &Linux) -> Option<UserNamespace> {
    let path: PathBuf = linux.namespaces().iter().flatten().find(|one| one.typ() == LinuxNamespaceType::User)?.path().clone()?;
    let mapping = |mappings: &Option<Vec<LinuxIdMapping>>| {
        let first = mappings.as_ref()?.first()?;
        Some(coracle_plan::IdMapping { host: first.host_id(), length: first.size() })
    };
    Some(UserNamespace { path, uids: mapping(linux.uid_mappings())?, gids: mapping(linux.gid_mappings())? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Fixture;

    #[test]
    fn a_user_beyond_the_mapping_is_refused() {
        let mapping = IdMapping::new(65_536, 1_000).unwrap();
        let mut fixture = Fixture::default();
        fixture.pod.user_namespace = Some(coracle_domain::UserNamespace { uids: mapping, gids: mapping });
        fixture.user.uid = 999;
        assert!(check(&fixture.spec()).is_ok());
        fixture.user.groups = vec![5, 1_000];
        assert!(check(&fixture.spec()).unwrap_err().to_string().contains("group 1000"));
        fixture.pod.user_namespace = None;
        assert!(check(&fixture.spec()).is_ok());
    }
}
