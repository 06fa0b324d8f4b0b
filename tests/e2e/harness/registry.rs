//! A registry of container images on this machine, and a place for a node's images that is its own.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::cluster::{Agent, answers};
use super::process::Process;
use super::wait::until;

/// Programs of the images: all of busybox.
const PROGRAMS: [&str; 21] = [
    "awk", "cat", "chmod", "chown", "echo", "env", "grep", "head", "id", "kill", "ls", "mkdir",
    "mount", "ps", "seq", "sh", "sleep", "stat", "touch", "tr", "umount",
];

/// Copies Debian's Python and what it and an installer need of this machine's files.
const COPY_PYTHON: &str = r#"
set -eu
python=$(readlink -f /usr/bin/python3)
libraries() { ldd "$@" 2>/dev/null | grep -v ':$' | grep -o '/[^ ]*'; }
library=/usr/lib/${python##*/}
for file in $(libraries "$python" "$library"/lib-dynload/*.so | sort -u) \
  /lib/*/libgcc_s.so.1 /lib/*/librt.so.1 /lib/*/libdl.so.2 /lib/*/libpthread.so.0; do
  below=${file#/usr}
  mkdir -p "$1/usr${below%/*}"
  cp -L "$file" "$1/usr${below%/*}/"
done
cp "$python" "$1/usr/bin/"
ln -s "${python##*/}" "$1/usr/bin/python3"
cp -r "$library" "$1/usr/lib/"
mv "$1"/bin/* "$1/usr/bin/"
rmdir "$1/bin"
for name in bin lib lib64; do ln -s usr/$name "$1/$name"; done
"#;

/// A running registry. Dropping it ends it, and what the node left running.
pub(crate) struct Registry {
    folder: TempDir,
    address: String,
    /// `None` while it is away.
    process: Option<Process>,
}

impl Registry {
    /// One with the image [`Registry::shell`].
    pub(crate) fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("atelier-registry-").tempdir().unwrap();
        let port = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port()
        };
        let (address, path) = (format!("127.0.0.1:{port}"), folder.path());
        let configuration = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: \
             {{addr: {address}}}\n",
            path.join("registry").display()
        );
        fs::write(path.join("registry.yml"), configuration).unwrap();
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n",
            path.join("images").display(),
            path.join("running").display()
        );
        fs::write(path.join("storage.conf"), storage).unwrap();
        let mut registry = Self { folder, address, process: None };
        registry.come_back();
        registry.push_shell();
        registry
    }

    /// Nobody listens at its address any more.
    pub(crate) fn go_away(&mut self) {
        self.process = None;
    }

    /// With all that was pushed to it.
    pub(crate) fn come_back(&mut self) {
        let path = self.folder.path();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(path.join("registry.yml"));
        self.process = Some(Process::spawn("the registry", command, &path.join("registry.log")));
        until("the registry answers", || answers(&self.address, "/v2/").then_some(()));
    }

    /// The name of an image of this registry.
    pub(crate) fn name(&self, image: &str) -> String {
        format!("{}/{image}", self.address)
    }

    /// An image of a shell and little else.
    pub(crate) fn shell(&self) -> String {
        self.name("team/shell:1")
    }

    /// Makes an image of the same and Debian's Python; its name.
    #[track_caller]
    pub(crate) fn python(&self) -> String {
        let root = self.folder.path().join("python");
        make_shell(&root);
        for folder in ["usr/bin", "usr/lib", "usr/lib64", "tmp"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        let arguments = ["-c", COPY_PYTHON, "sh"];
        let status = Command::new("sh").args(arguments).arg(&root).status().unwrap();
        assert!(status.success(), "there is no Python of Debian's here: apt-get install python3");
        let name = self.name("team/python:3");
        self.push(&name, &root);
        name
    }

    /// What that image was made of.
    pub(crate) fn shell_root(&self) -> PathBuf {
        self.folder.path().join("shell")
    }

    /// Where the node's images and containers lie.
    pub(crate) fn images(&self) -> PathBuf {
        self.folder.path().join("images")
    }

    /// Where a node's runtime finds its folders.
    pub(crate) fn variable(&self) -> (&'static str, String) {
        ("CONTAINERS_STORAGE_CONF", self.folder.path().join("storage.conf").display().to_string())
    }

    /// An agent that runs images by podman, below this registry's folder.
    pub(crate) fn agent(&self, name: &str) -> Agent {
        let (variable, value) = self.variable();
        Agent::new(name).with("--containers=podman").variable(variable, &value)
    }

    /// Runs podman as the node does; what it prints.
    #[track_caller]
    pub(crate) fn podman(&self, arguments: &[&str]) -> String {
        self.try_podman(arguments).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same, or why it failed: an image that is removed meanwhile cannot be listed.
    pub(crate) fn try_podman(&self, arguments: &[&str]) -> Result<String, String> {
        let (variable, value) = self.variable();
        let output = Command::new("podman").args(arguments).env(variable, value).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        let is_done = output.status.success();
        is_done.then_some(text).ok_or_else(|| format!("podman {}: {errors}", arguments.join(" ")))
    }

    /// Makes an image of a folder and pushes it; its digest. No copy stays on the node.
    #[track_caller]
    pub(crate) fn push(&self, name: &str, root: &Path) -> String {
        let archive = self.folder.path().join("image.tar");
        let status =
            Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(root).arg(".").status();
        assert!(status.unwrap().success());
        let archive = archive.display().to_string();
        let variables = ["--change", "ENV PATH=/bin:/tools", "--change", "ENV OF_THE_IMAGE=yes"];
        self.podman(&[&["import"], &variables[..], &[&archive, name]].concat());
        let digest_file = self.folder.path().join("digest");
        let digest = digest_file.display().to_string();
        self.podman(&["push", "--tls-verify=false", "--digestfile", &digest, name]);
        self.podman(&["rmi", "--force", name]);
        fs::read_to_string(digest_file).unwrap().trim().to_owned()
    }

    fn push_shell(&self) {
        let root = self.shell_root();
        make_shell(&root);
        self.push(&self.shell(), &root);
    }

    /// Starts an engine that docker's own program can talk to: podman's, with the images of this folder. It has
    /// [`Engine::IMAGE`].
    pub(crate) fn engine(&self) -> Engine {
        self.podman(&["pull", "--quiet", "--tls-verify=false", &self.shell()]);
        self.podman(&["tag", &self.shell(), Engine::IMAGE]);
        let socket = self.folder.path().join("engine.sock");
        let address = format!("unix://{}", socket.display());
        let mut command = Command::new("podman");
        let (variable, value) = self.variable();
        command.args(["system", "service", "--time=0", &address]).env(variable, value);
        let log = self.folder.path().join("engine.log");
        let process = Process::spawn("the engine", command, &log);
        until("the engine listens", || socket.exists().then_some(()));
        Engine { address, _process: process }
    }

    /// The names of the node's containers that run.
    pub(crate) fn running(&self) -> String {
        self.podman(&["ps", "--format={{.Names}}"])
    }

    /// The names of the node's containers, running or not.
    pub(crate) fn containers(&self) -> String {
        self.podman(&["ps", "--all", "--format={{.Names}}"])
    }
}

/// An engine for docker's program. Dropping it ends it.
pub(crate) struct Engine {
    address: String,
    _process: Process,
}

impl Engine {
    /// Of a shell and little else, as in [`Registry::shell`].
    pub(crate) const IMAGE: &str = "localhost/team/shell:1";

    /// A job's `resources`, with limits that every machine lets an engine set: podman's own are too high for some.
    pub(crate) const RESOURCES: &str =
        "resources: {docker_args: --ulimit nofile=1024:1024 --ulimit nproc=1024:1024}\n";

    /// An agent that runs images by docker.
    pub(crate) fn agent(&self, name: &str) -> Agent {
        Agent::new(name).with("--containers=docker").variable("DOCKER_HOST", &self.address)
    }
}

fn make_shell(root: &Path) {
    for folder in ["bin", "etc"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for program in PROGRAMS {
        symlink("busybox", root.join("bin").join(program)).unwrap();
    }
    fs::write(root.join("etc/of-the-image"), "").unwrap();
}

impl Drop for Registry {
    fn drop(&mut self) {
        let (variable, value) = self.variable();
        for arguments in [["rm", "--all", "--force", "--time=0"].as_slice(), &["umount", "--all"]] {
            let _ = Command::new("podman").args(arguments).env(variable, &value).output();
        }
        // Podman mounts its folder of layers on itself.
        let _ = Command::new("umount").arg(self.folder.path().join("images/overlay")).output();
    }
}
