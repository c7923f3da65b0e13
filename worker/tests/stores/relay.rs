//! A relay in front of an S3 server that bends what goes through, as networks and busy stores do.
//!
//! It speaks HTTP on both sides and passes every header on as it is, the host's too: that is signed.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{Method, Response, StatusCode, header},
};
use futures::{StreamExt, stream};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

/// More than any object of the tests.
const BODY_MAX: usize = 64 << 20;
/// As AWS says it.
const SLOW_DOWN: &str =
    "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";

/// What happens to requests and answers.
#[derive(Clone, Copy, Debug)]
pub enum Bent {
    /// Nothing.
    Not,
    /// Answers begin this much later.
    Late(Duration),
    /// The next requests are answered by 503.
    Throttled { times: usize },
    /// The next bodies end in the middle: of an upload on its way there, of an object on its way back.
    Cut { times: usize },
}

impl Bent {
    /// What this request is to meet; one time less for the next.
    fn take(&mut self) -> Self {
        let now = *self;
        if let Self::Throttled { times } | Self::Cut { times } = self {
            match times.checked_sub(1) {
                Some(left) => *times = left,
                None => return Self::Not,
            }
        }
        now
    }
}

#[derive(Clone)]
struct Shared {
    server: String,
    client: reqwest::Client,
    bent: Arc<Mutex<Bent>>,
}

/// The relay; it ends when dropped.
pub struct Relay {
    address: SocketAddr,
    bent: Arc<Mutex<Bent>>,
    _serving: AbortOnDropHandle<()>,
}

impl Relay {
    /// Listens on loopback and passes everything on to the server.
    pub async fn start(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let bent = Arc::new(Mutex::new(Bent::Not));
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let shared = Shared {
            server: server.to_owned(),
            client,
            bent: bent.clone(),
        };
        let router = Router::new().fallback(pass).with_state(shared);
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            address,
            bent,
            _serving: AbortOnDropHandle::new(serving),
        }
    }

    /// Where it listens, as S3 clients are told it.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on.
    pub fn bend(&self, bent: Bent) {
        *self.bent.lock().unwrap() = bent;
    }
}

async fn pass(State(shared): State<Shared>, request: Request) -> Response<Body> {
    let bent = shared.bent.lock().unwrap().take();
    let (head, body) = request.into_parts();
    let cut = matches!(bent, Bent::Cut { .. });
    if cut && head.method == Method::PUT {
        // Some of it has come; the rest is not taken any more.
        let _some = body.into_data_stream().next().await;
        return aborted(Bytes::new(), 1);
    }
    let body = axum::body::to_bytes(body, BODY_MAX).await.unwrap();
    match bent {
        Bent::Not | Bent::Cut { .. } => {}
        Bent::Late(by) => tokio::time::sleep(by).await,
        Bent::Throttled { .. } => {
            return Response::builder()
                .status(StatusCode::SERVICE_UNAVAILABLE)
                .body(SLOW_DOWN.into())
                .unwrap();
        }
    }
    let url = format!("{}{}", shared.server, head.uri);
    let mut headers = head.headers;
    // Between two neighbours, not between the ends; the whole body is here.
    headers.remove(header::EXPECT);
    headers.remove(header::CONNECTION);
    let answer = shared
        .client
        .request(head.method, url)
        .headers(headers)
        .body(body)
        .send()
        .await
        .unwrap();
    let mut passed = Response::builder().status(answer.status());
    for (name, value) in answer.headers() {
        if name != header::CONNECTION && name != header::TRANSFER_ENCODING {
            passed = passed.header(name, value);
        }
    }
    let body = answer.bytes().await.unwrap();
    if cut && !body.is_empty() {
        return aborted(body.slice(..body.len() / 2), body.len());
    }
    passed.body(body.into()).unwrap()
}

/// An answer that promises `length` bytes, has fewer, and ends with its connection.
fn aborted(body: Bytes, length: usize) -> Response<Body> {
    let cut = std::io::Error::other("cut off");
    Response::builder()
        .header(header::CONTENT_LENGTH, length)
        .body(Body::from_stream(stream::iter([Ok(body), Err(cut)])))
        .unwrap()
}
