"""Asks MLflow's own server and the daemon the same, call by call, and compares what they say.

Usage: replay.py ATELIER MLFLOW [WORD]

ATELIER and MLFLOW are the two programs; with WORD the calls whose path has it are printed with their answers. Ids,
times and page tokens become placeholders, in order of their appearance. A call that is said to differ has to: what
is no longer so is to be taken out of docs/mlflow.md, too.
"""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

DEADLINE = 60
# Neither is to wait for a disk.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
# Below it are the times that the calls themselves name.
NOW = 1_750_000_000_000
ID = re.compile(r"(?<![0-9a-f])(?:m-)?(?!0{32})[0-9a-f]{32}(?![0-9a-f])")
NAME = re.compile(r"^[a-z]+[-_][a-z]+[-_][a-z0-9]*\d[a-z0-9]*$")
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


def experiments(both):
    both.get("experiments/get", {"experiment_id": "0"})
    both.get("experiments/get-by-name", {"experiment_name": "Default"})
    ids = {}
    for name in ["first", "second", "ü / with spaces", "Third"]:
        tags = [{"key": "team", "value": name[0]}, {"key": "a.b c", "value": "1"}]
        ids[name] = both.post("experiments/create", {"name": name, "tags": tags})["experiment_id"]
        both.get("experiments/get", {"experiment_id": ids[name]})
    both.get("experiments/get-by-name", {"experiment_name": "ü / with spaces"})
    for body in [{"name": ""}, {}, {"name": "x" * 501}]:
        both.post("experiments/create", body)
    for body in [{"name": "first"}, {"name": 7}, {"name": "tagged", "tags": [{"key": "", "value": "x"}]}]:
        both.post("experiments/create", body, words=False)
    for path, query in [
        ("get", {"experiment_id": "987654"}),
        ("get", {"experiment_id": "abc"}),
        ("get", {}),
        ("get-by-name", {"experiment_name": "none"}),
        ("get-by-name", {}),
    ]:
        both.get(f"experiments/{path}", query, words=query != {"experiment_id": "abc"})
    for body in [
        {"experiment_id": ids["first"], "key": "k", "value": "v"},
        {"experiment_id": ids["first"], "key": "k", "value": "w"},
        {"experiment_id": ids["first"], "key": "x" * 251, "value": "v"},
        {"experiment_id": ids["first"], "key": "bad(key", "value": "v"},
        {"experiment_id": ids["first"], "key": "k"},
        {"experiment_id": "987654", "key": "k", "value": "v"},
        {"key": "k", "value": "v"},
    ]:
        both.post("experiments/set-experiment-tag", body, words="bad" not in str(body))
    both.post("experiments/delete-experiment-tag", {"experiment_id": ids["first"], "key": "team"})
    both.post("experiments/delete-experiment-tag", {"experiment_id": ids["first"], "key": "team"})
    both.get("experiments/get", {"experiment_id": ids["first"]})
    both.post("experiments/update", {"experiment_id": ids["second"], "new_name": "renamed"})
    both.post("experiments/update", {"experiment_id": ids["second"]})
    both.post("experiments/update", {"experiment_id": "987654", "new_name": "x"})
    both.post("experiments/delete", {"experiment_id": ids["Third"]})
    both.post("experiments/delete", {"experiment_id": ids["Third"]})
    both.get("experiments/get", {"experiment_id": ids["Third"]})
    both.get("experiments/get-by-name", {"experiment_name": "Third"})
    both.post("experiments/set-experiment-tag", {"experiment_id": ids["Third"], "key": "k", "value": "v"})
    both.post("runs/create", {"experiment_id": ids["Third"], "start_time": 1})
    for body in [
        {},
        {"view_type": "ALL"},
        {"view_type": "DELETED_ONLY"},
        {"view_type": "ACTIVE_ONLY"},
        {"filter": "name = 'first'"},
        {"filter": "name != 'first'"},
        {"filter": "name LIKE 'fir%'"},
        {"filter": "name ILIKE 'FIR%'"},
        {"filter": "attribute.name LIKE '%e%'"},
        {"filter": "tags.team = 'r'"},
        {"filter": "tags.team != 's'"},
        {"filter": "tags.`a.b c` = '1' AND name LIKE '%s%'"},
        {"filter": "tags.team ILIKE 'S'"},
        {"filter": "creation_time > 0"},
        {"filter": "last_update_time < 5"},
        {"order_by": ["name"]},
        {"order_by": ["name DESC"]},
        {"order_by": ["experiment_id ASC"]},
        {"order_by": ["creation_time DESC", "name ASC"]},
        {"max_results": 2},
    ]:
        both.post("experiments/search", {"max_results": 50, **body})
    for query in [{}, {"view_type": "ALL"}, {"filter": "name LIKE '%e%'", "order_by": "name DESC"}]:
        both.get("experiments/search", {"max_results": 50, **query})
    page = both.post("experiments/search", {"max_results": 2, "order_by": ["name"]})["next_page_token"]
    both.post("experiments/search", {"max_results": 2, "order_by": ["name"], "page_token": page})
    for body in [
        {"filter": "name"},
        {"filter": "name = first"},
        {"filter": "name = 'a' OR name = 'b'"},
        {"filter": "nme = 'a'"},
        {"filter": "name > 'a'"},
        {"filter": "metrics.a > 1"},
        {"filter": "creation_time = 'x'"},
        {"filter": "name = 'x'; DROP TABLE experiments"},
        {"order_by": ["nothing"]},
        {"order_by": ["name SIDEWAYS"]},
        {"max_results": 50001},
        {"max_results": -1},
        {"page_token": "nonsense"},
    ]:
        both.post("experiments/search", {"max_results": 50, **body}, words=False)
    both.post("experiments/restore", {"experiment_id": ids["Third"]})
    both.post("experiments/restore", {"experiment_id": ids["Third"]})
    both.post("experiments/restore", {"experiment_id": "987654"})
    return ids["first"], ids["second"]


