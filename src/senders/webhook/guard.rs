//! Keeps requests away from addresses inside the operator's own network.
//!
//! The address of a webhook comes from a user, and the server may reach what that user can't:
//! itself, the cloud's metadata service, an internal database (server-side request forgery). So
//! special addresses are refused unless the operator allows their network.
//!
//! An IP literal is judged after the URL parser has normalized it, since the client asks no resolver
//! for it. A name is resolved once, by [`GuardedResolver`], and the connection is made to the
//! addresses of that answer that were judged fine. There is no second lookup that could answer
//! otherwise (DNS rebinding).

use ipnet::IpNet;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Maximum number of lookups at a time. Each blocks a thread, for as long as the system's resolver
/// waits for its servers.
const MAX_LOOKUPS: usize = 64;

/// Special ranges of IPv4: the registry of RFC 6890 (IANA "IPv4 Special-Purpose Address Space"),
/// multicast, and the retired anycast prefix of 6to4 relays.
const SPECIAL_V4: [(Ipv4Addr, u32, &str); 15] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8, "this network"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "private"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "shared (carrier-grade NAT)"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "private"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "protocol assignments"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "documentation"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "6to4 relay"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "private"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "benchmarking"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "documentation"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "documentation"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved"),
];

/// Special ranges within 2000::/3, the only range of IPv6 for global unicast.
const SPECIAL_V6: [(Ipv6Addr, u32, &str); 4] = [
    // Teredo (2001::/32), benchmarking (2001:2::/48) and ORCHID (2001:10::/28, 2001:20::/28) included.
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, "protocol assignments"),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32, "documentation"),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16, "6to4"),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, "documentation"),
];

/// The special range that an address is in, if any.
///
/// IPv4-mapped addresses (`::ffff:a.b.c.d`) and those of the well-known NAT64 prefix
/// (`64:ff9b::a.b.c.d`) are judged by the IPv4 address inside, since that is what they reach.
fn special_range(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => {
            let in_range = |network: Ipv4Addr, prefix: u32| {
                (u32::from(address) ^ u32::from(network)).checked_shr(32 - prefix) == Some(0)
            };
            SPECIAL_V4.iter().find(|(network, prefix, _)| in_range(*network, *prefix)).map(|(_, _, name)| *name)
        }
        IpAddr::V6(address) => {
            if let Some(mapped) = address.to_ipv4_mapped() {
                return special_range(mapped.into());
            }
            let segments = address.segments();
            if segments[..6] == [0x64, 0xff9b, 0, 0, 0, 0] {
                let [.., a, b, c, d] = address.octets();
                return special_range(Ipv4Addr::new(a, b, c, d).into());
            }
            if segments[0] & 0xe000 != 0x2000 {
                return Some(match segments {
                    [0, 0, 0, 0, 0, 0, 0, 1] => "loopback",
                    [0, 0, 0, 0, 0, 0, ..] => "unspecified or IPv4-compatible",
                    [first, ..] if first & 0xff00 == 0xff00 => "multicast",
                    [first, ..] if first & 0xffc0 == 0xfe80 => "link-local",
                    [first, ..] if first & 0xfe00 == 0xfc00 => "private (unique local)",
                    _ => "not global unicast",
                });
            }
            let in_range = |network: Ipv6Addr, prefix: u32| {
                (u128::from(address) ^ u128::from(network)).checked_shr(128 - prefix) == Some(0)
            };
            SPECIAL_V6.iter().find(|(network, prefix, _)| in_range(*network, *prefix)).map(|(_, _, name)| *name)
        }
    }
}

