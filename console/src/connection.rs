//! Connections of clients, and when to give one up.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Sleep;

/// A client that takes nothing for so long, or not all of what waits for it, is gone.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A client has so long to ask for something, from the beginning and after each answer.
const IDLE: Duration = Duration::from_secs(15);

/// Bytes that wait for a client, beside a part of its answer.
const BUFFER: usize = 64 * 1024;

/// After the system gave no connection, having no more files.
const PAUSE: Duration = Duration::from_millis(500);

/// Serves `router` to who connects until `stop`, and then those who are connected, to the end of their answers.
pub async fn serve(listener: TcpListener, router: Router, stop: impl Future<Output = ()>) {
    let graceful = GracefulShutdown::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        let socket = match accepted {
            Ok((socket, client)) => {
                tracing::trace!("a connection from {client}");
                socket
            }
            // The client was quick to leave.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                tracing::error!("cannot take a connection: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        watch(&socket);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE)
            .max_buf_size(BUFFER)
            .serve_connection(
                TokioIo::new(Impatient::new(socket)),
                TowerToHyperService::new(router.clone()),
            );
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("a connection: {error}");
            }
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

/// Has the system find out that a client is gone though it said nothing.
fn watch(connection: &TcpStream) {
    let socket = SockRef::from(connection);
    let keepalive = TcpKeepalive::new().with_time(PATIENCE).with_interval(PATIENCE / 3);
    let set = socket
        .set_tcp_nodelay(true)
        .and_then(|()| socket.set_tcp_keepalive(&keepalive))
        .and_then(|()| socket.set_tcp_user_timeout(Some(PATIENCE)));
    if let Err(error) = set {
        tracing::debug!("cannot watch a connection: {error}");
    }
}

/// A connection whose client must take what waits for it within [`PATIENCE`]. The system is content with one that
/// takes a byte now and then.
struct Impatient<S> {
    connection: S,
    /// While something waits for the client: when it is given up, and how many bytes it must have taken by then.
    until: Option<(Pin<Box<Sleep>>, usize)>,
}

impl<S> Impatient<S> {
    const fn new(connection: S) -> Self {
        Self { connection, until: None }
    }

    /// What became of a write of `length` bytes.
    fn wrote(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
        length: usize,
    ) -> Poll<io::Result<usize>> {
        if let (Poll::Ready(Ok(written)), Some((_, left))) = (&written, &mut self.until) {
            // What has come since is for the next time.
            *left = left.saturating_sub(*written);
            if *left == 0 {
                self.until = None;
            }
        }
        if written.is_pending() {
            let until = || (Box::pin(tokio::time::sleep(PATIENCE)), length);
            let (until, _) = self.until.get_or_insert_with(until);
            ready!(until.as_mut().poll(context));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.connection).poll_write(context, bytes);
        self.wrote(context, written, bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.connection).poll_write_vectored(context, parts);
        self.wrote(context, written, parts.iter().map(|part| part.len()).sum())
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::{Instant, sleep};

    use super::*;

    /// How long a client is served that takes a byte every `pause`, where 2,000 wait; and what became of it.
    async fn serve_trickling(pause: Duration) -> (Duration, io::Result<()>) {
        let (mut client, server) = duplex(16);
        let reading = tokio::spawn(async move {
            while client.read_u8().await.is_ok() {
                sleep(pause).await;
            }
        });
        let began = Instant::now();
        let served = Impatient::new(server).write_all(&[0; 2000]).await;
        reading.abort();
        (began.elapsed(), served)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_trickles_is_given_up() {
        for pause in [1, 10, 1000] {
            let (took, served) = serve_trickling(Duration::from_secs(pause)).await;
            assert_eq!(served.unwrap_err().kind(), io::ErrorKind::TimedOut);
            assert!(took >= PATIENCE && took < PATIENCE * 2, "{took:?}");
        }
        let (took, served) = serve_trickling(Duration::from_millis(10)).await;
        assert!(served.is_ok(), "what takes its time is served: {took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_slower_than_what_comes_is_served() {
        let (mut client, server) = duplex(16);
        let mut server = Impatient::new(server);
        let reading = tokio::spawn(async move {
            while client.read_u8().await.is_ok() {
                sleep(Duration::from_millis(500)).await;
            }
        });
        let began = Instant::now();
        while began.elapsed() < PATIENCE * 5 {
            // There is always as much again.
            assert!(server.write(&[0; 40]).await.unwrap() < 40);
        }
        reading.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_everything_is_served_for_ever() {
        let (mut client, server) = duplex(16);
        let mut server = Impatient::new(server);
        let reading = tokio::spawn(async move {
            let mut bytes = [0; 64];
            while client.read(&mut bytes).await.is_ok_and(|read| read > 0) {
                sleep(Duration::from_secs(1)).await;
            }
        });
        for _ in 0..20 {
            server.write_all(&[0; 40]).await.unwrap();
            sleep(PATIENCE * 2).await;
        }
        reading.abort();
    }
}
