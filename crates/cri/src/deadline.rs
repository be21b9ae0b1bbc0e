//! A caller's own deadline, which travels in the header `grpc-timeout`: when it has passed the call is dropped, and the
//! answer is DEADLINE_EXCEEDED.
//!
//! tonic drops such a call as well, but answers CANCELLED, and whether a caller hears that or its own clock first is
//! chance. So the same deadline is kept here, a moment earlier. Format: gRPC over HTTP/2, `Timeout`.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{HeaderMap, Request, Response};

/// A service whose calls end at their callers' deadlines.
#[derive(Debug, Clone)]
pub struct Deadlines<S>(S);

impl<S> Deadlines<S> {
    /// Keeps the deadlines of the calls of `service`.
    pub fn of(service: S) -> Self {
        Self(service)
    }
}

impl<S, B> Service<Request<B>> for Deadlines<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let limit = limit(request.headers());
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let answer = self.0.call(request);
        let Some(limit) = limit else { return Box::pin(answer) };
        // It runs from here, not from when it is first waited for.
        let timed = tokio::time::timeout(limit, answer);
        Box::pin(async move {
            let passed = |_| Ok(Status::deadline_exceeded(format!("{method}: the caller's deadline has passed")).into_http());
            timed.await.unwrap_or_else(passed)
        })
    }
}

/// At most eight digits and a unit. What is not of that form is no deadline, as for tonic.
pub(crate) fn limit(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tonic::codegen::http::HeaderValue;

    use super::*;

    /// Answers at once, or never.
    #[derive(Clone, Copy, PartialEq)]
    enum Server {
        Prompt,
        Hanging,
    }

    impl Service<Request<()>> for Server {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<()>) -> Self::Future {
            match self {
                Self::Prompt => Box::pin(async { Ok(Status::ok("").into_http()) }),
                Self::Hanging => Box::pin(std::future::pending()),
            }
        }
    }

    fn request(timeout: &str) -> Request<()> {
        let mut request = Request::new(());
        request.headers_mut().insert("grpc-timeout", HeaderValue::from_str(timeout).unwrap());
        request
    }

    async fn code(server: Server, request: Request<()>) -> String {
        let answer = Deadlines::of(server).call(request).await.unwrap();
        answer.headers()["grpc-status"].to_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn a_call_ends_at_its_callers_deadline_and_says_so() {
        assert_eq!(code(Server::Hanging, request("1m")).await, "4");
        assert_eq!(code(Server::Prompt, request("8H")).await, "0");
        assert_eq!(code(Server::Prompt, Request::new(())).await, "0");
    }

    #[test]
    fn deadlines_are_read_as_grpc_writes_them() {
        let read = |text: &str| limit(request(text).headers());
        let units = [("2H", 7_200_000_000_000), ("2M", 120_000_000_000), ("2S", 2_000_000_000), ("2m", 2_000_000), ("2u", 2000), ("2n", 2)];
        for (text, nanoseconds) in units {
            assert_eq!(read(text), Some(Duration::from_nanos(nanoseconds)), "{text}");
        }
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for text in ["", "S", "1", "123456789S", "+1S", "-1S", "1.5S", "1 S", "1s", "é"] {
            assert_eq!(read(text), None, "{text:?}");
        }
    }
}
