//! The ordered kernel operations that turn a process into a container: types only.
