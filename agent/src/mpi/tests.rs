//! Both ends over real connections.

use std::thread;

use super::*;

fn job(address: &str, key: Key) -> Job {
    Job { members: vec!["unused:1".to_owned(), address.to_owned()], key }
}

fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(' ').map(str::to_owned).collect::<Vec<_>>().into_iter()
}

/// A member that waits, and where: its command and then the end of its side of the connection.
fn waits(key: Key) -> (String, thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let member = thread::spawn(move || {
        let (mut talk, command) = next_command(&listener, 1, key).unwrap();
        talk.answer(Saying::Ended, 3).unwrap();
        command
    });
    (address, member)
}

#[test]
fn the_head_has_a_member_run_a_command_and_hears_how_it_ended() {
    let key = [7; 32];
    let (address, member) = waits(key);
    // As ssh is called: options first, and the command in as many arguments as it comes.
    let code = shell(&job(&address, key), words("-x member-1 orted -mca ess \"env\""));
    assert_eq!(code.unwrap(), ExitCode::from(3));
    assert_eq!(member.join().unwrap(), "orted -mca ess \"env\"");
}

/// The name by which the head knows itself may mean nothing elsewhere.
#[test]
fn a_member_is_told_the_heads_address_in_place_of_its_name() {
    let key = [7; 32];
    for (head, called) in [("10.0.0.7:1", "10.0.0.7"), ("[fd00::7]:1", "fd00::7")] {
        let (address, member) = waits(key);
        let job = Job { members: vec![head.to_owned(), address], key };
        let command = "member-1 proxy --upstream-host head --upstream-port 7";
        shell(&job, words(command)).unwrap();
        let told = format!("proxy --upstream-host {called} --upstream-port 7");
        assert_eq!(member.join().unwrap(), told);
    }
}

#[test]
fn nobody_else_is_obeyed_and_the_head_still_is() {
    let key = [7; 32];
    let (address, member) = waits(key);
    // Another attempt's head, which has another key.
    let refused = shell(&job(&address, [8; 32]), words("member-1 touch /tmp/no"));
    assert!(matches!(refused, Err(Error::Refused { rank: 1, .. })), "{refused:?}");
    // What was heard before, of another conversation.
    let talk = |rank: usize, heard: Option<Nonce>| {
        let (stream, nonce) = connect(&address).unwrap();
        Talk { stream, nonce: heard.unwrap_or(nonce), rank, key }
    };
    let mut again = talk(1, Some([0; 32]));
    again.ask("touch /tmp/no").unwrap();
    let mut taken = [9];
    again.stream.read_exact(&mut taken).unwrap();
    assert_eq!(taken, [REFUSED]);
    // What is for another member.
    let mut other = talk(2, None);
    other.ask("touch /tmp/no").unwrap();
    other.stream.read_exact(&mut taken).unwrap();
    assert_eq!(taken, [REFUSED]);
    // Callers that say nothing hold up nobody.
    let silent: Vec<Talk> = (0..8).map(|_| talk(1, None)).collect();
    // A length beyond all bounds, and a caller that hangs up.
    let (mut stream, _) = connect(&address).unwrap();
    stream.write_all(&u32::MAX.to_be_bytes()).unwrap();
    stream.read_exact(&mut taken).unwrap();
    assert_eq!(taken, [REFUSED]);
    drop(connect(&address).unwrap());
    assert!(shell(&job(&address, key), words("member-1 true")).is_ok());
    assert_eq!(member.join().unwrap(), "true");
    drop(silent);
}

#[test]
fn an_impostor_in_a_members_place_is_not_believed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let impostor = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&[5; 32]).unwrap();
        stream.write_all(&[TAKEN; 1 + blake3::OUT_LEN]).unwrap();
        // Until the head hangs up.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let refused = shell(&job(&address, [7; 32]), words("member-1 true"));
    assert!(matches!(refused, Err(Error::Refused { rank: 1, .. })), "{refused:?}");
    impostor.join().unwrap();
}

#[test]
fn hosts_that_are_no_members_are_refused() {
    let job = job("127.0.0.1:1", [7; 32]);
    for host in ["localhost", "member-0", "member-2", "member-x", "10.0.0.1"] {
        let refused = shell(&job, words(&format!("{host} true"))).unwrap_err();
        assert!(matches!(refused, Error::NoSuchHost(_)), "{host}: {refused}");
    }
    assert!(matches!(shell(&job, words("member-1")), Err(Error::NoCommand)));
    assert_eq!((0..3).map(host_of).collect::<Vec<_>>(), ["localhost", "member-1", "member-2"]);
}

#[test]
fn a_member_runs_the_command_once_and_ends_as_its_head_wants() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let key = [7; 32];
    let address = format!("127.0.0.1:{port}");
    let head = job(&address, key);
    let served = thread::spawn(move || member(&job(&address, key), words("1")));
    // The shell waits for the member to be there.
    assert_eq!(shell(&head, words("member-1 exit 5")).unwrap(), ExitCode::from(5));
    // The head was told; what it means is the head's to say.
    assert_eq!(served.join().unwrap().unwrap(), ExitCode::SUCCESS);
}
