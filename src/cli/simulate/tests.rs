use std::fs;

use super::placement::{Seeds, seeds, thousandths};
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
