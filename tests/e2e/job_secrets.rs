//! Secrets in jobs: who may use them, where their values are, and where they never are.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::containers::in_image;
use crate::harness::{Agent, Cluster, Registry, needs, processes_with, supervisor, until};
use crate::secrets::{set, with};

/// What is in memory alone, as nodes keep it there.
fn in_memory(bytes: &[u8]) -> Vec<PathBuf> {
    let folders = ["/run", "/dev/shm"].into_iter().flat_map(|place| fs::read_dir(place).unwrap());
    let folders = folders.flatten().map(|entry| entry.path());
    let ours = |folder: &PathBuf| {
        folder.is_dir() && folder.file_name().unwrap().as_bytes().starts_with(b"atelier-")
    };
    folders.filter(ours).flat_map(|folder| with(&folder, bytes)).collect()
}

fn attempt_folder(cluster: &Cluster, job: &str) -> PathBuf {
    let attempts = cluster.agent_data("local").join("attempts");
    let of_job = |folder: &PathBuf| {
        let assignment = fs::read(folder.join("assignment.pb")).unwrap_or_default();
        assignment.windows(job.len()).any(|part| part == job.as_bytes())
    };
    let all = fs::read_dir(attempts).unwrap().flatten().map(|entry| entry.path());
    all.filter(|path| path.is_dir()).find(of_job).unwrap()
}

/// Prints what it is given in every way, and waits.
const TELL: &str = r#"
echo "whole: $TOKEN"
printf 'parts: %s' "$(printf %s "$TOKEN" | cut -c 1-9)"; sleep 0.2; printf '%s\n' "$(printf %s "$TOKEN" | cut -c 10-)"
env | grep -E '^(TOKEN|KEY)='
echo "url: https://u:$(printf %s "$TOKEN" | sed 's,/,%2F,')@host/" >&2
cat "$KEY"
stat -c 'mode: %a' "$KEY"
echo "pin: $PIN"
printf %s "$TOKEN" | sha256sum > "$TOLD/token"; sha256sum < "$KEY" > "$TOLD/key"
touch "$TOLD/ready"
until test -e "$TOLD/go"; do sleep 0.05; done
echo "still: $TOKEN"
"#;

/// Looks for what is not its own, and says that it found what is.
const LOOK: &str = r#"
cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' '\n'
find /dev/shm /run "$AGENT" -type f -exec cat {} + 2>/dev/null
true
"#;

fn sum(value: &str) -> String {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let mut sum =
        Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    sum.stdin.take().unwrap().write_all(value.as_bytes()).unwrap();
    String::from_utf8(sum.wait_with_output().unwrap().stdout).unwrap()
}

fn yaml(command: &str, more: &str) -> String {
    let block: String = command.lines().map(|line| format!("  {line}\n")).collect();
    format!("command: |\n{block}{more}")
}

struct Canary {
    token: String,
    key: String,
}

impl Canary {
    fn new(name: &str) -> Self {
        Self {
            token: format!("canary/{name}-7Qm2vXw9ZpLr4KtB"),
            key: format!(
                "-----BEGIN {name}-----\nZp4KtB7Qm2vXw9Zp{name}Lr4KtB\n-----END {name}-----\n"
            ),
        }
    }

    fn set(&self, cluster: &Cluster) {
        set(cluster, "token", &self.token);
        set(cluster, "key", &self.key);
        set(cluster, "pin", "0417");
    }

    /// Parts of which none may be found.
    fn parts(&self) -> Vec<String> {
        let line = self.key.lines().nth(1).unwrap().to_owned();
        vec![self.token.clone(), self.token.replace('/', "%2F"), self.token[10..].to_owned(), line]
    }

    #[track_caller]
    fn is_nowhere_below(&self, folder: &Path) {
        for part in self.parts() {
            assert_eq!(with(folder, part.as_bytes()), Vec::<PathBuf>::new(), "{part}");
        }
    }

    fn variables(told: &Path) -> String {
        format!(
            "environment_variables:\n  TOKEN: azureml:secrets/token\n  KEY: azureml:secrets/key?as=file\n  \
             PIN: azureml:secrets/pin@latest\n  TOLD: {}\n",
            told.display()
        )
    }
}

/// What a job that ran [`TELL`] left in its log.
#[track_caller]
fn is_redacted(log: &str) {
    for line in ["whole: ***", "parts: ***", "TOKEN=***", "url: https://u:***@host/", "still: ***"]
    {
        assert!(log.lines().any(|found| found == line), "{line}\n{log}");
    }
    assert!(log.contains("mode: 400") && log.contains("pin: 0417"), "{log}");
    assert!(log.contains("[atelier] the secret in PIN has fewer than 6 bytes"), "{log}");
}

