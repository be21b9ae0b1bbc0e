//! The directory of a pod's log files. Whoever asks a runtime for a pod chooses it, makes it and removes it: a kubelet for
//! its pods, `run` and `rm` for those that `run` made. CRI does not tell of it afterwards, so `run` notes it in an
//! annotation.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::Path;

use coracle_cri::v1::PodSandboxMetadata;
use coracle_domain::During;

use super::error::Result;

/// Holds the directory's path, on pods that `run` made.
const ANNOTATION: &str = "coracle.client/log-directory";

/// Where kubelets have it.
pub(crate) fn usual(metadata: &PodSandboxMetadata) -> String {
    let PodSandboxMetadata { name, uid, namespace, .. } = metadata;
    format!("/var/log/pods/{namespace}_{name}_{uid}")
}

/// The annotation that notes it.
pub(crate) fn annotation(path: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(ANNOTATION.into(), path.into())])
}

/// What `run` noted.
pub(crate) fn noted(annotations: &BTreeMap<String, String>) -> Option<&str> {
    annotations.get(ANNOTATION).map(String::as_str)
}

/// Makes it, unless it is there.
pub(crate) fn make(path: &str) -> Result<()> {
    Ok(std::fs::create_dir_all(path).during("making the log directory", path)?)
}

/// Removes one container's log, and the directory if nothing else is in it.
pub(crate) fn remove_log(directory: &str, file: &str) -> Result<()> {
    let path = Path::new(directory).join(file);
    unless_absent(std::fs::remove_file(&path)).during("removing the log", path.display())?;
    match std::fs::remove_dir(directory) {
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(()),
        result => Ok(unless_absent(result).during("removing the log directory", directory)?),
    }
}

/// The directory that goes with a removed pod: only one in the usual place, which is this pod's alone.
pub(crate) fn removable<'a>(metadata: &PodSandboxMetadata, annotations: &'a BTreeMap<String, String>) -> Option<&'a str> {
    let PodSandboxMetadata { name, uid, namespace, .. } = metadata;
    let plain = [name, uid, namespace].into_iter().all(|part| !part.is_empty() && !part.contains('/'));
    noted(annotations).filter(|path| plain && *path == usual(metadata))
}

/// Removes a directory that is [`removable`].
pub(crate) fn remove(path: &str) -> Result<()> {
    Ok(unless_absent(std::fs::remove_dir_all(path)).during("removing the log directory", path)?)
}

fn unless_absent(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(name: &str) -> PodSandboxMetadata {
        PodSandboxMetadata { name: name.into(), uid: "u".into(), namespace: "n".into(), attempt: 0 }
    }

    #[test]
    fn only_the_pod_s_own_directory_goes_with_it() {
        let pod = metadata("web");
        assert_eq!(removable(&pod, &annotation("/var/log/pods/n_web_u")), Some("/var/log/pods/n_web_u"));
        assert_eq!(removable(&pod, &annotation("/var/log")), None);
        assert_eq!(removable(&pod, &BTreeMap::new()), None);
        let hostile = metadata("x/../../..");
        assert_eq!(removable(&hostile, &annotation(&usual(&hostile))), None);
    }

    #[test]
    fn a_shared_directory_stays_until_its_last_log_is_gone() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("logs").display().to_string();
        make(&path).unwrap();
        for file in ["a.log", "b.log"] {
            std::fs::write(Path::new(&path).join(file), "").unwrap();
        }
        remove_log(&path, "a.log").unwrap();
        assert!(Path::new(&path).join("b.log").exists());
        remove_log(&path, "b.log").unwrap();
        assert!(!Path::new(&path).exists());
        remove_log(&path, "b.log").unwrap();
    }
}
