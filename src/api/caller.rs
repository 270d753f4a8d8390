//! The address of the client that a request came from.
//!
//! Owns how far `X-Forwarded-For` is trusted. It must not know limits or sessions. Invariant: a
//! header counts only as far as trusted proxies wrote it, so that no client can choose its address.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::http::HeaderMap;
use ipnet::IpNet;

const FORWARDED: &str = "x-forwarded-for";

/// The prefix of an IPv6 address that identifies a customer: providers assign at least a /64.
const CUSTOMER_BITS: u32 = 64;

/// The address of the client, given the peer of the connection. Every proxy appends the address
/// that it received the request from, so the header is read from its end, as long as the proxy that
/// wrote the part is trusted. The search ends at a part that is not an address; the last address
/// found counts.
pub(super) fn address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |address: &IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut client = peer.to_canonical();
    if !is_trusted(&client) {
        return client;
    }
    for hop in headers.get_all(FORWARDED).iter().rev().flat_map(|line| line.as_bytes().rsplit(|&byte| byte == b',')) {
        let hop = hop.trim_ascii();
        if hop.is_empty() {
            // RFC 9110, section 5.6.1: empty elements of a list are ignored.
            continue;
        }
        let Some(address) = parse(hop) else { return client };
        client = address;
        if !is_trusted(&client) {
            return client;
        }
    }
    client
}

/// What identifies the customer of an address. For IPv6 the network, because one customer has more
/// addresses than can be counted.
pub(super) fn customer(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let mask = u128::MAX << (Ipv6Addr::BITS - CUSTOMER_BITS);
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
        }
        address => address,
    }
}

/// `1.2.3.4`, `1.2.3.4:80`, `::1`, `[::1]` or `[::1]:80`.
fn parse(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?;
    let bare = hop.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = match bare {
        Some(bare) => IpAddr::V6(bare.parse().ok()?),
        None => hop.parse().or_else(|_| hop.parse::<SocketAddr>().map(|address| address.ip())).ok()?,
    };
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn check(peer: &str, lines: &[&[u8]], expected: &str) {
        let trusted = ["127.0.0.0/8", "10.0.0.0/8", "2001:db8:aaaa::/48"].map(|network| network.parse().unwrap());
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(FORWARDED, HeaderValue::from_bytes(line).unwrap());
        }
        let found = address(peer.parse().unwrap(), &headers, &trusted);
        assert_eq!(found, expected.parse::<IpAddr>().unwrap(), "{peer} {lines:?}");
    }

    #[test]
    fn an_untrusted_peer_is_the_client_whatever_its_header_says() {
        check("198.51.100.1", &[], "198.51.100.1");
        check("198.51.100.1", &[b"203.0.113.9"], "198.51.100.1");
        check("198.51.100.1", &[b"203.0.113.9, 10.0.0.1"], "198.51.100.1");
        check("2001:db8::1", &[b"203.0.113.9"], "2001:db8::1");
    }

    #[test]
    fn the_header_counts_as_far_as_trusted_proxies_wrote_it() {
        check("127.0.0.1", &[], "127.0.0.1");
        check("127.0.0.1", &[b"203.0.113.9"], "203.0.113.9");
        check("127.0.0.1", &[b"1.1.1.1, 203.0.113.9"], "203.0.113.9");
        check("127.0.0.1", &[b"1.1.1.1, 203.0.113.9, 10.1.2.3 ,10.9.9.9"], "203.0.113.9");
        check("127.0.0.1", &[b"1.1.1.1", b"203.0.113.9,10.1.2.3", b"10.9.9.9"], "203.0.113.9");
        check("127.0.0.1", &[b"10.1.2.3, 10.9.9.9"], "10.1.2.3");
    }

    #[test]
    fn every_form_of_an_address_is_parsed() {
        check("127.0.0.1", &[b"203.0.113.9:4711"], "203.0.113.9");
        check("127.0.0.1", &[b"2001:db8::9"], "2001:db8::9");
        check("127.0.0.1", &[b"[2001:db8::9]"], "2001:db8::9");
        check("127.0.0.1", &[b"[2001:db8::9]:4711"], "2001:db8::9");
        check("127.0.0.1", &[b"203.0.113.9, [2001:db8:aaaa::1]:80"], "203.0.113.9");
        check("127.0.0.1", &[b" ,, 203.0.113.9\t,,"], "203.0.113.9");
        check("127.0.0.1", &[b"::ffff:203.0.113.9"], "203.0.113.9");
        check("::ffff:127.0.0.1", &[b"203.0.113.9"], "203.0.113.9");
        check("::ffff:198.51.100.1", &[b"203.0.113.9"], "198.51.100.1");
        check("127.0.0.1", &[b"203.0.113.9, ::ffff:10.0.0.1"], "203.0.113.9");
    }

    #[test]
    fn a_part_that_is_not_an_address_ends_the_search() {
        let garbage: &[&[u8]] = &[
            b"unknown",
            b"_hidden",
            b"\xff\xfe",
            b"1.2.3",
            b"1.2.3.4.5",
            b"1.2.3.4:port",
            b"[1.2.3.4]",
            b"[::1",
            b"[]",
            b"::1]",
            b"\"[::1]:80\"",
            b"1.2.3.4 5.6.7.8",
        ];
        for garbage in garbage {
            check("127.0.0.1", &[garbage], "127.0.0.1");
            check("127.0.0.1", &[b"203.0.113.9", garbage, b"10.0.0.7"], "10.0.0.7");
            check("127.0.0.1", &[garbage, b"203.0.113.9"], "203.0.113.9");
        }
    }

    #[test]
    fn a_customer_has_one_address_or_one_network() {
        let check = |address: &str, expected: &str| {
            assert_eq!(customer(address.parse().unwrap()), expected.parse::<IpAddr>().unwrap());
        };
        check("203.0.113.9", "203.0.113.9");
        check("::ffff:203.0.113.9", "203.0.113.9");
        check("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::");
        check("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::");
        check("2001:db8:1:3::1", "2001:db8:1:3::");
    }
}
