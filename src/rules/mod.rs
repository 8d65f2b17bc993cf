//! What this program puts into the node's packet filter, and how it keeps it there.
//!
//! Planning (`plan`) and rendering (`render`) are pure; applying goes through the [`apply::Firewall`] trait, so that
//! the reconciler can be tested against an in-memory fake. Only chains, sets and routes named in [`names`] are ever
//! written, besides the jumps into them. What older EdgeMesh versions left behind is the business of `legacy`.

pub mod apply;
pub mod dump;
pub mod legacy;
pub mod names;
