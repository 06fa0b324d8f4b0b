use super::*;

const LINE: &str = "4242 (a (b) c) S 1 4240 4239 0 -1 4194560 99 5 0 0 7 8 9 10 20 0 3 0 123456 \
                    1000000 321 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0";

#[test]
fn a_name_with_parentheses_does_not_shift_the_fields() {
    let stat = parse_stat(LINE).unwrap();
    assert_eq!(
        stat,
        Stat {
            pid: 4242,
            state: 'S',
            parent: 1,
            group: 4240,
            cpu_ticks: 34,
            start_time: 123_456,
            resident_pages: 321,
        }
    );
}

#[test]
fn text_that_is_no_stat_is_refused() {
    for text in ["", "1", "1 (x", "1 (x) S", "x (x) S 1 2 3"] {
        assert_eq!(parse_stat(text), None, "{text:?}");
    }
}

#[test]
fn our_own_stat_is_there_and_stable() {
    let pid = i32::try_from(std::process::id()).unwrap();
    let (one, two) = (stat(pid).unwrap(), stat(pid).unwrap());
    assert_eq!(one.pid, pid);
    assert_eq!(one.start_time, two.start_time);
    assert!(all().iter().any(|stat| stat.pid == pid));
}

fn process(pid: i32, parent: i32) -> Stat {
    Stat { pid, state: 'S', parent, group: pid, cpu_ticks: 0, start_time: 0, resident_pages: 0 }
}

#[test]
fn descendants_are_found_at_any_depth_and_circles_end() {
    let all =
        [process(2, 1), process(3, 2), process(4, 3), process(5, 1), process(6, 7), process(7, 6)];
    let mut pids: Vec<i32> = descendants(&all, 2).iter().map(|stat| stat.pid).collect();
    pids.sort_unstable();
    assert_eq!(pids, [3, 4]);
    assert_eq!(descendants(&all, 6).len(), 1);
}

#[test]
fn io_counters_are_read_by_name() {
    let text = "rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\nread_bytes: 4096\nwrite_bytes: 8192\n";
    assert_eq!(parse_io(text), Some((4096, 8192)));
    assert_eq!(parse_io("rchar: 1\n"), None);
}
