#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use atelier_agent::trust::Trust;
use atelier_core::time::Timestamp;
use rcgen::{CertificateParams, KeyPair};
use rustls::client::danger::ServerCertVerifier as _;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::authority::CERTIFICATE as CA_CERTIFICATE;
use super::certificate::pem;
use super::{Certificate, Error, Files, Name, Own, Secure};

const DAY_MS: i64 = 24 * 3600 * 1000;

/// Some day, and so many after it.
fn day(days: i64) -> Timestamp {
    Timestamp::from_millis(1_790_000_000_000 + days * DAY_MS)
}

fn own(listen: &str) -> Own {
    Own { listen: vec![listen.parse().unwrap()], names: vec!["Gate.example".parse().unwrap()] }
}

fn open(data: &Path, files: Option<Files>, now: Timestamp) -> Result<Secure, Error> {
    Secure::open(data, "Atelier workspace test", own("10.0.0.7"), files, now)
}

/// What a client is shown.
fn shown(secure: &Secure, is_here: bool, name: Option<&str>) -> Certificate {
    Certificate::parse(secure.chosen(is_here, name).end_entity_cert().unwrap()).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Writes a file that nobody else may read.
fn private(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn a_workspace_has_one_authority_for_ten_years() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join(CA_CERTIFICATE), folder.path().join("tls/ca.key"));
    let first = open(folder.path(), None, day(0)).unwrap();
    assert_eq!((mode(&certificate), mode(&key)), (0o644, 0o600));
    let said = Certificate::of_pem(&first.authorities()).unwrap();
    assert!(said.not_before < day(0) && said.not_after > day(3650), "{said:?}");
    let again = open(folder.path(), None, day(100)).unwrap();
    assert_eq!(first.authorities(), again.authorities());
    assert_eq!(fs::read_to_string(&certificate).unwrap(), first.authorities());
    // What it makes is of it, whenever it was started.
    for secure in [&first, &again] {
        let roots = Trust::of_file(&certificate).unwrap();
        assert_eq!(roots.pem(), Some(&*secure.authorities()));
    }
    assert!(matches!(open(folder.path(), None, day(3700)), Err(Error::Authority { .. })));

    // Cut short before it had its name, it is the one that was made.
    fs::rename(&certificate, folder.path().join("tls/ca.pem.new")).unwrap();
    assert_eq!(open(folder.path(), None, day(0)).unwrap().authorities(), first.authorities());
    // Once people were told it is not made anew by itself.
    fs::remove_file(&certificate).unwrap();
    let kept = fs::read(&key).unwrap();
    let told = open(folder.path(), None, day(0)).unwrap_err().to_string();
    assert!(
        told.contains("restore") && told.contains("ca.pem") && told.contains("ca.key"),
        "{told}"
    );
    assert_eq!(fs::read(&key).unwrap(), kept);
    fs::remove_file(&key).unwrap();
    let other = open(folder.path(), None, day(0)).unwrap();
    assert_ne!(first.authorities(), other.authorities());
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let told = open(folder.path(), None, day(0)).unwrap_err().to_string();
    assert!(told.contains("ca.key") && told.contains("chmod 600"), "{told}");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let kept = fs::read(&key).unwrap();
    for damage in [None, Some(b"nothing".to_vec()), Some(pem("PRIVATE KEY", &[1; 40]).into_bytes())]
    {
        match damage {
            None => fs::remove_file(&key).unwrap(),
            Some(bytes) => private(&key, bytes),
        }
        let told = open(folder.path(), None, day(0)).unwrap_err().to_string();
        assert!(told.contains("ca.key") && told.contains("backup"), "{told}");
    }
    let foreign = KeyPair::generate().unwrap();
    private(&key, pem("PRIVATE KEY", foreign.serialized_der()));
    let told = open(folder.path(), None, day(0)).unwrap_err().to_string();
    assert!(told.contains("not the key of ca.pem"), "{told}");
    fs::write(&key, kept).unwrap();
    open(folder.path(), None, day(0)).unwrap();
    fs::write(&certificate, "nothing").unwrap();
    assert!(open(folder.path(), None, day(0)).is_err());
}

