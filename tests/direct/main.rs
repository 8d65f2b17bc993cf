//! The data plane in this process, over loopback: no packet filter, the tests say where clients wanted to go.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod dial;
mod drain;
mod harness;
mod http;
mod limits;
mod relay;
mod routing;
