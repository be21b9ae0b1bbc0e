//! Limits and accounting by cgroup v2, v1 or both.
