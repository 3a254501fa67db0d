//! The thread that speaks HTTP.

use super::api::{ApiError, Head, Kind, Request as CompletionRequest};
use super::{Event, Job, QUEUE, ServeOptions, Stop};
use axum::Router;
use axum::body::{Body, BodyDataStream};
use axum::extract::{Request, State};
use axum::http::header::{
    ALLOW, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, ORIGIN, RETRY_AFTER, WWW_AUTHENTICATE,
};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// Bytes of a request's body: no context takes more text.
const BODY: usize = 4 << 20;
/// Bytes of a larger body that are read and forgotten, so that its sender reads the answer: a connection that is closed while it sends is
/// reset. Who sends more may see no answer.
const SURPLUS: usize = 64 << 20;
/// In which a body has to come.
const BODY_TIME: Duration = Duration::from_secs(30);
/// In which the head of a request has to come, from when its connection stands or the answer before it is sent.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Connections at a time: all that may wait for the device, and as many beside them. More are not accepted until one ends.
const CONNECTIONS: usize = 2 * QUEUE;
/// Rest after a connection that cannot be accepted: a process out of file handles would ask without end.
const ACCEPT_REST: Duration = Duration::from_millis(50);
/// In which open connections have to end once the server is stopped.
const FAREWELL: Duration = Duration::from_secs(2);

struct Shared {
    jobs: SyncSender<Job>,
    options: ServeOptions,
    /// Seconds since 1970.
    started: u64,
    requests: AtomicU64,
    /// Answers to requests that name no seed.
    answers: AtomicU64,
}

pub(super) async fn run(
    listener: TcpListener,
    jobs: SyncSender<Job>,
    options: &ServeOptions,
    stop: &Stop,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (requests, answers) = (AtomicU64::new(0), AtomicU64::new(0));
    let shared = Shared { jobs, options: options.clone(), started: now(), requests, answers };
    let app = Router::new()
        .fallback(answer)
        .with_state(Arc::new(shared))
        .layer(pages(options.local_names_only || options.api_key.is_none()));
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let (end, ending) = watch::channel(());
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.wake.notified() => break,
            (place, stream) = accept(&listener, &places) => {
                let (app, ending) = (app.clone(), ending.clone());
                open.spawn(async move {
                    speak(stream, app, ending).await;
                    drop(place);
                });
            }
            Some(_) = open.join_next() => {}
        }
    }
    drop((listener, end));
    let ended = async { while open.join_next().await.is_some() {} };
    // what has not ended by then is cut with the runtime
    let _ = tokio::time::timeout(FAREWELL, ended).await;
    Ok(())
}

/// What a browser lets pages ask: those of this machine, or all where they have to bring a key. Else every page that somebody nearby
/// looks at could use the model.
fn pages(of_this_machine: bool) -> CorsLayer {
    let may = move |origin: &HeaderValue, _: &_| !of_this_machine || is_local_page(origin);
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(may))
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
}

/// The next connection, once there is a place for it.
async fn accept(
    listener: &tokio::net::TcpListener,
    places: &Arc<Semaphore>,
) -> (Option<OwnedSemaphorePermit>, TcpStream) {
    // the semaphore is never closed
    let place = Arc::clone(places).acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (place, stream),
            Err(_) => tokio::time::sleep(ACCEPT_REST).await,
        }
    }
}

/// Answers the requests of one connection, until it ends or, after the current one, the server does.
async fn speak(stream: TcpStream, app: Router, mut ending: watch::Receiver<()>) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // a client that breaks off is no error of the server
        _ = connection.as_mut() => {}
        _ = ending.changed() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    if shared.options.local_names_only && !is_local(&request) {
        let message = "This server answers on this machine alone: ask localhost, or start it with --host.";
        return refuse(&ApiError { status: 403, ..ApiError::bad(None, message.into()) });
    }
    let path = request.uri().path().trim_end_matches('/').to_owned();
    if let Some(key) = &shared.options.api_key
        && path != "/health"
        && !has_key(&request, key)
    {
        let message = "The key is wrong or missing: `Authorization: Bearer KEY`, with the one that the server was started with.";
        let mut response = refuse(&ApiError { status: 401, ..ApiError::bad(None, message.into()) });
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        return response;
    }
    let (get, post) = (request.method() == Method::GET, request.method() == Method::POST);
    match (path.as_str(), get, post) {
        ("/health", true, _) => reply(200, &json!({"status": "ok"})),
        ("/v1/models", true, _) => reply(200, &json!({"object": "list", "data": [shared.model()]})),
        ("/v1/chat/completions", _, true) => complete(&shared, Kind::Chat, request).await,
        ("/v1/completions", _, true) => complete(&shared, Kind::Text, request).await,
        ("/health" | "/v1/models", ..) => wrong_method("GET"),
        ("/v1/chat/completions" | "/v1/completions", ..) => wrong_method("POST"),
        (path, true, _) if path.strip_prefix("/v1/models/") == Some(&shared.options.model) => {
            reply(200, &shared.model())
        }
        _ => {
            let path = request.uri().path();
            let message = format!(
                "There is no {path}; there are /v1/chat/completions, /v1/completions, /v1/models and /health."
            );
            refuse(&ApiError { status: 404, ..ApiError::bad(None, message) })
        }
    }
}

