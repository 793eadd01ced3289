//! Where a redirect may lead, and which addresses are private.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use crate::error::{Error, Kind, Result};

/// Redirects that are followed for one request.
pub(super) const MAX_REDIRECTS: usize = 10;

/// Which addresses a request may go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// The user named the host: any.
    Any,
    /// A public server named the host: public addresses only.
    PublicOnly,
}

/// One redirect as it was received.
#[derive(Debug)]
pub(super) struct Hop<'a> {
    /// The URL that answered.
    pub(super) from: &'a Url,
    /// Whether the answer may have come from a public server.
    pub(super) is_from_public: bool,
    /// The URL that it names.
    pub(super) to: &'a Url,
    /// Whether the source has credentials.
    pub(super) has_credentials: bool,
}

/// Decides whether a redirect is followed, and where the next request may go.
///
/// # Errors
/// `Denied` for another scheme (but http to https on the same host, without credentials) and for the way from a public to a
/// private address.
pub(super) fn check(hop: &Hop<'_>) -> Result<Reach> {
    let refused = |why: String| Err(Error::new(Kind::Denied, "follow redirect").because(why));
    if hop.from.scheme() != hop.to.scheme() {
        let is_upgrade = hop.from.scheme() == "http"
            && hop.to.scheme() == "https"
            && hop.from.host() == hop.to.host();
        if !is_upgrade || hop.has_credentials {
            return refused(format!(
                "the server redirects from {} to {}",
                hop.from.scheme(),
                hop.to.scheme()
            ));
        }
    }
    if !hop.is_from_public {
        return Ok(Reach::Any);
    }
    match hop.to.host() {
        Some(Host::Ipv4(address)) if !is_public(address.into()) => {}
        Some(Host::Ipv6(address)) if !is_public(address.into()) => {}
        Some(_) => return Ok(Reach::PublicOnly),
        None => {}
    }
    refused(format!(
        "a public server redirects to the private address {}",
        hop.to.host_str().unwrap_or("")
    ))
}

/// Whether both URLs name the same scheme, host and port: credentials for one are for the other.
pub(super) fn is_same_origin(one: &Url, two: &Url) -> bool {
    one.origin() == two.origin()
}

/// Whether an address is reachable from everywhere, so that a server in the internet may name it.
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [first, second, third, _] = address.octets();
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || first == 0
        || first >= 240
        // Shared address space of carriers (RFC 6598), protocol assignments (RFC 6890), benchmarks (RFC 2544).
        || (first == 100 && (64..128).contains(&second))
        || (first == 192 && second == 0 && third == 0)
        || (first == 198 && (18..20).contains(&second)))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match address.segments() {
        // IPv4-mapped and -compatible, `::` and `::1` among them; NAT64 (RFC 6052); 6to4 (RFC 3056).
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] => embedded(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        // Only 2000::/3 is handed out (RFC 4291); the rest is link-local, unique local, multicast or nothing.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

/// A name of a redirect that leads to private addresses only.
#[derive(Debug)]
pub(super) struct PrivateAddress(String);

impl fmt::Display for PrivateAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a public server redirects to {}, which is a private address", self.0)
    }
}

impl std::error::Error for PrivateAddress {}

/// Resolves names to public addresses only. What it returns is what is connected to, so a second answer of the name
/// server cannot undo the check.
#[derive(Debug)]
pub(super) struct PublicResolver;

impl Resolve for PublicResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<_> = found.filter(|address| is_public(address.ip())).collect();
            if public.is_empty() {
                return Err(PrivateAddress(name.as_str().to_owned()).into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(from: &str, to: &str, is_from_public: bool, has_credentials: bool) -> Result<Reach> {
        let (from, to) = (Url::parse(from).unwrap(), Url::parse(to).unwrap());
        check(&Hop { from: &from, is_from_public, to: &to, has_credentials })
    }

    #[test]
    fn no_redirect_leads_to_another_scheme() {
        for (from, to) in [
            ("https://a/", "http://a/"),
            ("http://a/", "ftp://a/"),
            ("http://a/", "file:///etc/passwd"),
            ("http://a/", "https://b/"),
        ] {
            assert_eq!(follow(from, to, false, false).unwrap_err().kind(), Kind::Denied, "{to}");
        }
        assert!(follow("http://a/", "https://a/", false, false).is_ok());
        assert!(follow("http://a/", "https://a/", false, true).is_err());
    }

    #[test]
    fn a_public_server_cannot_name_a_private_address() {
        for host in [
            "127.0.0.1",
            "10.1.2.3",
            "169.254.169.254",
            "[::1]",
            "[fd00::1]",
            "[::ffff:192.168.0.1]",
            "0x7f.1",
            "[64:ff9b::7f00:1]",
            "0.0.0.0",
            "100.64.0.1",
            "[fe80::1]",
            "[2002:7f00:1::]",
        ] {
            let to = format!("http://{host}/");
            assert!(follow("http://93.184.216.34/", &to, true, false).is_err(), "{host}");
            assert!(follow("http://10.0.0.1/", &to, false, false).is_ok(), "{host}");
        }
        assert_eq!(follow("http://a/", "http://8.8.8.8/", true, false).unwrap(), Reach::PublicOnly);
        assert_eq!(follow("http://a/", "http://name/", true, false).unwrap(), Reach::PublicOnly);
        assert_eq!(
            follow("http://a/", "http://[2606:4700::1]/", true, false).unwrap(),
            Reach::PublicOnly
        );
    }

    #[tokio::test]
    async fn a_name_for_a_private_address_is_not_resolved() {
        let refused = PublicResolver.resolve("localhost".parse().unwrap()).await.err().unwrap();
        assert!(refused.downcast_ref::<PrivateAddress>().is_some(), "{refused}");
    }

    #[test]
    fn credentials_belong_to_one_host_and_port() {
        let is_same = |one: &str, two: &str| {
            is_same_origin(&Url::parse(one).unwrap(), &Url::parse(two).unwrap())
        };
        assert!(is_same("http://a/x", "http://a:80/y"));
        assert!(!is_same("http://a/", "http://a:81/"));
        assert!(!is_same("http://a/", "http://b/"));
        assert!(!is_same("http://a/", "https://a/"));
    }
}
