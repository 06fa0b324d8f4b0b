"""Two servers that are asked the same, and what of their answers differs. See `replay.py`."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from urllib.parse import quote, urlencode, urlsplit

DEADLINE = 60
# Neither is to wait for a disk.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
# Below it are the times that the calls themselves name.
NOW = 1_750_000_000_000
ID = re.compile(r"(?<![0-9a-f])(?:m-)?(?!0{32})[0-9a-f]{32}(?![0-9a-f])")
# A run's own name: MLflow's `word-word-number`, or a job's as Atelier makes them, whose suffix may be without a figure.
NAME = re.compile(r"^[a-z]+(-[a-z]+-\d+|_[a-z]+_[a-z0-9]{10})$")
TIME = re.compile(r"time(stamp)?(_ms)?$", re.IGNORECASE)
MARK = re.compile(r"@@(\d+)@@")

# Whose run it is says the token; what MLflow has added to its errors beside the code, clients do not read; ours names
# the types in GraphQL's answers unasked, as its one reader always asks.
LEFT = ("user_id", "error_class", "sqlstate", "__typename", ("workspace", "default"), ("errors", None))
VERSIONS = ("latest_versions", "model_versions")
# Lists whose order says nothing.
UNORDERED = ("tags", "params", "aliases", "dataset_inputs", "datasetInputs")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Server:
    """One of the two, in a folder of its own, with what it has said so far."""

    def __init__(self, folder, words, url, token=lambda: None):
        folder.mkdir()
        self.log = folder / "log"
        env = {
            **os.environ,
            "ATELIER_LOG": "warn",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(words, cwd=folder, stdout=log, stderr=log, env=env, start_new_session=True)
        self.url, self.token, self.ids, self.connection, self.seconds = url, token, {}, None, 0.0

    def ready(self):
        until = time.monotonic() + DEADLINE
        while time.monotonic() < until and self.process.poll() is None:
            try:
                self.connection = http.client.HTTPConnection(urlsplit(self.url()).netloc, timeout=DEADLINE)
                if self.ask("GET", "/health")[0] == 200:
                    return self
            except (OSError, http.client.HTTPException):
                time.sleep(0.05)
        sys.exit(f"replay: a server does not answer:\n{self.log.read_text()[-3000:]}")

    def ask(self, method, path, body=None, headers=None):
        headers = dict(headers or {})
        if token := self.token():
            headers["Authorization"] = f"Bearer {token}"
        began = time.monotonic()
        self.connection.request(method, path, body, headers)
        answer = self.connection.getresponse()
        said = answer.read()
        self.seconds += time.monotonic() - began
        return answer.status, said

    def stop(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def placeholder(self, match):
        return self.ids.setdefault(match[0], f"<{len(self.ids) + 1}>")

    def normal(self, value, key="", depth=0):
        """A value without what no two servers have in common."""
        if isinstance(value, dict):
            # MLflow tells a version's aliases not in every list.
            if key in VERSIONS:
                value = {k: v for k, v in value.items() if k != "aliases"}
            return {k: self.normal(v, k, depth + 1) for k, v in value.items() if (k, v) not in LEFT and k not in LEFT}
        if isinstance(value, list):
            listed = [self.normal(each, key if key in VERSIONS else "", depth + 1) for each in value]
            if key in UNORDERED or (key == "metrics" and depth > 1):
                listed.sort(key=lambda each: json.dumps(each, sort_keys=True))
            return listed
        if isinstance(value, str) and not (TIME.search(key) and value.isdecimal()):
            if key == "next_page_token":
                return "<token>"
            return "<name>" if NAME.match(value) else ID.sub(self.placeholder, value)
        # GraphQL's are text.
        is_time = TIME.search(key) and isinstance(value, (int, str)) and int(value) > NOW
        return "<time>" if is_time else value


def differences(ours, theirs, place="answer", more=False):
    """Where two values are not equal. With `more`, ours may have fields beside theirs."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(theirs if more else {*ours, *theirs}):
            yield from differences(ours.get(key, "nothing"), theirs.get(key, "nothing"), f"{place}.{key}", more)
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, both in enumerate(zip(ours, theirs)):
            yield from differences(*both, f"{place}[{index}]", more)
    elif ours != theirs or type(ours) is not type(theirs):
        yield f"{place}: ours {json.dumps(ours)[:300]}, theirs {json.dumps(theirs)[:300]}"


class Pair:
    """What each of the two has said at one place. As text it is a mark that stands for either."""

    known = []

    def __init__(self, ours, theirs):
        self.values = (ours, theirs)
        self.index = len(Pair.known)
        Pair.known.append(self)

    def __getitem__(self, key):
        return Pair(*(value[key] for value in self.values))

    def __str__(self):
        return f"@@{self.index}@@"


class Both:
    """The two servers, and how often they were of one mind."""

    def __init__(self, ours, theirs, shown):
        self.sides, self.shown = (ours, theirs), shown
        self.same, self.meant, self.wrong = 0, 0, []

    def call(
        self,
        method,
        path,
        body=None,
        *,
        root="/api/2.0/mlflow/",
        differs=None,
        words=True,
        unordered=None,
        headers=None,
    ):
        """One call of both. `differs`: why the answers are not to be equal; not `words`: messages may be other ones."""
        if method == "GET" and isinstance(body, (dict, list)):
            pairs = body.items() if isinstance(body, dict) else body
            path += "?" + urlencode([(key, str(value)) for key, value in pairs], safe="@")
            body = None
        raw, normal = [], []
        for index, side in enumerate(self.sides):

            def own(text):
                return MARK.sub(lambda mark: str(Pair.known[int(mark[1])].values[index]), text)

            sent, more = body, dict(headers or {})
            if isinstance(body, (dict, list)):
                sent = own(json.dumps(body, default=str)).encode()
            if body is not None:
                more.setdefault("Content-Type", "application/json")
            status, said = side.ask(method, quote(own(root + path), safe="/?&=%+:@.-_~"), sent, more)
            try:
                answer = json.loads(said)
            except ValueError:
                answer = said.decode("utf-8", "replace")
            raw.append(answer)
            seen = side.normal(answer)
            if not words and isinstance(seen, dict):
                seen.pop("message", None)
            if unordered and isinstance(seen, dict) and unordered in seen:
                seen[unordered].sort(key=lambda each: json.dumps(each, sort_keys=True))
            normal.append({"status": status, "body": seen or {}})
        if self.shown and self.shown in path:
            print(method, path, json.dumps(body, default=str), *map(json.dumps, normal), sep="\n  ")
        # Of what the web page's queries name, ours answers with all.
        unlike = list(differences(*normal, more=path == "/graphql"))
        is_same = not unlike
        # Where MLflow's server breaks, ours says what is wrong.
        if differs is None and normal[1]["status"] >= 500 and 400 <= normal[0]["status"] < 500:
            differs = "its server breaks"
        if is_same == (differs is None):
            self.same += is_same
            self.meant += not is_same
        else:
            unlike = unlike[:8] or [f"no longer differs ({differs})"]
            call = f"{method} {path} {json.dumps(body, default=str)[:300] if body is not None else ''}"
            self.wrong.append("\n  ".join([call, *unlike]))
        return Pair(*raw)

    def get(self, path, query=(), **more):
        return self.call("GET", path, dict(query) if isinstance(query, dict) else list(query), **more)

    def post(self, path, body, **more):
        return self.call("POST", path, body, **more)
