//! The per-pod process, its protocol, and the daemon's client of it.
