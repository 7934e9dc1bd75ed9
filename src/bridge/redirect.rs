//! The rules of the kernel that redirect connections to the pool to one listener (nftables).
//!
//! They are in a table of their own, named after the pool: one chain redirects TCP connections, one
//! rejects everything else, which would otherwise reach programs that listen on all addresses.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::in_use::is_listening;
use super::nft::{Nft, NftError};

/// Beginning of the names of all tables of bridges; the pool follows.
pub const TABLE_PREFIX: &str = "svcdns_bridge_";

/// Reason why connections cannot be redirected.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// The kernel's rules cannot be changed.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// Another server of this machine redirects connections to the pool.
    #[error(
        "another svcdns on this machine redirects {0} (`nft list ruleset`): choose another \
         bridge.pool"
    )]
    Taken(Ipv4Net),
}

/// The table of a bridge, in the kernel until [`Self::remove`].
#[derive(Debug)]
pub(super) struct Redirect {
    nft: Nft,
    rules: Rules,
    /// The kernel's number of the table; another table of the same name has another one.
    handle: Option<u64>,
}

/// What the table of a bridge contains.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    /// The addresses whose connections are redirected.
    pub(super) pool: Ipv4Net,
    /// Where they are redirected to.
    pub(super) listener: SocketAddrV4,
    /// Addresses of the pool that other programs use.
    pub(super) left_out: BTreeSet<Ipv4Addr>,
}

impl Redirect {
    /// Adds the table, or replaces one of the same name.
    ///
    /// # Errors
    /// If `nft` fails, or is not permitted to change the rules.
    pub(super) async fn install(nft: Nft, rules: Rules) -> Result<Self, NftError> {
        let mut redirect = Self { nft, rules, handle: None };
        redirect.restore().await?;
        Ok(redirect)
    }

    /// Adds the table again after it was lost, or replaces it.
    ///
    /// # Errors
    /// If `nft` fails.
    pub(super) async fn restore(&mut self) -> Result<(), NftError> {
        self.nft.apply(&self.rules.commands()).await?;
        let name = table_name(self.rules.pool);
        let tables = tables(&self.nft).await?;
        self.handle = tables.into_iter().find(|table| table.name == name).map(|table| table.handle);
        Ok(())
    }

    /// Removes the table, unless it is gone or another server has replaced it.
    ///
    /// # Errors
    /// If `nft` fails.
    pub(super) async fn remove(self) -> Result<(), NftError> {
        match self.handle {
            Some(handle) => remove(&self.nft, handle).await,
            None => Ok(()),
        }
    }
}

/// Removes the tables that killed servers left behind.
///
/// # Errors
/// If `nft` fails, or another running server redirects a part of this pool.
pub(super) async fn remove_stale(nft: &Nft, pool: Ipv4Net) -> Result<(), RedirectError> {
    for Table { name, handle } in tables(nft).await? {
        let Some(other) = pool_of(&name) else { continue };
        let objects = match nft.list(&["table", "ip", &name]).await {
            Err(NftError::NotFound(_)) => continue,
            objects => objects?,
        };
        if !objects.iter().filter_map(target).any(is_listening) {
            tracing::info!(table = name, "removing the table of a svcdns that was killed");
            remove(nft, handle).await?;
        } else if other.contains(&pool) || pool.contains(&other) {
            return Err(RedirectError::Taken(other));
        }
    }
    Ok(())
}

/// A table of the kernel.
struct Table {
    name: String,
    handle: u64,
}

/// Returns the tables for IPv4.
async fn tables(nft: &Nft) -> Result<Vec<Table>, NftError> {
    let table = |object: &Value| {
        let table = object.get("table")?;
        let name = table.get("name")?.as_str()?.to_owned();
        Some(Table { name, handle: table.get("handle")?.as_u64()? })
    };
    Ok(nft.list(&["tables", "ip"]).await?.iter().filter_map(table).collect())
}

/// Removes a table that may be gone.
async fn remove(nft: &Nft, handle: u64) -> Result<(), NftError> {
    let table = json!({ "delete": { "table": { "family": "ip", "handle": handle } } });
    match nft.apply(&[table]).await {
        Err(NftError::NotFound(_)) => Ok(()),
        removed => removed,
    }
}

/// Returns where a rule redirects connections to.
fn target(object: &Value) -> Option<SocketAddrV4> {
    let expressions = object.get("rule")?.get("expr")?.as_array()?;
    let dnat = expressions.iter().find_map(|expression| expression.get("dnat"))?;
    let port = dnat.get("port")?.as_u64()?;
    Some(SocketAddrV4::new(dnat.get("addr")?.as_str()?.parse().ok()?, port.try_into().ok()?))
}

