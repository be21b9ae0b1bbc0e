//! From the domain's errors to gRPC status codes, as a kubelet reads them.
//!
//! The kubelet asks three things of a code: is the subject absent (NOT_FOUND), did a command run out of
//! time (DEADLINE_EXCEEDED), and is a message its own (UNKNOWN: only then it looks for a sentinel such as
//! `RegistryUnavailable` at the message's start). The sentinels are those of cri-api's `pkg/errors`.

use coracle_domain::{Error, Failure, FailureKind, Refusal};
use tonic::{Code, Status};

/// The status that tells `error`.
pub(crate) fn status(error: &Error) -> Status {
    match error {
        Error::Refused(refusal) => Status::new(refusal_code(refusal), refusal.to_string()),
        Error::Failed(failure) => Status::new(failure_code(failure), failure_message(failure)),
    }
}

fn refusal_code(refusal: &Refusal) -> Code {
    match refusal {
        Refusal::Invalid { .. } => Code::InvalidArgument,
        Refusal::NotFound { .. } => Code::NotFound,
        Refusal::WrongState { .. } => Code::FailedPrecondition,
        Refusal::Unsupported { .. } => Code::Unimplemented,
    }
}

fn failure_code(failure: &Failure) -> Code {
    match failure.kind {
        FailureKind::Internal => Code::Internal,
        FailureKind::TimedOut => Code::DeadlineExceeded,
        FailureKind::Exhausted => Code::ResourceExhausted,
        FailureKind::Unavailable => Code::Unavailable,
        FailureKind::Denied => Code::PermissionDenied,
        FailureKind::RegistryUnavailable | FailureKind::ImageVolume | FailureKind::RecursiveReadOnly => Code::Unknown,
    }
}

fn failure_message(failure: &Failure) -> String {
    let sentinel = match failure.kind {
        FailureKind::RegistryUnavailable => "RegistryUnavailable",
        FailureKind::ImageVolume => "ImageVolumeMountFailed",
        FailureKind::RecursiveReadOnly => "RROUnsupported",
        _ => return failure.to_string(),
    };
    format!("{sentinel}: {failure}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_its_code() {
        let cases = [
            (Refusal::invalid("config", "is missing"), Code::InvalidArgument),
            (Refusal::not_found("container", "web"), Code::NotFound),
            (Refusal::wrong_state("container web does not run"), Code::FailedPrecondition),
            (Refusal::unsupported("checkpoint"), Code::Unimplemented),
        ];
        for (refusal, code) in cases {
            let text = refusal.to_string();
            let status = status(&refusal.into());
            assert_eq!((status.code(), status.message()), (code, text.as_str()));
        }
    }

    #[test]
    fn each_failure_has_its_code_and_tells_stage_and_subject() {
        let cases = [
            (FailureKind::Internal, Code::Internal),
            (FailureKind::TimedOut, Code::DeadlineExceeded),
            (FailureKind::Exhausted, Code::ResourceExhausted),
            (FailureKind::Unavailable, Code::Unavailable),
            (FailureKind::Denied, Code::PermissionDenied),
        ];
        for (kind, code) in cases {
            let status = status(&Failure::new("mounting", "/x", "no").kind(kind).into());
            assert_eq!((status.code(), status.message()), (code, "mounting /x: no"));
        }
    }

    #[test]
    fn what_the_kubelet_has_a_word_for_is_told_with_it() {
        let cases = [
            (FailureKind::RegistryUnavailable, "RegistryUnavailable"),
            (FailureKind::ImageVolume, "ImageVolumeMountFailed"),
            (FailureKind::RecursiveReadOnly, "RROUnsupported"),
        ];
        for (kind, word) in cases {
            let status = status(&Failure::new("mounting", "/x", "no").kind(kind).into());
            assert_eq!((status.code(), status.message()), (Code::Unknown, format!("{word}: mounting /x: no").as_str()));
        }
    }
}