/// A job that fails leaves something to look into, and nothing of its secrets.
#[track_caller]
fn what_is_kept_has_no_secret(cluster: &Cluster, yaml: &str) {
    let job = cluster.create(yaml);
    assert_eq!(cluster.ended(&job).exit_code, Some(3));
    let look = "echo \"token: $TOKEN.\"; cat \"$KEY\" || echo gone";
    let told = cluster.atelier(["job", "debug", &job, "--", "sh", "-c", look]).ok().stdout();
    assert_eq!(told, "token: .\ngone\n");
}

#[test]
fn a_secret_is_in_its_jobs_processes_and_nowhere_else() {
    let canary = Canary::new("host");
    let cluster = Cluster::empty();
    cluster.settings.borrow_mut().variables = vec![("ATELIER_LOG".to_owned(), "trace".to_owned())];
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local").cpus(4).variable("ATELIER_LOG", "trace"));
    canary.set(&cluster);
    let told = cluster.shared_folder("told");
    let job = cluster.create(&yaml(TELL, &Canary::variables(&told)));
    until("the job has told", || told.join("ready").exists().then_some(()));
    let other = cluster.create(&format!("command: env; touch {}/looked\n", told.display()));
    cluster.completed(&other);
    assert_eq!(fs::read_to_string(told.join("token")).unwrap(), sum(&canary.token));
    assert_eq!(fs::read_to_string(told.join("key")).unwrap(), sum(&canary.key));

    let holders = processes_with(&canary.token);
    assert!(!holders.is_empty());
    let own = supervisor(&attempt_folder(&cluster, &job));
    for pid in &holders {
        let read =
            |name: &str| fs::read(format!("/proc/{}/{name}", pid.as_raw_pid())).unwrap_or_default();
        let environment = String::from_utf8_lossy(&read("environ")).into_owned();
        let mark = format!("ATELIER_JOB={job}\0");
        assert!(environment.is_empty() || environment.contains(&mark), "{environment}");
        assert!(!String::from_utf8_lossy(&read("cmdline")).contains(&canary.token));
        assert_ne!(*pid, own);
    }
    canary.is_nowhere_below(cluster.path());
    assert!(!in_memory(canary.token.as_bytes()).is_empty(), "the search finds what is there");

    fs::write(told.join("go"), "").unwrap();
    cluster.completed(&job);
    is_redacted(&String::from_utf8(cluster.log(&job)).unwrap());
    let words: Vec<String> = canary.parts();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    for arguments in [
        ["job", "show", &job],
        ["job", "events", &job],
        ["job", "stream", &job],
        ["job", "stream", &other],
        ["secret", "show", "token"],
    ] {
        cluster.atelier(arguments).ok().never_says(&words);
    }
    let shown = cluster.atelier(["job", "show", &job, "-o", "json"]).ok().never_says(&words);
    assert_eq!(shown.json()["environment_variables"]["TOKEN"], "azureml:secrets/token:1");
    let used = ["secret", "show", "token", "--query", "used_by[].[job, version, user]"];
    assert_eq!(cluster.atelier(used).ok().json(), json!([[job, 1, "admin"]]));
    cluster.agent("local", |agent| agent.stop());
    cluster.daemon(|daemon| daemon.stop());
    canary.is_nowhere_below(cluster.path());
    assert_eq!(in_memory(canary.token.as_bytes()), Vec::<PathBuf>::new());
}

/// Also where both run as the agent's user.
#[test]
fn another_job_does_not_see_a_secret() {
    needs("isolation");
    let canary = Canary::new("apart");
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local").cpus(4).with("--job-users=none"));
    canary.set(&cluster);
    let told = cluster.shared_folder("told");
    let job = cluster.create(&yaml(TELL, &Canary::variables(&told)));
    until("the job has told", || told.join("ready").exists().then_some(()));
    let agent = cluster.agent_data("local");
    let variables =
        format!("environment_variables: {{AGENT: {}, OWN: of-this}}\n", agent.display());
    let other = cluster.create(&yaml(LOOK, &variables));
    cluster.completed(&other);
    let seen = String::from_utf8(cluster.log(&other)).unwrap();
    assert!(seen.contains("OWN=of-this"), "the search finds what is there: {seen}");
    assert!(canary.parts().iter().all(|part| !seen.contains(part)), "{seen}");
    fs::write(told.join("go"), "").unwrap();
    cluster.completed(&job);
}

