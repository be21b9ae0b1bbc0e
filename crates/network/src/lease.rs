//! Which pod has which address. Pure: what is leased is held in memory and rebuilt from the pods' records;
//! there is no lease file.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;

use coracle_domain::{Failure, FailureKind, Result};
use serde::{Deserialize, Serialize};

use crate::Subnet;

/// An address lent to a pod, with what the pod needs to use it. It lives in the pod's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lease {
    /// The pod's address.
    pub address: Ipv4Addr,
    /// The prefix length of its subnet, bits.
    pub prefix: u8,
    /// The address of the bridge: the pod's default route.
    pub gateway: Ipv4Addr,
}

impl Lease {
    /// The subnet it is of; none when a record holds what no subnet can be.
    fn subnet(&self) -> Option<Subnet> {
        Subnet::around(self.gateway, self.prefix)
    }
}

/// Lends the addresses of a subnet in rotation, so that an address rests as long as possible before it is
/// lent again. Leases of an earlier subnet stay valid until they are released.
#[derive(Debug)]
pub(crate) struct Allocator {
    subnet: Subnet,
    /// The number of the address to try next.
    cursor: u32,
    leased: HashMap<Ipv4Addr, Lease>,
}

impl Allocator {
    pub(crate) fn new(subnet: Subnet) -> Self {
        Self { subnet, cursor: 0, leased: HashMap::new() }
    }

    /// From now on leases come from this subnet.
    pub(crate) fn set_subnet(&mut self, subnet: Subnet) {
        if subnet != self.subnet {
            self.subnet = subnet;
            self.cursor = 0;
        }
    }

    /// Every subnet a pod may be in: the present one, and those of living leases of earlier ones.
    pub(crate) fn subnets(&self) -> BTreeSet<Subnet> {
        self.leased.values().filter_map(Lease::subnet).chain([self.subnet]).collect()
    }

    /// Lends the next free address.
    ///
    /// # Errors
    /// [`FailureKind::Exhausted`] when there is none.
    pub(crate) fn lease(&mut self) -> Result<Lease> {
        for _ in 0..self.subnet.capacity() {
            let address = self.subnet.pod_address(self.cursor);
            self.cursor = (self.cursor + 1) % self.subnet.capacity();
            if !self.leased.contains_key(&address) {
                let lease = Lease { address, prefix: self.subnet.prefix(), gateway: self.subnet.gateway() };
                self.leased.insert(address, lease);
                return Ok(lease);
            }
        }
        let source = format!("all of its {} addresses are in use", self.subnet.capacity());
        let failure = Failure::new("leasing an address of", self.subnet, source).kind(FailureKind::Exhausted);
        Err(failure.hint("remove pods, or give the node a larger pod subnet").into())
    }

    /// Takes over a lease that a record holds.
    pub(crate) fn adopt(&mut self, lease: &Lease) {
        self.leased.insert(lease.address, *lease);
        if let Some(number) = self.subnet.pod_number(lease.address) {
            self.cursor = self.cursor.max((number + 1) % self.subnet.capacity());
        }
    }

    /// Takes an address back; one that is not lent stays as it is.
    pub(crate) fn release(&mut self, lease: &Lease) {
        self.leased.remove(&lease.address);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use coracle_domain::Error;
    use proptest::prelude::*;

    use super::*;

    fn allocator(subnet: &str) -> Allocator {
        Allocator::new(subnet.parse().unwrap())
    }

    #[test]
    fn an_address_rests_until_all_others_were_lent() {
        let mut allocator = allocator("10.9.0.0/29");
        let first = allocator.lease().unwrap();
        allocator.release(&first);
        let later: Vec<_> = (0..5).map(|_| allocator.lease().unwrap().address).collect();
        assert_eq!(first.address, Ipv4Addr::new(10, 9, 0, 2));
        assert_eq!(later, [3, 4, 5, 6, 2].map(|last| Ipv4Addr::new(10, 9, 0, last)));
    }

    #[test]
    fn an_exhausted_subnet_is_named() {
        let mut allocator = allocator("10.9.0.0/30");
        allocator.lease().unwrap();
        let error = allocator.lease().unwrap_err();
        assert!(error.to_string().contains("10.9.0.0/30"), "{error}");
        assert!(matches!(error, Error::Failed(Failure { kind: FailureKind::Exhausted, .. })));
    }

    #[test]
    fn an_adopted_address_is_not_lent_again_and_rotation_goes_on_behind_it() {
        let mut allocator = allocator("10.9.0.0/24");
        let adopted = Lease { address: Ipv4Addr::new(10, 9, 0, 40), prefix: 24, gateway: Ipv4Addr::new(10, 9, 0, 1) };
        allocator.adopt(&adopted);
        assert_eq!(allocator.lease().unwrap().address, Ipv4Addr::new(10, 9, 0, 41));
    }

    #[test]
    fn a_subnet_stays_until_its_last_lease_is_released() {
        let mut allocator = allocator("10.9.0.0/24");
        let old = allocator.lease().unwrap();
        allocator.set_subnet("10.10.0.0/24".parse().unwrap());
        assert_eq!(allocator.subnets().len(), 2);
        assert_eq!(allocator.lease().unwrap().gateway, Ipv4Addr::new(10, 10, 0, 1));
        allocator.release(&old);
        allocator.release(&old);
        assert_eq!(allocator.subnets().into_iter().collect::<Vec<_>>(), [allocator.subnet]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Lease,
        Release(usize),
        Adopt(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![3 => Just(Step::Lease), 2 => any::<usize>().prop_map(Step::Release), 1 => (2u8..=14).prop_map(Step::Adopt)]
    }

    proptest! {
        #[test]
        fn the_allocator_lends_what_is_free_and_nothing_else(steps in proptest::collection::vec(step(), 0..80)) {
            let mut allocator = allocator("10.9.0.0/28");
            let free: HashSet<Ipv4Addr> = (2..=14).map(|last| Ipv4Addr::new(10, 9, 0, last)).collect();
            let mut model: Vec<Lease> = Vec::new();
            for step in steps {
                match step {
                    Step::Lease => match allocator.lease() {
                        Ok(lease) => {
                            prop_assert!(free.contains(&lease.address));
                            prop_assert!(model.iter().all(|other| other.address != lease.address));
                            model.push(lease);
                        }
                        Err(_) => prop_assert_eq!(model.len(), free.len()),
                    },
                    Step::Release(which) if !model.is_empty() => allocator.release(&model.swap_remove(which % model.len())),
                    Step::Release(_) => {}
                    Step::Adopt(last) => {
                        let lease = Lease { address: Ipv4Addr::new(10, 9, 0, last), prefix: 28, gateway: Ipv4Addr::new(10, 9, 0, 1) };
                        allocator.adopt(&lease);
                        if !model.contains(&lease) {
                            model.push(lease);
                        }
                    }
                }
            }
        }
    }
}