def runs(both, first, second):
    made = []
    for index in range(6):
        body = {
            "experiment_id": first,
            "start_time": 1000 + index,
            "run_name": f"run {index}",
            "user_id": "somebody",
            "tags": [{"key": "kind", "value": "even" if index % 2 == 0 else "odd"}, {"key": "k b", "value": "ü"}],
        }
        made.append(both.post("runs/create", body)["run"]["info"]["run_id"])
    for body in [
        {"experiment_id": second, "start_time": 5},
        {"experiment_id": second, "start_time": 5, "tags": [{"key": "mlflow.runName", "value": "by its tag"}]},
    ]:
        both.post("runs/create", body)
    for body in [
        {"experiment_id": "987654", "start_time": 1},
        {"experiment_id": "abc", "start_time": 1},
        {"experiment_id": second, "run_name": "a", "tags": [{"key": "mlflow.runName", "value": "b"}]},
        {"experiment_id": second, "start_time": "soon"},
    ]:
        both.post("runs/create", body, words=False)
    run = made[0]
    for body in [
        {"key": "loss", "value": 0.5, "timestamp": 10, "step": 1},
        {"key": "loss", "value": 0.25, "timestamp": 11, "step": 2},
        {"key": "loss", "value": 0.25, "timestamp": 11, "step": 2},
        {"key": "loss", "value": 0.75, "timestamp": 9, "step": 2},
        {"key": "nan", "value": "NaN", "timestamp": 1},
        {"key": "inf", "value": "Infinity", "timestamp": 1},
        {"key": "ninf", "value": "-Infinity", "timestamp": 1},
        {"key": "step -1", "value": 1, "timestamp": 1, "step": -1},
        {"key": "a/b.c-d_e f", "value": 1e-300, "timestamp": 1, "step": 9007199254740993},
        {"key": "int", "value": 3, "timestamp": 1},
        {"key": "on data", "value": 3, "timestamp": 1, "dataset_name": "d", "dataset_digest": "1"},
    ]:
        both.post("runs/log-metric", {"run_id": run, **body})
    for body in [
        {"key": "a//b", "value": 1, "timestamp": 1},
        {"key": "../x", "value": 1, "timestamp": 1},
        {"key": "", "value": 1, "timestamp": 1},
        {"key": "x" * 251, "value": 1, "timestamp": 1},
        {"key": "bad*", "value": 1, "timestamp": 1},
        {"key": "m", "timestamp": 1},
        {"value": 1, "timestamp": 1},
        {"key": "m", "value": 1},
        {"key": "m", "value": "many", "timestamp": 1},
        {"key": "m", "value": 1, "timestamp": "late"},
        {"key": "m", "value": 1, "timestamp": 1, "step": "x"},
        {"key": "m", "value": None, "timestamp": 1},
    ]:
        both.post("runs/log-metric", {"run_id": run, **body}, words=False)
    both.post("runs/log-metric", {"run_id": "0" * 32, "key": "m", "value": 1, "timestamp": 1})
    both.post("runs/log-metric", {"key": "m", "value": 1, "timestamp": 1}, words=False)
    for body in [
        {"key": "lr", "value": "0.1"},
        {"key": "lr", "value": "0.1"},
        {"key": "depth", "value": "3"},
        {"key": "empty", "value": ""},
        {"key": "long", "value": "x" * 6000},
        {"key": "unicode ü", "value": "ü"},
    ]:
        both.post("runs/log-parameter", {"run_id": run, **body})
    for body in [
        {"key": "lr", "value": "0.2"},
        {"key": "", "value": "x"},
        {"value": "x"},
        {"key": "x" * 251, "value": "x"},
        {"key": "a//b", "value": "x"},
        {"key": "bad*", "value": "1"},
        {"key": "/a", "value": "1"},
        {"key": "n", "value": 3},
        {"key": "n", "value": None},
    ]:
        both.post("runs/log-parameter", {"run_id": run, **body}, words=False)
    for body in [
        {"key": "t", "value": "1"},
        {"key": "t", "value": "2"},
        {"key": "mlflow.runName", "value": "renamed by tag"},
        {"key": "long", "value": "y" * 8000},
        {"key": "empty", "value": ""},
    ]:
        both.post("runs/set-tag", {"run_id": run, **body})
    for body in [
        {"key": "", "value": "x"},
        {"key": "x" * 251, "value": "x"},
        {"key": "a//b", "value": "x"},
        {"value": "x"},
        {"key": "n", "value": 3},
    ]:
        both.post("runs/set-tag", {"run_id": run, **body}, words=False)
    both.post("runs/set-tag", {"run_id": "0" * 32, "key": "t", "value": "1"})
    both.post("runs/delete-tag", {"run_id": run, "key": "t"})
    both.post("runs/delete-tag", {"run_id": run, "key": "t"})
    both.get("runs/get", {"run_id": run})
    both.get("runs/get", {"run_uuid": run})
    both.get("runs/get", {"run_id": "0" * 32})
    both.get("runs/get", {}, words=False)
    both.get("runs/get", {"run_id": "../../x"}, words=False)
    for index, other in enumerate(made[1:], 1):
        both.post(
            "runs/log-batch",
            {
                "run_id": other,
                "metrics": [
                    {"key": "acc", "value": v, "timestamp": 100 + s, "step": s}
                    for s, v in enumerate([0.1, index / 4, "NaN" if index == 5 else index / 2])
                ],
                "params": [
                    {"key": "depth", "value": str(index)},
                    {"key": "opt", "value": "Adam" if index > 2 else "sgd"},
                ],
                "tags": [{"key": "note", "value": f"n{index}"}],
            },
        )
    point = {"key": "many", "value": 1, "timestamp": 1, "step": 0}
    for body in [
        {},
        {"metrics": [dict(point, step=s) for s in range(1000)]},
        {"metrics": [dict(point, step=s) for s in range(1001)]},
        {"params": [{"key": f"p{i}", "value": "1"} for i in range(100)]},
        {"params": [{"key": f"q{i}", "value": "1"} for i in range(101)]},
        {"tags": [{"key": f"t{i}", "value": "1"} for i in range(101)]},
        {"metrics": [dict(point, key="m1")] * 500, "params": [], "tags": [{"key": "tt", "value": "1"}] * 100},
        {"params": [{"key": "twice", "value": "1"}, {"key": "twice", "value": "1"}]},
        {"params": [{"key": "other", "value": "1"}, {"key": "other", "value": "2"}]},
        {"params": [{"key": "depth", "value": "99"}], "metrics": [dict(point, key="not there")]},
        {"metrics": [{"key": "x"}]},
        {"metrics": [{"key": "bad*", "value": 1, "timestamp": 1, "step": 0}]},
        {"metrics": "x"},
        {"metrics": [7]},
        {"params": [{"value": "1"}]},
        {"tags": [{"key": "a//b", "value": "1"}]},
        {"metrics": [dict(point, key="y" * 251)]},
    ]:
        both.post("runs/log-batch", {"run_id": made[1], **body}, words=False)
    both.post("runs/log-batch", {"run_id": "0" * 32})
    both.post("runs/log-batch", {"metrics": []}, words=False)
    both.get("runs/get", {"run_id": made[1]})
    for broken in [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"run_id": ',
        b"\xff\xfe",
        b'"text"',
        b'{"run_id": 7}',
        b'{"run_id": ["a"]}',
    ]:
        both.call("POST", "runs/log-batch", broken, words=False)
    histories(both, run, made)
    updates(both, made)
    searches(both, first, second)
    return made


