//! SELinux labels of pods and containers: the policy's own for containers (`lxc_contexts`, as container-selinux has it),
//! changed as pod and container ask, each pod with a pair of categories that keeps it from its neighbours.
//!
//! The pair comes from the pod's id, so that nobody need remember it. Whether SELinux is there at all, and what its policy
//! says, the engine finds out.

use std::fmt;

use coracle_domain::{PodId, SecurityContext, SelinuxOptions};

/// Categories of a level: c0 to c1023 (the policies' usual number).
const CATEGORIES: u64 = 1024;

/// What the policy says of containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selinux {
    process: Label,
    file: Label,
}

/// The labels of one container, or of what the containers of a pod share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelinuxLabels {
    /// Of its processes; `None`: what the policy makes of the daemon's own (`spc_t`), as for the privileged.
    pub process: Option<String>,
    /// Of its files.
    pub file: String,
}

/// `user:role:type`, and in policies with levels `:level`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Label {
    user: String,
    role: String,
    kind: String,
    level: Option<String>,
}

impl Selinux {
    /// Reads the policy's file: lines like `process = "system_u:system_r:container_t:s0"`. `None`: it says nothing of
    /// containers.
    pub fn parse(text: &str) -> Option<Self> {
        let label = |wanted: &str| {
            // Of two lines the last one counts.
            let mut lines = text.lines().rev().filter_map(|line| line.split_once('='));
            let (_, value) = lines.find(|(key, _)| key.trim() == wanted)?;
            Label::parse(value.trim().trim_matches('"'))
        };
        Some(Self { process: label("process")?, file: label("file")? })
    }

    /// The labels of what a pod's containers share.
    pub fn of_pod(&self, id: &PodId, pod: &SecurityContext) -> SelinuxLabels {
        self.labels(&pod.selinux, self.level(id, pod))
    }

    /// The labels of a container.
    pub fn of_container(&self, id: &PodId, pod: &SecurityContext, container: &SecurityContext) -> SelinuxLabels {
        let level = container.selinux.level.clone().or_else(|| self.level(id, pod));
        let labels = self.labels(&container.selinux, level);
        SelinuxLabels { process: labels.process.filter(|_| !container.privileged), ..labels }
    }

    /// The level of a pod; `None` in a policy without levels.
    pub fn level(&self, id: &PodId, pod: &SecurityContext) -> Option<String> {
        let base = self.process.level.as_ref()?;
        let sensitivity = base.split(':').next().unwrap_or_default();
        let (first, second) = pair(id);
        Some(pod.selinux.level.clone().unwrap_or_else(|| format!("{sensitivity}:c{first},c{second}")))
    }

    fn labels(&self, options: &SelinuxOptions, level: Option<String>) -> SelinuxLabels {
        let or = |asked: &Option<String>, policys: &String| asked.as_ref().unwrap_or(policys).clone();
        let process = Label {
            user: or(&options.user, &self.process.user),
            role: or(&options.role, &self.process.role),
            kind: or(&options.kind, &self.process.kind),
            level: level.clone(),
        };
        // Roles and types are of processes; files have their own.
        let file = Label { user: or(&options.user, &self.file.user), level, ..self.file.clone() };
        SelinuxLabels { process: Some(process.to_string()), file: file.to_string() }
    }
}

impl Label {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let label = Self { user: parts.next()?, role: parts.next()?, kind: parts.next()?, level: parts.next() };
        let odd = |c: char| c.is_whitespace() || c.is_control() || c == '"';
        (![&label.user, &label.role, &label.kind].iter().any(|part| part.is_empty()) && !text.contains(odd)).then_some(label)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, role, kind, level } = self;
        write!(f, "{user}:{role}:{kind}")?;
        level.iter().try_for_each(|level| write!(f, ":{level}"))
    }
}

/// Two categories, the lower one first: one of 523,776 pairs, all as likely.
fn pair(id: &PodId) -> (u64, u64) {
    let digits = id.as_str().get(..16).unwrap_or_default();
    let seed = u64::from_str_radix(digits, 16).unwrap_or_default();
    let (first, step) = (seed % CATEGORIES, 1 + seed / CATEGORIES % (CATEGORIES - 1));
    let second = (first + step) % CATEGORIES;
    (first.min(second), first.max(second))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: &str = "process = \"system_u:system_r:container_t:s0\"\ncontent = \"system_u:object_r:virt_var_lib_t:s0\"\n\
        file = \"system_u:object_r:container_file_t:s0\"\nro_file=\"system_u:object_r:container_ro_file_t:s0\"\n";

    fn asked(user: &str, kind: &str, level: &str) -> SecurityContext {
        let part = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let selinux = SelinuxOptions { user: part(user), role: None, kind: part(kind), level: part(level) };
        SecurityContext { selinux, ..SecurityContext::default() }
    }

    fn id() -> PodId {
        PodId::from_entropy([7; 32])
    }

    #[test]
    fn a_policys_labels_get_the_pods_pair() {
        let policy = Selinux::parse(POLICY).unwrap();
        let (first, second) = pair(&id());
        let labels = policy.of_pod(&id(), &asked("", "", ""));
        assert_eq!(labels.process, Some(format!("system_u:system_r:container_t:s0:c{first},c{second}")));
        assert_eq!(labels.file, format!("system_u:object_r:container_file_t:s0:c{first},c{second}"));
        assert_eq!(policy.of_container(&id(), &asked("", "", ""), &asked("", "", "")), labels);
    }

    #[test]
    fn the_container_chooses_before_the_pod_and_the_pod_before_chance() {
        let policy = Selinux::parse(POLICY).unwrap();
        let pod = asked("", "", "s0:c1,c2");
        let of = |container: &SecurityContext| policy.of_container(&id(), &pod, container);
        assert_eq!(of(&asked("", "", "")).process.as_deref(), Some("system_u:system_r:container_t:s0:c1,c2"));
        let labels = of(&asked("staff_u", "spc_t", "s0:c3"));
        assert_eq!(labels.process.as_deref(), Some("staff_u:system_r:spc_t:s0:c3"));
        assert_eq!(labels.file, "staff_u:object_r:container_file_t:s0:c3");
    }

    #[test]
    fn the_privileged_have_labels_on_their_files_alone() {
        let policy = Selinux::parse(POLICY).unwrap();
        let privileged = SecurityContext { privileged: true, ..asked("", "spc_t", "s0:c1,c2") };
        let labels = policy.of_container(&id(), &asked("", "", ""), &privileged);
        assert_eq!(labels, SelinuxLabels { process: None, file: "system_u:object_r:container_file_t:s0:c1,c2".into() });
    }

    #[test]
    fn a_policy_without_levels_has_none() {
        let policy = Selinux::parse("process=u:r:t\nfile=\"u:o:f\"").unwrap();
        assert_eq!(policy.of_pod(&id(), &asked("", "", "")), SelinuxLabels { process: Some("u:r:t".into()), file: "u:o:f".into() });
    }

    #[test]
    fn a_policy_that_says_nothing_of_containers_is_none() {
        for text in
            ["", "process = \"a:b:c:d\"", "process = a:b\nfile = a:b:c", "process = a:b:c\nfile = a::c", "process=a:b:c\nfile=a:b:c d"]
        {
            assert_eq!(Selinux::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_pod_has_two_categories_in_order(entropy: [u8; 32]) {
            let (first, second) = pair(&PodId::from_entropy(entropy));
            prop_assert!(first < second && second < CATEGORIES);
        }

        #[test]
        fn any_policy_is_read_or_not(text: String) {
            let _ = Selinux::parse(&text);
        }
    }
}