#[test]
fn a_job_keeps_its_secrets_when_its_agent_is_killed_and_has_them_again_when_it_is_retried() {
    let canary = Canary::new("kill");
    let cluster = Cluster::start();
    canary.set(&cluster);
    let told = cluster.shared_folder("told");
    let command = format!("{TELL}\ntest \"$ATELIER_ATTEMPT\" = 2\n");
    let more =
        Canary::variables(&told) + "retry: {max_attempts: 2, backoff: 0}\nkeep_failed: 10m\n";
    let job = cluster.create(&yaml(&command, &more));
    until("the job has told", || told.join("ready").exists().then_some(()));
    cluster.agent("local", |agent| agent.kill());
    cluster.start_agent(&Agent::new("local"));
    // Whoever may enter the job has what the job has, also from an agent that never had it.
    let look = ["job", "exec", &job, "--", "sh", "-c", "printf %s \"$TOKEN\"; cat \"$KEY\""];
    assert_eq!(cluster.atelier(look).ok().stdout(), format!("{}{}", canary.token, canary.key));
    cluster.atelier(["vault", "rotate", "--data-keys"]).ok();
    fs::remove_file(told.join("token")).unwrap();
    fs::write(told.join("go"), "").unwrap();
    cluster.completed(&job);
    assert_eq!(fs::read_to_string(told.join("token")).unwrap(), sum(&canary.token));
    is_redacted(&String::from_utf8(cluster.log(&job)).unwrap());
    let more = Canary::variables(&told) + "keep_failed: 10m\n";
    what_is_kept_has_no_secret(&cluster, &yaml("cat \"$KEY\"; exit 3", &more));
    canary.is_nowhere_below(cluster.path());
    assert_eq!(in_memory(canary.token.as_bytes()), Vec::<PathBuf>::new());
}

#[test]
fn leave_to_use_a_secret_is_given_and_taken_back() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.role("keeper", &crate::secrets::SETS_SECRETS);
    let ana = cluster.token_for("ana", "keeper");
    let ben = cluster.token_for("ben", "keeper");
    let server = cluster.server();
    let by = |token: &str, words: &[&str]| {
        cluster.atelier_at(&server, words).env("ATELIER_TOKEN", token)
    };
    by(&ana, &["secret", "set", "hers"]).stdin("value of ana's").ok();
    by(&ana, &["secret", "set", "gone"]).stdin("value that goes").ok();
    let told = cluster.shared_folder("told");
    let job = |secret: &str| {
        let command = "printf %s \"$A\" > \"$TOLD/$ATELIER_JOB\"";
        let told = told.display();
        format!(
            "command: |\n  {command}\nenvironment_variables: {{A: 'azureml:secrets/{secret}', TOLD: {told}}}\n"
        )
    };
    let submit = ["job", "create", "-f", "-", "--query", "name", "-o", "tsv"];
    let refused = ["ben", "hers", "ana's", "atelier secret grant hers --user ben"];
    by(&ben, &submit).stdin(job("hers")).fails(5).says(&refused);
    by(&ben, &["job", "create", "-f", "-", "--dry-run"]).stdin(job("hers")).fails(5).says(&refused);
    by(&ben, &submit).stdin(job("none")).fails(3).says(&["environment_variables.A", "none"]);
    by(&ana, &submit).stdin(job("hers:7")).fails(3).says(&["hers", "no version 7"]);
    by(&ben, &["secret", "grant", "hers", "--user", "ben"]).fails(5).says(&["ana's"]);
    by(&ana, &["secret", "grant", "hers"]).fails(2).says(&["--user", "--everyone"]);
    by(&ana, &["secret", "revoke", "hers", "--user", "ben"]).fails(3).says(&["not granted to ben"]);

    by(&ana, &["secret", "grant", "hers", "--user", "ben"]).ok();
    by(&ana, &["secret", "grant", "gone", "--everyone"]).ok();
    let listed = cluster.atelier(["secret", "list", "--query", "[].[name, granted_to]"]).ok();
    assert_eq!(listed.json(), json!([["gone", ["*"]], ["hers", ["ben"]]]));
    let taken_back = by(&ben, &submit).stdin(job("hers")).ok().word();
    let deleted = by(&ben, &submit).stdin(job("gone")).ok().word();
    let pinned = by(&ana, &submit).stdin(job("hers")).ok().word();
    by(&ana, &["secret", "revoke", "hers", "--user", "ben"]).ok();
    by(&ana, &["secret", "delete", "gone", "--yes"]).ok();
    by(&ana, &["secret", "set", "hers"]).stdin("another value").ok();
    cluster.atelier(["vault", "rotate", "--data-keys"]).ok();
    cluster.start_agent(&Agent::new("local"));

    let why = |job: &str| {
        let ended = cluster.ended(job);
        format!(
            "{:?} {}",
            ended.status(),
            ended.error.map(|error| error.message).unwrap_or_default()
        )
    };
    let said = why(&taken_back);
    assert!(said.starts_with("Failed") && refused.iter().all(|word| said.contains(word)), "{said}");
    let said = why(&deleted);
    assert!(said.starts_with("Failed") && said.contains("no secret 'gone'"), "{said}");
    cluster.completed(&pinned);
    assert_eq!(fs::read_to_string(told.join(&pinned)).unwrap(), "value of ana's");
    let newest = by(&ana, &submit).stdin(job("hers@latest")).ok().word();
    cluster.completed(&newest);
    assert_eq!(fs::read_to_string(told.join(&newest)).unwrap(), "another value");
    // Another of the name is not granted to those of the one before.
    by(&ana, &["secret", "set", "gone"]).stdin("again").ok();
    by(&ben, &submit).stdin(job("gone")).fails(5);
    // An admin always may.
    let admins = cluster.create(&job("hers"));
    cluster.completed(&admins);
}

