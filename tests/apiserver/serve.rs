//! The HTTP side of the scripted server.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{Asked, Change, Mood, Personality, State, Watcher, line, selected};

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

const KNOWN: &[(&str, &str, &str)] = &[
    ("/api/v1/services", "services", "ServiceList"),
    ("/api/v1/endpoints", "endpoints", "EndpointsList"),
    ("/api/v1/pods", "pods", "PodList"),
    ("/api/v1/nodes", "nodes", "NodeList"),
    ("/apis/discovery.k8s.io/v1/endpointslices", "endpointslices", "EndpointSliceList"),
    ("/apis/networking.k8s.io/v1/servicecidrs", "servicecidrs", "ServiceCIDRList"),
    ("/apis/networking.istio.io/v1alpha3/destinationrules", "destinationrules", "DestinationRuleList"),
];

pub(super) async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    state: Arc<Mutex<State>>,
    stop: CancellationToken,
    connections: Arc<Mutex<CancellationToken>>,
) {
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted.unwrap().0,
        };
        let (tls, state) = (tls.clone(), state.clone());
        let cut = connections.lock().unwrap().clone();
        tokio::spawn(async move {
            tokio::select! {
                () = cut.cancelled() => {}
                () = async {
                    match tls {
                        None => connection(stream, state).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                connection(stream, state).await;
                            }
                        }
                    }
                } => {}
            }
        });
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin, state: Arc<Mutex<State>>) {
    let service = service_fn(move |request| {
        let state = state.clone();
        async move { Ok::<_, Infallible>(answer(request, &state).await) }
    });
    // A client that goes away in the middle is part of the game.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

fn text(status: u16, body: impl Into<Bytes>) -> Answer {
    let body = Full::new(body.into()).map_err(|e| match e {}).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = status.try_into().unwrap();
    answer
}

fn failure(code: u16, message: &str) -> Answer {
    text(code, json!({"kind": "Status", "code": code, "message": message}).to_string())
}

/// Answers an attempt to make a Service outside the range, word for word as an API server does.
fn refuse(path: &str, query: &HashMap<String, String>, state: &Mutex<State>) -> Answer {
    assert_eq!(path, "/api/v1/namespaces/default/services", "nothing else is ever made");
    assert_eq!(query.get("dryRun").map(String::as_str), Some("All"), "and that only for show");
    let mut state = state.lock().unwrap();
    let resource = "range".to_owned();
    state.asked.push(Asked { resource, watch: false, query: query.clone() });
    let earlier = state.asked.iter().filter(|a| a.resource == "range").count() - 1;
    let Some(ranges) = &state.ranges else {
        return failure(403, "services is forbidden: User \"edge\" cannot create resource \"services\"");
    };
    let start = "Service \"edgesplice-service-range\" is invalid: spec.";
    // IPv4 is asked for first.
    match ranges.iter().find(|r| r.contains(':') == (earlier % 2 == 1)) {
        Some(range) => failure(
            422,
            &format!(
                "{start}clusterIPs: Invalid value: []string{{\"192.0.2.1\"}}: failed to allocate IP 192.0.2.1: \
                 provided IP is not in the valid range. The range of valid IPs is {range}"
            ),
        ),
        None => failure(
            422,
            &format!("{start}ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster"),
        ),
    }
}

/// Takes an event or a change to one, as an API server does.
async fn event(request: Request<Incoming>, state: &Mutex<State>) -> Answer {
    let (head, body) = request.into_parts();
    let value: serde_json::Value = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
    let mut state = state.lock().unwrap();
    let (resource, query) = ("events".to_owned(), HashMap::new());
    state.asked.push(Asked { resource, watch: false, query });
    if state.events_forbidden {
        return failure(403, "events is forbidden");
    }
    let name = |event: &serde_json::Value| event["metadata"]["name"].as_str().unwrap().to_owned();
    if head.method == hyper::Method::POST {
        assert!(head.uri.path().contains(&format!("/{}/", value["metadata"]["namespace"].as_str().unwrap())));
        if state.events.iter().any(|known| name(known) == name(&value)) {
            return failure(409, "already exists");
        }
        state.events.push(value.clone());
        return text(201, value.to_string());
    }
    assert_eq!(head.headers["content-type"], "application/merge-patch+json");
    let wanted = head.uri.path().rsplit('/').next().unwrap().to_owned();
    let Some(known) = state.events.iter_mut().find(|known| name(known) == wanted) else {
        return failure(404, "not found");
    };
    for (key, new) in value.as_object().unwrap() {
        known[key] = new.clone();
    }
    text(200, known.to_string())
}

/// The one Service that a field selector names.
fn one_service(path: &str, query: &HashMap<String, String>, state: &Mutex<State>) -> Option<Answer> {
    let namespace = path.strip_prefix("/api/v1/namespaces/")?.strip_suffix("/services")?;
    let name = query.get("fieldSelector")?.strip_prefix("metadata.name=")?;
    let key = ("services".to_owned(), format!("{namespace}/{name}"));
    let items: Vec<_> = state.lock().unwrap().objects.get(&key).cloned().into_iter().collect();
    Some(text(200, json!({"kind": "ServiceList", "metadata": {}, "items": items}).to_string()))
}

async fn answer(request: Request<Incoming>, state: &Mutex<State>) -> Answer {
    if request.method() != hyper::Method::GET && request.uri().path().contains("/events") {
        return event(request, state).await;
    }

    let query: HashMap<String, String> = request
        .uri()
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), unescape(value)))
        .collect();
    if request.method() == hyper::Method::POST {
        return refuse(request.uri().path(), &query, state);
    }
    if let Some(answer) = one_service(request.uri().path(), &query, state) {
        return answer;
    }
    let Some((_, resource, list_kind)) = KNOWN.iter().find(|(path, ..)| *path == request.uri().path()) else {
        return failure(404, "the server could not find the requested resource");
    };
    let watch = query.contains_key("watch");
    let token =
        request.headers().get("authorization").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let (mood, refused) = {
        let mut state = state.lock().unwrap();
        state.asked.push(Asked { resource: (*resource).to_owned(), watch, query: query.clone() });
        let mood = state.moods.get(*resource).or_else(|| state.moods.get("*")).cloned().unwrap_or(Mood::Well);
        let refused = if state.absent.contains(*resource) {
            Some(failure(404, "not found"))
        } else if state.token.as_ref().is_some_and(|t| token != format!("Bearer {t}")) {
            Some(failure(401, "Unauthorized"))
        } else {
            None
        };
        (mood, refused)
    };
    if let Some(refused) = refused {
        return refused;
    }
    match mood {
        Mood::Well | Mood::CutsWatches => {}
        Mood::Silent => std::future::pending().await,
        Mood::Slow(time) => tokio::time::sleep(time).await,
        Mood::Status(code, after) => {
            let mut answer = failure(code, "scripted failure");
            if let Some(after) = after {
                answer.headers_mut().insert("retry-after", after.into());
            }
            return answer;
        }
        Mood::Html => return text(200, "<html><body>It works!</body></html>"),
    }
    let mut state = state.lock().unwrap();
    if watch {
        begin_watch(&mut state, resource, query, mood == Mood::CutsWatches)
    } else {
        list(&mut state, resource, list_kind, &query)
    }
}

