use std::fs;

use atelier_core::resource::Capacity;
use atelier_core::simulate::TraceNode;

use super::placement::{Seeds, seeds, thousandths};
use super::queue::More;
use super::trace;

#[test]
fn factors_are_exact() {
    for (text, value) in
        [("1.3", 1300), ("1", 1000), ("0.05", 50), ("100", 100_000), ("2.125", 2125)]
    {
        assert_eq!(thousandths(text), Ok(value), "{text}");
    }
    for text in
        ["", "0", "-1", "NaN", "inf", "1e3", "1.2345", "101", ".5", "1,3", "99999999999999999"]
    {
        assert!(thousandths(text).unwrap_err().contains("above 0"), "{text}");
    }
}

#[test]
fn seeds_are_a_number_a_range_or_a_list() {
    assert_eq!(seeds("7"), Ok(Seeds(vec![7])));
    assert_eq!(seeds("42..44"), Ok(Seeds(vec![42, 43, 44])));
    assert_eq!(seeds("42..=43"), Ok(Seeds(vec![42, 43])));
    assert_eq!(seeds("9, 1,5"), Ok(Seeds(vec![9, 1, 5])));
    for text in ["", "a", "5..4", "1..", "0..10000", "-1", "1,,2", "1.5"] {
        assert!(seeds(text).is_err(), "{text}");
    }
}

#[test]
fn traces_are_read_by_the_names_of_their_columns() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let nodes =
        file("nodes.csv", "model,sn,gpu,memory_mib,cpu_milli\r\nT4,n1,2,1024,8000\r\n,n2,0,10,1\n");
    let nodes = trace::nodes(&nodes).unwrap();
    assert_eq!((nodes[0].cpu, nodes[0].memory, nodes[0].gpus), (8000, 1024, 2));
    assert_eq!((nodes[0].model.as_str(), nodes.len()), ("T4", 2));

    let head = "cpu_milli,memory_mib,num_gpu,gpu_milli";
    let tasks = file("a.csv", &format!("{head},gpu_spec\n1,2,1,500,A|B\n3,4,0,,\n"));
    let tasks = trace::tasks(&tasks).unwrap();
    assert_eq!((tasks[0].share, tasks[0].models.join("+")), (500, "A+B".to_owned()));
    assert_eq!((tasks[1].gpus, tasks[1].share, tasks[1].models.len()), (0, 0, 0));
    let tasks = trace::tasks(&file("b.csv", &format!("{head}\n1,2,8,1000\n"))).unwrap();
    assert_eq!((tasks[0].gpus, tasks[0].models.len()), (8, 0));

    let said = |name: &str, text: &str| {
        let error = trace::tasks(&file(name, text)).unwrap_err();
        error.cause
    };
    let missing = said("c.csv", "cpu_milli,num_gpu\n1,2\n");
    assert!(missing.contains("no column memory_mib, gpu_milli"), "{missing}");
    for (cell, column) in
        [("-1,2,1,5", "cpu_milli"), ("1,NaN,1,5", "memory_mib"), ("1,2,1.5,5", "num_gpu")]
    {
        let text = said("d.csv", &format!("{head}\n1,1,1,1\n{cell}\n"));
        assert!(text.contains("d.csv line 3") && text.contains(column), "{text}");
    }
    let text = said("e.csv", &format!("{head}\n1,2,1,1001\n"));
    assert!(text.contains("gpu_milli is '1001'"), "{text}");
    assert!(said("f.csv", &format!("{head}\n1,2\n")).contains("cannot read"));
    assert!(said("g.csv", "").contains("no column"));
    let absent = trace::nodes(&folder.path().join("absent.csv")).unwrap_err().cause;
    assert!(absent.contains("cannot read") && absent.contains("absent.csv"), "{absent}");
}

const TIMED: &str =
    "cpu_milli,memory_mib,num_gpu,gpu_milli,creation_time,deletion_time,scheduled_time";

