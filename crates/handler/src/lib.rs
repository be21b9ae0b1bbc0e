//! How a container is run: by our own Plan, or by an OCI runtime binary.