#[test]
fn the_daemon_s_own_certificate_is_for_where_it_listens() {
    let folder = tempfile::tempdir().unwrap();
    let secure = open(folder.path(), None, day(0)).unwrap();
    let said = shown(&secure, false, None);
    let name = |text: &str| text.parse::<Name>().unwrap();
    let names = ["localhost", "gate.example", "127.0.0.1", "::1", "10.0.0.7"].map(name);
    assert_eq!(said.names.len(), names.len(), "{said:?}");
    assert!(names.iter().all(|name| said.names.contains(name)), "{said:?}");
    assert!(secure.hosts().has("GATE.example"));
    assert!(!secure.hosts().has("evil.example"));
    // At any address: all of this machine's.
    let every = own("0.0.0.0").now();
    let networks = sysinfo::Networks::new_with_refreshed_list().unwrap();
    for network in networks.values().flat_map(sysinfo::NetworkData::ip_networks) {
        let is_of_a_link = match network.addr {
            std::net::IpAddr::V4(four) => four.is_link_local(),
            std::net::IpAddr::V6(six) => six.is_unicast_link_local(),
        };
        assert_eq!(every.contains(&Name::Address(network.addr)), !is_of_a_link, "{network:?}");
    }
    for bad in ["", "a b", "https://gate", "gate:7420", "*.example", "-"] {
        assert!(bad.parse::<Name>().is_err(), "{bad}");
    }
    assert_eq!("[fd00::2]".parse::<Name>(), "fd00::2".parse());
}

#[test]
fn the_daemon_s_own_certificate_is_made_anew_before_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let secure = open(folder.path(), None, day(0)).unwrap();
    let first = shown(&secure, false, None);
    assert!(first.not_before < day(0), "{first:?}");
    assert_eq!(first.not_after, day(90));
    secure.look(day(59));
    assert_eq!(shown(&secure, false, None), first);
    secure.look(day(60));
    let second = shown(&secure, false, None);
    assert_eq!((second.not_after, second.names), (day(150), first.names));
    // A clock that was wrong, and is put right.
    secure.look(day(1));
    assert_eq!(shown(&secure, false, None).not_after, day(91));
    // None outlives its authority.
    let last = open(folder.path(), None, day(3640)).unwrap();
    let authority = Certificate::of_pem(&last.authorities()).unwrap();
    assert_eq!(shown(&last, false, None).not_after, authority.not_after);
}

/// Certificate and key of somebody else, valid for these days.
fn given(folder: &Path, names: &[&str], from: i64, until: i64) -> Files {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    let at = |days| {
        time::OffsetDateTime::from_unix_timestamp(day(days).as_millis().div_euclid(1000)).unwrap()
    };
    (params.not_before, params.not_after) = (at(from), at(until));
    let key = KeyPair::generate().unwrap();
    let made = params.self_signed(&key).unwrap();
    let files = Files { certificate: folder.join("chain.pem"), key: folder.join("key.pem") };
    fs::write(&files.certificate, pem("CERTIFICATE", made.der())).unwrap();
    fs::write(&files.key, pem("PRIVATE KEY", key.serialized_der())).unwrap();
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o640)).unwrap();
    files
}

#[test]
fn an_admin_s_certificate_is_for_who_asks_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let files = given(folder.path(), &["gate.example", "*.lab.example"], -1, 30);
    let secure = open(folder.path(), Some(files), day(0)).unwrap();
    let own = |is_here, name| shown(&secure, is_here, name).not_after == day(90);
    assert!(!own(false, Some("gate.example")) && !own(false, None) && !own(false, Some("other")));
    assert!(!own(true, Some("gate.example")) && !own(true, Some("a.lab.example")));
    // Whoever asks on its own machine by an address, as agents and the local workspace do, knows its own authority.
    assert!(own(true, None) && own(true, Some("localhost")));
    assert!(secure.hosts().has("b.lab.example") && secure.hosts().has("10.0.0.7"));
}

