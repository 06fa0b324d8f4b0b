"""See `data`."""

import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

atelier, tools = sys.argv[1], Path(sys.argv[2])
size, files = int(os.environ.get("BYTES", 4 << 30)), int(os.environ.get("FILES", 50_000))
rounds = int(os.environ.get("ROUNDS", 3))
# The tools in Python are the slowest by far; without them a run of the amounts above takes an hour less.
beside = os.environ.get("PEERS", "rclone s5cmd azcopy aws az").split()
wanted = sys.argv[3:] or ["mounts", "moto", "azurite"]
key, secret = "AKIABENCHBENCHBENCH1", "bench-secret"
work = Path(tempfile.mkdtemp(prefix="atelier-data-"))
servers = []
env = dict(
    os.environ, AWS_ACCESS_KEY_ID=key, AWS_SECRET_ACCESS_KEY=secret, AWS_DEFAULT_REGION="us-east-1",
    AWS_REGION="us-east-1", ATELIER_LOG="warn", ATELIER_HOME=str(work / "home"),
)
# Not all of them take one with their own means.
env.pop("AWS_CA_BUNDLE", None)


def start(name, *words, **more):
    log = open(work / f"{name}.log", "w")
    servers.append(subprocess.Popen(words, stdout=log, stderr=log, env={**env, **more}))


