//! Starting, serving and stopping.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State as Shared};
use axum::http::uri::Authority;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::set_header::SetResponseHeaderLayer;

use crate::config::{Config, NoDatabase};
use crate::database::Database;
use crate::events::Hub;
use crate::problem::Problem;
use crate::state::State;
use crate::{api, assets, connection, pages};

/// A request that is not answered by then gets 504.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Open requests get so long when the console stops.
const GRACE: Duration = Duration::from_secs(5);

/// Headers of every response. Pages run scripts of the console's own and load nothing from elsewhere.
const HEADERS: [(HeaderName, HeaderValue); 4] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
             form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        ),
    ),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("same-origin")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
];

/// Why the console cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// See [`NoDatabase`].
    #[error(transparent)]
    Database(#[from] NoDatabase),
    /// The address is taken, or not this machine's.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// Where to.
        address: std::net::SocketAddr,
        /// What the system says.
        error: std::io::Error,
    },
    /// The system gives no signals or takes no connections.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// See [`Error`]. A database that does not answer is none: it may come back.
pub async fn run(config: Config) -> Result<(), Error> {
    let options = config.connect_options()?;
    let (stop, stopping) = watch::channel(false);
    let hub = Arc::new(Hub::new());
    let database = Database::new(config.pool(options.clone()));
    let state = State::new(database.clone(), hub.clone(), config.max_streams, stopping.clone());

    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|error| Error::Listen { address: config.listen, error })?;
    let mut signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tracing::info!("listening on http://{}", listener.local_addr()?);

    let listening = tokio::spawn({
        let hub = hub.clone();
        async move { hub.listen(options, database).await }
    });
    let ticking = tokio::spawn(async move { hub.tick().await });
    tokio::spawn(async move {
        tokio::select! {
            _ = signals.0.recv() => {}
            _ = signals.1.recv() => {}
        }
        let _ = stop.send(true);
    });

    // An empty variable is no name.
    let allowed = config.allowed_hosts.into_iter().filter(|name| !name.is_empty()).collect();
    let serving =
        connection::serve(listener, router(state, allowed), until_stopping(stopping.clone()));
    let grace = async {
        until_stopping(stopping).await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        () = serving => {}
        () = grace => {}
    }
    listening.abort();
    ticking.abort();
    Ok(())
}

async fn until_stopping(mut stopping: watch::Receiver<bool>) {
    // An error means that the sender is gone, and with it what could stop the console.
    let _ = stopping.wait_for(|&stopping| stopping).await;
}

fn router(state: State, allowed_hosts: Arc<[String]>) -> Router {
    let answers = Router::new()
        .merge(pages::router())
        .nest("/api/v1", api::router())
        // Which nest() leaves out.
        .route("/api/v1/", any(api::no_such_path))
        .layer(from_fn(in_time))
        .layer(SetResponseHeaderLayer::if_not_present(
            header::CACHE_CONTROL,
            HeaderValue::from_static("no-store"),
        ))
        .with_state(state.clone());
    let mut router = answers
        .merge(assets::router())
        .layer(from_fn_with_state((state, allowed_hosts), by_a_known_name))
        .layer(CatchPanicLayer::custom(|_| panicked()))
        .layer(SetResponseHeaderLayer::if_not_present(header::RETRY_AFTER, retry_after))
        // Leaves streams of events as they are.
        .layer(CompressionLayer::new());
    for (name, value) in HEADERS {
        router = router.layer(SetResponseHeaderLayer::if_not_present(name, value));
    }
    router
}

/// The response to who asks by an address, by localhost, or by one of the names `allowed`. By another's name,
/// which its owner lets stand for this machine, the owner's pages would read what is here (DNS rebinding).
async fn by_a_known_name(
    Shared((state, allowed)): Shared<(State, Arc<[String]>)>,
    request: Request,
    next: Next,
) -> Response {
    // Browsers say it.
    let Some(host) = request.headers().get(header::HOST) else { return next.run(request).await };
    let authority: Option<Authority> = host.to_str().ok().and_then(|host| host.parse().ok());
    let host = authority.as_ref().map_or("", Authority::host).trim_matches(['[', ']']);
    let is = |name: &str| name.eq_ignore_ascii_case(host);
    if host.parse::<IpAddr>().is_ok() || is("localhost") || allowed.iter().any(|name| is(name)) {
        return next.run(request).await;
    }
    let detail =
        format!("The console does not answer to the name {host:?}: see its --allowed-hosts.");
    let problem = Problem::new(StatusCode::MISDIRECTED_REQUEST, detail);
    let accepts = request.headers().get(header::ACCEPT).and_then(|accepts| accepts.to_str().ok());
    if accepts.is_some_and(|accepts| accepts.contains("text/html")) {
        pages::error(&state, &problem)
    } else {
        problem.into_response()
    }
}

/// The response, which may take longer once it has begun: a stream of events goes on for ever.
async fn in_time(request: Request, next: Next) -> Response {
    let response = tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await;
    response.unwrap_or_else(|_| {
        let detail = "The console took too long to answer.";
        Problem::new(StatusCode::GATEWAY_TIMEOUT, detail).into_response()
    })
}

fn retry_after(response: &Response) -> Option<HeaderValue> {
    let is_unavailable = response.status() == StatusCode::SERVICE_UNAVAILABLE;
    is_unavailable.then(|| HeaderValue::from_static("5"))
}

fn panicked() -> Response {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "The console has a defect.").into_response()
}