impl Shared {
    fn model(&self) -> Value {
        json!({"id": self.options.model, "object": "model", "created": self.started, "owned_by": "engraft"})
    }
}

/// A body, or `None` where it is larger than [`BODY`]; what is left of it stays in `pieces`.
async fn whole(pieces: &mut BodyDataStream) -> Result<Option<Vec<u8>>, axum::Error> {
    let mut kept = Vec::new();
    while let Some(piece) = pieces.next().await {
        kept.extend_from_slice(&piece?);
        if kept.len() > BODY {
            return Ok(None);
        }
    }
    Ok(Some(kept))
}

/// Reads what is left of a body, to [`SURPLUS`].
async fn forget(mut pieces: BodyDataStream) {
    let mut all = 0;
    while let Some(Ok(piece)) = pieces.next().await {
        all += piece.len();
        if all > SURPLUS {
            break;
        }
    }
}

async fn complete(shared: &Shared, kind: Kind, request: Request) -> Response {
    completion(shared, kind, request).await.unwrap_or_else(|error| refuse(&error))
}

async fn completion(shared: &Shared, kind: Kind, request: Request) -> Result<Response, ApiError> {
    let mut pieces = request.into_body().into_data_stream();
    let body = tokio::time::timeout(BODY_TIME, whole(&mut pieces)).await;
    let status = |status, message: String| ApiError { status, ..ApiError::bad(None, message) };
    let body = body
        .map_err(|_| status(408, "The body did not come in time.".into()))?
        .map_err(|error| status(400, format!("The body cannot be read: {error}.")))?;
    let Some(body) = body else {
        let _ = tokio::time::timeout(BODY_TIME, forget(pieces)).await;
        return Err(status(413, format!("The body has more than {BODY} bytes.")));
    };
    let number = shared.requests.fetch_add(1, Ordering::Relaxed);
    let mut request = CompletionRequest::parse(kind, &body, &shared.options.answer)?;
    if !request.seeded {
        // one that no other answer has
        let answers = request.prompts.len() * request.answers;
        let before = shared.answers.fetch_add(answers as u64, Ordering::Relaxed);
        let seed = &mut request.options.sampling.seed;
        *seed = seed.wrapping_add(before);
    }
    let (stream, include_usage) = (request.stream, request.include_usage);

    let (events, mut answer) = unbounded_channel();
    shared.jobs.try_send(Job { request, events }).map_err(|error| match error {
        TrySendError::Full(_) => ApiError::server(503, "Too many requests wait; try again later.".into()),
        TrySendError::Disconnected(_) => ApiError::server(503, "The server is ending.".into()),
    })?;
    let number = format!("{:x}-{number:x}", shared.started);
    let head = Head::new(kind, &number, now(), &shared.options.model);
    let mut choices = Vec::new();
    // from here on a client that leaves drops `answer`, which ends the generation
    loop {
        match answer.recv().await {
            Some(Event::Started) if stream => return Ok(streamed(head, answer, include_usage)),
            Some(Event::Started | Event::Begun(_) | Event::Text(..)) => {}
            Some(Event::Answered(choice)) => choices.push(choice),
            Some(Event::Done(usage)) => return Ok(reply(200, &head.completion(&choices, &usage))),
            Some(Event::Failed(error)) => return Err(error),
            None => return Err(ApiError::server(503, "The server is ending.".into())),
        }
    }
}