def port():
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait(what, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := what():
                return found
        except (OSError, subprocess.CalledProcessError):
            pass
        time.sleep(0.05)
    sys.exit("data: waited in vain; see " + str(work))


def run(*words, given=None):
    done = subprocess.run(words, env=env, input=given, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"data: {' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def settle():
    """What was written before is on the disk, so that nobody waits for what another one has written."""
    os.sync()


def seconds(*words):
    settle()
    began = time.perf_counter()
    run(*words)
    return time.perf_counter() - began


def fresh(name, aside=itertools.count()):
    """A new folder of this name. What was there is put aside, its large files emptied: ext4 without a journal steps
    over each inode that was freed in the last minutes, and so would whoever makes files next."""
    folder = work / name
    if folder.exists():
        for file in folder.rglob("*"):
            if file.is_file() and file.stat().st_size > 1 << 20:
                os.truncate(file, 0)
        folder.rename(work / f"before-{next(aside)}")
    folder.mkdir()
    return folder


def server(program):
    at, folder = port(), str(fresh(program))
    if program == "moto":
        start(program, str(tools / "moto/bin/moto_server"), "-H", "127.0.0.1", "-p", str(at), TMPDIR=folder)
    else:
        start(program, str(tools / "s3s/bin/s3s-fs"), "--host", "127.0.0.1", "--port", str(at), "--access-key", key,
              "--secret-key", secret, folder)
    url = f"http://127.0.0.1:{at}"
    wait(lambda: subprocess.run([*s5cmd(url), "mb", "s3://bench"], env=env, capture_output=True).returncode == 0)
    return url


def s5cmd(url):
    return [str(tools / "peers/bin/s5cmd"), "--endpoint-url", url]


def workspace():
    data = work / "data"
    start("daemon", atelier, "serve", "--listen", "127.0.0.1:0", "--data-dir", str(data))
    endpoint = wait(lambda: (data / "endpoint").read_text().strip())
    env.update(ATELIER_SERVER=endpoint, ATELIER_TOKEN=(data / "admin.token").read_text().strip())
    start("agent", atelier, "agent", "--node", "local", "--compute", "local", "--cpus", "2", "--memory", "8GiB",
          "--server", endpoint, "--token-file", str(data / "agent.token"), "--data-dir", str(work / "agent"),
          "--data-cache", os.environ.get("CACHE", "40GiB"))


def datastore(name, url, bucket="bench"):
    yaml = f"""name: {name}
type: s3
bucket: {bucket}
endpoint: {url}
path_style: true
credentials: {{access_key_id: {key}, secret_access_key: {secret}}}
"""
    wait(lambda: subprocess.run([atelier, "datastore", "create", "-f", "-"], input=yaml, text=True, env=env,
                                capture_output=True).returncode == 0)


def job(command, given, made=None):
    """Seconds of preparing and of finalizing; `given` and `made`: buckets that are datastores."""
    yaml = f"""command: |
  {command}
inputs: {{given: {{type: uri_folder, mode: download, path: 'azureml://datastores/{given}/paths/'}}}}
"""
    if made:
        yaml += f"outputs: {{made: {{type: uri_folder, path: 'azureml://datastores/{made}/paths/made'}}}}\n"
    settle()
    name = json.loads(run(atelier, "job", "create", "-f", "-", "--query", "name", "-o", "json", given=yaml))
    if subprocess.run([atelier, "job", "stream", "-q", name], env=env, capture_output=True).returncode != 0:
        sys.exit("data: " + run(atelier, "job", "show", name))
    at = {}
    for event in json.loads(run(atelier, "job", "events", name, "-o", "json")):
        at.setdefault(event["status"], event["time"])
    parse = lambda text: time.mktime(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")) + float("0" + re.search(r"\.\d+", text + ".0")[0])
    between = lambda a, b: parse(at[b]) - parse(at[a])
    return between("Preparing", "Running"), between("Finalizing", "Completed") if made else None


READS = """import os, sys, time
def read(path):
    file, size, began = os.open(path, os.O_RDONLY), 0, time.monotonic()
    buffer = bytearray(1 << 20)
    while (read := os.readv(file, [buffer])) > 0:
        size += read
    return size / (time.monotonic() - began) / 1e6
print("cold", read(sys.argv[1]))
print("warm", read(sys.argv[1]))
"""


def rates(text):
    return [round(float(rate)) for rate in re.findall(r"^(?:cold|warm) ([0-9.e+]+)", text, re.MULTILINE)]


def mounted(key):
    """MB/s of a job that reads its mounted input once, and once more."""
    (fresh("reads") / "reads.py").write_text(READS)
    yaml = f"""command: python3 reads.py ${{{{inputs.given}}}}
code: {work / "reads"}
inputs: {{given: {{type: uri_file, mode: ro_mount, path: 'azureml://datastores/fast/paths/{key}'}}}}
"""
    name = json.loads(run(atelier, "job", "create", "-f", "-", "--query", "name", "-o", "json", given=yaml))
    return rates(run(atelier, "job", "stream", "-q", name))


def rclone_mounted(rclone, folder, file):
    """The same of rclone's mount, with a cache of its own that is empty at first."""
    at = fresh("mounted")
    cache = str(fresh("cache"))
    words = [*rclone, "mount", f":s3:bench/{folder}/", str(at), "--read-only", "--vfs-cache-mode", "full", "--cache-dir", cache]
    mount = subprocess.Popen(words, env=env)
    try:
        wait(lambda: (at / file).exists())
        (fresh("reads") / "reads.py").write_text(READS)
        return rates(run(sys.executable, str(work / "reads/reads.py"), str(at / file)))
    finally:
        subprocess.run(["fusermount3", "-u", str(at)], stderr=subprocess.DEVNULL)
        mount.terminate()
        mount.wait()


def mounts():
    """A file read over a mount by a job, against rclone's, and against what a download of it makes."""
    url = server("s3s")
    datastore("fast", url)
    rclone = rclone_at(url)
    source = fresh("source")
    large(source / "large")
    figures = {"atelier": [], "rclone": []}
    for round in range(rounds):
        for name in figures:
            at = f"{name}-mount-{round}"
            run(*s5cmd(url), "cp", str(source) + "/", f"s3://bench/{at}/")
            figures[name].append(mounted(f"{at}/large") if name == "atelier" else rclone_mounted(rclone, at, "large"))
            run(*s5cmd(url), "rm", f"s3://bench/{at}/*")
        print(json.dumps({"set": "mount", "round": round, "cold, warm MB/s": {n: f[-1] for n, f in figures.items()}}), flush=True)
    for index, way in enumerate(("cold", "warm")):
        ours, theirs = (statistics.median(one[index] for one in figures[name]) for name in ("atelier", "rclone"))
        print(json.dumps({"set": "mount", "way": way, "of_rclone": round_(ours / theirs)}), flush=True)


def rclone_at(url):
    return ["rclone", "--config", "/dev/null", "--s3-provider", "Other", "--s3-env-auth", "--s3-endpoint", url,
            "--s3-force-path-style", "--transfers", "8"]


def main():
    workspace()
    if "mounts" in wanted:
        mounts()
    for program in ("moto", "azurite"):
        if program in wanted:
            copies(program)


class S3:
    """A server of S3 and the tools that copy to it and from it: each `copy` takes a bucket or a folder first."""

    def __init__(self, program):
        self.url = server(program)
        self.rclone = [*rclone_at(self.url), "copy"]
        self.copies = {"rclone": self.by_rclone, "s5cmd": self.by_s5cmd, "aws": self.by_aws}

    def make(self, bucket):
        run(*s5cmd(self.url), "mb", f"s3://{bucket}")

    def clear(self, bucket):
        run(*s5cmd(self.url), "rm", f"s3://{bucket}/*")

    def datastore(self, name, bucket):
        datastore(name, self.url, bucket)

    def by_rclone(self, up, folder, bucket):
        way = [f"{folder}/", f":s3:{bucket}/"]
        return seconds(*self.rclone, *(way if up else way[::-1]))

    def by_s5cmd(self, up, folder, bucket):
        way = [f"{folder}/", f"s3://{bucket}/"] if up else [f"s3://{bucket}/*", f"{folder}/"]
        return seconds(*s5cmd(self.url), "cp", *way)

    def by_aws(self, up, folder, bucket):
        way = [folder, f"s3://{bucket}"]
        aws = [str(tools / "peers/bin/aws"), "--endpoint-url", self.url]
        return seconds(*aws, "s3", "cp", "--recursive", "--only-show-errors", *(way if up else way[::-1]))


class Azure:
    """Azurite, and what copies to it and from it."""

    ACCOUNT = "devstoreaccount1"
    # The one that Azurite's documentation gives everybody.
    KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

    def __init__(self, _):
        at = port()
        start("azurite", str(tools / "azurite/node_modules/.bin/azurite-blob"), "--silent", "--skipApiVersionCheck",
              "--location", str(fresh("azurite")), "--blobHost", "127.0.0.1", "--blobPort", str(at))
        self.url = f"http://127.0.0.1:{at}/{self.ACCOUNT}"
        self.connection = (f"DefaultEndpointsProtocol=http;AccountName={self.ACCOUNT};AccountKey={self.KEY};"
                           f"BlobEndpoint={self.url};")
        wait(lambda: subprocess.run([*self.az("container", "create"), "-n", "probe"], env=env,
                                    capture_output=True).returncode == 0)
        until = time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(time.time() + 6 * 3600))
        self.sas = run(*self.az("account", "generate-sas"), "--permissions", "rwdlacup", "--services", "b",
                       "--resource-types", "sco", "--expiry", until, "-o", "tsv").strip()
        self.rclone = ["rclone", "--config", "/dev/null", "--azureblob-sas-url", f"{self.url}?{self.sas}",
                       "--transfers", "8", "copy"]
        self.copies = {"rclone": self.by_rclone, "azcopy": self.by_azcopy, "az": self.by_az}

    def az(self, *words):
        return [str(tools / "az/bin/az"), "storage", *words, "--connection-string", self.connection]

    def make(self, bucket):
        run(*self.az("container", "create"), "-n", bucket)

    def clear(self, bucket):
        run(*self.az("container", "delete"), "-n", bucket)

    def datastore(self, name, bucket):
        yaml = f"""name: {name}
type: azure_blob
account_name: {self.ACCOUNT}
container_name: {bucket}
endpoint: {self.url}
credentials: {{account_key: {self.KEY}}}
"""
        run(atelier, "datastore", "create", "-f", "-", given=yaml)

    def by_rclone(self, up, folder, bucket):
        way = [f"{folder}/", f":azureblob:{bucket}/"]
        return seconds(*self.rclone, *(way if up else way[::-1]))

    def by_azcopy(self, up, folder, bucket):
        azcopy = str(tools / "azcopy/node_modules/@azure-tools/azcopy-linux/dist/bin/azcopy_linux_amd64")
        at = f"{self.url}/{bucket}"
        way = [f"{folder}/*", f"{at}?{self.sas}"] if up else [f"{at}/*?{self.sas}", folder]
        return seconds(azcopy, "copy", *way, "--recursive", "--from-to", "LocalBlob" if up else "BlobLocal")

    def by_az(self, up, folder, bucket):
        words = ["upload-batch", "-s", folder, "-d", bucket] if up else ["download-batch", "-s", bucket, "-d", folder]
        return seconds(*self.az("blob", *words), "--only-show-errors", "--no-progress")


def copies(program):
    """One file and many, to a bucket of its own each time and back."""
    served = (Azure if program == "azurite" else S3)(program)
    sets = {"one file": lambda at: large(at / "large"), "small files": small}
    for number, (what, make) in enumerate(sets.items()):
        source = fresh("source")
        make(source)
        peers = {name: copy for name, copy in served.copies.items() if name in beside}
        figures = {name: ([], []) for name in ["atelier", *peers]}
        for round in range(rounds):
            def bucket(name):
                named = f"{name}-{program}-{number}-{round}"
                served.make(named)
                return named

            # Who comes later finds less memory free: that is somebody else each time.
            names = list(figures)
            turn = round % len(names)
            for name in names[turn:] + names[:turn]:
                if name == "atelier":
                    down, up, again = by_jobs(served, source, bucket)
                else:
                    at = bucket(name)
                    up = peers[name](True, str(source), at)
                    down = peers[name](False, str(fresh("target")), at)
                    check(work / "target", source)
                    served.clear(at)
                fresh("target")
                figures[name][0].append(down)
                figures[name][1].append(up)
            print(json.dumps({"server": program, "set": what, "round": round, "again_s": round_(again),
                              **{name: [round_(d[-1]), round_(u[-1])] for name, (d, u) in figures.items()}}), flush=True)
        for way, index in (("download", 0), ("upload", 1)):
            medians = {name: statistics.median(both[index]) for name, both in figures.items()}
            fastest = min((name for name in medians if name != "atelier"), key=medians.get)
            print(json.dumps({"server": program, "set": what, "way": way, "fastest_peer": fastest,
                              "of_its_speed": round_(medians[fastest] / medians["atelier"]),
                              **{name: round_(took) for name, took in medians.items()}}), flush=True)


def by_jobs(served, source, bucket):
    """Seconds of a job's download and upload of the same, and of the download of another job with that input."""
    given, made = bucket("given"), bucket("made")
    for at in (given, made):
        served.datastore(at.replace("-", "_"), at)
    served.by_rclone(True, str(source), given)
    words = "cp -rl ${{inputs.given}}/. ${{outputs.made}}/ || cp -r ${{inputs.given}}/. ${{outputs.made}}/"
    down, up = job(words, given.replace("-", "_"), made.replace("-", "_"))
    served.by_rclone(False, str(fresh("target")), f"{made}/made")
    check(work / "target", source)
    again, _ = job("true", given.replace("-", "_"))
    for at in (given, made):
        served.clear(at)
    return down, up, again


def round_(value):
    return round(value, 3)


def large(path):
    block = os.urandom(1 << 20)
    with open(path, "wb") as file:
        for number in range(size >> 20):
            file.write(number.to_bytes(8, "big") + block[8:])


def small(folder):
    block = os.urandom(20_000)
    for number in range(files):
        at = folder / f"{number // 1000:03}"
        at.mkdir(exist_ok=True)
        (at / f"{number:06}").write_bytes(number.to_bytes(8, "big") + block[8:])


def check(folder, source):
    def all_of(at):
        return {str(p.relative_to(at)): p.stat().st_size for p in at.rglob("*") if p.is_file() and not p.name.startswith(".")}

    if all_of(folder) != all_of(source):
        sys.exit(f"data: {folder} is not what was copied")


try:
    main()
except SystemExit:
    # The folder goes, and with it what the programs had to say.
    for log in sorted(work.glob("*.log")):
        print(f"--- {log.name}: {log.read_text(errors='replace')[-2000:]}", file=sys.stderr)
    raise
finally:
    for one in reversed(servers):
        one.terminate()
    for one in servers:
        one.wait()
    shutil.rmtree(work, ignore_errors=True)