/// Why an address is not called.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// It isn't an http(s) URL.
    #[error("the address is not an http:// or https:// URL")]
    NotHttp,
    /// It is a special address.
    #[error("the address {address} is {range}, which sender.webhook.allow does not include")]
    Literal { address: IpAddr, range: &'static str },
    /// The name has only special addresses.
    #[error("the name resolves to {address}, which is {range} and which sender.webhook.allow does not include")]
    Resolved { address: IpAddr, range: &'static str },
}

/// Decides which addresses may be called.
#[derive(Clone, Debug, Default)]
pub(super) struct Guard {
    allow: Arc<[IpNet]>,
}

impl Guard {
    pub(super) fn new(allow: &[IpNet]) -> Self {
        Self { allow: allow.into() }
    }

    /// The special range that forbids an address.
    fn forbids(&self, address: IpAddr) -> Option<&'static str> {
        let plain = address.to_canonical();
        let allowed = self.allow.iter().any(|network| network.contains(&plain) || network.contains(&address));
        if allowed { None } else { special_range(address) }
    }

    /// Reads a URL, and judges the address in it if it is a literal.
    pub(super) fn check_url(&self, url: &str) -> Result<Url, Refusal> {
        let url = Url::parse(url).map_err(|_| Refusal::NotHttp)?;
        let host = match url.host_str() {
            Some(host) if matches!(url.scheme(), "http" | "https") => host,
            _ => return Err(Refusal::NotHttp),
        };
        let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = literal.parse::<IpAddr>()
            && let Some(range) = self.forbids(address)
        {
            return Err(Refusal::Literal { address, range });
        }
        Ok(url)
    }

    /// The same, and judges the names that mean this machine everywhere.
    pub(super) fn check_constant(&self, url: &str) -> Result<(), Refusal> {
        let url = self.check_url(url)?;
        let host = url.host_str().unwrap_or_default().trim_end_matches('.');
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        match self.forbids(address).and(self.forbids(Ipv6Addr::LOCALHOST.into())) {
            Some(range) if host == "localhost" || host.ends_with(".localhost") => {
                Err(Refusal::Resolved { address, range })
            }
            _ => Ok(()),
        }
    }

    /// Those of a name's addresses that may be called; an error if none may.
    fn keep_allowed(&self, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Refusal> {
        let forbidden = found.iter().find_map(|address| {
            let range = self.forbids(address.ip())?;
            Some(Refusal::Resolved { address: address.ip(), range })
        });
        let allowed: Vec<SocketAddr> =
            found.into_iter().filter(|address| self.forbids(address.ip()).is_none()).collect();
        match forbidden {
            Some(refusal) if allowed.is_empty() => Err(refusal),
            _ => Ok(allowed),
        }
    }
}

/// A lookup under way.
pub(super) type Looking = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// Finds the addresses of a name.
pub(super) trait Lookup: Send + Sync + 'static {
    /// The addresses; the ports don't matter.
    fn lookup(&self, name: String) -> Looking;
}

/// The system's resolver.
pub(super) struct SystemLookup(Arc<Semaphore>);

impl Default for SystemLookup {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_LOOKUPS)))
    }
}

impl Lookup for SystemLookup {
    fn lookup(&self, name: String) -> Looking {
        let lookups = self.0.clone();
        Box::pin(async move {
            // Held by the thread: a caller that gives up doesn't end the lookup.
            let permit = lookups.acquire_owned().await.map_err(io::Error::other)?;
            let looked_up = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                (name.as_str(), 0).to_socket_addrs().map(Iterator::collect)
            });
            looked_up.await.map_err(io::Error::other)?
        })
    }
}