/// Server-sent events: of each answer a chunk for each piece of text and the reason of its end; `[DONE]`.
fn streamed(head: Head, events: UnboundedReceiver<Event>, include_usage: bool) -> Response {
    let data = |value: &Value| format!("data: {value}\n\n");
    let chunks = UnboundedReceiverStream::new(events).map(move |event| match event {
        Event::Started => String::new(),
        Event::Begun(index) => head.first(index).map_or_else(String::new, |first| data(&first)),
        Event::Text(index, text) => data(&head.text(index, &text)),
        Event::Answered(choice) => data(&head.last(&choice)),
        Event::Done(usage) => {
            let usage = if include_usage { data(&head.usage(&usage)) } else { String::new() };
            format!("{usage}data: [DONE]\n\n")
        }
        Event::Failed(error) => data(&error.json()),
    });
    let body = Body::from_stream(chunks.map(Ok::<_, Infallible>));
    let mut response = respond(200, "text/event-stream", body);
    response.headers_mut().insert("cache-control", HeaderValue::from_static("no-cache"));
    response
}

fn reply(status: u16, value: &Value) -> Response {
    respond(status, "application/json", Body::from(value.to_string()))
}

fn refuse(error: &ApiError) -> Response {
    let mut response = reply(error.status, &error.json());
    if error.status == 503 {
        response.headers_mut().insert(RETRY_AFTER, 1.into());
    }
    response
}

fn wrong_method(allowed: &'static str) -> Response {
    let message = format!("This address answers {allowed} alone.");
    let mut response = refuse(&ApiError { status: 405, ..ApiError::bad(None, message) });
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

fn respond(status: u16, kind: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Whether the request names this machine as only its own programs can.
fn is_local(request: &Request) -> bool {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    // HTTP/1.0 needs no host, and no browser speaks it; a browser says which page asks, programs say nothing
    host.is_none_or(is_local_name) && request.headers().get(ORIGIN).is_none_or(is_local_page)
}

fn is_local_page(origin: &HeaderValue) -> bool {
    let origin = origin.to_str().unwrap_or_default();
    is_local_name(origin.split_once("://").map_or("", |(_, host)| host))
}

/// Whether the request brings the key, in a time that does not tell how much of it is right.
fn has_key(request: &Request, key: &str) -> bool {
    let given = request.headers().get(AUTHORIZATION).map_or(&b""[..], HeaderValue::as_bytes);
    let given = given.strip_prefix(b"Bearer ").or(given.strip_prefix(b"bearer ")).unwrap_or_default();
    let differing = given.iter().zip(key.as_bytes()).fold(0, |all, (a, b)| all | (a ^ b));
    given.len() == key.len() && differing == 0
}

fn is_local_name(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_local() {
        for name in
            ["localhost", "localhost:8000", "LocalHost", "127.0.0.1:1", "127.3.2.1", "[::1]:8000", "[::1]"]
        {
            assert!(is_local_name(name), "{name}");
        }
        for name in ["evil.example:8000", "localhost.evil.example", "192.168.0.1", "", "[::2]:8000", "::1"] {
            assert!(!is_local_name(name), "{name}");
        }
    }

    #[test]
    fn a_body_is_whole_up_to_its_limit_and_what_is_over_is_read_and_forgotten() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let read = |body: Body| {
            let mut pieces = body.into_data_stream();
            let body = runtime.block_on(whole(&mut pieces));
            (body.map(|body| body.map(|body| body.len())).map_err(|error| error.to_string()), pieces)
        };
        for (bytes, expected) in [(0, Some(0)), (BODY, Some(BODY)), (BODY + 1, None)] {
            assert_eq!(read(Body::from(vec![b' '; bytes])).0, Ok(expected), "{bytes} bytes");
        }
        let broken = tokio_stream::iter([Ok(vec![0; 9]), Err(io::Error::other("cut off"))]);
        assert_eq!(read(Body::from_stream(broken)).0, Err("cut off".into()));

        let sent = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&sent);
        let endless = std::iter::repeat_with(move || {
            count.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Infallible>(vec![0; 1 << 20])
        });
        let (body, rest) = read(Body::from_stream(tokio_stream::iter(endless)));
        assert_eq!((body, sent.load(Ordering::Relaxed)), (Ok(None), (BODY >> 20) as u64 + 1));
        runtime.block_on(forget(rest));
        assert_eq!(sent.load(Ordering::Relaxed), ((BODY + SURPLUS) >> 20) as u64 + 2);
    }
}
