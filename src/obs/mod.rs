//! Logs, metrics and the admin endpoint. A leaf: anyone may use it, it uses nothing of ours.

pub mod api;