def histories(both, run, made):
    both.get("metrics/get-history", {"run_id": run, "metric_key": "loss"})
    both.get("metrics/get-history", {"run_uuid": run, "metric_key": "a/b.c-d_e f"})
    both.get("metrics/get-history", {"run_id": run, "metric_key": "nan"})
    both.get("metrics/get-history", {"run_id": run, "metric_key": "none"})
    page = both.get("metrics/get-history", {"run_id": run, "metric_key": "loss", "max_results": 2})["next_page_token"]
    both.get("metrics/get-history", {"run_id": run, "metric_key": "loss", "max_results": 2, "page_token": page})
    for query in [{"run_id": run}, {"metric_key": "loss"}, {"run_id": run, "metric_key": "loss", "page_token": "?"}]:
        both.get("metrics/get-history", query, words=False)
    several = [("run_id", each) for each in made[1:4]]
    bulk = "/ajax-api/2.0/mlflow/"
    for query in [
        [("metric_key", "acc"), *several],
        [("metric_key", "acc"), ("max_results", 2), *several[:1]],
        [("metric_key", "acc")],
        several,
    ]:
        both.get("metrics/get-history-bulk", query, root=bulk, words=False, unordered="metrics")
    several = [("run_ids", each) for each in made[1:4]]
    for query in [
        [("metric_key", "acc"), *several],
        [("metric_key", "acc"), ("max_results", 2), *several],
        [("metric_key", "acc"), ("start_step", 1), ("end_step", 2), *several],
        [("metric_key", "acc"), ("start_step", 1), *several],
        [("metric_key", "acc"), ("start_step", 2), ("end_step", 1), *several],
        [("metric_key", "acc"), ("max_results", 0), *several],
        [("metric_key", "acc"), ("max_results", 2501), *several],
        [("metric_key", "many"), ("max_results", 7), ("run_ids", made[1])],
        [("metric_key", "acc")],
        several,
    ]:
        both.get("metrics/get-history-bulk-interval", query, root=bulk, words=False)


def updates(both, made):
    for body in [
        {"status": "FINISHED", "end_time": 5000},
        {"status": "RUNNING"},
        {"run_name": "new name"},
        {"status": "FAILED", "end_time": 6000, "run_name": "x"},
        {"status": "KILLED"},
        {"status": "SCHEDULED"},
        {},
    ]:
        both.post("runs/update", {"run_id": made[2], **body})
    both.get("runs/get", {"run_id": made[2]})
    both.post("runs/update", {"run_id": made[2], "end_time": "x"}, words=False)
    both.post("runs/update", {"run_id": "0" * 32, "status": "FINISHED"})
    both.post("runs/update", {"status": "FINISHED"}, words=False)
    both.post("runs/delete", {"run_id": made[5]})
    both.post("runs/delete", {"run_id": made[5]})
    both.get("runs/get", {"run_id": made[5]})
    for path, body in [
        ("log-metric", {"key": "m", "value": 1, "timestamp": 1}),
        ("log-parameter", {"key": "p", "value": "1"}),
        ("set-tag", {"key": "t", "value": "1"}),
        ("log-batch", {"tags": [{"key": "t", "value": "1"}]}),
        ("delete-tag", {"key": "kind"}),
        ("update", {"status": "FINISHED"}),
    ]:
        both.post(f"runs/{path}", {"run_id": made[5], **body})
    both.post("runs/restore", {"run_id": made[5]})
    both.post("runs/restore", {"run_id": made[5]})
    both.post("runs/delete", {"run_id": "0" * 32})
    both.post("runs/restore", {"run_id": "0" * 32})
    both.post("runs/delete", {}, words=False)


