//! The gRPC server: translation between CRI v1 and the domain, and status codes.
