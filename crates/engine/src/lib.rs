//! Pods and containers: lifecycle, owners, index, stats and recovery.