def searches(both, first, second):
    whole = {"experiment_ids": [first], "max_results": 20}
    for text in [
        "",
        "metrics.acc > 0.5",
        "metrics.acc >= 1",
        "metrics.acc = 0.5",
        "metrics.acc != 0.5",
        "metrics.acc < 1",
        "metrics.acc <= 1 AND params.opt = 'Adam'",
        "params.opt = 'sgd'",
        "params.opt != 'sgd'",
        "params.opt LIKE 'A%'",
        "params.opt ILIKE 'a%'",
        "params.opt LIKE 'a%'",
        "parameter.depth = '3'",
        "tags.kind = 'odd'",
        "tag.kind != 'odd'",
        "tags.`k b` = 'ü'",
        "tags.\"k b\" LIKE '%'",
        "tags.note ILIKE 'N_'",
        "params.opt IS NULL",
        "params.opt IS NOT NULL",
        "tags.note IS NULL",
        "tags.none IS NULL AND tags.kind = 'even'",
        "attributes.status = 'RUNNING'",
        "status != 'RUNNING'",
        "attributes.run_name = 'run 3'",
        "attribute.`run name` LIKE 'run%'",
        "run_name ILIKE 'RUN%'",
        "attributes.start_time > 1000",
        "start_time <= 1001",
        "end_time > 0",
        "attributes.artifact_uri LIKE 'mlflow%'",
        "metrics.`a/b.c-d_e f` > 0",
        "metrics.nan > 0",
        "metrics.inf > 1",
        "metrics.ninf < 0",
        "metrics.none > 0",
        "status = 'RUNNING' and params.depth = '3' And tags.kind = 'odd'",
        "params.lr = '0.1'",
        "tags.`mlflow.runName` = 'run 4'",
        "datasets.name = 'train'",
        "dataset.digest LIKE '1%'",
        "datasets.context = 'training'",
        "  status   =  'RUNNING'  ",
    ]:
        both.post("runs/search", {**whole, "filter": text})
    for order in [
        ["metrics.acc"],
        ["metrics.acc DESC"],
        ["metrics.acc ASC", "start_time DESC"],
        ["params.depth DESC"],
        ["params.opt", "params.depth"],
        ["tags.note"],
        ["attributes.start_time"],
        ["start_time DESC"],
        ["attribute.run_name DESC"],
        ["status"],
        ["metrics.nan DESC"],
        ["tags.`k b`"],
        ["attributes.end_time"],
        ["metrics.`a/b.c-d_e f`"],
        ["created DESC"],
    ]:
        # Which of two equal runs is first is a matter of their ids.
        by = [*order, "tags.kind", "start_time"] if "start_time" not in str(order) else order
        both.post("runs/search", {**whole, "order_by": by})
    for body in [
        {"run_view_type": "ALL"},
        {"run_view_type": "DELETED_ONLY"},
        {"experiment_ids": [first, second], "filter": "tags.kind LIKE '%'"},
        {"experiment_ids": []},
        {"experiment_ids": ["987654"]},
    ]:
        both.post("runs/search", {**whole, "order_by": ["tags.kind", "run_name"], **body})
    page = {**whole, "max_results": 2, "order_by": ["run_name"]}
    for _ in range(2):
        answer = both.post("runs/search", page)
        page = {**page, "page_token": answer["next_page_token"]}
    both.post("runs/search", page)
    for body in [
        {"filter": "metrics.acc"},
        {"filter": "metrics.acc > 'x'"},
        {"filter": "metrics.acc LIKE '1'"},
        {"filter": "params.opt > 'a'"},
        {"filter": "params.opt = 7"},
        {"filter": "acc > 1"},
        {"filter": "metric.acc > 1 OR metric.acc < 0"},
        {"filter": "status = RUNNING"},
        {"filter": "(status = 'RUNNING')"},
        {"filter": "tags.a = 'b"},
        {"filter": "nothing.a = 'b'"},
        {"filter": "'; DROP TABLE runs; --"},
        {"filter": "status IN ()"},
        {"filter": "attributes.run_name IN ('run 1')"},
        {"filter": "run_name NOT IN ('a')"},
        {"filter": "params.opt IN ('a')"},
        {"filter": "metrics.acc IS NULL"},
        {"filter": "start_time > 'x'"},
        {"filter": "attributes.nothing = 'x'"},
        {"filter": "datasets.nothing = 'x'"},
        {"filter": "= 'x'"},
        {"order_by": ["nothing.x"]},
        {"order_by": ["metrics.acc UP"]},
        {"order_by": [""]},
        {"order_by": ["datasets.name"]},
        {"max_results": 0},
        {"max_results": -1},
        {"max_results": 50001},
        {"max_results": "x"},
        {"page_token": "nonsense"},
        {"experiment_ids": "x"},
    ]:
        both.post("runs/search", {**whole, **body}, words=False)


