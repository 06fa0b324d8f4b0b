#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Doubt, Error, Trust, plain, server_url};

#[test]
fn a_token_goes_over_no_network_as_it_is() {
    for (written, used) in [
        ("http://127.0.0.1:80/", "http://127.0.0.1:80"),
        ("127.8.9.10:80", "http://127.8.9.10:80"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("LocalHost:1", "http://LocalHost:1"),
        ("https://127.0.0.1:80", "https://127.0.0.1:80"),
        ("https://gate.example:7420/", "https://gate.example:7420"),
        // Whoever leaves the scheme out means what may be.
        ("gate.example:7420", "https://gate.example:7420"),
        ("10.0.0.7:7420", "https://10.0.0.7:7420"),
    ] {
        assert_eq!(server_url(written), Ok(used.to_owned()));
    }
    for elsewhere in [
        "http://10.0.0.7:7420",
        "http://gate:7420",
        "http://localhost.example:7420",
        "http://0.0.0.0:7420",
        "http://[::2]:7420",
        "http://127.0.0.1.example:7420",
    ] {
        assert!(server_url(elsewhere).unwrap_err().contains("https://"), "{elsewhere}");
    }
    assert!(server_url("https://host").unwrap_err().contains("port"));
    for bad in [
        "",
        "http://",
        "https://",
        "http://a b:1",
        "https://u:p@h:1",
        "https://h:99999",
        "h:1/path",
        "https://h:1/path",
        "ftp://h:1",
        "unix:/run/x",
    ] {
        assert!(server_url(bad).is_err(), "{bad}");
    }
}

#[test]
fn an_authority_is_a_file_of_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("ca.pem");
    assert!(matches!(Trust::of_file(&at), Err(Error::Read { .. })));
    for text in [
        "",
        "nothing of the kind",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    ] {
        std::fs::write(&at, text).unwrap();
        let told = Trust::of_file(&at).unwrap_err().to_string();
        assert!(told.contains("ca.pem") && told.contains("atelier ca show"), "{told}");
    }
    assert_eq!(Trust::System.pem(), None);
}

#[test]
fn a_doubt_is_found_wherever_it_is_held() {
    let expired = rustls::Error::InvalidCertificate(rustls::CertificateError::Expired);
    let held = std::io::Error::other(std::io::Error::other(expired));
    assert_eq!(Doubt::of(&held), Some(Doubt::Expired));
    assert_eq!(Doubt::of(&std::io::Error::other("refused")), None);
    assert_eq!(plain("DnsName(\"gate.example\")"), "gate.example");
    assert_eq!(plain("IpAddress(10.0.0.7)"), "10.0.0.7");
}

#[tokio::test]
async fn clients_of_the_daemon_take_no_proxy_and_are_sent_nowhere_else() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let answer =
        format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: {url}\r\nContent-Length: 0\r\n\r\n");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = [0; 5];
        stream.read_exact(&mut asked).await.unwrap();
        // A proxy would be asked for the whole address.
        assert_eq!(&asked, b"GET /");
        stream.write_all(answer.as_bytes()).await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    // Nobody is there.
    let proxy = reqwest::Proxy::all("http://127.0.0.1:1").unwrap();
    let builder = reqwest::Client::builder().proxy(proxy);
    let client = Trust::System.http(builder).unwrap().build().unwrap();
    let answered =
        tokio::time::timeout(std::time::Duration::from_secs(30), client.get(&url).send());
    assert_eq!(answered.await.unwrap().unwrap().status().as_u16(), 307);
}