#[test]
fn files_that_cannot_be_used_are_refused_and_change_nothing_later() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |files: &Files, word: &str| {
        let told = open(folder.path(), Some(files.clone()), day(0)).unwrap_err().to_string();
        assert!(told.contains(word) && told.contains("chain.pem"), "{word}: {told}");
    };
    refused(&given(folder.path(), &["gate.example"], -30, -1), "has expired");
    refused(&given(folder.path(), &["gate.example"], 1, 30), "not valid before");
    refused(&given(folder.path(), &[], -1, 30), "no names");
    let files = given(folder.path(), &["gate.example"], -1, 30);
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o604)).unwrap();
    refused(&files, "everybody may read the key");
    let files = given(folder.path(), &["gate.example"], -1, 30);
    let key = fs::read(&files.key).unwrap();
    fs::write(&files.key, pem("PRIVATE KEY", KeyPair::generate().unwrap().serialized_der()))
        .unwrap();
    refused(&files, "another certificate's");
    fs::write(&files.key, "nothing").unwrap();
    refused(&files, "no private key");
    fs::write(&files.key, key).unwrap();
    let secure = open(folder.path(), Some(files.clone()), day(0)).unwrap();
    let first = shown(&secure, false, None);
    fs::write(&files.certificate, "nothing").unwrap();
    secure.look(day(0));
    assert_eq!(shown(&secure, false, None), first);
    given(folder.path(), &["gate.example"], -1, 60);
    secure.look(day(0));
    assert_eq!(shown(&secure, false, None).not_after, day(60));
    fs::remove_file(&files.certificate).unwrap();
    secure.look(day(0));
    assert_eq!(shown(&secure, false, None).not_after, day(60));
    assert!(secure.refused().unwrap().contains("cannot be read"), "{:?}", secure.refused());
}

#[test]
fn files_that_were_refused_are_taken_once_they_are_mended() {
    let folder = tempfile::tempdir().unwrap();
    let files = given(folder.path(), &["gate.example"], -1, 30);
    let secure = open(folder.path(), Some(files.clone()), day(0)).unwrap();
    let mode = |mode| fs::set_permissions(&files.key, fs::Permissions::from_mode(mode)).unwrap();
    // Of another length, whatever the grain of the file system's clock.
    given(folder.path(), &["gate.example", "b.example"], -1, 60);
    mode(0o644);
    secure.look(day(0));
    assert_eq!(shown(&secure, false, None).not_after, day(30));
    assert!(secure.refused().unwrap().contains("everybody may read the key"));
    // Nothing but the rights is another.
    mode(0o640);
    secure.look(day(0));
    assert_eq!(shown(&secure, false, None).not_after, day(60));
    assert_eq!(secure.refused(), None);
    // One of a time to come is taken when that has come: nothing of the files is another.
    given(folder.path(), &["gate.example", "b.example", "c.example"], 5, 70);
    secure.look(day(0));
    assert_eq!(shown(&secure, false, None).not_after, day(60));
    secure.look(day(6));
    assert_eq!(shown(&secure, false, None).not_after, day(70));
}

/// A port at which handshakes are made; what comes of the first is told.
async fn port(secure: Arc<Secure>) -> (std::net::SocketAddr, tokio::task::JoinHandle<bool>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        secure.accept(stream).await.is_some()
    });
    (address, accepted)
}

#[tokio::test]
async fn who_speaks_plain_http_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let secure = Arc::new(open(folder.path(), None, day(0)).unwrap());
    let (address, accepted) = port(secure.clone()).await;
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(b"POST /api/2.0/x HTTP/1.1\r\nHost: localhost\r\n\r\n{}").await.unwrap();
    let mut told = String::new();
    stream.read_to_string(&mut told).await.unwrap();
    assert!(told.starts_with("HTTP/1.1 400 ") && told.contains("use https://"), "{told}");
    assert!(!accepted.await.unwrap());
    // As gRPC does, which begins with the second version.
    let (address, accepted) = port(secure).await;
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    let channel = endpoint.connect().await.unwrap();
    let mut client = tonic_health::pb::health_client::HealthClient::new(channel);
    let failed = client.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap_err();
    let told = crate::client::reason(&failed);
    assert!(told.contains("use https://"), "{told} {failed:?}");
    assert!(!accepted.await.unwrap());
}

