//! What clients and servers of gRPC's kind are told by name: a client by the name it dials, a server by the address it listens
//! on. Source: Envoy `Listener.api_listener` and `Listener.filter_chains` as gRPC reads them (gRFC A27, A36).

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{HttpSettings, Inbound, RouteTable};

/// Where requests to a name that was dialled go. Source: the listener of that name, with its `RouteConfiguration`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Target {
    /// The routes.
    pub routes: Arc<RouteTable>,
    /// What holds for all of them.
    pub http: Arc<HttpSettings>,
}

/// What a server that listens on one address is told. Source: gRFC A36.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Serving {
    /// Why it must not serve; the chains say nothing then.
    pub refused: Option<String>,
    /// The address it is meant for. Envoy `Listener.address`.
    pub address: Option<SocketAddr>,
    /// What connections are matched by; the most specific wins, see [`Serving::policy`].
    pub chains: Vec<Chain>,
    /// For connections that no chain takes; without it they are closed. Envoy `Listener.default_filter_chain`.
    pub default_chain: Option<Arc<Inbound>>,
    /// Its routes came by a name of their own.
    pub default_routes_by_name: bool,
}

/// What holds for the connections that match. Source: Envoy `FilterChain`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Chain {
    /// Which connections.
    pub matches: ChainMatch,
    /// What is demanded of them.
    pub policy: Arc<Inbound>,
    /// The routes in it came by a name of their own: they change without the listener.
    pub routes_by_name: bool,
}

/// Which connections a chain takes; what is empty takes all. Source: Envoy `FilterChainMatch`, less what gRPC never matches.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct ChainMatch {
    /// Networks of the address connected to. `prefix_ranges`.
    pub destinations: Vec<Network>,
    /// It names the protocol `raw_buffer`, which is more specific than naming none. `transport_protocol`.
    pub raw: bool,
    /// Networks of the address the connection comes from, as `sources` has it: nothing stands between. `direct_source_prefix_ranges`.
    pub direct_sources: Vec<Network>,
    /// Where the connection comes from. `source_type`.
    pub source_type: SourceType,
    /// Networks of the caller's address. `source_prefix_ranges`.
    pub sources: Vec<Network>,
    /// The caller's ports. `source_ports`.
    pub source_ports: Vec<u16>,
}

/// A network: the addresses that begin with the same bits. Source: Envoy `CidrRange`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Network {
    /// Its first address: bits behind the prefix are zero.
    address: IpAddr,
    /// How many bits are the same.
    prefix: u8,
}

/// Source: Envoy `FilterChainMatch.ConnectionSourceType`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SourceType {
    /// Any.
    #[default]
    Any,
    /// The same host: a loopback address, or the address connected to.
    SameIpOrLoopback,
    /// Another host.
    External,
}

impl Network {
    /// The network of `address` whose first `prefix` bits are the same, as many as the address has at most.
    pub fn new(address: IpAddr, prefix: u32) -> Self {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = u8::try_from(prefix).unwrap_or(u8::MAX).min(bits);
        let address = match address {
            IpAddr::V4(address) => {
                IpAddr::V4((address.to_bits() & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)).into())
            }
            IpAddr::V6(address) => {
                IpAddr::V6((address.to_bits() & u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)).into())
            }
        };
        Self { address, prefix }
    }

    /// Its first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How many bits are the same.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Is the address in it?
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && Self::new(address, self.prefix.into()) == *self
    }
}

/// One step of choosing among chains: how specific each is at it, `None` where it does not match.
type Step<'a> = &'a dyn Fn(&ChainMatch) -> Option<u32>;

impl Serving {
    /// What is demanded of a connection from `peer` to `local`; `None` closes it.
    ///
    /// At each step in turn those chains stay that are the most specific in what is asked at that step; there is no going back.
    /// Source: Envoy `FilterChainMatch`, gRFC A36.
    pub fn policy(&self, local: SocketAddr, peer: SocketAddr) -> Option<&Arc<Inbound>> {
        self.choose(local, peer)
            .map_or(self.default_chain.as_ref(), |at| self.chains.get(at).map(|chain| &chain.policy))
    }

