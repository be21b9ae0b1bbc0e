//! nf_tables over netlink: tables, maps, chains and rules, changed in one atomic batch. See
//! linux/netfilter/nf_tables.h and linux/netfilter/nfnetlink.h.
//!
//! Only this crate's own table is ever touched; what others have in the kernel stays as it is.

mod attributes;
mod expression;
mod map;

pub(crate) use attributes::Attributes;
pub(crate) use expression::{
    Comparison, Expression, Field, Register, Value, Verdict, host_match, link_match, mark, mark_match, subnet_match,
};
pub(crate) use map::{Element, Map, Part, Shape};
use rustix::io::Errno;

use crate::netlink::{Family, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, Rejection, Request, Socket};

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_NEWSET: u16 = 9;
const NFT_MSG_NEWSETELEM: u16 = 12;
const NFT_MSG_DELSETELEM: u16 = 14;
/// `NFPROTO_IPV4`: the family of the tables made here.
const IPV4: u8 = 2;

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_LIST_ELEM: u16 = 1;

/// A table as it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    /// Its name; the family is `ip`.
    pub(crate) name: String,
    /// What its rules look up.
    pub(crate) maps: Vec<Map>,
    /// Its chains; one that another jumps to comes before it.
    pub(crate) chains: Vec<Chain>,
}

/// A chain the kernel runs packets through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    /// Its name.
    pub(crate) name: &'static str,
    /// Where packets enter it; nowhere if other chains jump to it.
    pub(crate) hook: Option<Hook>,
    /// Its rules, in order.
    pub(crate) rules: Vec<Vec<Expression>>,
}

/// Where packets enter a chain: its type, a hook, and the priority that belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    /// `type filter hook prerouting priority raw`: before connections are known.
    Raw,
    /// `type nat hook prerouting priority dstnat`: what comes in.
    DestinationNat,
    /// `type nat hook output priority dstnat`: what the host itself sends.
    OutputNat,
    /// `type nat hook postrouting priority srcnat`: what goes out.
    SourceNat,
}

impl Hook {
    /// The type, `NF_INET_*` and the priority.
    fn place(self) -> (&'static str, u32, i32) {
        match self {
            Self::Raw => ("filter", 0, -300),
            Self::DestinationNat => ("nat", 0, -100),
            Self::OutputNat => ("nat", 3, -100),
            Self::SourceNat => ("nat", 4, 100),
        }
    }
}

/// Makes a table be exactly as described, in one step: packets see the table before or the table after.
pub(crate) fn replace(table: &Table) -> Result<(), Rejection> {
    let name = &table.name;
    let mut steps = removal(name);
    steps.push(change(NFT_MSG_NEWTABLE, NLM_F_CREATE, table_name(name), "creating the nftables table", name));
    for (map, id) in table.maps.iter().zip(1..) {
        steps.push(change(NFT_MSG_NEWSET, NLM_F_CREATE, map.shape.encode(name, id), "creating the nftables map", map.shape.name));
        steps.extend(elements(NFT_MSG_NEWSETELEM, NLM_F_CREATE, name, map));
    }
    for chain in &table.chains {
        steps.push(change(NFT_MSG_NEWCHAIN, NLM_F_CREATE, chain.encode(name), "creating the nftables chain", chain.name));
        let rules = chain.rules.iter().map(|rule| encode_rule(name, chain.name, rule));
        steps.extend(
            rules.map(|rule| change(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, rule, "creating the nftables rule of", chain.name)),
        );
    }
    commit(steps)
}

/// Adds elements to a table's maps.
pub(crate) fn add_elements(table: &str, maps: &[Map]) -> Result<(), Rejection> {
    commit(maps.iter().flat_map(|map| elements(NFT_MSG_NEWSETELEM, NLM_F_CREATE, table, map)).collect())
}

/// Takes elements out of a table's maps.
///
/// # Errors
/// One of them is not there; then the others stay.
pub(crate) fn remove_elements(table: &str, maps: &[Map]) -> Result<(), Rejection> {
    commit(maps.iter().flat_map(|map| elements(NFT_MSG_DELSETELEM, 0, table, map)).collect())
}

fn elements(message: u16, flags: u16, table: &str, map: &Map) -> impl Iterator<Item = Request> {
    let name = map.shape.name;
    map.encode_elements(table).map(move |list| change(message, flags, list, "changing the elements of the nftables map", name))
}

/// Makes sure that a table is gone.
pub(crate) fn remove(table: &str) -> Result<(), Rejection> {
    commit(removal(table))
}

/// Whether there is a table of this name.
pub(crate) fn exists(table: &str) -> Result<bool, Rejection> {
    let request = request(NFT_MSG_GETTABLE, 0, table_name(table), "looking up the nftables table", table);
    match Socket::open(Family::Netfilter)?.get(&request) {
        Ok(_) => Ok(true),
        Err(rejection) if rejection.errno() == Errno::NOENT => Ok(false),
        Err(rejection) => Err(rejection),
    }
}

