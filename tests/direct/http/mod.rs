//! HTTP ports, byte by byte.

mod answers;
mod bounds;
mod frames;
mod h2;
mod hostile;
mod names;
mod requests;
mod streams;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use edgesplice::config::ProxySettings;
use edgesplice::model::{Mode, ServicePort};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::harness::{FRONTEND, Lab, backend_of, service, settings};

/// A proxy with one HTTP port.
pub(crate) fn http_lab(backends: &[SocketAddr]) -> Lab {
    http_lab_with(backends, &settings(), |_| {})
}

/// The same, with other settings, and a service port that `adjust` has changed.
pub(crate) fn http_lab_with(
    backends: &[SocketAddr],
    settings: &ProxySettings,
    adjust: impl FnOnce(&mut ServicePort),
) -> Lab {
    let mut port = service("web", FRONTEND, backends);
    port.mode = Mode::Http;
    adjust(&mut port);
    Lab::start(settings, port)
}

/// One message: its head, in lower case but for the first line, and its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) first: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Message {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
    }

    pub(crate) fn status(&self) -> u16 {
        self.first.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{self:?}"))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A reader of messages that keeps what comes behind one.
pub(crate) struct Reader {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

impl Reader {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    async fn fill(&mut self) -> bool {
        let wait = Duration::from_mins(1);
        let got = tokio::time::timeout(wait, self.stream.read_buf(&mut self.buffer)).await;
        matches!(got.expect("bytes in time"), Ok(1..))
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    pub(crate) async fn bytes(&mut self, n: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < n {
            if !self.fill().await {
                return None;
            }
        }
        Some(self.buffer.drain(..n).collect())
    }

    /// The head of the next message.
    pub(crate) async fn head(&mut self) -> Option<Message> {
        let first = self.line().await?;
        let mut headers = Vec::new();
        loop {
            let line = self.line().await?;
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.push((name.to_owned(), value.to_owned()));
        }
        Some(Message { first, headers, body: Vec::new() })
    }

    /// The next message. `None` at the end, or where it breaks off.
    pub(crate) async fn message(&mut self) -> Option<Message> {
        let mut message = self.head().await?;
        if message.header("transfer-encoding") == Some("chunked") {
            loop {
                let size = usize::from_str_radix(&self.line().await?, 16).ok()?;
                if size == 0 {
                    while !self.line().await?.is_empty() {}
                    break;
                }
                message.body.extend(self.bytes(size).await?);
                self.line().await?;
            }
        } else if let Some(length) = message.header("content-length") {
            let length = length.parse().ok()?;
            message.body = self.bytes(length).await?;
        }
        Some(message)
    }

    /// Everything to the end.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while self.fill().await {}
        std::mem::take(&mut self.buffer)
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Sends `request` and reads the answer.
    pub(crate) async fn ask(&mut self, request: impl AsRef<[u8]>) -> Message {
        self.send(request.as_ref()).await;
        self.message()
            .await
            .unwrap_or_else(|| panic!("no answer to {:?}", String::from_utf8_lossy(request.as_ref())))
    }
}

/// How a backend of the tests answers: from a request to bytes, and whether it closes after those.
pub(crate) type Script = Arc<dyn Fn(&Message, usize) -> (String, bool) + Send + Sync>;

/// A backend that counts its connections and answers each request by `script`, which also gets the number of the
/// request on its connection.
pub(crate) async fn scripted(
    script: impl Fn(&Message, usize) -> (String, bool) + Send + Sync + 'static,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    let script: Script = Arc::new(script);
    let addr = backend_of(move |stream| {
        count.fetch_add(1, Relaxed);
        let script = Arc::clone(&script);
        async move {
            let mut reader = Reader::new(stream);
            for number in 0.. {
                let Some(request) = reader.message().await else { return };
                let (answer, closes) = script(&request, number);
                if reader.stream.write_all(answer.as_bytes()).await.is_err() || closes {
                    return;
                }
            }
        }
    })
    .await;
    (addr, accepted)
}

/// An answer with `text`.
pub(crate) fn ok(text: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len())
}

/// A backend that says `name` to everything.
pub(crate) async fn named(name: &'static str) -> (SocketAddr, Arc<AtomicUsize>) {
    scripted(move |_, _| (ok(name), false)).await
}

pub(crate) const GET: &str = "GET / HTTP/1.1\r\nHost: web\r\n\r\n";
