use super::*;

fn heard(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 512];
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let length = socket.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

fn notifier(address: &[u8], watchdog: Option<Duration>) -> Notifier {
    Notifier { socket: Some(connect(address).unwrap()), watchdog, ..Notifier::default() }
}

#[test]
fn a_service_is_ready_once_and_tells_its_status_on_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let notifier = notifier(path.as_os_str().as_encoded_bytes(), None);
    notifier.starting("asking", Duration::from_secs(60));
    notifier.ready("joined");
    notifier.ready("joined\nREADY=1");
    notifier.status("two\nlines");
    // Nobody waits for it.
    notifier.progress();
    notifier.stopping();
    assert_eq!(heard(&manager), "EXTEND_TIMEOUT_USEC=60000000\nSTATUS=asking");
    assert_eq!(heard(&manager), "READY=1\nSTATUS=joined");
    assert_eq!(heard(&manager), "STATUS=joined READY=1");
    assert_eq!(heard(&manager), "STATUS=two lines");
    assert_eq!(heard(&manager), "STOPPING=1\nSTATUS=stopping");
}

#[test]
fn progress_is_told_at_an_abstract_address_and_not_more_often_than_it_needs_be() {
    let name = format!("atelier-notify-test-{}", std::process::id());
    let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let notifier = notifier(format!("@{name}").as_bytes(), Some(Duration::from_secs(300)));
    assert_eq!(notifier.watchdog(), Some(Duration::from_secs(100)));
    notifier.progress();
    notifier.progress();
    notifier.stopping();
    assert_eq!(heard(&manager), "WATCHDOG=1");
    assert_eq!(heard(&manager), "STOPPING=1\nSTATUS=stopping");
}

#[test]
fn without_a_service_manager_nothing_is_said() {
    let nobody = Notifier::default();
    nobody.ready("");
    nobody.progress();
    nobody.stopping();
    assert_eq!(nobody.watchdog(), None);
    assert!(connect(b"/nowhere/at/all").is_err());
}