fn list(state: &mut State, resource: &str, kind: &str, query: &HashMap<String, String>) -> Answer {
    let mut version = Some(state.version);
    if let Some((told, empty)) = &state.offline {
        if empty.contains(resource) {
            return text(200, json!({"metadata": {}, "items": []}).to_string());
        }
        version = *told;
    }
    let limit = query.get("limit").and_then(|l| l.parse().ok()).unwrap_or(usize::MAX);
    let mut items = match query.get("continue") {
        Some(_) if std::mem::take(&mut state.expire_pages) => {
            return failure(410, "the continue token is too old");
        }
        Some(token) => match state.pages.remove(token) {
            Some(rest) => rest,
            None => return failure(410, "unknown continue token"),
        },
        None => state
            .objects
            .iter()
            .filter(|((r, _), object)| r == resource && selected(query, object))
            .map(|(_, object)| object.clone())
            .collect(),
    };
    let rest = items.split_off(items.len().min(limit));
    let mut metadata = json!({});
    if let Some(version) = version {
        metadata["resourceVersion"] = json!(version.to_string());
    }
    if !rest.is_empty() {
        // With characters that have to be escaped.
        let token = format!("{resource}/{}+{}==", state.version, rest.len());
        metadata["continue"] = json!(token);
        state.pages.insert(token, rest);
    }
    text(200, json!({"kind": kind, "apiVersion": "v1", "metadata": metadata, "items": items}).to_string())
}

fn begin_watch(state: &mut State, resource: &str, query: HashMap<String, String>, cut: bool) -> Answer {
    let (lines, waiting) = mpsc::unbounded_channel();
    let until = query.get("timeoutSeconds").and_then(|t| t.parse().ok()).map_or(3600, |t: u64| t);
    let watcher = Watcher { resource: resource.to_owned(), query, lines };
    if state.personality == Personality::MetaServer {
        let all = state.objects.iter().map(|((r, _), o)| (r, o));
        for (r, object) in all.chain(state.ghosts.iter().map(|(r, o)| (r, o))) {
            if r == resource {
                let line = json!({"type": "ADDED", "object": object});
                let _ = watcher.lines.send(format!("{line}\n"));
            }
        }
    } else if let Some(from) = watcher.query.get("resourceVersion").and_then(|v| v.parse::<u64>().ok()) {
        if from < state.compacted {
            if !state.gone_as_event {
                return failure(410, "too old resource version");
            }
            let status = json!({"kind": "Status", "code": 410, "reason": "Expired"});
            let _ = watcher.lines.send(format!("{}\n", json!({"type": "ERROR", "object": status})));
        } else {
            let missed = |c: &&Change| c.version > from;
            for line in state.history.iter().filter(missed).filter_map(|c| line(&watcher, c)) {
                let _ = watcher.lines.send(line);
            }
        }
    }
    if !cut {
        state.watchers.push(watcher);
    }
    let end = tokio::time::Instant::now() + Duration::from_secs(until);
    let frames = stream::unfold(waiting, move |mut waiting| async move {
        let line: String = tokio::time::timeout_at(end, waiting.recv()).await.ok()??;
        Some((Ok(Frame::data(Bytes::from(line))), waiting))
    });
    Response::new(BodyExt::boxed_unsync(StreamBody::new(frames)))
}

fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'%' => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            other => other,
        };
        bytes.push(byte);
    }
    String::from_utf8(bytes).unwrap()
}
