//! Bringing the local workspace up: what runs is used, what died is started again.

use std::fs::{self, File, TryLockError};
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use atelier_core::egress::Network;
use atelier_proto::compute::v1::{ListNodesRequest, NodeState};
use atelier_proto::workspace::v1::Workspace;
use tokio::time::{Instant, interval, timeout};

use super::files::{Files, Part};
use crate::cli::{Context, Error, Kind, Output, workspace};
use crate::client::{Client, Home, Wanted};
use crate::process::{Record, Started, spawn, tail};

/// How long daemon and node may each take to be ready.
const READY: Duration = Duration::from_secs(20);
/// How long a daemon that runs may take to answer.
const ANSWER: Duration = Duration::from_secs(3);
/// How long another command that starts or stops the workspace is waited for.
const LOCK: Duration = Duration::from_secs(60);
/// How often a condition is looked at while waiting for it.
const LOOK: Duration = Duration::from_millis(10);
/// Lines of a log shown when its process does not start.
const TAIL: usize = 15;
/// The local node's name; the daemon makes the token `agent.token` for it.
const NODE: &str = "local";

/// The local workspace, up and ready: started as far as it does not run.
///
/// Its nodes may fetch inputs from the networks `allowed`, where any are given; otherwise from those of before.
pub(in crate::cli) async fn running(
    context: &Context,
    allowed: &[Network],
) -> Result<Client, Error> {
    let home = super::home(context)?;
    if let Some((client, workspace)) = alive(&context.wanted).await
        && node_is_ready(&client).await
    {
        let files = Files::new(home);
        keep_address(&client, &files)?;
        must_allow(&files, allowed)?;
        compare_versions(&workspace, &context.output);
        return Ok(client);
    }
    let started = start(context, home, allowed, &context.output).await;
    context.output.settle();
    started
}

/// A daemon that runs knows what it was started with.
fn must_allow(files: &Files, allowed: &[Network]) -> Result<(), Error> {
    let known = Record::read(&files.record(Part::Serve)).map(|record| record.allow_egress);
    let known = known.unwrap_or_default();
    match allowed.iter().find(|network| !known.contains(network)) {
        None => Ok(()),
        Some(network) => {
            let runs =
                format!("the local workspace runs already, without --allow-egress {network}");
            let help =
                "stop it with `atelier local stop`, then start it with all that you want to allow";
            Err(Error::usage(runs).help(help))
        }
    }
}

async fn start(
    context: &Context,
    home: &Home,
    allowed: &[Network],
    output: &Output,
) -> Result<Client, Error> {
    let files = Files::new(home);
    let _lock = lock(&files, output).await?;
    for folder in [home.data(), home.agent(), files.logs().to_owned()] {
        create_private(&folder)?;
    }
    let (client, workspace) = daemon(context, home, &files, allowed, output).await?;
    compare_versions(&workspace, output);
    if !node_is_ready(&client).await {
        agent(&client, home, &files, output).await?;
    }
    Ok(client)
}

/// A folder that only its owner sees, as tokens lie in it.
fn create_private(folder: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| Error::file("create", folder, &error))
}

/// Keeps every other command from starting or stopping the workspace while the file lives.
pub(super) async fn lock(files: &Files, output: &Output) -> Result<File, Error> {
    create_private(files.folder())?;
    let path = files.lock();
    let file = File::create(&path).map_err(|error| Error::file("write", &path, &error))?;
    let mut look = interval(LOOK);
    let held = async {
        loop {
            look.tick().await;
            match file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) => {
                    output.waiting("Another command starts or stops the local workspace");
                }
                Err(TryLockError::Error(error)) => {
                    return Err(Error::file("lock", &path, &error));
                }
            }
        }
    };
    match timeout(LOCK, held).await {
        Ok(result) => result.map(|()| file),
        Err(_) => Err(Error::new(
            Kind::Unreachable,
            format!("another command has held {} for {} s", path.display(), LOCK.as_secs()),
        )
        .help("see what it is with `fuser`, end it, and try again")),
    }
}