#[test]
fn tasks_with_times_are_played_and_others_left_out_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.csv");
    let read = |text: &str| {
        fs::write(&path, text).unwrap();
        trace::timed(&path)
    };
    let rows =
        "1000,10,1,500,10,30,20\n1,1,0,0,5,,\n1,1,0,0,5,,6\n1,1,0,0,5,6,7\n1,1,0,0,7,7.25,7\n";
    let timed = read(&format!("{TIMED}\n{rows}")).unwrap();
    let jobs: Vec<_> =
        timed.jobs.iter().map(|job| (job.arrives.as_millis(), job.length_ms)).collect();
    assert_eq!(jobs, [(10_000, 10_000), (7_000, 250)]);
    assert_eq!(timed.jobs[0].request.demand.gpu_share, 500);
    assert_eq!(timed.skipped.values().sum::<u64>(), 3);
    assert_eq!(timed.skipped["no scheduled_time"], 1);
    assert_eq!(timed.skipped["no deletion_time"], 1);
    assert_eq!(timed.skipped["deletion_time before scheduled_time"], 1);

    let rows = "1,1,2,1000,1,101,1,ada b@x,2,60\n1,1,2,1000,1,101,1,ben,,\n1,1,2,1000,1,2,1,ben,,9";
    let timed = read(&format!("{TIMED},user,instance_count,timeout\n{rows}\n")).unwrap();
    let of = |n: usize| {
        let job = &timed.jobs[n];
        (job.user.as_str(), job.request.members, job.length_ms, job.most_ms)
    };
    assert_eq!(of(0), ("user-1", 2, 60_000, Some(60_000)));
    assert_eq!(of(1), ("user-2", 1, 100_000, None));
    assert_eq!(of(2), ("user-2", 1, 1_000, Some(9_000)));

    let said =
        |text: &str| read(text).err().map(|e| (e.cause, e.help.unwrap_or_default())).unwrap();
    let (cause, help) = said("cpu_milli,memory_mib,num_gpu,gpu_milli\n1,1,1,1\n");
    assert!(cause.contains("t.csv has no column creation_time, deletion_time, scheduled_time"));
    assert!(help.contains("simulate placement"), "{help}");
    let (cause, help) = said("memory_mib,num_gpu,gpu_milli,creation_time\n");
    assert!(cause.contains("no column cpu_milli, deletion_time, scheduled_time"), "{cause}");
    assert!(help.contains("it needs cpu_milli") && !help.contains("placement"), "{help}");
    for (cell, column) in [
        ("1.18446744073709551615", "creation_time"),
        ("-1", "creation_time"),
        ("NaN", "deletion_time"),
        ("1e9", "deletion_time"),
        ("+1", "scheduled_time"),
        ("1.2345", "scheduled_time"),
        ("999999999999", "creation_time"),
        ("", "creation_time"),
    ] {
        let cells = ["creation_time", "deletion_time", "scheduled_time"]
            .map(|name| if name == column { cell } else { "1" });
        let (cause, _) = said(&format!("{TIMED}\n1,1,0,0,1,1,1\n1,1,0,0,{}\n", cells.join(",")));
        assert!(cause.contains("t.csv line 3") && cause.contains(column), "{cell}: {cause}");
    }
}

#[test]
fn more_nodes_are_like_the_most_common_one() {
    let more = |text: &str| super::queue::more(text);
    assert_eq!(more("2"), Ok(More { count: 2, model: None }));
    assert_eq!(more("3xA10"), Ok(More { count: 3, model: Some("A10".to_owned()) }));
    for text in ["", "0", "-1", "x", "2x", "xA10", "100001", "1.5"] {
        assert!(more(text).unwrap_err().contains("2xMODEL"), "{text}");
    }
    let node = |cpu, model: &str| {
        Capacity::from(&TraceNode { cpu, memory: 1, gpus: 1, model: model.to_owned() })
    };
    let nodes = [node(1, "A"), node(2, "B"), node(2, "B"), node(3, "A"), node(3, "A")];
    let added = |text: &str| super::queue::added(&nodes, &[more(text).unwrap()]);
    assert_eq!(added("2").unwrap(), [node(2, "B"), node(2, "B")]);
    assert_eq!(added("1xa").unwrap(), [node(3, "A")]);
    let none = added("1xC").unwrap_err();
    assert!(none.cause.contains("'C'") && none.help.unwrap().contains("A, B"));
}

#[test]
fn twice_as_fast_tasks_come_in_half_the_time_after_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.csv");
    fs::write(&path, format!("{TIMED}\n1,1,0,0,110,2,1\n1,1,0,0,100,2,1\n")).unwrap();
    let mut jobs = trace::timed(&path).unwrap().jobs;
    super::queue::hasten(&mut jobs, 2000);
    let times: Vec<_> = jobs.iter().map(|job| (job.arrives.as_millis(), job.length_ms)).collect();
    assert_eq!(times, [(105_000, 1000), (100_000, 1000)]);
}