    /// The place of the chain that takes the connection.
    pub fn choose(&self, local: SocketAddr, peer: SocketAddr) -> Option<usize> {
        let (local, address) = (local.ip().to_canonical(), peer.ip().to_canonical());
        let is_near = address.is_loopback() || address == local;
        let steps: [Step<'_>; 6] = [
            &|it| longest(&it.destinations, local),
            &|it| Some(it.raw.into()),
            &|it| longest(&it.direct_sources, address),
            &|it| match it.source_type {
                SourceType::Any => Some(0),
                SourceType::SameIpOrLoopback => is_near.then_some(1),
                SourceType::External => (!is_near).then_some(1),
            },
            &|it| longest(&it.sources, address),
            &|it| match it.source_ports.as_slice() {
                [] => Some(0),
                ports => ports.contains(&peer.port()).then_some(1),
            },
        ];
        let mut left: Vec<usize> = (0..self.chains.len()).collect();
        for step in steps {
            let specific = |at: &usize| self.chains.get(*at).and_then(|chain| step(&chain.matches));
            let best = left.iter().filter_map(specific).max()?;
            left.retain(|at| specific(at) == Some(best));
        }
        left.first().copied()
    }
}

/// How long the longest prefix is that takes the address, plus one; 0 where there is none to match.
fn longest(networks: &[Network], address: IpAddr) -> Option<u32> {
    if networks.is_empty() {
        return Some(0);
    }
    let taking = networks.iter().filter(|network| network.contains(address));
    taking.map(|network| u32::from(network.prefix) + 1).max()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    fn network(text: &str) -> Network {
        let (address, prefix) = text.split_once('/').unwrap();
        Network::new(address.parse().unwrap(), prefix.parse().unwrap())
    }

    fn chain(name: &str, matches: ChainMatch) -> Chain {
        let policy = Arc::new(Inbound { name: name.into(), ..Inbound::default() });
        Chain { matches, policy, routes_by_name: false }
    }

    /// SV2: at each step the most specific win, without going back; what no chain takes is for the default, or closed.
    #[test]
    fn the_most_specific_chain_wins() {
        let to = |text: &str| vec![network(text)];
        let mut serving = Serving {
            chains: vec![
                chain("any", ChainMatch::default()),
                chain("ten", ChainMatch { destinations: to("10.0.0.0/8"), ..ChainMatch::default() }),
                chain(
                    "ten-one near",
                    ChainMatch {
                        destinations: to("10.1.0.0/16"),
                        source_type: SourceType::SameIpOrLoopback,
                        ..ChainMatch::default()
                    },
                ),
                chain("from 192.168", ChainMatch { raw: true, sources: to("192.168.0.0/16"), ..ChainMatch::default() }),
                chain(
                    "from 192.168.1 port 7",
                    ChainMatch {
                        raw: true,
                        sources: to("192.168.1.0/24"),
                        source_ports: vec![7],
                        ..ChainMatch::default()
                    },
                ),
                chain("six", ChainMatch { destinations: to("::1/128"), ..ChainMatch::default() }),
            ],
            ..Serving::default()
        };
        let cases = [
            ("10.2.0.1:80", "10.9.9.9:1", Some("ten")),
            ("10.1.0.1:80", "10.1.0.1:1", Some("ten-one near")),
            ("10.1.0.1:80", "127.0.0.1:1", Some("ten-one near")),
            // The longer prefix has been chosen; that its chain does not take the caller does not bring back the shorter.
            ("10.1.0.1:80", "10.9.9.9:1", None),
            ("11.0.0.1:80", "192.168.2.1:1", Some("from 192.168")),
            ("11.0.0.1:80", "192.168.1.1:7", Some("from 192.168.1 port 7")),
            ("11.0.0.1:80", "192.168.1.1:8", None),
            ("11.0.0.1:80", "8.8.8.8:8", None),
            ("[::1]:80", "[::1]:8", Some("six")),
            ("[::ffff:10.2.0.1]:80", "[::ffff:10.9.9.9]:1", Some("ten")),
        ];
        for (local, peer, expected) in cases {
            let found = serving.policy(local.parse().unwrap(), peer.parse().unwrap());
            assert_eq!(found.map(|policy| &*policy.name), expected, "{peer} to {local}");
        }
        serving.default_chain = Some(Arc::new(Inbound { name: "default".into(), ..Inbound::default() }));
        let found = serving.policy("11.0.0.1:80".parse().unwrap(), "8.8.8.8:8".parse().unwrap());
        assert_eq!(&*found.unwrap().name, "default");
    }

    #[test]
    fn networks_are_what_begins_alike() {
        let cases = [
            ("10.1.2.3/8", "10.200.0.1", true),
            ("10.1.2.3/8", "11.0.0.1", false),
            ("0.0.0.0/0", "255.0.0.1", true),
            ("0.0.0.0/0", "::1", false),
            ("10.0.0.1/99", "10.0.0.1", true),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("2001:db8::/32", "2001:db9::", false),
            ("::/0", "ff::1", true),
        ];
        for (text, address, expected) in cases {
            assert_eq!(network(text).contains(address.parse().unwrap()), expected, "{text} {address}");
        }
        assert_eq!(network("10.1.2.3/8"), network("10.0.0.0/8"));
    }
}
