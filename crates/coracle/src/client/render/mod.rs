//! What people and programs read: aligned tables, quantities, and messages as JSON. Pure but for the last write.

pub(crate) mod json;
pub(crate) mod table;
pub(crate) mod units;
