//! Which process is entered, and where a program is looked for.

use super::program::candidates;
use super::target::oldest_child;
use crate::proc::Stat;

fn stat(pid: i32, parent: i32, start_time: u64, state: char) -> Stat {
    Stat { pid, state, parent, group: pid, cpu_ticks: 0, start_time, resident_pages: 0 }
}

#[test]
fn the_oldest_child_that_lives_is_entered() {
    let all = [
        stat(10, 1, 5, 'S'),
        // Numbers begin anew, so the first is not the lowest.
        stat(30_000, 10, 7, 'S'),
        stat(12, 10, 9, 'S'),
        stat(11, 10, 6, 'Z'),
        stat(13, 30_000, 1, 'S'),
    ];
    assert_eq!(oldest_child(&all, 10).map(|stat| stat.pid), Some(30_000));
    // Of two that started in one tick, the one that was first.
    let same = [stat(22, 20, 7, 'S'), stat(21, 20, 7, 'R')];
    assert_eq!(oldest_child(&same, 20).map(|stat| stat.pid), Some(21));
    assert_eq!(oldest_child(&all, 12), None);
}

#[test]
fn a_program_is_looked_for_as_shells_do() {
    let text = |found: Vec<Vec<u8>>| -> Vec<String> {
        found.into_iter().map(|path| String::from_utf8(path).unwrap()).collect()
    };
    assert_eq!(text(candidates("ls", "/a:/b/c")), ["/a/ls", "/b/c/ls"]);
    assert_eq!(text(candidates("ls", "/a:")), ["/a/ls", "./ls"]);
    assert_eq!(text(candidates("./x", "/a")), ["./x"]);
    assert_eq!(text(candidates("/bin/x", "/a")), ["/bin/x"]);
}
