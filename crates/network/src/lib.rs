//! The pod network: native bridge, address leases, masquerading.
