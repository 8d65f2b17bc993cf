//! The data plane in this process, over loopback: no packet filter, the tests say where clients wanted to go.

mod dial;
mod drain;
mod harness;
mod relay;
mod routing;
