//! What the code of a package can do while it is built for a job's environment.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::harness::{Agent, Cluster, needs, processes_with, until};

/// A build backend that needs no other package, and looks around when it is asked for a wheel.
const BACKEND: &str = r#"
import base64, glob, hashlib, json, os, socket, subprocess, zipfile

def tried(act):
    try:
        return act()
    except Exception as error:
        return type(error).__name__

def write(path):
    with open(path, 'w') as file:
        file.write('was here')
    return 'written'

def connect(address):
    socket.create_connection(address, 2).close()
    return 'connected'

def look():
    none = subprocess.DEVNULL
    subprocess.Popen(['setsid', 'sh', '-c', 'sleep 600 # MARK'], stdout=none, stderr=none)
    packages = glob.glob('AGENT/environments/.uv-cache/**/six.py', recursive=True)
    environments = glob.glob('AGENT/environments/*/lib/*/site-packages/six.py')
    here = [path for path in glob.glob('AGENT/environments/.building/*/lib/*/site-packages/six.py')]
    return {
        'user': os.getuid(),
        'secret': tried(lambda: open('/etc/shadow').read()),
        'etc': tried(lambda: write('/etc/a-build-was-here')),
        'agent': sorted(os.listdir('AGENT')),
        'daemon': tried(lambda: os.listdir('DAEMON')),
        'packages': packages,
        'environments': environments,
        'here': [tried(lambda: write(path)) for path in here],
        'metadata': tried(lambda: connect(('169.254.169.254', 80))),
        'before': open('/tmp/tried').read() if os.path.exists('/tmp/tried') else 'not asked',
        'processes': len([name for name in os.listdir('/proc') if name.isdigit()]),
    }

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    # What is run in the environment afterwards would be run by what fetches for others.
    here = glob.glob('AGENT/environments/.building/*/pyvenv.cfg')
    if not os.path.exists('/tmp/tried'):
        with open('/tmp/tried', 'w') as file:
            file.write(','.join(tried(lambda: write(path)) for path in here))
    folder = 'looks-1.0.dist-info'
    os.mkdir(os.path.join(metadata_directory, folder))
    with open(os.path.join(metadata_directory, folder, 'METADATA'), 'w') as file:
        file.write('Metadata-Version: 2.1\nName: looks\nVersion: 1.0\n')
    return folder

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    report = 'REPORT = ' + repr(json.dumps(look())) + '\n'
    files = {
        'looks.py': report,
        'looks-1.0.dist-info/METADATA': 'Metadata-Version: 2.1\nName: looks\nVersion: 1.0\n',
        'looks-1.0.dist-info/WHEEL': 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n',
    }
    lines = []
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()
        lines.append(f'{name},sha256={digest},{len(text)}')
    files['looks-1.0.dist-info/RECORD'] = '\n'.join(lines + ['looks-1.0.dist-info/RECORD,,']) + '\n'
    name = 'looks-1.0-py3-none-any.whl'
    with zipfile.ZipFile(os.path.join(wheel_directory, name), 'w') as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return name
"#;
const PROJECT: &str = "[project]\nname = \"looks\"\ndynamic = [\"version\"]\n[build-system]\nrequires = []\n\
                       build-backend = \"backend\"\nbackend-path = [\".\"]\n";

/// Serves one file to whoever asks; its address.
fn serve(bytes: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let bytes: Arc<[u8]> = bytes.into();
    std::thread::spawn(move || {
        // One that says nothing must not keep others waiting.
        for stream in listener.incoming().map_while(Result::ok) {
            let bytes = bytes.clone();
            std::thread::spawn(move || answer(stream, &bytes));
        }
    });
    format!("http://{address}")
}

fn answer(mut stream: TcpStream, bytes: &[u8]) {
    let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let asked: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let Some(first) = asked.first() else { return };
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", bytes.len());
    let body = if first.starts_with("HEAD") { &[] } else { bytes };
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}

fn package(cluster: &Cluster, mark: &str) -> String {
    let backend = BACKEND
        .replace("MARK", mark)
        .replace("AGENT", cluster.agent_data("local").to_str().unwrap())
        .replace("DAEMON", cluster.data().to_str().unwrap());
    cluster.write("looks-1.0/backend.py", backend);
    cluster.write("looks-1.0/pyproject.toml", PROJECT);
    let folder = cluster.files();
    let mut tar = Command::new("tar");
    let made = tar.arg("-C").arg(&folder).args(["-czf", "looks.tar.gz", "looks-1.0"]);
    assert!(made.current_dir(&folder).status().unwrap().success());
    serve(fs::read(folder.join("looks.tar.gz")).unwrap())
}

