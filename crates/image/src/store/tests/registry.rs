//! How registries, their mirrors and their networks are dealt with.

use std::sync::Arc;
use std::time::Duration;

use coracle_domain::{Error, FailureKind};

use super::{Node, basic, registries, sample};
use crate::testing::{Guard, Registry, Tar, TestImage, gzip_layer};
use crate::{Credentials, PullRequest, Registries, Secret};

#[tokio::test(flavor = "multi_thread")]
async fn credentials_reach_the_registry_that_asks() {
    for guard in [Guard::Basic, Guard::Bearer] {
        let node = Node::new().await;
        node.registry.push("private", "latest", &sample());
        node.registry.shelf().guard = guard;
        assert_eq!(node.failure("private").await.kind, FailureKind::Denied);
        let wrong = Some(Credentials::Basic { username: "user".into(), password: Secret::new("wrong") });
        let Err(Error::Failed(failure)) = node.pull_with("private", wrong).await else { panic!() };
        assert_eq!(failure.kind, FailureKind::Denied);
        assert!(!failure.to_string().contains("wrong"), "{failure}");
        node.pull_with("private", basic()).await.unwrap();
    }
    let node = Node::new().await;
    node.registry.push("private", "latest", &sample());
    node.registry.shelf().guard = Guard::Bearer;
    node.pull_with("private", Some(Credentials::RegistryToken(Secret::new("t0ken")))).await.unwrap();
    let other = Node { registry: node.registry.clone(), ..Node::new().await };
    other.pull_with("private", Some(Credentials::IdentityToken(Secret::new("identity")))).await.unwrap();
    let scope = |seen: &crate::testing::Seen| seen.body.contains("scope=repository%3Aprivate%3Apull");
    assert!(node.registry.shelf().seen.iter().any(scope));
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_followed_without_credentials() {
    let (node, store_host) = (Node::new().await, Registry::start().await);
    let image = sample();
    node.registry.push("app", "latest", &image);
    store_host.push("app", "latest", &image);
    node.registry.shelf().guard = Guard::Basic;
    node.registry.shelf().redirect = Some(store_host.address.to_string());
    node.pull_with("app", basic()).await.unwrap();
    assert!(store_host.count("GET", "/blobs/") >= 3);
    assert!(store_host.shelf().seen.iter().all(|seen| !seen.headers.contains_key("authorization")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_registry_must_be_the_one_it_says() {
    let (registry, authority) = Registry::start_encrypted().await;
    registry.push("app", "latest", &sample());
    let scratch = tempfile::tempdir().unwrap();
    let ca_file = scratch.path().join("ca.pem");
    std::fs::write(&ca_file, authority).unwrap();
    let config = |extra: &str| -> Registries { toml::from_str(&format!("[hosts.\"{}\"]\n{extra}", registry.address)).unwrap() };
    let mut trusting = Node::with(config(&format!("ca_file = {ca_file:?}"))).await;
    trusting.registry = registry.clone();
    trusting.pull("app").await.unwrap();
    let mut doubting = Node::with(config("http = false")).await;
    doubting.registry = registry.clone();
    let failure = doubting.failure("app").await;
    assert!(failure.to_string().contains("certificate"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_in_the_clear_is_refused() {
    let node = Node::new().await;
    node.registry.push("app", "latest", &sample());
    node.registry.shelf().redirect = Some("192.0.2.1".into());
    assert!(node.failure("app").await.to_string().contains("not encrypted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_tried_first_and_never_see_credentials() {
    let (mirror, dead) = (Registry::start().await, "http://127.0.0.1:9");
    let origin = Registry::start().await;
    let config = format!("[hosts.\"{}\"]\nmirrors = [\"{dead}\", \"http://{}\"]", origin.address, mirror.address);
    let mut node = Node::with(Registries { retry_pause: Duration::from_millis(1), ..toml::from_str(&config).unwrap() }).await;
    node.registry = origin;
    let image = sample();
    mirror.push("app", "latest", &image);
    node.pull_with("app", basic()).await.unwrap();
    assert_eq!(node.registry.shelf().seen.len(), 0);
    assert!(mirror.shelf().seen.iter().all(|seen| !seen.headers.contains_key("authorization")));
    assert!(mirror.shelf().seen[0].path.ends_with(&format!("?ns={}", node.registry.address.to_string().replace(':', "%3A"))));
    // What the mirror lacks, the registry itself has.
    node.registry.push("other", "latest", &image);
    node.pull("other").await.unwrap();
    let text = format!("{:?}", node.pull("nowhere").await);
    assert!(text.contains("NotFound"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_download_is_taken_up_where_it_broke() {
    for ignore_ranges in [false, true] {
        let node = Node::new().await;
        let noise: String =
            (0..20_000u32).map(|n| char::from(b' ' + u8::try_from(n.wrapping_mul(2_654_435_761) >> 25).unwrap() % 90)).collect();
        let image = TestImage::new("big", &[gzip_layer(Tar::new().file("noise", &noise))]);
        node.registry.push("big", "latest", &image);
        node.registry.shelf().cuts = (3, 1000);
        node.registry.shelf().ignore_ranges = ignore_ranges;
        node.pull("big").await.unwrap();
        let shelf = node.registry.shelf();
        assert!(shelf.seen.iter().any(|seen| seen.headers.contains_key("range")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_keeps_hanging_up_is_unavailable() {
    let node = Node::new().await;
    node.registry.push("app", "latest", &sample());
    node.registry.shelf().cuts = (1000, 10);
    node.registry.shelf().ignore_ranges = true;
    let failure = node.failure("app").await;
    assert_eq!(failure.kind, FailureKind::RegistryUnavailable, "{failure}");
    node.registry.shelf().status = Some(503);
    let failure = node.failure("app").await;
    assert_eq!((failure.kind, &*failure.stage), (FailureKind::RegistryUnavailable, "fetching the manifest"));
    assert!(failure.to_string().contains(&node.registry.address.to_string()));
    node.assert_empty().await;
    let nobody = PullRequest { reference: "127.0.0.1:9/app".into(), credentials: None };
    let Err(Error::Failed(failure)) = node.store.pull(nobody).await else { panic!() };
    assert_eq!(failure.kind, FailureKind::RegistryUnavailable, "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_says_nothing_is_given_up() {
    let node = Node::with(Registries { stall_timeout: Duration::from_millis(50), ..registries() }).await;
    node.registry.push("app", "latest", &sample());
    node.registry.shelf().gate = Some(Arc::new(tokio::sync::Semaphore::new(0)));
    let failure = node.failure("app").await;
    assert_eq!(failure.kind, FailureKind::RegistryUnavailable, "{failure}");
    node.assert_empty().await;
}