/// The resolver of the client: its answers contain only addresses that may be called.
pub(super) struct GuardedResolver {
    pub(super) guard: Guard,
    pub(super) lookup: Arc<dyn Lookup>,
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (guard, looking) = (self.guard.clone(), self.lookup.lookup(name.as_str().to_owned()));
        Box::pin(async move {
            let allowed = guard.keep_allowed(looking.await?)?;
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn networks(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|network| network.parse().expect("a network")).collect()
    }

    #[test]
    fn special_addresses_are_refused_in_every_spelling() {
        let guard = Guard::default();
        for host in [
            "127.0.0.1",
            "127.0.0.1.",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "127.1",
            "127.0.1",
            "0",
            "0.0.0.0",
            "0x0",
            "00",
            "017700000001",
            "0177.0.0.1",
            "0x7f.0x0.0x0.0x1",
            "127.255.255.254",
            "%31%32%37.0.0.1",
            "１２７.0.0.1",
            "127。0。0。1",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "3232235777",
            "169.254.169.254",
            "0xa9fea9fe",
            "100.64.0.1",
            "100.127.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.7",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "4294967295",
            "[::]",
            "[::1]",
            "[0:0:0:0:0:0:0:1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[0:0:0:0:0:ffff:7f00:1]",
            "[::ffff:10.0.0.1]",
            "[::127.0.0.1]",
            "[::7f00:1]",
            "[64:ff9b::127.0.0.1]",
            "[64:ff9b::10.0.0.1]",
            "[64:ff9b::a9fe:a9fe]",
            "[64:ff9b:1::1]",
            "[64:ff9b:1::808:808]",
            "[2002:7f00:1::]",
            "[2002:808:808::1]",
            "[2001::1]",
            "[2001:0:4136:e378::1]",
            "[2001:2::1]",
            "[2001:10::1]",
            "[2001:db8::1]",
            "[3fff::1]",
            "[fe80::1]",
            "[febf::1]",
            "[fec0::1]",
            "[fc00::1]",
            "[fd12:3456::1]",
            "[ff02::1]",
            "[ff0e::1]",
            "[100::1]",
            "[5f00::1]",
            "[::ffff:0:127.0.0.1]",
        ] {
            for scheme in ["http", "https", "HTTP"] {
                let refused = guard.check_url(&format!("{scheme}://{host}:8080/x"));
                assert!(matches!(refused, Err(Refusal::Literal { .. })), "{scheme}://{host}: {refused:?}");
            }
            let refused = guard.check_url(&format!("http://user:password@{host}/"));
            assert!(matches!(refused, Err(Refusal::Literal { .. })), "with a user: {host}");
        }
    }

    #[test]
    fn public_addresses_and_names_pass() {
        let guard = Guard::default();
        for host in [
            "8.8.8.8",
            "1.1.1.1",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "[2606:4700::1111]",
            "[2a00:1450::1]",
            "[::ffff:8.8.8.8]",
            "[64:ff9b::8.8.8.8]",
            "example.com",
            "localhost",
            "127.0.0.1.example.com",
        ] {
            assert!(guard.check_url(&format!("https://{host}/x")).is_ok(), "{host}");
        }
    }

    #[test]
    fn what_is_no_http_url_is_refused() {
        let guard = Guard::new(&networks(&["0.0.0.0/0"]));
        for url in [
            "",
            "x",
            "/x",
            "ftp://8.8.8.8/",
            "file:///etc/passwd",
            "unix:///run/x",
            "http://",
            "gopher://8.8.8.8",
            "http://256.1.1.1/",
            "http://[fe80::1%25eth0]/",
            "http://0x7f.1.2.3.4/",
        ] {
            assert_eq!(guard.check_url(url), Err(Refusal::NotHttp), "{url}");
        }
    }

    #[test]
    fn allowed_networks_pass_and_others_do_not() {
        let guard = Guard::new(&networks(&["10.0.0.0/8", "127.0.0.1/32", "fd00::/8"]));
        for host in ["10.1.2.3", "0x7f.1", "[::ffff:10.0.0.1]", "[fd00::1]"] {
            assert!(guard.check_url(&format!("http://{host}/")).is_ok(), "{host}");
        }
        for host in ["127.0.0.2", "192.168.0.1", "[::1]", "[64:ff9b::10.0.0.1]", "[fc00::1]"] {
            assert!(guard.check_url(&format!("http://{host}/")).is_err(), "{host}");
        }
    }

    #[test]
    fn of_a_names_addresses_only_the_public_ones_are_kept() {
        let guard = Guard::default();
        let of = |list: &[&str]| -> Vec<SocketAddr> {
            list.iter().map(|ip| SocketAddr::new(ip.parse().expect("an address"), 0)).collect()
        };
        assert_eq!(guard.keep_allowed(of(&["127.0.0.1", "8.8.8.8", "::1"])), Ok(of(&["8.8.8.8"])));
        let refused = guard.keep_allowed(of(&["::1", "10.0.0.1"])).expect_err("none is public");
        assert_eq!(refused, Refusal::Resolved { address: "::1".parse().expect("an address"), range: "loopback" });
        assert_eq!(guard.keep_allowed(vec![]), Ok(vec![]));
    }

    proptest! {
        /// The standard library's own predicates agree.
        #[test]
        fn nothing_that_the_standard_library_calls_special_passes(bits: u32) {
            let address = Ipv4Addr::from(bits);
            let special = address.is_private() || address.is_loopback() || address.is_link_local()
                || address.is_broadcast() || address.is_documentation() || address.is_multicast()
                || address.is_unspecified();
            prop_assert!(!special || special_range(address.into()).is_some(), "{address}");
            let url = format!("http://{bits}/");
            prop_assert_eq!(Guard::default().check_url(&url).is_err(), special_range(address.into()).is_some());
        }

        #[test]
        fn mapped_addresses_are_judged_like_the_ones_inside(bits: u32) {
            let address = Ipv4Addr::from(bits);
            prop_assert_eq!(special_range(address.to_ipv6_mapped().into()), special_range(address.into()));
        }
    }
}
