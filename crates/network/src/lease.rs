//! Which pod has which address. Pure: what is leased is held in memory and rebuilt from the pods' records;
//! there is no lease file.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;

use coracle_domain::{Failure, FailureKind, PodId, Result};
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
    /// By holder. Records that were damaged may give two pods the same address; it is free when neither has it.
    leased: HashMap<PodId, Lease>,
    /// Who had an address last, as far as it was given back here.
    former: HashMap<Ipv4Addr, PodId>,
}

impl Allocator {
    pub(crate) fn new(subnet: Subnet) -> Self {
        Self { subnet, cursor: 0, leased: HashMap::new(), former: HashMap::new() }
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

    /// The pods that have one.
    pub(crate) fn holders(&self) -> impl Iterator<Item = &PodId> {
        self.leased.keys()
    }

    /// Lends a pod the next free address, in place of the one that it has.
    ///
    /// # Errors
    /// [`FailureKind::Exhausted`] when there is none.
    pub(crate) fn lease(&mut self, pod: &PodId) -> Result<Lease> {
        let taken: HashSet<Ipv4Addr> = self.leased.values().map(|lease| lease.address).collect();
        for _ in 0..self.subnet.capacity() {
            let address = self.subnet.pod_address(self.cursor);
            self.cursor = (self.cursor + 1) % self.subnet.capacity();
            if !taken.contains(&address) {
                let lease = Lease { address, prefix: self.subnet.prefix(), gateway: self.subnet.gateway() };
                self.leased.insert(pod.clone(), lease);
                return Ok(lease);
            }
        }
        let source = format!("all of its {} addresses are in use", self.subnet.capacity());
        let failure = Failure::new("leasing an address of", self.subnet, source).kind(FailureKind::Exhausted);
        Err(failure.hint("remove pods, or give the node a larger pod subnet").into())
    }

    /// Takes over the lease that a pod has according to its record.
    pub(crate) fn adopt(&mut self, pod: &PodId, lease: &Lease) {
        self.leased.insert(pod.clone(), *lease);
        if let Some(number) = self.subnet.pod_number(lease.address) {
            self.cursor = self.cursor.max((number + 1) % self.subnet.capacity());
        }
    }

    /// Takes back the address that a pod has. It may have none any more, and another pod what was its.
    pub(crate) fn release(&mut self, pod: &PodId) {
        if let Some(lease) = self.leased.remove(pod) {
            self.former.insert(lease.address, pod.clone());
        }
    }

    /// Who gave back an address last.
    pub(crate) fn former(&self, address: Ipv4Addr) -> Option<&PodId> {
        self.former.get(&address)
    }
}

#[cfg(test)]
mod tests {
    use coracle_domain::Error;
    use proptest::prelude::*;

    use super::*;

    fn allocator(subnet: &str) -> Allocator {
        Allocator::new(subnet.parse().unwrap())
    }

    fn pod(seed: u8) -> PodId {
        PodId::from_entropy([seed; 32])
    }

    #[test]
    fn an_address_rests_until_all_others_were_lent() {
        let mut allocator = allocator("10.9.0.0/29");
        let first = allocator.lease(&pod(1)).unwrap();
        allocator.release(&pod(1));
        let later: Vec<_> = (2..7).map(|seed| allocator.lease(&pod(seed)).unwrap().address).collect();
        assert_eq!(first.address, Ipv4Addr::new(10, 9, 0, 2));
        assert_eq!(later, [3, 4, 5, 6, 2].map(|last| Ipv4Addr::new(10, 9, 0, last)));
    }

    #[test]
    fn an_exhausted_subnet_is_named() {
        let mut allocator = allocator("10.9.0.0/30");
        allocator.lease(&pod(1)).unwrap();
        let error = allocator.lease(&pod(2)).unwrap_err();
        assert!(error.to_string().contains("10.9.0.0/30"), "{error}");
        assert!(matches!(error, Error::Failed(Failure { kind: FailureKind::Exhausted, .. })));
    }

