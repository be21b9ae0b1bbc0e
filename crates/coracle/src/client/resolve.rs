//! What a name on the command line means: which pod, container or image.
//!
//! In this order: a whole id; a name (`NAME`, a pod also `NAMESPACE/NAME`, a container also `NAMESPACE/POD/NAME`, an image
//! whatever the server takes for its name); the beginning of an id. The first of these that fits anything decides.
//! A name that fits several is narrowed twice: of the attempts of one pod or container, the latest is meant; and a pod is
//! meant rather than the containers in it. What is then still not clear is refused, with a list.

use std::collections::HashMap;

use coracle_cri::v1;
use coracle_domain::Refusal;

use super::connect::Client;
use super::error::{Error, Result};
use super::render::units::short;

/// What a name can mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Pod,
    Container,
    Image,
}

/// A pod, container or image, as it can be named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) kind: Kind,
    pub(crate) id: String,
    /// The pod that a container is in.
    pub(crate) pod: Option<String>,
    /// Whether it is a READY pod or a running container.
    pub(crate) active: bool,
    names: Vec<String>,
    /// What all attempts of one pod or container have in common.
    lineage: String,
    attempt: u32,
}

impl Subject {
    /// Its most exact name, or its short id if it has none.
    pub(crate) fn name(&self) -> &str {
        self.names.first().map_or(short(&self.id), String::as_str)
    }

    /// Its kind, its most exact name and its short id.
    fn describe(&self) -> String {
        let kind = match self.kind {
            Kind::Pod => "pod",
            Kind::Container => "container",
            Kind::Image => "image",
        };
        match self.names.first() {
            Some(name) => format!("{kind} {name} ({})", short(&self.id)),
            None => format!("{kind} {}", short(&self.id)),
        }
    }

    fn has_id(&self, id: &str) -> bool {
        self.id == id || self.digits() == id
    }

    fn has_id_prefix(&self, prefix: &str) -> bool {
        !prefix.is_empty() && (self.id.starts_with(prefix) || self.digits().starts_with(prefix))
    }

    fn digits(&self) -> &str {
        self.id.strip_prefix("sha256:").unwrap_or(&self.id)
    }

    fn of_pod(pod: &v1::PodSandbox) -> Self {
        let v1::PodSandboxMetadata { name, uid, namespace, attempt } = pod.metadata.clone().unwrap_or_default();
        Self {
            kind: Kind::Pod,
            id: pod.id.clone(),
            pod: None,
            active: pod.state() == v1::PodSandboxState::SandboxReady,
            lineage: format!("{namespace}/{name}/{uid}"),
            names: vec![format!("{namespace}/{name}"), name],
            attempt,
        }
    }

    fn of_container(container: &v1::Container, pods: &HashMap<&str, String>) -> Self {
        let v1::ContainerMetadata { name, attempt } = container.metadata.clone().unwrap_or_default();
        let path = pods.get(container.pod_sandbox_id.as_str()).map(|pod| format!("{pod}/{name}"));
        Self {
            kind: Kind::Container,
            id: container.id.clone(),
            pod: Some(container.pod_sandbox_id.clone()),
            active: container.state() == v1::ContainerState::ContainerRunning,
            lineage: format!("{}/{name}", container.pod_sandbox_id),
            names: path.into_iter().chain([name]).collect(),
            attempt,
        }
    }

    fn of_image(image: &v1::Image) -> Self {
        Self {
            kind: Kind::Image,
            id: image.id.clone(),
            pod: None,
            active: false,
            names: image.repo_tags.iter().chain(&image.repo_digests).cloned().collect(),
            lineage: image.id.clone(),
            attempt: 0,
        }
    }
}

/// Everything of certain kinds that an endpoint has.
#[derive(Debug)]
pub(crate) struct Catalogue {
    noun: &'static str,
    subjects: Vec<Subject>,
}

impl Catalogue {
    /// Pods.
    pub(crate) async fn pods(client: &Client) -> Result<Self> {
        let subjects = client.pods().await?.items.iter().map(Subject::of_pod).collect();
        Ok(Self { noun: "pod", subjects })
    }

    /// Containers.
    pub(crate) async fn containers(client: &Client) -> Result<Self> {
        let mut all = Self::containers_and_pods(client).await?;
        all.subjects.retain(|subject| subject.kind == Kind::Container);
        Ok(Self { noun: "container", ..all })
    }