def data(both, first, second, made):
    """Datasets, outputs, and logged models."""
    one = {
        "name": "train",
        "digest": "12ab",
        "source_type": "local",
        "source": '{"uri": "x"}',
        "schema": "{}",
        "profile": '{"rows": 3}',
    }
    two = {"name": "test", "digest": "34cd", "source_type": "http", "source": "y"}
    tag = [{"key": "mlflow.data.context", "value": "training"}]
    both.post("runs/log-inputs", {"run_id": made[3], "datasets": [{"dataset": one, "tags": tag}, {"dataset": two}]})
    both.post("runs/log-inputs", {"run_id": made[3], "datasets": [{"dataset": one, "tags": tag}]})
    both.post(
        "runs/log-inputs",
        {"run_id": made[4], "datasets": [{"dataset": one, "tags": [{"key": "mlflow.data.context", "value": "eval"}]}]},
    )
    both.get("runs/get", {"run_id": made[3]})
    for body in [{"datasets": "x"}, {"datasets": [{"dataset": dict(one, name="x" * 501)}]}, {}]:
        both.post("runs/log-inputs", {"run_id": made[3], **body}, words=False)
    both.post("runs/log-inputs", {"run_id": "0" * 32, "datasets": [{"dataset": one}]})
    for text in [
        "datasets.name = 'train'",
        "dataset.digest = '12ab' AND datasets.context = 'eval'",
        "datasets.name LIKE 'te%'",
        "datasets.context ILIKE 'TRAIN%'",
        "datasets.name != 'test'",
        "datasets.name IN ('test')",
    ]:
        both.post(
            "runs/search", {"experiment_ids": [first], "filter": text, "max_results": 10, "order_by": ["run_name"]}
        )
    both.post(
        "experiments/search-datasets",
        {"experiment_ids": [first]},
        root="/ajax-api/2.0/mlflow/",
        unordered="dataset_summaries",
    )
    both.post("experiments/search-datasets", {"experiment_ids": []}, root="/ajax-api/2.0/mlflow/")
    models = []
    for index in range(3):
        body = {
            "experiment_id": first,
            "name": f"model {index}",
            "model_type": "sklearn",
            "source_run_id": made[index],
            "params": [{"key": "depth", "value": str(index)}],
            "tags": [{"key": "kind", "value": "small"}],
        }
        models.append(both.post("logged-models", body, words=False)["model"]["info"]["model_id"])
    one, two, three = models
    both.get(f"logged-models/{one}")
    both.get("logged-models/m-" + "0" * 32)
    for body in [
        {"name": "x"},
        {"experiment_id": second, "name": ""},
        {"experiment_id": first, "name": "a/b"},
        {"experiment_id": "987654", "name": "x"},
        {"experiment_id": second, "name": "x" * 300},
        {"experiment_id": first, "name": "a:b"},
    ]:
        both.post("logged-models", body, words=False)
    both.call("PATCH", f"logged-models/{one}", {"model_id": one, "status": "LOGGED_MODEL_READY"})
    both.call("PATCH", f"logged-models/{two}", {"model_id": two, "status": "LOGGED_MODEL_UPLOAD_FAILED"})
    none = "m-" + "0" * 32
    both.call("PATCH", f"logged-models/{none}", {"model_id": none, "status": "LOGGED_MODEL_READY"}, words=False)
    both.call(
        "PATCH", f"logged-models/{one}/tags", {"tags": [{"key": "t", "value": "1"}, {"key": "a/b", "value": "2"}]}
    )
    both.call("PATCH", f"logged-models/{one}/tags", {"tags": [{"key": "t", "value": "2"}]})
    both.call("DELETE", f"logged-models/{one}/tags/t")
    both.call("DELETE", f"logged-models/{one}/tags/t", words=False)
    both.post(f"logged-models/{one}/params", {"model_id": one, "params": [{"key": "lr", "value": "0.1"}]})
    both.post(
        f"logged-models/{one}/params",
        {"model_id": one, "params": [{"key": "lr", "value": "0.2"}]},
        words=False,
        differs="a param that has another value is INVALID_PARAMETER_VALUE, as a run's",
    )
    both.post(
        "runs/log-metric",
        {
            "run_id": made[0],
            "key": "score",
            "value": 0.75,
            "timestamp": 50,
            "step": 1,
            "model_id": one,
            "dataset_name": "train",
            "dataset_digest": "12ab",
        },
    )
    both.post(
        "runs/log-batch",
        {"run_id": made[0], "metrics": [{"key": "score", "value": 0.5, "timestamp": 51, "step": 2, "model_id": two}]},
    )
    both.post("runs/outputs", {"run_id": made[0], "models": [{"model_id": one, "step": 3}]})
    both.post("runs/log-inputs", {"run_id": made[1], "models": [{"model_id": one}]})
    both.get(f"logged-models/{one}")
    both.get("runs/get", {"run_id": made[0]})
    both.get("runs/get", {"run_id": made[1]})
    for body in [
        {},
        {"filter": "name = 'model 1'"},
        {"filter": "name LIKE 'model%'"},
        {"filter": "params.depth = '1'"},
        {"filter": "tags.kind = 'small'"},
        {"filter": "metrics.score > 0.6"},
        {"filter": "metrics.score > 0.6", "datasets": [{"dataset_name": "train", "dataset_digest": "12ab"}]},
        {"filter": "metrics.score > 0.6", "datasets": [{"dataset_name": "other", "dataset_digest": "12ab"}]},
        {"filter": "model_type = 'sklearn'"},
        {"filter": "source_run_id = 'none'"},
        {"order_by": [{"field_name": "name", "ascending": False}]},
        {"order_by": [{"field_name": "metrics.score", "ascending": True}]},
        {"max_results": 1},
        {"order_by": [{"field_name": "creation_timestamp"}]},
    ]:
        body = {"experiment_ids": [first], **body}
        body.setdefault("order_by", [{"field_name": "name"}])
        both.post("logged-models/search", body)
    for body in [
        {"filter": "nothing = 1"},
        {"filter": "name > 'x'"},
        {"filter": "name = 'x' OR name = 'y'"},
        {"order_by": [{"field_name": "nothing"}]},
        {"page_token": "?"},
    ]:
        both.post("logged-models/search", {"experiment_ids": [first], **body}, words=False)
    both.call("DELETE", f"logged-models/{three}")
    both.get(f"logged-models/{three}", words=False)
    both.call("DELETE", f"logged-models/{three}", words=False)
    both.call("PATCH", f"logged-models/{three}", {"model_id": three, "status": "LOGGED_MODEL_READY"}, words=False)
    return one


