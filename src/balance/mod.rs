//! balance: see ARCHITECTURE.md.
