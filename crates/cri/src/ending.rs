//! The daemon's end: calls that are still under way when it can wait no longer are answered UNAVAILABLE, which tells their
//! callers to come again, instead of being cut off.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};

/// A service whose calls end with the daemon.
#[derive(Debug, Clone)]
pub struct Ending<S> {
    service: S,
    over: watch::Receiver<bool>,
}

impl<S> Ending<S> {
    /// Ends the calls of `service` when `over` turns true.
    pub fn of(service: S, over: watch::Receiver<bool>) -> Self {
        Self { service, over }
    }
}

impl<S, B> Service<Request<B>> for Ending<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let answer = self.service.call(request);
        let mut over = self.over.clone();
        Box::pin(async move {
            tokio::select! {
                biased;
                answer = answer => answer,
                // Without a sender the daemon is not there to end.
                Ok(_) = over.wait_for(|over| *over) => Ok(Status::unavailable("the daemon ends; the call can be made again").into_http()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Never answers.
    #[derive(Clone, Copy)]
    struct Hanging;

    impl Service<Request<()>> for Hanging {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Pending<Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<()>) -> Self::Future {
            std::future::pending()
        }
    }

    #[tokio::test]
    async fn a_call_under_way_is_told_of_the_end() {
        let (end, over) = watch::channel(false);
        let call = tokio::spawn(Ending::of(Hanging, over).call(Request::new(())));
        tokio::task::yield_now().await;
        assert!(!call.is_finished());
        end.send_replace(true);
        assert_eq!(call.await.unwrap().unwrap().headers()["grpc-status"], "14");
    }
}
