//! HTTP/2 frame by frame: what RFC 9113 and RFC 7541 say a server must refuse, and by what. The cases are those of
//! h2spec (its generic, http2 and hpack parts) that concern a server which pushes nothing.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::h2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GET_BLOCK, GOAWAY, HEADERS, PING, PREFACE, PRIORITY,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, frame, still_serves,
};
use super::*;

const PUSH_PROMISE: u8 = 5;
const ACK: u8 = 1;
const PADDED: u8 = 8;
const WITH_PRIORITY: u8 = 0x20;
/// Error codes of RFC 9113, section 7.
const PROTOCOL: u32 = 1;
const FLOW_CONTROL: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE: u32 = 6;
const REFUSED: u32 = 7;
const COMPRESSION: u32 = 9;
const CALM: u32 = 11;
/// The question that ends each case.
const LAST: [u8; 8] = *b"the last";

/// What is to come of a case.
enum Want {
    /// The connection goes on.
    Fine,
    /// It ends, with one of these codes, or without a word.
    Gone(&'static [u32]),
    /// The stream ends with one of these codes, or the connection does.
    Reset(&'static [u32]),
}

struct Case {
    section: &'static str,
    what: &'static str,
    send: Vec<u8>,
    want: Want,
}

fn case(
    section: &'static str,
    what: &'static str,
    send: impl IntoIterator<Item = Vec<u8>>,
    want: Want,
) -> Case {
    Case { section, what, send: send.into_iter().flatten().collect(), want }
}

/// A header block of `GET /` with literal fields behind it.
fn block(more: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = GET_BLOCK.to_vec();
    bytes.extend(fields(more));
    bytes
}

fn fields(all: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in all {
        bytes.push(0);
        for text in [name, value] {
            bytes.push(u8::try_from(text.len()).unwrap());
            bytes.extend_from_slice(text.as_bytes());
        }
    }
    bytes
}

fn head(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, flags, stream, block)
}

/// A whole request on `stream`, of these fields.
fn request(stream: u32, all: &[(&str, &str)]) -> Vec<u8> {
    head(stream, END_STREAM | END_HEADERS, &fields(all))
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

const OPEN: u8 = END_HEADERS;
const WHOLE: u8 = END_HEADERS | END_STREAM;

#[expect(clippy::too_many_lines, reason = "it is a table")]
fn cases() -> Vec<Case> {
    let get = || head(1, WHOLE, GET_BLOCK);
    let open = || head(1, OPEN, GET_BLOCK);
    let grow = |stream, by: u32| frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
    let reset = |stream| frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
    let basic = |n: usize, with: &[(&'static str, &'static str)]| {
        let all = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
        let kept = all.iter().enumerate().filter(|(at, _)| *at != n).map(|(_, field)| *field);
        kept.chain(with.iter().copied()).collect::<Vec<_>>()
    };
    let mut all = first_cases();
    all.extend([
        case("5.1", "idle: DATA", [frame(DATA, END_STREAM, 1, b"x")], Want::Gone(&[PROTOCOL])),
        case("5.1", "idle: RST_STREAM", [reset(1)], Want::Gone(&[PROTOCOL])),
        case("5.1", "idle: WINDOW_UPDATE", [grow(1, 100)], Want::Gone(&[PROTOCOL])),
        case(
            "5.1",
            "idle: CONTINUATION",
            [frame(CONTINUATION, END_HEADERS, 1, GET_BLOCK)],
            Want::Gone(&[PROTOCOL]),
        ),
        case(
            "5.1",
            "half-closed: DATA",
            [get(), frame(DATA, END_STREAM, 1, b"x")],
            Want::Reset(&[STREAM_CLOSED]),
        ),
        case("5.1", "half-closed: HEADERS", [get(), get()], Want::Reset(&[STREAM_CLOSED, PROTOCOL])),
        case(
            "5.1",
            "half-closed: CONTINUATION",
            [get(), frame(CONTINUATION, END_HEADERS, 1, GET_BLOCK)],
            Want::Gone(&[STREAM_CLOSED, PROTOCOL]),
        ),
        case(
            "5.1",
            "closed: CONTINUATION",
            [open(), reset(1), frame(CONTINUATION, END_HEADERS, 1, GET_BLOCK)],
            Want::Gone(&[STREAM_CLOSED, PROTOCOL]),
        ),
        case("5.1.1", "an even stream number", [head(2, WHOLE, GET_BLOCK)], Want::Gone(&[PROTOCOL])),
        case(
            "5.1.1",
            "a smaller stream number",
            [head(5, WHOLE, GET_BLOCK), head(3, WHOLE, GET_BLOCK)],
            Want::Gone(&[PROTOCOL, STREAM_CLOSED]),
        ),
        case(
            "5.1.2",
            "more streams than allowed",
            (0..200).map(|n| head(2 * n + 1, OPEN, GET_BLOCK)),
            Want::Reset(&[PROTOCOL, REFUSED, CALM]),
        ),
        case(
            "5.3.1",
            "HEADERS that depend on themselves",
            [head(1, WHOLE | WITH_PRIORITY, &[&[0, 0, 0, 1, 16][..], GET_BLOCK].concat())],
            Want::Reset(&[PROTOCOL]),
        ),
        case(
            "5.5",
            "an unknown frame within a head",
            [head(1, END_STREAM, GET_BLOCK), frame(22, 0, 1, b"x")],
            Want::Gone(&[PROTOCOL]),
        ),
        case("6.1", "DATA on stream 0", [frame(DATA, END_STREAM, 0, b"x")], Want::Gone(&[PROTOCOL])),
        case(
            "6.1",
            "DATA with more padding than payload",
            [open(), frame(DATA, END_STREAM | PADDED, 1, b"\x06xxxx")],
            Want::Gone(&[PROTOCOL]),
        ),
        case("6.2", "HEADERS on stream 0", [head(0, WHOLE, GET_BLOCK)], Want::Gone(&[PROTOCOL])),
        case(
            "6.2",
            "HEADERS with more padding than payload",
            [head(1, WHOLE | PADDED, &[&[9][..], GET_BLOCK].concat())],
            Want::Gone(&[PROTOCOL]),
        ),
        case(
            "6.3",
            "PRIORITY on stream 0",
            [frame(PRIORITY, 0, 0, &[0, 0, 0, 1, 1])],
            Want::Gone(&[PROTOCOL]),
        ),
        case(
            "6.3",
            "PRIORITY of four bytes",
            [open(), frame(PRIORITY, 0, 1, &[0, 0, 0, 1])],
            Want::Reset(&[FRAME_SIZE]),
        ),
        case("6.4", "RST_STREAM on stream 0", [reset(0)], Want::Gone(&[PROTOCOL])),
        case(
            "6.4",
            "RST_STREAM of three bytes",
            [open(), frame(RST_STREAM, 0, 1, &[0, 0, 0])],
            Want::Gone(&[FRAME_SIZE]),
        ),
        case(
            "6.5",
            "an acknowledgement with content",
            [frame(SETTINGS, ACK, 0, &[0; 6])],
            Want::Gone(&[FRAME_SIZE]),
        ),
        case("6.5", "SETTINGS on stream 1", [frame(SETTINGS, 0, 1, &[])], Want::Gone(&[PROTOCOL])),
        case("6.5", "SETTINGS of three bytes", [frame(SETTINGS, 0, 0, &[0; 3])], Want::Gone(&[FRAME_SIZE])),
        case("6.5.2", "ENABLE_PUSH of 2", [setting(2, 2)], Want::Gone(&[PROTOCOL])),
        case("6.5.2", "a window beyond 2^31", [setting(4, 0x8000_0000)], Want::Gone(&[FLOW_CONTROL])),
        case("6.5.2", "MAX_FRAME_SIZE below 16384", [setting(5, 16_383)], Want::Gone(&[PROTOCOL])),
        case("6.5.2", "MAX_FRAME_SIZE beyond 2^24", [setting(5, 1 << 24)], Want::Gone(&[PROTOCOL])),
        case("6.5.2", "an unknown setting", [setting(255, 1)], Want::Fine),
        case("6.7", "PING on stream 1", [frame(PING, 0, 1, &[0; 8])], Want::Gone(&[PROTOCOL])),
        case("6.7", "PING of six bytes", [frame(PING, 0, 0, &[0; 6])], Want::Gone(&[FRAME_SIZE])),
        case("6.7", "an answer to no PING", [frame(PING, ACK, 0, &[0; 8])], Want::Fine),
        case("6.8", "GOAWAY on stream 1", [frame(GOAWAY, 0, 1, &[0; 8])], Want::Gone(&[PROTOCOL])),
        case("6.9", "WINDOW_UPDATE by 0", [grow(0, 0)], Want::Gone(&[PROTOCOL])),
        case("6.9", "WINDOW_UPDATE of a stream by 0", [open(), grow(1, 0)], Want::Reset(&[PROTOCOL])),
        case(
            "6.9",
            "WINDOW_UPDATE of three bytes",
            [frame(WINDOW_UPDATE, 0, 0, &[0, 0, 1])],
            Want::Gone(&[FRAME_SIZE]),
        ),
        case(
            "6.9.1",
            "a connection's window beyond 2^31",
            [grow(0, 0x7fff_ffff), grow(0, 0x7fff_ffff)],
            Want::Gone(&[FLOW_CONTROL]),
        ),
        case(
            "6.9.1",
            "a stream's window beyond 2^31",
            [open(), grow(1, 0x7fff_ffff), grow(1, 0x7fff_ffff)],
            Want::Reset(&[FLOW_CONTROL]),
        ),
        case(
            "6.10",
            "CONTINUATION on stream 0",
            [head(1, END_STREAM, GET_BLOCK), frame(CONTINUATION, END_HEADERS, 0, &[])],
            Want::Gone(&[PROTOCOL]),
        ),
        case(
            "6.10",
            "CONTINUATION behind a whole head",
            [open(), frame(CONTINUATION, END_HEADERS, 1, &[])],
            Want::Gone(&[PROTOCOL]),
        ),
        case(
            "6.10",
            "CONTINUATION behind DATA",
            [open(), frame(DATA, 0, 1, b"x"), frame(CONTINUATION, END_HEADERS, 1, &[])],
            Want::Gone(&[PROTOCOL]),
        ),
        case(
            "6.10",
            "DATA within a head",
            [head(1, 0, GET_BLOCK), frame(DATA, END_STREAM, 1, b"x")],
            Want::Gone(&[PROTOCOL]),
        ),
        case(
            "8.1",
            "a second head that does not end the stream",
            [open(), head(1, OPEN, &fields(&[("x", "y")]))],
            Want::Reset(&[PROTOCOL]),
        ),
        case(
            "8.2",
            "a name in capitals",
            [head(1, WHOLE, &block(&[("X-Test", "a")]))],
            Want::Reset(&[PROTOCOL]),
        ),
        case(
            "8.2.2",
            "Connection",
            [head(1, WHOLE, &block(&[("connection", "keep-alive")]))],
            Want::Reset(&[PROTOCOL]),
        ),
        case(
            "8.2.2",
            "Transfer-Encoding",
            [head(1, WHOLE, &block(&[("transfer-encoding", "chunked")]))],
            Want::Reset(&[PROTOCOL]),
        ),
        case(
            "8.2.2",
            "TE other than trailers",
            [head(1, WHOLE, &block(&[("te", "trailers, deflate")]))],
            Want::Reset(&[PROTOCOL]),
        ),
        case(
            "8.3",
            "an unknown pseudo field",
            [head(1, WHOLE, &[&fields(&[(":test", "a")])[..], GET_BLOCK].concat())],
            Want::Reset(&[PROTOCOL]),
        ),
        case(
            "8.3",
            "a pseudo field of answers",
            [head(1, WHOLE, &[&fields(&[(":status", "200")])[..], GET_BLOCK].concat())],
            Want::Reset(&[PROTOCOL]),
        ),
        case(
            "8.3",
            "a pseudo field behind others",
            [head(1, WHOLE, &block(&[("x", "y"), (":path", "/")]))],
            Want::Reset(&[PROTOCOL]),
        ),
        case(
            "8.3",
            "a pseudo field in trailers",
            [open(), head(1, WHOLE, &fields(&[(":method", "GET")]))],
            // The standard calls it malformed. h2 passes over the field; it goes nowhere.
            Want::Fine,
        ),
        case("8.3.1", "an empty path", [request(1, &basic(2, &[(":path", "")]))], Want::Reset(&[PROTOCOL])),
        case("8.3.1", "no method", [request(1, &basic(0, &[]))], Want::Reset(&[PROTOCOL])),
        case("8.3.1", "no scheme", [request(1, &basic(1, &[]))], Want::Reset(&[PROTOCOL])),
        case("8.3.1", "no path", [request(1, &basic(2, &[]))], Want::Reset(&[PROTOCOL])),
        case(
            "8.3.1",
            "two methods",
            [request(1, &basic(9, &[(":method", "GET")]))],
            Want::Reset(&[PROTOCOL]),
        ),
        case("8.3.1", "two paths", [request(1, &basic(9, &[(":path", "/")]))], Want::Reset(&[PROTOCOL])),
        case(
            "8.1.1",
            "a length that is not the body's",
            [head(1, OPEN, &block(&[("content-length", "1")])), frame(DATA, END_STREAM, 1, b"test")],
            Want::Reset(&[PROTOCOL]),
        ),
        case(
            "8.1.1",
            "a length that is not the bodies'",
            [
                head(1, OPEN, &block(&[("content-length", "1")])),
                frame(DATA, 0, 1, b"te"),
                frame(DATA, END_STREAM, 1, b"st"),
            ],
            Want::Reset(&[PROTOCOL]),
        ),
        case(
            "8.4",
            "PUSH_PROMISE from a client",
            [get(), frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2][..], GET_BLOCK].concat())],
            Want::Gone(&[PROTOCOL]),
        ),
        case(
            "HPACK 2.3.3",
            "an index beyond the tables",
            [head(1, WHOLE, &[GET_BLOCK, &[0xc6]].concat())],
            Want::Gone(&[COMPRESSION]),
        ),
        case(
            "HPACK 4.2",
            "a table size behind fields",
            [head(1, WHOLE, &[GET_BLOCK, &[0x21]].concat())],
            Want::Gone(&[COMPRESSION]),
        ),
        case(
            "HPACK 5.2",
            "padding of eight bits",
            [head(1, WHOLE, &[GET_BLOCK, b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff"].concat())],
            Want::Gone(&[COMPRESSION]),
        ),
        case(
            "HPACK 5.2",
            "padding of zeroes",
            [head(1, WHOLE, &[GET_BLOCK, b"\x00\x85\xf2\xb2\x4a\x87\xff\x83\x49\x50\x90"].concat())],
            Want::Gone(&[COMPRESSION]),
        ),
        case(
            "HPACK 6.1",
            "index 0",
            [head(1, WHOLE, &[GET_BLOCK, &[0x80]].concat())],
            Want::Gone(&[COMPRESSION]),
        ),
        case(
            "HPACK 6.3",
            "a table larger than allowed",
            [head(1, WHOLE, &[&[0x3f, 0xe2, 0x1f][..], GET_BLOCK].concat())],
            Want::Gone(&[COMPRESSION]),
        ),
    ]);
    all
}

fn first_cases() -> Vec<Case> {
    let open = || head(1, OPEN, GET_BLOCK);
    let large = vec![0; 16_385];
    vec![
        case("3.4", "the preface and a request", [head(1, WHOLE, GET_BLOCK)], Want::Fine),
        case("4.1", "an unknown frame", [frame(22, 0, 0, &[0; 8])], Want::Fine),
        case("4.1", "unknown flags", [frame(PING, 0x16, 0, &[1; 8])], Want::Fine),
        case("4.1", "the reserved bit", [frame(PING, 0, 0x8000_0000, &[1; 8])], Want::Fine),
        case("4.2", "DATA of 16 KiB", [open(), frame(DATA, END_STREAM, 1, &large[1..])], Want::Fine),
        case("4.2", "DATA of more", [open(), frame(DATA, END_STREAM, 1, &large)], Want::Reset(&[FRAME_SIZE])),
        case("4.2", "HEADERS of more than 16 KiB", [head(1, WHOLE, &large)], Want::Gone(&[FRAME_SIZE])),
        case("4.3", "a head that does not decode", [head(1, WHOLE, &[0x40])], Want::Gone(&[COMPRESSION])),
        case(
            "4.3",
            "PRIORITY within a head",
            [head(1, END_STREAM, GET_BLOCK), frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])],
            Want::Gone(&[PROTOCOL]),
        ),
        case(
            "4.3",
            "another stream's HEADERS within a head",
            [head(1, END_STREAM, GET_BLOCK), head(3, WHOLE, GET_BLOCK)],
            Want::Gone(&[PROTOCOL]),
        ),
    ]
}