    #[test]
    fn who_gives_an_address_back_twice_takes_it_from_nobody() {
        let mut allocator = allocator("10.9.0.0/30");
        let lease = allocator.lease(&pod(1)).unwrap();
        allocator.release(&pod(1));
        assert_eq!(allocator.lease(&pod(2)).unwrap(), lease);
        allocator.release(&pod(1));
        allocator.lease(&pod(3)).unwrap_err();
    }

    #[test]
    fn an_address_that_two_records_hold_is_free_when_both_pods_are_gone() {
        let mut allocator = allocator("10.9.0.0/30");
        let lease = allocator.lease(&pod(1)).unwrap();
        allocator.adopt(&pod(2), &lease);
        for holder in [pod(2), pod(1)] {
            allocator.lease(&pod(3)).unwrap_err();
            allocator.release(&holder);
        }
        assert_eq!(allocator.lease(&pod(3)).unwrap(), lease);
    }

    #[test]
    fn an_adopted_address_is_not_lent_again_and_rotation_goes_on_behind_it() {
        let mut allocator = allocator("10.9.0.0/24");
        let adopted = Lease { address: Ipv4Addr::new(10, 9, 0, 40), prefix: 24, gateway: Ipv4Addr::new(10, 9, 0, 1) };
        allocator.adopt(&pod(1), &adopted);
        assert_eq!(allocator.lease(&pod(2)).unwrap().address, Ipv4Addr::new(10, 9, 0, 41));
    }

    #[test]
    fn a_subnet_stays_until_its_last_lease_is_released() {
        let mut allocator = allocator("10.9.0.0/24");
        allocator.lease(&pod(1)).unwrap();
        allocator.set_subnet("10.10.0.0/24".parse().unwrap());
        assert_eq!(allocator.subnets().len(), 2);
        assert_eq!(allocator.lease(&pod(2)).unwrap().gateway, Ipv4Addr::new(10, 10, 0, 1));
        allocator.release(&pod(1));
        assert_eq!(allocator.subnets().into_iter().collect::<Vec<_>>(), [allocator.subnet]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Lease(u8),
        Release(u8),
        Adopt(u8, u8),
    }

    /// What happens to some of a few more pods than there are addresses.
    fn step() -> impl Strategy<Value = Step> {
        let pods = 0u8..16;
        prop_oneof![
            3 => pods.clone().prop_map(Step::Lease),
            2 => pods.clone().prop_map(Step::Release),
            1 => (pods, 2u8..=14).prop_map(|(pod, last)| Step::Adopt(pod, last)),
        ]
    }

    proptest! {
        #[test]
        fn the_allocator_lends_what_is_free_and_nothing_else(steps in proptest::collection::vec(step(), 0..80)) {
            let mut allocator = allocator("10.9.0.0/28");
            let pool: HashSet<Ipv4Addr> = (2..=14).map(|last| Ipv4Addr::new(10, 9, 0, last)).collect();
            let mut model: HashMap<u8, Ipv4Addr> = HashMap::new();
            for step in steps {
                match step {
                    Step::Lease(seed) => {
                        let free: HashSet<_> = pool.iter().filter(|address| !model.values().any(|taken| taken == *address)).collect();
                        match allocator.lease(&pod(seed)) {
                            Ok(lease) => {
                                prop_assert!(free.contains(&lease.address));
                                model.insert(seed, lease.address);
                            }
                            Err(_) => prop_assert!(free.is_empty()),
                        }
                    }
                    Step::Release(seed) => {
                        allocator.release(&pod(seed));
                        model.remove(&seed);
                    }
                    Step::Adopt(seed, last) => {
                        let lease = Lease { address: Ipv4Addr::new(10, 9, 0, last), prefix: 28, gateway: Ipv4Addr::new(10, 9, 0, 1) };
                        allocator.adopt(&pod(seed), &lease);
                        model.insert(seed, lease.address);
                    }
                }
            }
        }
    }
}
