//! The daemon's end: calls that are still under way when it can wait no longer are answered UNAVAILABLE, which tells their
//! callers to come again, instead of being cut off.

use std::future::Future;

use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::Response;

/// The answer to `call`, or, if `over` turns true before, that the daemon ends.
///
/// # Errors
/// Those of the call.
pub async fn unless_over<E>(
    call: impl Future<Output = Result<Response<Body>, E>>,
    mut over: watch::Receiver<bool>,
) -> Result<Response<Body>, E> {
    tokio::select! {
        biased;
        answer = call => answer,
        // Without a sender the daemon is not there to end.
        Ok(_) = over.wait_for(|over| *over) => Ok(Status::unavailable("the daemon ends; the call can be made again").into_http()),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[tokio::test]
    async fn a_call_under_way_is_told_of_the_end() {
        let (end, over) = watch::channel(false);
        let call = tokio::spawn(unless_over(std::future::pending::<Result<_, Infallible>>(), over));
        tokio::task::yield_now().await;
        assert!(!call.is_finished());
        end.send_replace(true);
        assert_eq!(call.await.unwrap().unwrap().headers()["grpc-status"], "14");
    }
}