#[test]
fn a_secret_that_is_no_text_is_a_file() {
    let cluster = Cluster::start();
    let value = [0, 159, 146, 150, 0, 1, 2, 3];
    cluster.write("value", value);
    cluster.atelier(["secret", "set", "raw", "--value-file", "value"]).ok();
    let job = cluster.create("command: echo no\nenvironment_variables: {A: azureml:secrets/raw}\n");
    let said = cluster.ended(&job).error.unwrap().message;
    assert!(said.contains("secret 'raw' is no text") && said.contains("?as=file"), "{said}");
    let command = "od -An -tu1 \"$A\"; cat \"$A\"";
    let job = cluster
        .create(&yaml(command, "environment_variables: {A: 'azureml:secrets/raw?as=file'}\n"));
    cluster.completed(&job);
    assert_eq!(
        String::from_utf8(cluster.log(&job)).unwrap().trim(),
        "0 159 146 150   0   1   2   3\n***"
    );
}

#[test]
fn a_secret_in_a_container_is_in_no_record_of_its_runtime() {
    needs("containers");
    let canary = Canary::new("podman");
    let registry = Registry::start();
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&registry.agent("local"));
    canary.set(&cluster);
    let told = cluster.shared_folder("told");
    let command = format!("{TELL}\ntest \"$ATELIER_ATTEMPT\" = 2\n");
    let more = Canary::variables(&told) + "keep_failed: 10m\n";
    let retried = format!("{more}retry: {{max_attempts: 2, backoff: 0}}\n");
    let job = cluster.create(&in_image(&registry.shell(), &command, &retried));
    until("the job has told", || told.join("ready").exists().then_some(()));
    assert_eq!(fs::read_to_string(told.join("token")).unwrap(), sum(&canary.token));
    assert_eq!(fs::read_to_string(told.join("key")).unwrap(), sum(&canary.key));
    for pid in processes_with(&canary.token) {
        let command = fs::read(format!("/proc/{}/cmdline", pid.as_raw_pid())).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&command).contains(&canary.token));
    }
    canary.is_nowhere_below(cluster.path());
    let look = ["job", "exec", &job, "--", "sh", "-c", "printf %s \"$TOKEN\"; cat \"$KEY\""];
    assert_eq!(cluster.atelier(look).ok().stdout(), format!("{}{}", canary.token, canary.key));
    fs::write(told.join("go"), "").unwrap();
    cluster.completed(&job);
    let failing = in_image(&registry.shell(), "cat \"$KEY\"; exit 3", &more);
    what_is_kept_has_no_secret(&cluster, &failing);
    is_redacted(&String::from_utf8(cluster.log(&job)).unwrap());
    canary.is_nowhere_below(cluster.path());
    assert_eq!(in_memory(canary.token.as_bytes()), Vec::<PathBuf>::new());
}

#[test]
fn every_member_of_a_job_has_its_secrets() {
    let canary = Canary::new("gang");
    let cluster = Cluster::empty();
    cluster.start_daemon();
    for name in ["a", "b"] {
        cluster.start_agent(&Agent::new(name));
    }
    canary.set(&cluster);
    let told = cluster.shared_folder("told");
    let command = "echo \"$AZUREML_CR_NODE_RANK has $TOKEN\"; cat \"$KEY\"\n\
                   printf %s \"$TOKEN\" | sha256sum > \"$TOLD/$AZUREML_CR_NODE_RANK\"";
    let more = Canary::variables(&told) + "resources: {instance_count: 2}\n";
    let job = cluster.create(&yaml(command, &more));
    cluster.completed(&job);
    for rank in ["0", "1"] {
        assert_eq!(fs::read_to_string(told.join(rank)).unwrap(), sum(&canary.token));
        let log = cluster.atelier(["job", "stream", &job, "--rank", rank, "-q"]).run().stdout();
        assert!(log.contains(&format!("{rank} has ***")), "{log}");
    }
    canary.is_nowhere_below(cluster.path());
}
