use proptest::prelude::*;

use super::*;

fn why(address: &str) -> Option<Inside> {
    Egress::default().refuses(address.parse().unwrap())
}

#[test]
fn addresses_are_of_the_kind_that_the_registries_say() {
    for (address, expected) in [
        ("0.0.0.0", Some(Inside::Loopback)),
        ("0.1.2.3", Some(Inside::Loopback)),
        ("127.0.0.1", Some(Inside::Loopback)),
        ("127.255.255.254", Some(Inside::Loopback)),
        ("10.0.0.1", Some(Inside::Private)),
        ("172.15.255.255", None),
        ("172.16.0.1", Some(Inside::Private)),
        ("172.31.255.255", Some(Inside::Private)),
        ("172.32.0.1", None),
        ("192.168.1.1", Some(Inside::Private)),
        ("100.63.255.255", None),
        ("100.64.0.1", Some(Inside::Private)),
        ("100.127.255.255", Some(Inside::Private)),
        ("100.128.0.1", None),
        ("169.254.169.254", Some(Inside::LinkLocal)),
        ("169.253.1.1", None),
        ("192.0.0.192", Some(Inside::Reserved)),
        ("192.0.2.1", Some(Inside::Reserved)),
        ("198.18.0.1", Some(Inside::Reserved)),
        ("203.0.113.9", Some(Inside::Reserved)),
        ("224.0.0.1", Some(Inside::Multicast)),
        ("239.255.255.255", Some(Inside::Multicast)),
        ("255.255.255.255", Some(Inside::Reserved)),
        ("8.8.8.8", None),
        ("192.0.1.1", None),
        ("::", Some(Inside::Loopback)),
        ("::1", Some(Inside::Loopback)),
        ("::ffff:127.0.0.1", Some(Inside::Loopback)),
        ("::127.0.0.1", Some(Inside::Loopback)),
        ("::ffff:0:10.0.0.1", Some(Inside::Private)),
        ("64:ff9b::10.0.0.1", Some(Inside::Private)),
        ("64:ff9b::8.8.8.8", None),
        ("64:ff9b:1::8.8.8.8", Some(Inside::Private)),
        ("2002:7f00:1::", Some(Inside::Loopback)),
        ("2002:a9fe:a9fe::1", Some(Inside::LinkLocal)),
        ("2002:808:808::1", None),
        ("2001::1", Some(Inside::Reserved)),
        ("2001:db8::1", Some(Inside::Reserved)),
        ("2001:4860:4860::8888", None),
        ("fc00::1", Some(Inside::Private)),
        ("fd00:ec2::254", Some(Inside::Private)),
        ("fec0::1", Some(Inside::Private)),
        ("fe80::1", Some(Inside::LinkLocal)),
        ("febf::1", Some(Inside::LinkLocal)),
        ("ff02::1", Some(Inside::Multicast)),
        ("100::1", Some(Inside::Reserved)),
        ("4000::1", Some(Inside::Reserved)),
    ] {
        assert_eq!(why(address), expected, "{address}");
    }
}

#[test]
fn what_an_admin_allows_is_open_in_whichever_form_and_nothing_beside_it() {
    let networks = ["10.1.0.0/16", "127.0.0.1", "fd00:1::/32"];
    let networks = networks.map(|network| network.parse().unwrap()).to_vec();
    let egress = Egress {
        networks,
        servers: vec![Server::new("s3.local", 9000), Server::new("[::2]", 9000)],
    };
    for (address, open) in [
        ("10.1.2.3", true),
        ("::ffff:10.1.2.3", true),
        ("64:ff9b::10.1.2.3", true),
        ("10.2.0.1", false),
        ("127.0.0.1", true),
        ("127.0.0.2", false),
        ("::1", false),
        ("fd00:1::9", true),
        ("fd00:2::9", false),
    ] {
        assert_eq!(egress.refuses(address.parse().unwrap()).is_none(), open, "{address}");
    }
    for (host, open) in [
        ("example.com", true),
        ("localhost", true),
        ("127.0.0.2", false),
        ("[::1]", false),
        ("[::ffff:10.2.0.1]", false),
        ("S3.local", true),
        ("[::2]", true),
    ] {
        assert_eq!(egress.refuses_host(host, 9000).is_none(), open, "{host}");
    }
    assert!(egress.refuses_host("[::2]", 9001).is_some(), "what else is on that machine");
    assert!(egress.names("s3.LOCAL", 9000) && egress.names_host("s3.LOCAL"));
    assert!(!egress.names("s3.local", 443) && !egress.names_host("local"));
    for host in ["localhost", "LOCALHOST.", "a.localhost", "169.254.169.254"] {
        assert!(Egress::default().refuses_host(host, 80).is_some(), "{host}");
    }
}

#[test]
fn networks_are_read_as_they_are_written() {
    for (text, shown) in [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.1.2.3", "10.1.2.3/32"),
        ("::1", "::1/128"),
        ("fd00::/8", "fd00::/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("::ffff:10.0.0.1", "10.0.0.1/32"),
    ] {
        assert_eq!(text.parse::<Network>().unwrap().to_string(), shown);
    }
    for text in [
        "",
        "x",
        "10.0.0.0/33",
        "10.0.0.0/-1",
        "::/129",
        "10.0.0/8",
        "10.0.0.1/8",
        "fd00::1/8",
        "a/b/c",
    ] {
        assert!(text.parse::<Network>().is_err(), "{text}");
    }
}

#[test]
fn servers_are_read_as_they_are_written() {
    for text in ["s3.local:9000", "[::1]:443", "10.0.0.1:80"] {
        assert_eq!(text.parse::<Server>().unwrap().to_string(), text);
    }
    for text in ["", "s3.local", "s3.local:", ":80", "s3.local:70000", "s3.local:x"] {
        assert!(text.parse::<Server>().is_err(), "{text}");
    }
}

proptest! {
    /// However an address of version 4 is dressed.
    #[test]
    fn an_address_is_of_one_kind_in_every_form(bits: u32, low: u64) {
        let four = Ipv4Addr::from_bits(bits);
        let plain = Egress::default().refuses(four.into());
        let within = |high: u128| Ipv6Addr::from_bits(high | u128::from(bits));
        let tunnel = Ipv6Addr::from_bits((0x2002 << 112) | (u128::from(bits) << 80) | u128::from(low));
        for six in [within(0xffff << 32), within(0x0064_ff9b << 96), tunnel] {
            prop_assert_eq!(Egress::default().refuses(six.into()), plain, "{}", six);
        }
    }

    #[test]
    fn a_network_has_its_first_address_and_reads_back(bits: u32, length in 0_u8..=32) {
        let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
        let first = Ipv4Addr::from_bits(bits & mask);
        let network: Network = format!("{first}/{length}").parse().unwrap();
        prop_assert!(network.has(first.into()));
        prop_assert!(network.has(Ipv4Addr::from_bits(bits | !mask).into()));
        prop_assert_eq!(network.to_string().parse::<Network>().unwrap(), network);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,40}") {
        let _ = text.parse::<Network>();
        let _ = (Egress::default().refuses_host(&text, 80), text.parse::<Server>());
    }
}