#[test]
fn a_node_s_certificate_says_who_it_is_whatever_the_request_says() {
    use atelier_core::id::NodeName;

    use super::Peer;

    let folder = tempfile::tempdir().unwrap();
    let secure = open(folder.path(), None, day(0)).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut asks = CertificateParams::new(["gate.example".to_owned()]).unwrap();
    asks.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let request = asks.serialize_request(&key).unwrap();
    let node = NodeName::new("gpu-1").unwrap();
    let (whose, life) = (("w", &node, "id"), Duration::from_secs(24 * 3600));
    let made = secure.issue_node(request.der(), whose, day(0), life).unwrap();
    assert_eq!(made.until, day(1));
    let der = CertificateDer::from_pem_slice(made.pem.as_bytes()).unwrap();
    let peer = Peer::of(&der, [1; 32]).unwrap();
    let (identity, until, authority) = ("id".to_owned(), day(1), [1; 32]);
    assert_eq!(peer, Peer { node: node.clone(), identity, until, authority });
    let said = Certificate::parse(&der).unwrap();
    assert!(said.names.is_empty() && said.not_before < day(0), "{said:?}");
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
    assert!(!parsed.is_ca());
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth);
    // The daemon's own is no node's.
    let own = secure.chosen(false, None);
    assert_eq!(Peer::of(own.end_entity_cert().unwrap(), [1; 32]), None);
    // Who is shown the chain finds the authority of the fingerprint in it.
    let digest = |der: &[u8]| aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
    assert_eq!(digest(&own.cert[1]).as_ref(), secure.fingerprint());
    let mut changed = request.der().to_vec();
    let last = changed.len() - 1;
    changed[last] ^= 1;
    for bad in [&changed[..], &[], &[0x30, 0x80], &[0xff; 100]] {
        let refused = secure.issue_node(bad, whose, day(0), life);
        assert!(matches!(refused, Err(Error::Request(_))), "{refused:?}");
    }
}

/// Whether who knows these authorities alone takes what is shown for the daemon's.
fn vouched(secure: &Secure, authorities: &str, now: Timestamp) -> bool {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
        roots.add(root.unwrap()).unwrap();
    }
    let verifier =
        rustls::client::WebPkiServerVerifier::builder_with_provider(roots.into(), provider);
    let chain = &secure.chosen(false, None).cert;
    let at = Duration::from_millis(now.as_millis().cast_unsigned());
    let name = "gate.example".try_into().unwrap();
    let verifier = verifier.build().unwrap();
    let at = UnixTime::since_unix_epoch(at);
    verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], at).is_ok()
}

/// A certificate that a node gets now, and by which authority the daemon says it is.
fn node_certificate(secure: &Secure, now: Timestamp) -> CertificateDer<'static> {
    let request = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap());
    let node = atelier_core::id::NodeName::new("gpu-1").unwrap();
    let life = Duration::from_secs(24 * 3600);
    let made = secure.issue_node(request.unwrap().der(), ("w", &node, "id"), now, life).unwrap();
    CertificateDer::from_pem_slice(made.pem.as_bytes()).unwrap()
}

