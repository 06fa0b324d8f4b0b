//! Jobs of an agent that is root run as users of their own.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use crate::harness::{Agent, Cluster, job_yaml, needs, until};

/// The first word of each line by its name.
fn told(log: &str, name: &str) -> String {
    let line = log.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("no {name} in {log}")).to_owned()
}

#[test]
fn a_job_is_a_user_of_its_own_that_owns_what_it_may_write() {
    needs("job-users");
    let cluster = Cluster::start();
    cluster.write("code/train.sh", "echo first\n");
    cluster.write("given.txt", "given\n");
    let look = "id=$(id -u)\n\
        echo user=$id name=$(id -un) variable=$USER\n\
        echo shadow=$(cat /etc/shadow 2>/dev/null | wc -l)\n\
        echo more >> train.sh && sh train.sh 2>/dev/null | head -n 1\n\
        echo more >> ${{inputs.copied}} && tail -n 1 ${{inputs.copied}}\n\
        cat ${{inputs.linked}}\n\
        echo to-the-terminal > /dev/stdout; echo to-the-error > /dev/stderr\n\
        (umask 077; echo kept > outputs/kept.txt)\n\
        echo kept > ${{outputs.model}}/kept.txt\n\
        echo owner=$(stat -c %u outputs/kept.txt) mask=$(umask)\n";
    let block: String = look.lines().map(|line| format!("  {}\n", line.trim_start())).collect();
    let yaml = format!(
        "command: |\n{block}code: code\ninputs:\n  copied: {{type: uri_file, path: given.txt, mode: \
         download}}\n  linked: {{type: uri_file, path: given.txt}}\noutputs: {{model: {{type: \
         uri_folder}}}}\n"
    );
    cluster.write("job.yml", yaml);
    let made = cluster.atelier(["job", "create", "-f", "job.yml", "--query", "name", "-o", "tsv"]);
    let job = made.ok().word();
    cluster.completed(&job);
    let log = String::from_utf8(cluster.log(&job)).unwrap();
    let user = told(&log, "user");
    let (id, rest) = user.split_once(' ').unwrap();
    assert!((0x7000_0000..0x7100_0000).contains(&id.parse::<u32>().unwrap()), "{log}");
    assert_eq!(rest, "name=job variable=job", "{log}");
    assert_eq!(told(&log, "shadow"), "0", "{log}");
    assert_eq!(told(&log, "owner"), format!("{id} mask=0022"), "{log}");
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[2..7], ["first", "more", "given", "to-the-terminal", "to-the-error"]);
    let artifacts = cluster.rpc().artifacts(&job);
    assert!(artifacts.iter().any(|path| path == "outputs/kept.txt"), "{artifacts:?}");
    // The next one is another's, and the folder of the first is used again for it.
    let next = cluster.shell("id -u; touch here /tmp/here outputs/here && echo wrote");
    cluster.completed(&next);
    let log = String::from_utf8(cluster.log(&next)).unwrap();
    assert!(log.ends_with("\nwrote\n") && !log.starts_with(id), "{log}");
}

#[test]
fn a_command_in_a_job_is_the_jobs_user() {
    needs("job-users");
    let cluster = Cluster::start();
    let job = cluster.create(&job_yaml("id -u > mine; echo ready; sleep 600"));
    cluster.atelier(["job", "stream", &job, "-q"]).spawn().prints("ready");
    let exec = |command: &str| {
        cluster.atelier(["job", "exec", &job, "--", "sh", "-c", command]).ok().stdout()
    };
    let look =
        "id -u | cmp - mine && echo same; echo out > /dev/stdout; id -G | wc -w; cat /etc/shadow";
    assert_eq!(
        exec(&format!("{look} 2>&1 | tail -c 18; true")),
        "same\nout\n1\nPermission denied\n"
    );
    cluster.atelier(["job", "cancel", &job]).ok();
    cluster.ended(&job);
}

#[test]
fn an_admin_says_which_users_jobs_have_or_that_they_have_none() {
    needs("job-users");
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("some").cpus(1).with("--job-users=300000-300255"));
    cluster.start_agent(&Agent::new("none").cpus(1).with("--job-users=none"));
    let job = cluster.create("command: id -u\nresources: {instance_count: 2}\n");
    cluster.completed(&job);
    let of = |rank: &str| {
        let log = cluster.atelier(["job", "stream", &job, "--rank", rank, "-q"]).ok().word();
        log.parse::<u32>().unwrap()
    };
    let mut users = [of("0"), of("1")];
    users.sort_unstable();
    assert!(users[0] == 0 && (300_000..300_256).contains(&users[1]), "{users:?}");
    let fact = |node: &str| {
        let node = cluster.atelier(["node", "show", node, "-o", "json"]).ok().json();
        (node["facts"]["job_users"].clone(), node["facts"]["not_isolated"].clone())
    };
    assert_eq!(fact("some").0, "300000-300255");
    let (users, lacks) = fact("none");
    assert!(users == "none" && lacks.as_str().unwrap().contains("jobs run as root"), "{lacks}");
    let refused = cluster.command().args(["agent", "--job-users", "0-5"]).output().unwrap();
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(2) && told.contains("300000-365535"), "{told}");
}

#[test]
fn a_folder_that_others_may_not_enter_can_hold_an_agents_data() {
    needs("job-users");
    let cluster = Cluster::empty();
    cluster.start_daemon();
    // As below root's home, where it is unless somebody says where.
    let home = tempfile::tempdir_in("/var").unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(home.path().join("secret"), "").unwrap();
    cluster.start_agent(&Agent::new("local").data(&home.path().join("share/agent")));
    let look = format!("id -un; echo kept > outputs/kept.txt; ls -A {}", home.path().display());
    let job = cluster.shell(&look);
    cluster.completed(&job);
    assert_eq!(String::from_utf8(cluster.log(&job)).unwrap(), "job\nshare\n");
}

#[test]
fn what_a_job_leaves_of_its_own_user_goes_with_its_folder() {
    needs("job-users");
    let cluster = Cluster::start();
    let job = cluster.shell("mkdir -m 0 closed; echo x > /tmp/x; chmod 0 /tmp/x; mkdir -p a/b/c");
    cluster.completed(&job);
    let attempts = cluster.agent_data("local").join("attempts");
    until("the attempt's folder is gone", || {
        let left = fs::read_dir(&attempts).unwrap().count();
        (left == 0).then_some(())
    });
    let spares = cluster.agent_data("local").join("spares");
    for spare in fs::read_dir(spares).unwrap() {
        assert_eq!(spare.unwrap().metadata().unwrap().uid(), 0);
    }
}