/// What a command in an environment of these packages prints.
fn prints(cluster: &Cluster, packages: &[&str], program: &str) -> Value {
    let list = json!(packages);
    let job = cluster.create(&format!(
        "command: |\n  python -c '{program}'\nenvironment: {{conda_file: {{dependencies: [python, \
         {{pip: {list}}}]}}}}\n"
    ));
    cluster.completed(&job);
    let log = String::from_utf8(cluster.log(&job)).unwrap();
    let line = log.lines().last().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {log}"))
}

fn is_clean(folder: &Path) -> bool {
    fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none())
}

#[test]
fn the_code_of_a_package_is_held_as_a_job_is_while_it_is_built() {
    needs("isolation");
    let cluster = Cluster::start();
    let mark = format!("left by a build of {}", cluster.path().display());
    let url = package(&cluster, &mark);
    let six = "six==1.16.0";
    let tells = "import json, os; from importlib.util import find_spec; path = find_spec(\"six\").origin; \
                 print(json.dumps([path, os.stat(path).st_nlink]))";
    // Nothing to build: what is fetched is kept for others.
    let first = prints(&cluster, &[six], tells);
    assert!(first[1].as_u64().unwrap() > 1, "{first}");

    let url = format!("looks @ {url}/looks-1.0.tar.gz");
    // Of another package the index has only the source.
    let packages = [six, "docopt==0.6.2", &url];
    let seen = prints(&cluster, &packages, "import docopt, looks; print(looks.REPORT)");
    let none = json!([]);
    assert_eq!(seen["etc"], json!("OSError"), "{seen}");
    let shown = ["builds", "environments"];
    assert_eq!(seen["agent"], json!(shown), "{seen}");
    assert!(
        ["FileNotFoundError", "[]"].contains(&seen["daemon"].to_string().trim_matches('"')),
        "{seen}"
    );
    assert_eq!(seen["before"], json!("OSError"), "{seen}");
    assert_eq!((&seen["packages"], &seen["environments"]), (&none, &none), "{seen}");
    let facts =
        cluster.atelier(["node", "show", "local", "--query", "facts", "-o", "json"]).ok().json();
    if facts["job_users"] != "none" {
        assert!(seen["user"].as_u64().unwrap() >= 0x7000_0000, "{seen}");
        assert_eq!(seen["secret"], json!("PermissionError"), "{seen}");
    }
    if facts["closed"].is_string() {
        assert_eq!(seen["metadata"], json!("PermissionError"), "{seen}");
    }
    until("what the build left is dead", || processes_with(&mark).is_empty().then_some(()));

    // What it could write is its own environment's, and that is nobody's to write any more.
    assert_eq!(seen["here"], json!(["written"]), "{seen}");
    let second = prints(&cluster, &packages, tells);
    assert_eq!(second[1], json!(1), "{second}");
    let file = |told: &Value| fs::metadata(told[0].as_str().unwrap()).unwrap();
    assert!(file(&first).len() > 1000 && file(&first).mode() & 0o022 == 0, "{first}");
    assert!(file(&second).len() < 1000 && file(&second).mode() & 0o022 == 0, "{second}");
    let root = cluster.agent_data("local");
    until("nothing is left of the builds", || {
        let both = [root.join("builds"), root.join("environments/.building")];
        both.iter().all(|folder| is_clean(folder)).then_some(())
    });
}

#[test]
fn a_node_that_isolates_nobody_builds_packages_all_the_same() {
    let cluster = Cluster::empty();
    cluster.start_daemon();
    cluster.start_agent(&Agent::new("local").with("--isolation=none"));
    let mark = format!("left by a build of {}", cluster.path().display());
    let url = format!("looks @ {}/looks-1.0.tar.gz", package(&cluster, &mark));
    let seen = prints(&cluster, &[&url], "import looks; print(looks.REPORT)");
    assert!(seen["agent"].as_array().unwrap().contains(&json!("attempts")), "{seen}");
    until("what the build left is dead", || processes_with(&mark).is_empty().then_some(()));
}
