//! Registries, content, layers and snapshots.
