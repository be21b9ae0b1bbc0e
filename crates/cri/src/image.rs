//! Images: credentials on the way in, images on the way out.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use coracle_domain::Refusal;
use coracle_image::{Credentials, Image, Secret};

use crate::check::{self, Checked};
use crate::v1;

/// Docker's configuration files, where `auth` comes from, are not of one mind about padding.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// The names of one registry.
const DOCKER_HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// The image that a request names.
pub(crate) fn name(spec: Option<&v1::ImageSpec>) -> Checked<&str> {
    let name = spec.map(|spec| spec.image.as_str()).unwrap_or_default();
    check::required("image.image", name)?;
    Ok(name)
}

/// How to prove to `registry` who we are; `None` where the message says nothing, or names another server.
/// No secret gets into a refusal. A user counts before an identity token, and that before a registry token.
pub(crate) fn credentials(message: Option<v1::AuthConfig>, registry: &str) -> Checked<Option<Credentials>> {
    let v1::AuthConfig { username, password, auth, server_address, identity_token, registry_token } = message.unwrap_or_default();
    if !is_server(&server_address, registry) {
        return Ok(None);
    }
    let basic = |username, password: String| Some(Credentials::Basic { username, password: Secret::new(password) });
    Ok(if !username.is_empty() {
        basic(username, password)
    } else if !identity_token.is_empty() {
        Some(Credentials::IdentityToken(Secret::new(identity_token)))
    } else if !auth.is_empty() {
        let (username, password) = user_and_password(&auth)?;
        basic(username, password)
    } else if !registry_token.is_empty() {
        Some(Credentials::RegistryToken(Secret::new(registry_token)))
    } else {
        None
    })
}

/// Whether credentials for `address`, a host or a URL, are for `registry`. Without an address they are.
fn is_server(address: &str, registry: &str) -> bool {
    let address = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = address.split('/').next().unwrap_or_default();
    host.is_empty() || host.eq_ignore_ascii_case(registry) || [host, registry].iter().all(|name| DOCKER_HUB.contains(name))
}

fn user_and_password(auth: &str) -> Checked<(String, String)> {
    let refusal = |problem: &str| Refusal::invalid("auth.auth", problem);
    let bytes = BASE64.decode(auth.trim()).map_err(|_| refusal("is not base64"))?;
    let text = String::from_utf8(bytes).map_err(|_| refusal("is not base64 of UTF-8"))?;
    let (username, password) = text.split_once(':').ok_or_else(|| refusal("is not base64 of username:password"))?;
    // Some writers of that file pad with NUL bytes.
    Ok((username.to_owned(), password.trim_end_matches('\0').to_owned()))
}

/// An image, in lists and in statuses alike: it is the same whatever name it was asked for by.
pub(crate) fn item(image: &Image) -> v1::Image {
    let (uid, username) = user(image.user().unwrap_or_default());
    v1::Image {
        id: image.id.as_str().to_owned(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid: uid.map(|value| v1::Int64Value { value }),
        username,
        spec: None,
        pinned: image.pinned,
    }
}

/// `1000:1000` is a uid, `nobody:nogroup` a name; the group is not told.
fn user(user: &str) -> (Option<i64>, String) {
    let name = user.split(':').next().unwrap_or_default();
    match name.parse::<u32>() {
        Ok(uid) => (Some(uid.into()), String::new()),
        Err(_) => (None, name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(text: &str) -> Option<v1::AuthConfig> {
        Some(v1::AuthConfig { auth: BASE64.encode(text), ..Default::default() })
    }

    #[test]
    fn a_user_is_a_number_or_a_name() {
        assert_eq!(user("1000:1000"), (Some(1000), String::new()));
        assert_eq!(user("0"), (Some(0), String::new()));
        assert_eq!(user("nobody:nogroup"), (None, "nobody".to_owned()));
        assert_eq!(user(""), (None, String::new()));
    }

    fn ann() -> Option<Credentials> {
        Some(Credentials::Basic { username: "ann".to_owned(), password: Secret::new("a:b") })
    }

    #[test]
    fn a_user_comes_plain_or_encoded() {
        let plain = v1::AuthConfig { username: "ann".to_owned(), password: "a:b".to_owned(), ..Default::default() };
        for message in [Some(plain), encoded("ann:a:b"), encoded("ann:a:b\0\0")] {
            assert_eq!(credentials(message, "r.example"), Ok(ann()));
        }
        let unpadded = BASE64.encode("ann:a:b").trim_end_matches('=').to_owned();
        assert_eq!(credentials(Some(v1::AuthConfig { auth: unpadded, ..Default::default() }), "r.example"), Ok(ann()));
    }

    #[test]
    fn a_token_stands_alone_and_an_empty_message_is_nothing() {
        let identity = v1::AuthConfig { identity_token: "t".to_owned(), registry_token: "r".to_owned(), ..Default::default() };
        assert_eq!(credentials(Some(identity), "r.example"), Ok(Some(Credentials::IdentityToken(Secret::new("t")))));
        let registry = v1::AuthConfig { registry_token: "r".to_owned(), ..Default::default() };
        assert_eq!(credentials(Some(registry), "r.example"), Ok(Some(Credentials::RegistryToken(Secret::new("r")))));
        assert_eq!(credentials(None, "r.example"), Ok(None));
    }

    #[test]
    fn credentials_go_to_no_other_server_than_theirs() {
        let sent = |address: &str, registry: &str| {
            let message = v1::AuthConfig { server_address: address.to_owned(), ..encoded("ann:a:b").unwrap() };
            credentials(Some(message), registry).unwrap().is_some()
        };
        assert!(sent("", "r.example") && sent("r.example", "r.example") && sent("https://r.example:5000/v2/", "r.example:5000"));
        assert!(sent("https://index.docker.io/v1/", "docker.io"));
        assert!(!sent("r.example", "r.example:5000") && !sent("https://other.example", "r.example") && !sent("docker.io", "r.example"));
    }

    #[test]
    fn a_refusal_never_repeats_the_secret() {
        let broken = v1::AuthConfig { auth: "hunter2!".to_owned(), ..Default::default() };
        for message in [Some(broken), encoded("hunter2")] {
            let refusal = credentials(message, "r.example").unwrap_err().to_string();
            assert!(!refusal.contains("hunter2"), "{refusal}");
        }
    }
}