/// Creating what may exist and deleting it is the way to delete what may not exist.
fn removal(table: &str) -> Vec<Request> {
    vec![
        change(NFT_MSG_NEWTABLE, NLM_F_CREATE, table_name(table), "clearing the nftables table", table),
        change(NFT_MSG_DELTABLE, 0, table_name(table), "removing the nftables table", table),
    ]
}

/// Has the kernel do all steps or none.
fn commit(steps: Vec<Request>) -> Result<(), Rejection> {
    let subject = steps.first().map(|step| step.subject.clone()).unwrap_or_default();
    let bracket =
        |kind| Request { kind, flags: 0, body: header(0, SUBSYSTEM), stage: "changing the nftables table", subject: subject.clone() };
    let batch: Vec<_> = [bracket(NFNL_MSG_BATCH_BEGIN)].into_iter().chain(steps).chain([bracket(NFNL_MSG_BATCH_END)]).collect();
    Socket::open(Family::Netfilter)?.execute(&batch)?;
    coracle_failpoint::reach(coracle_failpoint::Point::NftCommit);
    Ok(())
}

fn change(message: u16, flags: u16, attributes: Attributes, stage: &'static str, subject: &str) -> Request {
    request(message, flags | NLM_F_ACK, attributes, stage, subject)
}

fn request(message: u16, flags: u16, attributes: Attributes, stage: &'static str, subject: &str) -> Request {
    Request { kind: SUBSYSTEM << 8 | message, flags, body: self::message(&attributes), stage, subject: subject.to_owned() }
}

/// The body of a netfilter message of the family IPv4.
pub(crate) fn message(attributes: &Attributes) -> Vec<u8> {
    let mut body = header(IPV4, 0);
    body.extend_from_slice(attributes.as_bytes());
    body
}

/// A `struct nfgenmsg`.
fn header(family: u8, resource: u16) -> Vec<u8> {
    const VERSION: u8 = 0;
    let [high, low] = resource.to_be_bytes();
    vec![family, VERSION, high, low]
}

fn table_name(name: &str) -> Attributes {
    Attributes::default().string(NFTA_TABLE_NAME, name)
}

impl Chain {
    fn encode(&self, table: &str) -> Attributes {
        const NFTA_CHAIN_TABLE: u16 = 1;
        const NFTA_CHAIN_NAME: u16 = 3;
        const NFTA_CHAIN_HOOK: u16 = 4;
        const NFTA_CHAIN_TYPE: u16 = 7;
        const NFTA_HOOK_HOOKNUM: u16 = 1;
        const NFTA_HOOK_PRIORITY: u16 = 2;
        let chain = Attributes::default().string(NFTA_CHAIN_TABLE, table).string(NFTA_CHAIN_NAME, self.name);
        let Some(hook) = self.hook else { return chain };
        let (kind, hook, priority) = hook.place();
        let hook = Attributes::default().number(NFTA_HOOK_HOOKNUM, hook).number(NFTA_HOOK_PRIORITY, priority.cast_unsigned());
        chain.nested(NFTA_CHAIN_HOOK, &hook).string(NFTA_CHAIN_TYPE, kind)
    }
}

fn encode_rule(table: &str, chain: &str, rule: &[Expression]) -> Attributes {
    const NFTA_RULE_TABLE: u16 = 1;
    const NFTA_RULE_CHAIN: u16 = 2;
    const NFTA_RULE_EXPRESSIONS: u16 = 4;
    let expressions = rule.iter().fold(Attributes::default(), |list, expression| list.nested(NFTA_LIST_ELEM, &expression.encode()));
    Attributes::default().string(NFTA_RULE_TABLE, table).string(NFTA_RULE_CHAIN, chain).nested(NFTA_RULE_EXPRESSIONS, &expressions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_names_table_hook_and_type() {
        let chain = Chain { name: "post", hook: Some(Hook::SourceNat), rules: Vec::new() };
        #[rustfmt::skip]
        let expected = [
            6, 0, 1, 0, b't', 0, 0, 0,
            9, 0, 3, 0, b'p', b'o', b's', b't', 0, 0, 0, 0,
            20, 0, 4, 0x80,
                8, 0, 1, 0, 0, 0, 0, 4,
                8, 0, 2, 0, 0, 0, 0, 100,
            8, 0, 7, 0, b'n', b'a', b't', 0,
        ];
        assert_eq!(chain.encode("t").as_bytes(), expected);
    }

    #[test]
    fn a_chain_that_others_jump_to_has_neither_hook_nor_type() {
        let chain = Chain { name: "to", hook: None, rules: Vec::new() };
        assert_eq!(chain.encode("t").as_bytes(), [6, 0, 1, 0, b't', 0, 0, 0, 7, 0, 3, 0, b't', b'o', 0, 0]);
    }

    #[test]
    fn a_request_names_subsystem_and_family() {
        let request = request(NFT_MSG_DELTABLE, 0, table_name("t"), "testing", "t");
        assert_eq!(request.kind, 0x0a02);
        assert_eq!(request.body, [2, 0, 0, 0, 6, 0, 1, 0, b't', 0, 0, 0]);
        assert_eq!(header(0, SUBSYSTEM), [0, 0, 0, 10]);
    }
}
