//! Opening and closing the host ports of one pod: what changes in the kernel when such a pod comes or goes.
//!
//! Between the first pod and the last one that is a change of elements. The first one's coming and the last
//! one's going change the rules, and so does whatever is not as it was thought to be: the rules are then written
//! anew as a whole, which needs no knowledge of what stood before.

use std::collections::BTreeSet;

use coracle_domain::{During, PodId, Protocol, Result};

use crate::bridge::Shared;
use crate::nft::{add_elements, remove_elements};
use crate::ports::{HostPort, Openings};
use crate::rules::{maps, table_name};
use crate::{conntrack, host};

impl Shared {
    /// Sends what comes to a pod's host ports to the pod.
    ///
    /// # Errors
    /// The pod has no claim any more: it was torn down while it was still being attached.
    pub(crate) fn open_ports(&self, pod: &PodId) -> Result<()> {
        let writing = self.writing_rules();
        let first = !self.ports().any_open();
        let openings = self.ports().open_of(pod).ok_or("they were given up").during("opening the host ports of the pod", pod)?;
        let added = !first && add_elements(&table_name(&self.config), &maps(&openings)).is_ok();
        if !added {
            self.write_rules()?;
        }
        drop(writing);
        forget_flows(&openings)
    }

    /// Makes sure that nothing is sent to a pod's host ports any more, and gives them up. Before this process has
    /// made the rules, what stands is not for one pod to change: what is right is written soon, and flows forgotten then.
    pub(crate) fn close_ports(&self, pod: &PodId) -> Result<()> {
        let established = self.established();
        if !*established {
            self.ports().abandon(pod);
        }
        // Nobody who attaches a pod has to wait for what follows.
        drop(established);
        let closed = self.ports().close_of(pod);
        if let Some(openings) = closed
            && let Err(error) = self.remove_rules_of(&openings).and_then(|()| forget_flows(&openings))
        {
            self.ports().open_of(pod);
            return Err(error);
        }
        self.ports().release(pod);
        Ok(())
    }

    /// Has no flow go where a port led that was given up before the rules were made.
    pub(crate) fn settle_ports(&self) -> Result<()> {
        let given_up = self.ports().given_up();
        forget_flows(&given_up)?;
        self.ports().settle();
        Ok(())
    }

    fn remove_rules_of(&self, openings: &Openings) -> Result<()> {
        let _writing = self.writing_rules();
        let last = !self.ports().any_open();
        let removed = !last && remove_elements(&table_name(&self.config), &maps(openings)).is_ok();
        if removed { Ok(()) } else { self.write_rules() }
    }

    fn write_rules(&self) -> Result<()> {
        let openings = self.ports().open();
        self.host_side().write_rules(&openings)
    }
}

/// Has flows without an end go where the rules now say. Of the transports only UDP has such.
fn forget_flows(openings: &Openings) -> Result<()> {
    let ports: BTreeSet<HostPort> = openings.keys().filter(|port| port.protocol == Protocol::Udp).copied().collect();
    if ports.is_empty() {
        return Ok(());
    }
    Ok(conntrack::forget_udp(&ports, &host::addresses()?)?)
}