    /// Both.
    pub(crate) async fn containers_and_pods(client: &Client) -> Result<Self> {
        let pods = client.pods().await?.items;
        let containers = client.containers().await?.containers;
        let paths = pods.iter().map(|pod| (pod.id.as_str(), path(pod))).collect();
        let containers = containers.iter().map(|container| Subject::of_container(container, &paths));
        Ok(Self { noun: "container or pod", subjects: pods.iter().map(Subject::of_pod).chain(containers).collect() })
    }

    /// Images; `wanted` is among the names of the one that the server knows by it.
    pub(crate) async fn images(client: &Client, wanted: &str) -> Result<Self> {
        let mut subjects: Vec<_> = client.list_images().await?.images.iter().map(Subject::of_image).collect();
        // A server may refuse what is no image reference; it can still be the beginning of an id.
        let known = client.image_status(wanted, false).await.ok().and_then(|answer| answer.image);
        if let Some(image) = known {
            subjects.iter_mut().filter(|subject| subject.id == image.id).for_each(|subject| subject.names.push(wanted.into()));
        }
        Ok(Self { noun: "image", subjects })
    }

    /// All three.
    pub(crate) async fn everything(client: &Client, wanted: &str) -> Result<Self> {
        let mut all = Self::containers_and_pods(client).await?;
        all.subjects.append(&mut Self::images(client, wanted).await?.subjects);
        Ok(Self { noun: "container, pod or image", ..all })
    }

    /// What `name` means.
    pub(crate) fn resolve(&self, name: &str) -> Result<&Subject> {
        let filter = |test: &dyn Fn(&Subject) -> bool| self.subjects.iter().filter(|subject| test(subject)).collect::<Vec<_>>();
        let found = [
            filter(&|subject| subject.has_id(name)),
            narrow(filter(&|subject| subject.names.iter().any(|own| own == name))),
            filter(&|subject| subject.has_id_prefix(name)),
        ];
        match found.into_iter().find(|found| !found.is_empty()).unwrap_or_default().as_slice() {
            [] => Err(Refusal::not_found(self.noun, name).into()),
            [one] => Ok(one),
            several => Err(ambiguous(name, several)),
        }
    }

    /// The subject with a whole id.
    pub(crate) fn get(&self, id: &str) -> Option<&Subject> {
        self.subjects.iter().find(|subject| subject.id == id)
    }

    /// The containers of a pod.
    pub(crate) fn containers_of<'a>(&'a self, pod: &'a str) -> impl Iterator<Item = &'a Subject> {
        self.subjects.iter().filter(move |subject| subject.pod.as_deref() == Some(pod))
    }
}

/// `NAMESPACE/NAME` of a pod.
pub(crate) fn path(pod: &v1::PodSandbox) -> String {
    let metadata = pod.metadata.clone().unwrap_or_default();
    format!("{}/{}", metadata.namespace, metadata.name)
}

/// Leaves out earlier attempts, and the containers of pods that are found themselves.
fn narrow(found: Vec<&Subject>) -> Vec<&Subject> {
    let superseded =
        |one: &Subject| found.iter().any(|other| other.kind == one.kind && other.lineage == one.lineage && other.attempt > one.attempt);
    let contained = |one: &Subject| found.iter().any(|other| one.pod.as_ref() == Some(&other.id));
    found.iter().filter(|one| !superseded(one) && !contained(one)).copied().collect()
}