/// What the server said: the codes of a reset stream and of its last word, and whether it answered the question or closed.
#[derive(Debug, Default)]
struct Said {
    reset: Option<u32>,
    goaway: Option<u32>,
    answered: bool,
    closed: bool,
}

impl Said {
    fn is(&self, want: &Want) -> bool {
        // As h2spec judges: a connection that was ended was ended, whatever the last word was. h2 says
        // PROTOCOL_ERROR of frames that it cannot read where the standard has a code of its own.
        let goaway = |codes: &[u32]| self.goaway.is_some_and(|code| codes.contains(&code)) || self.closed;
        match want {
            Want::Fine => self.answered && self.goaway.is_none() && self.reset.is_none(),
            Want::Gone(codes) => goaway(codes),
            Want::Reset(codes) => self.reset.is_some_and(|code| codes.contains(&code)) || goaway(codes),
        }
    }
}

/// Sends a case, and listens until it is clear what came of it.
async fn play(lab: &Lab, case: &Case) -> Said {
    let mut reader = Reader::new(lab.connect().await);
    let all = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &case.send, &frame(PING, 0, 0, &LAST)].concat();
    let mut said = Said::default();
    // A server that has had enough may reset the connection under what it has not read.
    let _ = reader.stream.write_all(&all).await;
    let listen = async {
        while !said.is(&case.want) || matches!(case.want, Want::Fine) && !said.answered {
            let Some(head) = reader.bytes(9).await else {
                said.closed = true;
                return;
            };
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            let Some(payload) = reader.bytes(length).await else {
                said.closed = true;
                return;
            };
            let code = |at: usize| payload.get(at..at + 4).map(|b| u32::from_be_bytes(b.try_into().unwrap()));
            match head[3] {
                RST_STREAM => said.reset = code(0),
                GOAWAY => said.goaway = code(4).filter(|code| *code != 0).or(said.goaway),
                PING if head[4] & ACK != 0 && payload == LAST => said.answered = true,
                _ => {}
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(10), listen).await;
    said
}

/// A backend that answers everything over HTTP/2.
async fn plain() -> SocketAddr {
    backend_of(|stream| async move {
        let service = service_fn(|request: Request<Incoming>| async move {
            let _ = request.into_body().collect().await;
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
        });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = server.serve_connection(TokioIo::new(stream), service).await;
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_are_taken_or_refused_as_the_standard_says() {
    let lab = http_lab(&[plain().await]);
    let (http1, _) = named("a").await;
    let beside = http_lab(&[http1]);
    let mut faults = Vec::new();
    let cases = cases();
    for case in &cases {
        let said = play(&lab, case).await;
        if !said.is(&case.want) {
            faults.push(format!("{} {}: {said:?}", case.section, case.what));
        }
    }
    still_serves(&beside).await;
    assert!(faults.is_empty(), "{} of {} cases:\n{}", faults.len(), cases.len(), faults.join("\n"));
    lab.until_idle().await;
}
