//! Pure translation: request and image config to OCI runtime spec, and spec to Plan.
