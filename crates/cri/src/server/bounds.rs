//! What all calls together may cost: how many there are, and how many bytes of requests are in work. A call above that is told
//! RESOURCE_EXHAUSTED at once: waiting for room, two halves of two requests would wait for each other.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};

use super::callers::{Busy, Caller};

/// How many calls may be under way.
const MOST_CALLS: usize = 16 << 10;
/// How many bytes of requests may be in work: a kubelet's have a few KiB each, eight of the largest fit.
const MOST_BYTES: usize = 128 << 20;

/// The bounds, shared by all connections.
#[derive(Debug, Clone)]
pub struct Bounds {
    calls: Arc<AtomicUsize>,
    bytes: Arc<AtomicUsize>,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { calls: Arc::new(AtomicUsize::new(MOST_CALLS)), bytes: Arc::new(AtomicUsize::new(MOST_BYTES)) }
    }
}

impl Bounds {
    /// Keeps the calls of `service` within these bounds.
    pub fn around<S>(&self, service: S) -> Bounded<S> {
        Bounded { service, bounds: self.clone() }
    }
}

/// A share of what is left, given back when dropped.
#[derive(Debug)]
struct Share {
    left: Arc<AtomicUsize>,
    taken: AtomicUsize,
}

impl Share {
    fn of(left: &Arc<AtomicUsize>) -> Self {
        Self { left: Arc::clone(left), taken: AtomicUsize::new(0) }
    }

    fn take(&self, amount: usize) -> bool {
        let taken = self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(amount)).is_ok();
        if taken {
            self.taken.fetch_add(amount, Ordering::Relaxed);
        }
        taken
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.left.fetch_add(*self.taken.get_mut(), Ordering::AcqRel);
    }
}

/// What a call holds until its answer has been taken.
#[derive(Debug)]
struct Held {
    _call: Share,
    _busy: Option<Busy>,
}

/// A service whose calls stay within bounds.
#[derive(Debug, Clone)]
pub struct Bounded<S> {
    service: S,
    bounds: Bounds,
}

impl<S> Service<Request<Body>> for Bounded<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let call = Share::of(&self.bounds.calls);
        if !call.take(1) {
            return Box::pin(async { Ok(exhausted("too many calls are under way").into_http()) });
        }
        let held = Held { _call: call, _busy: request.extensions().get::<Caller>().map(Caller::busy) };
        let bytes = Arc::new(Share::of(&self.bounds.bytes));
        let request = request.map(|body| Body::new(Counted { body, bytes: Arc::clone(&bytes) }));
        let answer = self.service.call(request);
        Box::pin(async move {
            let answer = answer.await;
            // The request has been worked on.
            drop(bytes);
            answer.map(|answer| answer.map(|body| Body::new(Kept { body, _held: held })))
        })
    }
}

fn exhausted(problem: &str) -> Status {
    Status::resource_exhausted(problem)
}

/// A request's body, whose bytes count.
struct Counted {
    body: Body,
    bytes: Arc<Share>,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && !self.bytes.take(data.len())
        {
            return Poll::Ready(Some(Err(exhausted("too many bytes of requests are in work"))));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// An answer's body, which is a call under way until it has been taken.
struct Kept {
    body: Body,
    _held: Held,
}

impl HttpBody for Kept {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tokio_stream::StreamExt;

    use super::*;

    /// Takes the whole request and answers what came of it.
    #[derive(Clone)]
    struct Reader;

    impl Service<Request<Body>> for Reader {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            Box::pin(async move {
                let mut body = request.into_body();
                let mut frames = tokio_stream::iter(std::iter::repeat_n((), 100));
                while frames.next().await.is_some() {
                    match std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
                        Some(Ok(_)) => {}
                        Some(Err(status)) => return Ok(status.into_http()),
                        None => break,
                    }
                }
                let answer = Status::ok("").into_http();
                Ok(answer.map(|_: Body| Body::new(Whole(Some(Bytes::from_static(b"answer"))))))
            })
        }
    }

    fn small() -> Bounds {
        Bounds { calls: Arc::new(AtomicUsize::new(2)), bytes: Arc::new(AtomicUsize::new(10)) }
    }

    /// One frame.
    struct Whole(Option<Bytes>);

    impl HttpBody for Whole {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
        }
    }

    async fn ask(bounds: &Bounds, bytes: usize) -> Response<Body> {
        bounds.around(Reader).call(Request::new(Body::new(Whole(Some(vec![0; bytes].into()))))).await.unwrap()
    }

    fn code(answer: &Response<Body>) -> &str {
        answer.headers()["grpc-status"].to_str().unwrap()
    }

    #[tokio::test]
    async fn a_request_beyond_the_bound_is_refused_and_what_it_took_comes_back() {
        let bounds = small();
        for _ in 0..3 {
            assert_eq!(code(&ask(&bounds, 11).await), "8");
            assert_eq!(code(&ask(&bounds, 10).await), "0");
        }
        assert_eq!(bounds.bytes.load(Ordering::Relaxed), 10);
    }

    #[tokio::test]
    async fn a_call_lasts_until_its_answer_is_taken() {
        let bounds = small();
        let answers = (ask(&bounds, 1).await, ask(&bounds, 1).await);
        assert_eq!(code(&ask(&bounds, 1).await), "8");
        drop(answers);
        assert_eq!(code(&ask(&bounds, 1).await), "0");
        assert_eq!(bounds.calls.load(Ordering::Relaxed), 2);
    }
}