/// A client, if the local daemon answers. One that is frozen does not.
pub(super) async fn alive(wanted: &Wanted) -> Option<(Client, Workspace)> {
    let local = Wanted {
        server: None,
        token_file: None,
        token: None,
        ca_file: None,
        sessions: None,
        home: wanted.home.clone(),
        ..Wanted::default()
    };
    let target = local.resolve().ok()?;
    let answered = async {
        let client = Client::connect(target).await.ok()?;
        let workspace = workspace::get(&client).await.ok()?;
        Some((client, workspace))
    };
    timeout(ANSWER, answered).await.ok()?
}

async fn daemon(
    context: &Context,
    home: &Home,
    files: &Files,
    allowed: &[Network],
    output: &Output,
) -> Result<(Client, Workspace), Error> {
    if let Some((client, workspace)) = alive(&context.wanted).await {
        keep_address(&client, files)?;
        must_allow(files, allowed)?;
        return Ok((client, workspace));
    }
    let file = files.record(Part::Serve);
    let before = Record::read(&file);
    let mut began = None;
    // One that is alive is on its way up, or hangs; the wait below tells.
    if !before.as_ref().is_some_and(Record::is_alive) {
        output.waiting("Starting the local workspace");
        // An address file of a daemon that was killed would only mislead.
        match fs::remove_file(home.endpoint()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::file("remove", &home.endpoint(), &error));
            }
            _ => {}
        }
        // Running jobs know the daemon by its address, so it comes back at the one it had.
        let allowed = match (allowed, &before) {
            ([], Some(before)) => before.allow_egress.clone(),
            (given, _) => given.to_vec(),
        };
        let listen = before
            .and_then(|record| free(&record.server))
            .unwrap_or_else(|| "127.0.0.1:0".to_owned());
        let mut arguments: Vec<String> =
            ["serve", "--data-dir", &text(&home.data())?, "--listen", &listen]
                .map(str::to_owned)
                .into();
        arguments.extend(allowed.iter().map(|network| format!("--allow-egress={network}")));
        // Until it tells; what it had stays known if this command is interrupted.
        let server =
            if listen.ends_with(":0") { String::new() } else { format!("http://{listen}") };
        let began_now =
            began.insert(started(Part::Serve, files, &arguments, &home.data(), &server)?);
        if !allowed.is_empty() {
            let file = files.record(Part::Serve);
            began_now.record.allow_egress = allowed;
            let written = began_now.record.write(&file);
            written.map_err(|error| Error::file("write", &file, &error))?;
        }
    }
    let is_ready = async || alive(&context.wanted).await;
    let (client, workspace) = ready(Part::Serve, files, began.as_mut(), is_ready).await?;
    keep_address(&client, files)?;
    Ok((client, workspace))
}

/// Notes where the daemon listens, so that it comes back there. Whoever started it may have been
/// interrupted before it could.
fn keep_address(client: &Client, files: &Files) -> Result<(), Error> {
    let file = files.record(Part::Serve);
    let server = &client.target().server;
    match Record::read(&file) {
        Some(record) if record.is_alive() && &record.server != server => {
            let record = Record { server: server.clone(), ..record };
            record.write(&file).map_err(|error| Error::file("write", &file, &error))
        }
        _ => Ok(()),
    }
}