#[test]
fn an_authority_takes_over_from_one_that_is_known_still() {
    let folder = tempfile::tempdir().unwrap();
    let now = crate::daemon::Clock::default().wall();
    let secure = open(folder.path(), None, now).unwrap();
    let (old, old_fingerprint) = (secure.authorities(), secure.fingerprint());
    let old_node = node_certificate(&secure, now);
    let issued_by = |secure: &Secure, node: &CertificateDer<'static>| {
        secure.configs().issuer_of(std::slice::from_ref(node))
    };
    assert!(matches!(secure.retire(now), Err(Error::NothingBefore)));
    let mut changes = secure.changes();
    assert!(!changes.has_changed().unwrap());
    secure.rotate(now, now).unwrap();
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    let new = secure.standing().certificate;
    assert_ne!(new, old);
    assert_eq!(secure.authorities(), format!("{new}{old}"));
    assert_ne!(secure.fingerprint(), old_fingerprint);
    let (key, next) = (folder.path().join("tls/ca.key"), folder.path().join("tls/ca.key.next"));
    assert!(mode(&key) == 0o600 && !next.exists());
    // Whoever knows one of them knows the daemon, also started anew and after its certificate was made anew.
    let again = open(folder.path(), None, now).unwrap();
    let later = Timestamp::from_millis(now.as_millis() + 61 * DAY_MS);
    again.look(later);
    for (secure, now) in [(&secure, now), (&again, later)] {
        assert!(vouched(secure, &new, now) && vouched(secure, &old, now));
        let foreign = open(tempfile::tempdir().unwrap().path(), None, now).unwrap();
        assert!(!vouched(secure, &foreign.authorities(), now));
        // As who has a join token knows it.
        let shown = secure.chosen(false, None);
        let digest = |der: &[u8]| aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
        for fingerprint in [old_fingerprint, secure.fingerprint()] {
            assert!(shown.cert.iter().any(|der| digest(der).as_ref() == fingerprint));
        }
        assert_eq!(issued_by(secure, &old_node), Some(old_fingerprint));
    }
    let new_node = node_certificate(&secure, now);
    assert_eq!(issued_by(&secure, &new_node), Some(secure.fingerprint()));
    let rotated_at = secure.standing().previous.unwrap().rotated_at;
    assert!((now..Timestamp::from_millis(now.as_millis() + 1000)).contains(&rotated_at));
    // All programs count numbers of certificates as one issuer's.
    let numbers: Vec<Vec<u8>> = secure.chosen(false, None).cert[1..]
        .iter()
        .map(|der| x509_parser::parse_x509_certificate(der).unwrap().1.raw_serial().to_vec())
        .collect();
    assert!(numbers[0] != numbers[1] && numbers[1] != numbers[2], "{numbers:?}");
    assert!(matches!(secure.rotate(now, now), Err(Error::NotRetired)));

    secure.retire(now).unwrap();
    assert!(changes.has_changed().unwrap());
    assert!(!folder.path().join("tls/ca-link.pem").exists());
    for secure in [&secure, &open(folder.path(), None, now).unwrap()] {
        assert_eq!(secure.authorities(), new);
        assert!(vouched(secure, &new, now) && !vouched(secure, &old, now));
        assert_eq!(secure.retired(), [old_fingerprint]);
        // The door knows what to say.
        assert_eq!(issued_by(secure, &old_node), Some(old_fingerprint));
    }
    // And again.
    secure.rotate(now, now).unwrap();
    secure.retire(now).unwrap();
    assert_eq!(secure.retired().len(), 2);
    assert!(!vouched(&secure, &new, now));
}

#[test]
fn a_link_that_was_taken_away_leaves_a_daemon_that_starts() {
    let folder = tempfile::tempdir().unwrap();
    let secure = open(folder.path(), None, day(0)).unwrap();
    let old = secure.authorities();
    secure.rotate(day(0), day(0)).unwrap();
    let link = folder.path().join("tls/ca-link.pem");
    for damage in [Some(old.as_str()), Some("nothing"), None] {
        match damage {
            Some(text) => fs::write(&link, text).unwrap(),
            None => fs::remove_file(&link).unwrap(),
        }
        let secure = open(folder.path(), None, day(0)).unwrap();
        assert!(vouched(&secure, &secure.authorities(), day(0)) && !vouched(&secure, &old, day(0)));
        assert!(secure.standing().previous.is_some());
    }
}