def artifacts(both, first, run):
    proxy = "/api/2.0/mlflow-artifacts/"
    home = f"artifacts/{first}/{run}/artifacts"
    for path, content in [
        ("a.txt", b"alpha"),
        ("deep/er/b.bin", bytes(range(256))),
        ("deep/c ü.txt", b""),
        ("a b.json", b"{}"),
    ]:
        both.call("PUT", f"{home}/{path}", content, root=proxy, headers={"Content-Type": "application/octet-stream"})
    for path in ["a.txt", "deep/er/b.bin", "deep/c ü.txt", "a b.json"]:
        both.get(f"{home}/{path}", root=proxy)
    both.get(f"{home}/none.txt", root=proxy, words=False)
    for query in [{}, {"path": "deep"}, {"path": "deep/er"}, {"path": "none"}, {"path": "a.txt"}]:
        both.get("artifacts/list", {"run_id": run, **query}, words=False)
        where = str(query.get("path", ""))
        both.get("artifacts", {"path": f"{first}/{run}/artifacts/{where}".rstrip("/")}, root=proxy, words=False)
    both.get("artifacts/list", {"run_id": "0" * 32}, words=False)
    both.get("artifacts/list", {}, words=False)
    for path in ["../x", "..%2Fx", "%2e%2e/x", "/etc/passwd", "a/../../x", "%252e%252e/x"]:
        both.get("artifacts/list", [("run_id", run), ("path", path)], words=False)
    for path in ["a.txt", "deep/er/b.bin", "none.txt", "../x"]:
        both.get("/get-artifact", {"run_id": run, "path": path}, root="", words=False)
    both.call("DELETE", f"{home}/a.txt", root=proxy)
    both.get(f"{home}/a.txt", root=proxy, words=False)
    both.get("artifacts/list", {"run_id": run})