async fn agent(client: &Client, home: &Home, files: &Files, output: &Output) -> Result<(), Error> {
    let mut began = None;
    // One that is alive has yet to reach the daemon, which may have started just now.
    if !Record::read(&files.record(Part::Agent)).is_some_and(|record| record.is_alive()) {
        output.waiting("Starting the local node");
        let arguments = [
            "agent",
            // Read again at each connection: the daemon may come back at another address.
            "--server-file",
            &text(&home.endpoint())?,
            "--token-file",
            &text(&home.agent_token())?,
            "--node",
            NODE,
            "--data-dir",
            &text(&home.agent())?,
        ]
        .map(str::to_owned);
        // Its jobs are its user's own programs, which lie below a home folder that is closed to others.
        let users = std::env::var("ATELIER_JOB_USERS").unwrap_or_else(|_| "none".to_owned());
        let arguments = arguments.into_iter().chain(["--job-users".to_owned(), users]);
        let arguments: Vec<String> = arguments.collect();
        let server = &client.target().server;
        began = Some(started(Part::Agent, files, &arguments, &home.agent(), server)?);
    }
    let is_ready = async || node_is_ready(client).await.then_some(());
    ready(Part::Agent, files, began.as_mut(), is_ready).await
}

fn started(
    part: Part,
    files: &Files,
    arguments: &[String],
    folder: &Path,
    server: &str,
) -> Result<Started, Error> {
    let program = std::env::current_exe().map_err(|error| {
        Error::new(Kind::Failed, format!("this program cannot find itself: {error}"))
    })?;
    let started = spawn(&program, arguments, folder, &files.log(part), server)
        .map_err(|error| Error::file("start", &program, &error))?;
    let file = files.record(part);
    let written = started.record.write(&file);
    written.map_err(|error| Error::file("write", &file, &error))?;
    Ok(started)
}

/// Waits until `look` finds what it looks for, the process ends, or time is up.
async fn ready<T>(
    part: Part,
    files: &Files,
    mut began: Option<&mut Started>,
    look: impl AsyncFn() -> Option<T>,
) -> Result<T, Error> {
    let begun = Instant::now();
    let mut tick = interval(LOOK);
    let cause = loop {
        tick.tick().await;
        if let Ok(Some(found)) = timeout(READY, look()).await {
            return Ok(found);
        }
        let ended = began.as_mut().and_then(|began| began.child.try_wait().ok().flatten());
        if let Some(status) = ended {
            break format!("the local {} ended at its start: {status}", name(part));
        }
        if begun.elapsed() > READY {
            break format!("the local {} was not ready within {} s", name(part), READY.as_secs());
        }
    };
    let log = files.log(part);
    let last = tail(&log, TAIL, began.map_or(0, |began| began.log_from));
    let shown =
        if last.is_empty() { String::new() } else { format!("; its log ends with\n{last}") };
    Err(Error::new(Kind::Unreachable, cause + &shown)
        .help(format!("see {}; `atelier local stop --force` ends what still runs", log.display())))
}

const fn name(part: Part) -> &'static str {
    match part {
        Part::Serve => "daemon",
        Part::Agent => "node's agent",
    }
}

async fn node_is_ready(client: &Client) -> bool {
    let mut computes = client.computes();
    let nodes = client.call(computes.list_nodes(ListNodesRequest::default())).await;
    nodes.is_ok_and(|nodes| {
        // A drained one is there, too; what waits for it is told so.
        let ready =
            |state| matches!(state, NodeState::Idle | NodeState::Running | NodeState::Leaving);
        nodes.nodes.iter().any(|node| node.name == NODE && ready(node.state()))
    })
}

/// `HOST:PORT` of a server's address, if nothing listens there.
fn free(server: &str) -> Option<String> {
    let (_, address) = server.split_once("://")?;
    TcpListener::bind(address).ok()?;
    Some(address.to_owned())
}

fn text(path: &Path) -> Result<String, Error> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Error::usage(format!("the home folder {} is not UTF-8", path.display()))
            .help("set ATELIER_HOME to one that is")
    })
}

fn compare_versions(workspace: &Workspace, output: &Output) {
    if workspace.version != crate::VERSION {
        output.note(&format!(
            "The local workspace runs version {}, and this command is {}. `atelier local stop` \
             and the next run bring it up to date.",
            workspace.version,
            crate::VERSION
        ));
    }
}
