//! Names of images: `[registry/]repository[:tag][@digest]`, in the grammar and with the defaults that
//! Docker gave them and everybody kept: no registry means `docker.io`, a single word there means
//! `library/<word>`, no tag means `latest`. Where both tag and digest are given the digest decides and
//! the tag is dropped. Pure: nothing is looked up.

use std::fmt;
use std::str::FromStr;

use crate::Digest;

const DEFAULT_REGISTRY: &str = "docker.io";
const LEGACY_DEFAULT_REGISTRY: &str = "index.docker.io";
/// The longest `registry/repository`, bytes.
const NAME_LIMIT: usize = 255;
/// The longest tag, bytes (OCI distribution specification, "Pulling manifests").
const TAG_LIMIT: usize = 128;

/// A complete name of an image. Its text form is canonical: `docker.io/library/busybox:latest`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    target: Target,
}

/// What in the repository is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// Whatever carries this tag now.
    Tag(String),
    /// This manifest or index.
    Digest(Digest),
}

/// Why a text names no image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidReference(&'static str);

impl Reference {
    /// The host, with its port where one was given: `docker.io`, `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path within the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Tag or digest.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// `registry/repository`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(|_| InvalidReference("what follows \"@\" is no sha256 digest"))?)),
            None => (text, None),
        };
        let last_component = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest.rfind(':').filter(|colon| *colon >= last_component) {
            Some(colon) => (&rest[..colon], Some(&rest[colon + 1..])),
            None => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(InvalidReference(
                "a tag is up to 128 letters, digits, \"_\", \".\" and \"-\" and starts with neither of the last two",
            ));
        }
        let (registry, repository) = split_name(name)?;
        let target = match (digest, tag) {
            (Some(digest), _) => Target::Digest(digest),
            (None, tag) => Target::Tag(tag.unwrap_or("latest").to_owned()),
        };
        Ok(Self { registry, repository, target })
    }
}

fn split_name(name: &str) -> Result<(String, String), InvalidReference> {
    if name.is_empty() {
        return Err(InvalidReference("the name is empty"));
    }
    if Digest::from_digits(name).is_ok() {
        return Err(InvalidReference("64 hexadecimal digits are an image's id, not a name"));
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, rest)) if looks_like_host(first) => (first, rest),
        _ => (DEFAULT_REGISTRY, name),
    };
    let registry = if registry == LEGACY_DEFAULT_REGISTRY { DEFAULT_REGISTRY } else { registry };
    if !is_host(registry) {
        return Err(InvalidReference("the registry is no host name with an optional port"));
    }
    let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
    if !repository.split('/').all(is_path_component) {
        return Err(InvalidReference(
            "a repository is made of lowercase letters and digits, separated by \".\", \"_\", \"__\", dashes or \"/\"",
        ));
    }
    if registry.len() + 1 + repository.len() > NAME_LIMIT {
        return Err(InvalidReference("the name is longer than 255 bytes"));
    }
    Ok((registry.to_owned(), repository))
}

/// Whether a first component is a registry rather than the start of a path.
fn looks_like_host(component: &str) -> bool {
    component == "localhost" || component.contains(['.', ':']) || component.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_host(text: &str) -> bool {
    if let Some(rest) = text.strip_prefix('[') {
        return rest.split_once(']').is_some_and(|(address, port)| {
            address.parse::<std::net::Ipv6Addr>().is_ok() && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
        });
    }
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    port.is_none_or(is_port) && host.split('.').all(is_label)
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

fn is_label(label: &str) -> bool {
    !label.is_empty()
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// Runs of lowercase letters and digits, joined by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    is_word(*first)
        && is_word(*last)
        && bytes
            .split(|byte| is_word(*byte))
            .all(|separator| matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-'))
}

fn is_tag(tag: &str) -> bool {
    (1..=TAG_LIMIT).contains(&tag.len())
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
        && !tag.starts_with(['.', '-'])
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Tag(tag) => write!(f, "{}/{}:{tag}", self.registry, self.repository),
            Target::Digest(digest) => write!(f, "{}/{}@{digest}", self.registry, self.repository),
        }
    }
}

impl fmt::Display for InvalidReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for InvalidReference {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canonical(text: &str) -> String {
        text.parse::<Reference>().map_or_else(|error| format!("error: {error}"), |reference| reference.to_string())
    }

    #[test]
    fn names_get_dockers_defaults() {
        let digest = Digest::of(b"");
        for (text, expected) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/a/b", "docker.io/a/b:latest"),
            ("me/app", "docker.io/me/app:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app", "localhost:5000/app:latest"),
            ("localhost:5000", "docker.io/library/localhost:5000"),
            ("[::1]:5000/a/b:c", "[::1]:5000/a/b:c"),
            ("Example.com/a__b/c---d.e_f:v1", "Example.com/a__b/c---d.e_f:v1"),
            (&format!("app:tag@{digest}"), &format!("docker.io/library/app@{digest}")),
        ] {
            assert_eq!(canonical(text), expected, "{text}");
        }
    }

    #[test]
    fn malformed_names_are_refused() {
        let long = "a".repeat(300);
        for bad in [
            "",
            ":",
            "/",
            "@",
            "a:",
            "a:b:c",
            "UPPER",
            "a//b",
            "/a",
            "a/",
            "a..b",
            "-a",
            "a-",
            "a___b",
            "a b",
            "a\0b",
            "../../etc",
            "é",
            "example.com",
            "host:99999/a",
            "ho_st.com/a",
            "[::1/a",
            "a@sha256:00",
            "a:-t",
            "exa mple.com/a",
            &long,
            &"0".repeat(64),
        ] {
            // A bare host is a legal word: Docker reads it as a repository.
            if bad == "example.com" {
                assert_eq!(canonical(bad), "docker.io/library/example.com:latest");
                continue;
            }
            assert!(bad.parse::<Reference>().is_err(), "{bad:?} became {}", canonical(bad));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "\\PC{0,80}") {
            let _ = text.parse::<Reference>();
        }

        #[test]
        fn the_canonical_text_is_a_fixed_point(text in "([a-z]{1,5}(\\.[a-z]{2}|:[0-9]{2,4})/)?[a-z0-9]{1,6}([_-][a-z0-9]{1,4}){0,2}(/[a-z]{1,4}(\\.[a-z]{1,2})?)?(:[a-zA-Z0-9_][a-z.-]{0,6})?") {
            let reference: Reference = text.parse().map_err(|error| TestCaseError::fail(format!("{text}: {error}")))?;
            prop_assert_eq!(reference.to_string().parse(), Ok(reference));
        }
    }
}
