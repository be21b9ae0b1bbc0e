//! How a session ended, in the words of its protocol.
//!
//! From the fourth version on it is a `metav1.Status` in JSON (Kubernetes' `remotecommand` package); before, a text, and
//! nothing at all for success.

use coracle_domain::Result;
use serde_json::{Value, json};

use crate::backend::Ending;

/// How the end is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    /// An object with the exit status in it.
    Json,
    /// A sentence, if it failed.
    Text,
}

impl Report {
    /// What is sent on the error stream.
    pub(crate) fn of(self, ending: &Result<Ending>) -> Vec<u8> {
        match (self, ending) {
            (Self::Json, Ok(Ending::Detached | Ending::Exited(0))) => object(json!({"status": "Success"})),
            (Self::Text, Ok(Ending::Detached | Ending::Exited(0))) => Vec::new(),
            (Self::Json, Ok(Ending::Exited(code))) => object(json!({
                "status": "Failure",
                "message": ended(*code),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            })),
            (Self::Text, Ok(Ending::Exited(code))) => ended(*code).into_bytes(),
            (Self::Json, Err(error)) => object(json!({
                "status": "Failure",
                "message": error.to_string(),
                "reason": "InternalError",
                "code": 500,
            })),
            (Self::Text, Err(error)) => error.to_string().into_bytes(),
        }
    }
}

fn ended(code: u8) -> String {
    format!("command terminated with exit code {code}")
}

fn object(mut status: Value) -> Vec<u8> {
    if let Some(fields) = status.as_object_mut() {
        fields.insert("metadata".to_owned(), json!({}));
    }
    status.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use coracle_domain::Refusal;

    use super::*;

    fn json(ending: Result<Ending>) -> Value {
        serde_json::from_slice(&Report::Json.of(&ending)).unwrap()
    }

    #[test]
    fn an_exit_status_is_where_clients_look_for_it() {
        assert_eq!(json(Ok(Ending::Exited(0)))["status"], "Success");
        assert_eq!(json(Ok(Ending::Detached))["status"], "Success");
        let failed = json(Ok(Ending::Exited(137)));
        assert_eq!((&failed["status"], &failed["reason"]), (&json!("Failure"), &json!("NonZeroExitCode")));
        assert_eq!(failed["details"]["causes"], json!([{"reason": "ExitCode", "message": "137"}]));
        let refused = json(Err(Refusal::wrong_state("container x is not running").into()));
        assert_eq!(refused["reason"], "InternalError");
        assert_eq!(refused["message"], "container x is not running");
    }

    #[test]
    fn before_the_fourth_version_only_failures_are_told() {
        assert_eq!(Report::Text.of(&Ok(Ending::Exited(0))), b"");
        assert_eq!(Report::Text.of(&Ok(Ending::Exited(3))), b"command terminated with exit code 3");
    }
}