fn ambiguous(name: &str, several: &[&Subject]) -> Error {
    let mut candidates: Vec<_> = several.iter().map(|subject| subject.describe()).collect();
    candidates.sort();
    Error::Ambiguous { name: name.into(), candidates }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(id: &str, name: &str, attempt: u32) -> v1::PodSandbox {
        let metadata = v1::PodSandboxMetadata { name: name.into(), uid: "u".into(), namespace: "default".into(), attempt };
        v1::PodSandbox { id: id.into(), metadata: Some(metadata), ..Default::default() }
    }

    fn container(id: &str, pod: &str, name: &str, attempt: u32) -> v1::Container {
        let metadata = Some(v1::ContainerMetadata { name: name.into(), attempt });
        v1::Container { id: id.into(), pod_sandbox_id: pod.into(), metadata, ..Default::default() }
    }

    fn catalogue(pods: &[v1::PodSandbox], containers: &[v1::Container]) -> Catalogue {
        let paths = pods.iter().map(|pod| (pod.id.as_str(), path(pod))).collect();
        let containers = containers.iter().map(|container| Subject::of_container(container, &paths));
        Catalogue { noun: "container or pod", subjects: pods.iter().map(Subject::of_pod).chain(containers).collect() }
    }

    fn candidates(catalogue: &Catalogue, name: &str) -> Vec<String> {
        match catalogue.resolve(name).unwrap_err() {
            Error::Ambiguous { candidates, .. } => candidates,
            other => panic!("{other}"),
        }
    }

    fn id(catalogue: &Catalogue, name: &str) -> String {
        catalogue.resolve(name).map_or_else(|error| error.to_string(), |subject| subject.id.clone())
    }

    #[test]
    fn ids_names_and_prefixes_all_work() {
        let all = catalogue(&[pod("aa11", "web", 0)], &[container("bb22", "aa11", "nginx", 0)]);
        for (name, expected) in [
            ("aa11", "aa11"),
            ("aa", "aa11"),
            ("web", "aa11"),
            ("default/web", "aa11"),
            ("nginx", "bb22"),
            ("default/web/nginx", "bb22"),
            ("b", "bb22"),
        ] {
            assert_eq!(id(&all, name), expected, "{name}");
        }
    }

    #[test]
    fn a_shared_prefix_is_refused_with_the_candidates() {
        let all = catalogue(&[pod("ab1", "one", 0)], &[container("ab2", "ab1", "two", 0)]);
        let two_pods = catalogue(&[pod("ab1", "one", 0), pod("ab2", "two", 0)], &[]);
        assert_eq!(candidates(&two_pods, "ab"), ["pod default/one (ab1)", "pod default/two (ab2)"]);
        assert_eq!(candidates(&all, "ab"), ["container default/one/two (ab2)", "pod default/one (ab1)"]);
    }

    #[test]
    fn a_name_in_two_pods_is_refused_and_its_path_is_not() {
        let pods = [pod("p1", "one", 0), pod("p2", "two", 0)];
        let all = catalogue(&pods, &[container("c1", "p1", "app", 0), container("c2", "p2", "app", 0)]);
        assert_eq!(candidates(&all, "app"), ["container default/one/app (c1)", "container default/two/app (c2)"]);
        assert_eq!(id(&all, "default/two/app"), "c2");
    }

    #[test]
    fn of_several_attempts_the_latest_is_meant() {
        let all =
            catalogue(&[pod("p1", "one", 0), pod("p2", "one", 1)], &[container("c1", "p2", "app", 3), container("c2", "p2", "app", 2)]);
        assert_eq!((id(&all, "app"), id(&all, "one")), ("c1".into(), "p2".into()));
        assert_eq!(id(&all, "c2"), "c2");
    }

    #[test]
    fn a_pod_stands_for_the_containers_that_share_its_name() {
        let all = catalogue(&[pod("p1", "web", 0)], &[container("c1", "p1", "web", 0)]);
        assert_eq!((id(&all, "web"), id(&all, "default/web/web")), ("p1".into(), "c1".into()));
    }

    #[test]
    fn a_name_goes_before_the_beginning_of_an_id() {
        let all = catalogue(&[pod("abc", "x", 0), pod("def", "ab", 0)], &[]);
        assert_eq!(id(&all, "ab"), "def");
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let all = catalogue(&[pod("abc", "x", 0)], &[]);
        for name in ["", "zz", "abcd", "default/", "default"] {
            assert_eq!(id(&all, name), format!("container or pod {name:?} not found"));
        }
    }

    #[test]
    fn an_image_s_id_works_without_its_hash() {
        let image = v1::Image { id: "sha256:0123".into(), repo_tags: vec!["r/a:1".into()], ..Default::default() };
        let all = Catalogue { noun: "image", subjects: vec![Subject::of_image(&image)] };
        for name in ["0123", "01", "sha256:01", "r/a:1"] {
            assert_eq!(id(&all, name), "sha256:0123", "{name}");
        }
    }
}
