//! What all calls together may cost: how many there are, and how many bytes of requests are in work. A call above that is told
//! RESOURCE_EXHAUSTED at once: waiting for room, two halves of two requests would wait for each other.
//!
//! A little of both is each caller's own, so that a few who ask and never read do not lock out the others.

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

use super::callers::Caller;

/// How many calls may be under way, and how many more of each caller.
const CALLS: Bound = Bound { most: 16 << 10, own: 16 };
/// How many bytes of requests may be in work, and how many more of each caller: a kubelet's have a few KiB each, eight of the
/// largest fit.
const BYTES: Bound = Bound { most: 128 << 20, own: 64 << 10 };

#[derive(Debug, Clone, Copy)]
struct Bound {
    most: usize,
    own: usize,
}

/// The bounds, shared by all connections.
#[derive(Debug, Clone)]
pub struct Bounds {
    calls: Pool,
    bytes: Pool,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { calls: Pool::of(CALLS), bytes: Pool::of(BYTES) }
    }
}

impl Bounds {
    /// Keeps the calls of `service` within these bounds.
    pub fn around<S>(&self, service: S) -> Bounded<S> {
        Bounded { service, bounds: self.clone() }
    }
}

/// What all callers have of something together, and how much they may.
#[derive(Debug, Clone)]
struct Pool {
    bound: Bound,
    taken: Arc<AtomicUsize>,
}

impl Pool {
    fn of(bound: Bound) -> Self {
        Self { bound, taken: Arc::default() }
    }

    /// The share of one of a caller's calls. `had` counts what the caller has in all.
    fn share(&self, had: &Arc<AtomicUsize>) -> Share {
        Share { pool: self.clone(), had: Arc::clone(had), taken: AtomicUsize::new(0) }
    }
}

/// What one call has of a pool, given back when dropped.
#[derive(Debug)]
struct Share {
    pool: Pool,
    had: Arc<AtomicUsize>,
    taken: AtomicUsize,
}

impl Share {
    fn take(&self, amount: usize) -> bool {
        let Bound { most, own } = self.pool.bound;
        let own = self.had.load(Ordering::Acquire).saturating_add(amount) <= own;
        let sum = |taken: usize| taken.checked_add(amount).filter(|sum| own || *sum <= most);
        let taken = self.pool.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, sum).is_ok();
        if taken {
            self.had.fetch_add(amount, Ordering::AcqRel);
            self.taken.fetch_add(amount, Ordering::Relaxed);
        }
        taken
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let taken = *self.taken.get_mut();
        self.had.fetch_sub(taken, Ordering::AcqRel);
        self.pool.taken.fetch_sub(taken, Ordering::AcqRel);
    }
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
        let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
        let call = self.bounds.calls.share(&caller.calls);
        if !call.take(1) {
            return Box::pin(async { Ok(exhausted("too many calls are under way").into_http()) });
        }
        let bytes = Arc::new(self.bounds.bytes.share(&caller.bytes));
        let request = request.map(|body| Body::new(Counted { body, bytes: Arc::clone(&bytes) }));
        let answer = self.service.call(request);
        Box::pin(async move {
            let answer = answer.await;
            // The request has been worked on.
            drop(bytes);
            answer.map(|answer| answer.map(|body| Body::new(Kept { body, _call: call })))
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
    _call: Share,
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
        Bounds { calls: Pool::of(Bound { most: 2, own: 0 }), bytes: Pool::of(Bound { most: 10, own: 0 }) }
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
        ask_as(&Caller::default(), bounds, bytes).await
    }

    async fn ask_as(caller: &Caller, bounds: &Bounds, bytes: usize) -> Response<Body> {
        let mut request = Request::new(Body::new(Whole(Some(vec![0; bytes].into()))));
        request.extensions_mut().insert(caller.clone());
        bounds.around(Reader).call(request).await.unwrap()
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
        assert_eq!(bounds.bytes.taken.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_call_lasts_until_its_answer_is_taken() {
        let bounds = small();
        let answers = (ask(&bounds, 1).await, ask(&bounds, 1).await);
        assert_eq!(code(&ask(&bounds, 1).await), "8");
        drop(answers);
        assert_eq!(code(&ask(&bounds, 1).await), "0");
        assert_eq!(bounds.calls.taken.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn those_who_take_no_answer_leave_every_other_its_own() {
        let bounds = Bounds { calls: Pool::of(Bound { most: 10, own: 2 }), bytes: Pool::of(Bound { most: 10, own: 2 }) };
        let deaf = Caller::default();
        let mut kept = Vec::new();
        for _ in 0..10 {
            kept.push(ask_as(&deaf, &bounds, 1).await);
        }
        assert_eq!(code(&ask_as(&deaf, &bounds, 1).await), "8");
        let other = Caller::default();
        for _ in 0..2 {
            kept.push(ask_as(&other, &bounds, 1).await);
            assert_eq!(code(kept.last().unwrap()), "0");
        }
        assert_eq!(code(&ask_as(&other, &bounds, 1).await), "8");
        drop(kept);
        assert_eq!(bounds.calls.taken.load(Ordering::Relaxed), 0);
        assert_eq!(code(&ask_as(&deaf, &bounds, 1).await), "0");
    }
}
