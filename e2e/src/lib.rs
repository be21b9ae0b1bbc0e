//! Tests as root.
