//! Asks the running agent over its admin endpoint.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::config::{Settings, UsageError};

/// Loopback answers at once; this is for an agent behind an address that swallows packets.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// As long as the agent itself gives one exchange.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Ten times the status of 10,000 services with 100,000 endpoints.
const LARGEST_BODY: usize = 512 << 20;

/// The running agent's admin endpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Agent {
    addr: SocketAddr,
}

impl Agent {
    pub(super) fn new(settings: &Settings) -> Result<Self, UsageError> {
        let mut addr = settings.admin.listen;
        if addr.port() == 0 {
            return Err(UsageError::new(format!(
                "admin.listen is \"{addr}\": port 0 does not say where the agent listens: give --admin ADDR:PORT"
            )));
        }
        if addr.ip().is_unspecified() {
            // It listens everywhere; the loopback address of the family is the nearest.
            let v6 = addr.is_ipv6();
            addr.set_ip(if v6 { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { IpAddr::V4(Ipv4Addr::LOCALHOST) });
        }
        Ok(Self { addr })
    }

    /// GETs `path`. Every status code is an answer.
    pub(super) async fn get(self, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
        let addr = self.addr;
        let silent =
            || format!("the agent at {addr} does not answer: look at its log, or give --admin ADDR:PORT");
        let absent =
            || format!("no agent runs at {addr}: start it with `edgesplice run`, or give --admin ADDR:PORT");
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(addr))
            .await
            .with_context(absent)?
            .with_context(absent)?;
        tokio::time::timeout(EXCHANGE_TIMEOUT, exchange(stream, addr, path))
            .await
            .with_context(silent)?
            .with_context(silent)
    }
}

async fn exchange(stream: TcpStream, addr: SocketAddr, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path).header(header::HOST, addr.to_string()).body(Empty::<Bytes>::new())?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST_BODY).collect().await;
        let body = body.map_err(|e| anyhow::anyhow!("the answer cannot be read: {e}"))?;
        anyhow::Ok((status, body.to_bytes()))
    };
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        end = connection => {
            end?;
            // The connection is done; what the answer still needs has been read.
            answer.await
        }
    }
}

/// The message of an answer that is not 200.
pub(super) fn refusal(status: StatusCode, body: &Bytes) -> anyhow::Error {
    let message = serde_json::from_slice::<serde_json::Value>(body)
        .ok()
        .and_then(|json| json.get("error").and_then(|e| e.as_str()).map(str::to_owned))
        .unwrap_or_else(|| format!("the agent answers {status}"));
    if status == StatusCode::BAD_REQUEST { UsageError::new(message).into() } else { anyhow::anyhow!(message) }
}

/// Runs `work` on a runtime of its own: one thread is enough for a question and an answer.
pub(super) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(work),
        Err(e) => bail!("the runtime cannot be started: {e}"),
    }
}