def registry(both, run, model):
    both.post(
        "registered-models/create",
        {"name": "digits", "description": "of digits", "tags": [{"key": "team", "value": "vision"}]},
    )
    both.post("registered-models/create", {"name": "other"})
    for body in [{"name": "digits"}, {"name": ""}, {}, {"name": "a/b"}, {"name": "a:b"}]:
        both.post("registered-models/create", body, words=False)
    both.get("registered-models/get", {"name": "digits"})
    both.get("registered-models/get", {"name": "none"})
    both.get("registered-models/get", {}, words=False)
    both.call("PATCH", "registered-models/update", {"name": "digits", "description": "new"})
    both.call("PATCH", "registered-models/update", {"name": "none", "description": "new"})
    for source in ["deep", "deep/er"]:
        both.post(
            "model-versions/create",
            {
                "name": "digits",
                "source": f"runs:/{run}/{source}",
                "run_id": run,
                "description": source,
                "tags": [{"key": "k", "value": "v"}],
            },
        )
    for body in [{"name": "none", "source": f"runs:/{run}/deep", "run_id": run}, {"source": "x"}, {"name": "digits"}]:
        both.post("model-versions/create", body, words=False)
    for body in [{"version": "1"}, {"version": "2"}, {"version": "9"}, {}]:
        both.get("model-versions/get", {"name": "digits", **body}, words=False)
    both.get("model-versions/get", {"name": "none", "version": "1"}, words=False)
    both.call("PATCH", "model-versions/update", {"name": "digits", "version": "1", "description": "better"})
    both.call("PATCH", "model-versions/update", {"name": "digits", "version": "9", "description": "better"})
    both.post("model-versions/set-tag", {"name": "digits", "version": "1", "key": "t", "value": "1"})
    both.post("model-versions/set-tag", {"name": "digits", "version": "9", "key": "t", "value": "1"})
    both.call("DELETE", "model-versions/delete-tag", {"name": "digits", "version": "1", "key": "t"})
    both.call("DELETE", "model-versions/delete-tag", {"name": "digits", "version": "1", "key": "t"})
    both.post("registered-models/set-tag", {"name": "digits", "key": "t", "value": "1"})
    both.post("registered-models/set-tag", {"name": "none", "key": "t", "value": "1"})
    both.call("DELETE", "registered-models/delete-tag", {"name": "digits", "key": "t"})
    both.call("DELETE", "registered-models/delete-tag", {"name": "digits", "key": "t"})
    both.post("registered-models/alias", {"name": "digits", "alias": "champion", "version": "1"})
    both.post("registered-models/alias", {"name": "digits", "alias": "champion", "version": "2"})
    both.post("registered-models/alias", {"name": "digits", "alias": "second", "version": "2"})
    for body in [
        {"alias": "champion", "version": "9"},
        {"alias": "latest", "version": "1"},
        {"alias": "v1", "version": "1"},
        {"alias": "", "version": "1"},
        {"alias": "x"},
        {"version": "1"},
    ]:
        both.post("registered-models/alias", {"name": "digits", **body}, words=False)
    both.get("registered-models/alias", {"name": "digits", "alias": "champion"})
    both.get("registered-models/alias", {"name": "digits", "alias": "none"})
    both.get("registered-models/alias", {"name": "none", "alias": "champion"})
    both.get("registered-models/get", {"name": "digits"})
    for stage in ["Staging", "production", "Archived", "None", "Elsewhere"]:
        both.post(
            "model-versions/transition-stage",
            {"name": "digits", "version": "1", "stage": stage, "archive_existing_versions": False},
            words=False,
        )
    both.post(
        "model-versions/transition-stage",
        {"name": "digits", "version": "2", "stage": "Production", "archive_existing_versions": True},
    )
    both.post(
        "model-versions/transition-stage",
        {"name": "digits", "version": "1", "stage": "Production", "archive_existing_versions": True},
    )
    both.get("model-versions/get", {"name": "digits", "version": "2"})
    for body in [
        {"name": "digits"},
        {"name": "digits", "stages": "Production"},
        {"name": "digits", "stages": "None"},
        {"name": "none"},
    ]:
        both.get("registered-models/get-latest-versions", body, words=False, unordered="model_versions")
        if "stages" in body:
            body = {**body, "stages": [body["stages"]]}
        both.post("registered-models/get-latest-versions", body, words=False, unordered="model_versions")
    both.get("model-versions/get-download-uri", {"name": "none", "version": "1"})
    for query in [
        {},
        {"filter": "name = 'digits'"},
        {"filter": "name LIKE 'd%'"},
        {"filter": "name ILIKE 'D%'"},
        {"filter": "tags.team = 'vision'"},
        {"filter": "name != 'digits'"},
        {"order_by": "name DESC"},
        {"order_by": "last_updated_timestamp DESC"},
        {"max_results": 1},
    ]:
        both.get("registered-models/search", query)
    for query in [
        {"filter": "name"},
        {"filter": "nothing = 'x'"},
        {"filter": "name = 'x' OR name = 'y'"},
        {"order_by": "nothing"},
        {"max_results": 1001},
        {"page_token": "?"},
    ]:
        both.get("registered-models/search", query, words=False)
    for query in [
        {},
        {"filter": "name = 'digits'"},
        {"filter": "name LIKE 'd%'"},
        {"filter": f"run_id = '{run}'"},
        {"filter": "tags.k = 'v'"},
        {"filter": "version_number > 1"},
        {"filter": "version_number = 1"},
        {"filter": "name = 'none'"},
        {"order_by": "version_number DESC"},
        {"order_by": "creation_timestamp ASC"},
        {"max_results": 1},
        {"filter": f"run_id IN ('{run}')"},
    ]:
        both.get("model-versions/search", query)
    for query in [
        {"filter": "name"},
        {"filter": "nothing = 'x'"},
        {"filter": "version_number > 'x'"},
        {"order_by": "nothing"},
        {"max_results": 0},
        {"page_token": "?"},
    ]:
        both.get("model-versions/search", query, words=False)
    both.call("DELETE", "registered-models/alias", {"name": "digits", "alias": "champion"})
    both.call("DELETE", "registered-models/alias", {"name": "digits", "alias": "champion"})
    both.post("registered-models/rename", {"name": "other", "new_name": "another"})
    both.post("registered-models/rename", {"name": "another", "new_name": "digits"}, words=False)
    both.post("registered-models/rename", {"name": "none", "new_name": "x"})
    both.post("registered-models/rename", {"name": "another"}, words=False)
    both.call("DELETE", "model-versions/delete", {"name": "digits", "version": "1"})
    both.call("DELETE", "model-versions/delete", {"name": "digits", "version": "1"})
    both.get("model-versions/get", {"name": "digits", "version": "1"}, words=False)
    both.call("DELETE", "registered-models/delete", {"name": "digits"})
    both.call("DELETE", "registered-models/delete", {"name": "digits"})
    both.get("registered-models/search")


