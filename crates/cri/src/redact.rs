//! `Debug` for the messages that carry secrets, so that none of them ever reaches a log.
//!
//! The code generator leaves these out (see `build.rs`); messages that contain them print through here.

use std::fmt;

use crate::v1::{AuthConfig, KeyValue};

/// Shows whether there is a secret, never which.
fn covered(secret: &str) -> &'static str {
    if secret.is_empty() { "" } else { "…" }
}

impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("password", &covered(&self.password))
            .field("auth", &covered(&self.auth))
            .field("server_address", &self.server_address)
            .field("identity_token", &covered(&self.identity_token))
            .field("registry_token", &covered(&self.registry_token))
            .finish()
    }
}

impl fmt::Debug for KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=…", self.key)
    }
}

#[cfg(test)]
mod tests {
    use crate::v1::{AuthConfig, ContainerConfig, KeyValue, PullImageRequest};

    #[test]
    fn secrets_do_not_show_in_a_message_that_holds_them() {
        let secret = || "hunter2".to_owned();
        let auth = AuthConfig {
            username: "ann".to_owned(),
            password: secret(),
            auth: secret(),
            server_address: "registry.example".to_owned(),
            identity_token: secret(),
            registry_token: secret(),
        };
        let pull = format!("{:?}", PullImageRequest { auth: Some(auth), ..Default::default() });
        assert!(pull.contains("ann") && !pull.contains("hunter2"), "{pull}");

        let env = KeyValue { key: "TOKEN".to_owned(), value: b"hunter2".to_vec() };
        let config = format!("{:?}", ContainerConfig { envs: vec![env], ..Default::default() });
        assert!(config.contains("TOKEN=…") && !config.contains("hunter2") && !config.contains("104, 117"), "{config}");
    }
}
