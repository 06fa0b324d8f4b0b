//! What a client may ask for.

use super::*;

fn exec(command: &[&str]) -> Result<Entering, String> {
    let command = command.iter().map(|&word| word.to_owned()).collect();
    entering(What::Exec(pb::Exec { command, ..pb::Exec::default() }))
}

fn entering(what: What) -> Result<Entering, String> {
    let open = pb::OpenChannel { what: Some(what), ..pb::OpenChannel::default() };
    match checked(&open).map_err(|status| status.message().to_owned())? {
        Wanted::Entry(entering) => Ok(entering),
        Wanted::Debug(command) => Err(format!("debugging: {command}")),
        Wanted::Connection { .. } => Err("a connection".to_owned()),
    }
}

#[test]
fn commands_are_written_down_as_a_shell_takes_them() {
    let shown = |text: &str| Ok(Entering::Command(text.to_owned()));
    assert_eq!(exec(&["ls", "-l"]), shown("ls -l"));
    assert_eq!(exec(&["sh", "-c", "echo $HOME"]), shown("sh -c 'echo $HOME'"));
    assert_eq!(exec(&[]), Ok(Entering::Shell));
    let debug =
        pb::Exec { command: vec!["ls".to_owned(), "a b".to_owned()], ..pb::Exec::default() };
    assert_eq!(entering(What::Debug(debug)), Err("debugging: ls 'a b'".to_owned()));
}

#[test]
fn what_is_too_much_or_no_port_is_refused() {
    let long = "x".repeat(COMMAND);
    assert!(exec(&[&long]).unwrap_err().contains("at most 65536 are allowed"));
    assert!(exec(&["a\0b"]).unwrap_err().contains("NUL"));
    let ports = |ports: &[u32]| entering(What::Forward(pb::Forward { ports: ports.to_vec() }));
    assert_eq!(ports(&[80, 65_535]), Ok(Entering::Ports(vec![80, 65_535])));
    assert!(ports(&[]).unwrap_err().contains("1 to 32"));
    assert!(ports(&[1; 33]).unwrap_err().contains("1 to 32"));
    for wrong in [0, 65_536, u32::MAX] {
        assert!(ports(&[wrong]).unwrap_err().contains("no port"), "{wrong}");
        let connect = pb::Connect { forward: 1, port: wrong };
        assert!(entering(What::Connect(connect)).unwrap_err().contains("no port"), "{wrong}");
    }
    assert!(checked(&pb::OpenChannel::default()).is_err());
}