def pages(both, first, run):
    """What the web pages ask for beside these."""
    get_run = """query GetRun($data: MlflowGetRunInput!) { mlflowGetRun(input: $data) { apiError { helpUrl code
      message }
      run { info { runName status runUuid runId experimentId artifactUri endTime lifecycleStage startTime }
        data { metrics { key value step timestamp } params { key value } tags { key value } }
        inputs { datasetInputs { dataset { digest name profile schema source sourceType } tags { key value } }
          modelInputs { modelId } }
        outputs { modelOutputs { modelId step } } modelVersions { name version status source } } } }"""
    experiment = """query MlflowGetExperimentQuery($input: MlflowGetExperimentInput!) {
      mlflowGetExperiment(input: $input) { apiError { code message } experiment { artifactLocation creationTime
        experimentId lastUpdateTime
        lifecycleStage name tags { key value } } } }"""
    found = """query SearchRuns($data: MlflowSearchRunsInput!) { mlflowSearchRuns(input: $data) { apiError {
      code message }
      runs { info { runName runUuid status experimentId } data { metrics { key value } params { key value } } } } }"""
    history = """query GetMetricHistoryBulkInterval($data: MlflowGetMetricHistoryBulkIntervalInput!) {
      mlflowGetMetricHistoryBulkInterval(input: $data) { metrics { timestamp step runId key value } apiError {
        code message } } }"""
    for name, query, variables in [
        ("GetRun", get_run, {"data": {"runId": run}}),
        ("MlflowGetExperimentQuery", experiment, {"input": {"experimentId": first}}),
        ("SearchRuns", found, {"data": {"experimentIds": [first], "orderBy": ["run_name"]}}),
        ("GetMetricHistoryBulkInterval", history, {"data": {"runIds": [run], "metricKey": "loss", "maxResults": 10}}),
    ]:
        both.post("/graphql", {"operationName": name, "query": query, "variables": variables}, root="", words=False)
    for name, query, variables in [
        ("GetRun", get_run, {"data": {"runId": "0" * 32}}),
        ("MlflowGetExperimentQuery", experiment, {"input": {"experimentId": "987654"}}),
        ("SearchRuns", found, {"data": {"experimentIds": [first], "filter": "nonsense"}}),
    ]:
        both.post(
            "/graphql",
            {"operationName": name, "query": query, "variables": variables},
            root="",
            differs="what is refused is in apiError",
        )
    both.get("/health", root="")
    both.get("/version", root="")


def unlike(both, first, run):
    """What docs/mlflow.md says is otherwise here."""
    name = {"experiment_id": first, "new_name": "renamed"}
    for method, path, body, reason in [
        (
            "POST",
            "experiments/create",
            {"name": "elsewhere", "artifact_location": "s3://bucket/x"},
            "artifacts lie in the workspace's store",
        ),
        ("POST", "experiments/update", name, "a name that is taken is RESOURCE_ALREADY_EXISTS"),
        ("POST", "experiments/search", {}, "there is a default"),
        ("POST", "runs/create", {"start_time": 5}, "a run of no experiment is one of the first"),
        (
            "POST",
            "runs/create",
            {"experiment_id": first, "tags": [{"key": "x" * 251, "value": ""}]},
            "keys are as short in all calls",
        ),
        ("POST", "runs/log-metric", {"run_id": run, "key": "m", "value": True, "timestamp": 1}, "true is no number"),
        (
            "POST",
            "runs/log-metric",
            {"run_id": run, "key": "m", "value": 1, "timestamp": 1 << 70},
            "no integer of 64 bits",
        ),
        ("GET", "metrics/get-history", {"run_id": "0" * 32, "metric_key": "loss"}, "there is no such run"),
        ("GET", "metrics/get-history", {"run_id": run, "metric_key": "loss", "max_results": "x"}, "no number"),
        ("POST", "runs/update", {"run_id": run, "status": "DONE"}, "no status"),
        ("POST", "runs/search", {"experiment_ids": [first], "run_view_type": "SOME"}, "no view"),
        ("POST", "runs/search", {"experiment_ids": [first], "filter": "tags.a = 'b' AND"}, "a comparison is missing"),
        (
            "POST",
            "runs/search",
            {"experiment_ids": [first], "filter": "metrics.'loss' > 0.1"},
            'keys are quoted by ` and "',
        ),
        ("POST", "runs/log-inputs", {"run_id": run, "datasets": [{"tags": []}]}, "a dataset is missing"),
        ("POST", "runs/log-inputs", {"run_id": run, "datasets": [{"dataset": {"name": "x"}}]}, "its digest is missing"),
        ("GET", "registered-models/search", {"max_results": 0}, "a page of nothing"),
        ("GET", "none", {}, "what is not served has MLflow's error_code"),
    ]:
        both.call(method, path, body, words=False, differs=reason)


def main():
    atelier, mlflow = (str(Path(word).resolve()) for word in sys.argv[1:3])
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="replay-", dir=MEMORY) as work:
        work = Path(work)
        folder, port = work / "ours" / "data", free_port()
        ours = Server(
            work / "ours",
            [atelier, "serve", "--listen", "127.0.0.1:0", "--data-dir", str(folder)],
            lambda: (folder / "endpoint").read_text().strip(),
            lambda: (folder / "admin.token").read_text().strip(),
        )
        theirs = Server(
            work / "theirs",
            [mlflow, "server", "--port", str(port), "--workers", "1"],
            lambda: f"http://127.0.0.1:{port}",
        )
        try:
            # The slower first: who waits is hung up on.
            theirs.ready(), ours.ready()
            both = Both(ours, theirs, sys.argv[3] if len(sys.argv) > 3 else None)
            up = time.monotonic()
            first, second = experiments(both)
            made = runs(both, first, second)
            model = data(both, first, second, made)
            artifacts(both, first, made[0])
            registry(both, made[0], model)
            pages(both, first, made[0])
            unlike(both, first, made[0])
        finally:
            ours.stop()
            theirs.stop()
    for each in both.wrong:
        print(each)
    print(
        f"replay: {both.same} answers equal, {both.meant} meant to differ, {len(both.wrong)} wrong; "
        f"{up - began:.1f} s until both were up, {ours.seconds:.1f} s of ours, "
        f"{theirs.seconds:.1f} s of theirs"
    )
    sys.exit(bool(both.wrong))


if __name__ == "__main__":
    main()
