//! Kubernetes objects cut down to the fields this program reads.

/// One object of a kind this program uses.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {}

/// Names one object: kind, namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {}