/// Returns the name of the table of a pool.
fn table_name(pool: Ipv4Net) -> String {
    let pool = pool.trunc().to_string().replace(['.', '/'], "_");
    format!("{TABLE_PREFIX}{pool}")
}

/// Returns the pool whose table has this name; `None` for tables of other programs.
fn pool_of(table: &str) -> Option<Ipv4Net> {
    let (address, length) = table.strip_prefix(TABLE_PREFIX)?.rsplit_once('_')?;
    format!("{}/{length}", address.replace('_', ".")).parse().ok()
}

impl Rules {
    /// Returns the commands that replace the table.
    fn commands(&self) -> [Value; 7] {
        let Self { pool, listener, left_out } = self;
        let (pool, name) = (pool.trunc(), table_name(*pool));
        let network = json!({ "prefix": { "addr": pool.addr(), "len": pool.prefix_len() } });
        let destination = header_field("ip", "daddr");
        let mut matches =
            vec![json!({ "match": { "op": "==", "left": destination, "right": network } })];
        if !left_out.is_empty() {
            let addresses = json!({ "set": left_out });
            matches
                .push(json!({ "match": { "op": "!=", "left": destination, "right": addresses } }));
        }
        let chain = |chain: &str, kind: &str, priority: i32| {
            json!({ "add": { "chain": {
                "family": "ip", "table": name, "name": chain,
                "type": kind, "hook": "output", "prio": priority, "policy": "accept",
            } } })
        };
        let rule = |chain: &str, expressions: &[Value]| {
            let expressions = [&matches, expressions].concat();
            json!({ "add": { "rule": {
                "family": "ip", "table": name, "chain": chain, "expr": expressions,
            } } })
        };
        let redirect = [
            json!({ "match": { "op": "!=", "left": header_field("tcp", "dport"), "right": 0 } }),
            json!({ "dnat": { "addr": listener.ip(), "port": listener.port() } }),
        ];
        let protocol = json!({ "meta": { "key": "l4proto" } });
        let reject = [
            json!({ "match": { "op": "!=", "left": protocol, "right": "tcp" } }),
            json!({ "reject": { "type": "icmp", "expr": "port-unreachable" } }),
        ];
        let table = json!({ "table": { "family": "ip", "name": name } });
        [
            // Adding it first keeps the removal from failing.
            json!({ "add": table }),
            json!({ "delete": table }),
            json!({ "add": table }),
            chain("output", "nat", -100),
            chain("others", "filter", 0),
            rule("output", &redirect),
            rule("others", &reject),
        ]
    }
}

/// Returns the expression for a field of a packet's headers.
fn header_field(protocol: &str, field: &str) -> Value {
    json!({ "payload": { "protocol": protocol, "field": field } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_named_after_the_pool() {
        for pool in ["127.83.0.0/16", "127.1.2.16/28"] {
            let pool: Ipv4Net = pool.parse().unwrap();
            assert_eq!(pool_of(&table_name(pool)), Some(pool));
        }
        assert_eq!(table_name("127.83.1.2/16".parse().unwrap()), "svcdns_bridge_127_83_0_0_16");
        for other in ["filter", "svcdns_bridge_", "svcdns_bridge_x_16", "svcdns_bridge_1_2_3_99"] {
            assert_eq!(pool_of(other), None, "{other}");
        }
    }

    #[test]
    fn one_document_replaces_the_table() {
        let mut rules = Rules {
            pool: "127.83.0.0/16".parse().unwrap(),
            listener: "127.83.0.0:1001".parse().unwrap(),
            left_out: BTreeSet::new(),
        };
        let verbs: Vec<_> = rules
            .commands()
            .iter()
            .flat_map(|command| command.as_object().unwrap().clone())
            .map(|(verb, object)| {
                format!("{verb} {}", object.as_object().unwrap().keys().next().unwrap())
            })
            .collect();
        let expected = ["add table", "delete table", "add table", "add chain", "add chain"];
        assert_eq!(verbs[..5], expected);
        let added = rules.commands()[5]["add"].clone();
        assert_eq!(target(&added), Some(rules.listener));
        assert_eq!(added["rule"]["expr"].as_array().unwrap().len(), 3);
        rules.left_out.insert([127, 83, 9, 9].into());
        for rule in &rules.commands()[5..] {
            let expressions = &rule["add"]["rule"]["expr"];
            assert_eq!(expressions[1]["match"]["right"], json!({ "set": ["127.83.9.9"] }));
        }
    }
}
