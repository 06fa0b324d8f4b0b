"""See `tracking`. (A file called mlflow.py would be what its server imports.)"""

import concurrent.futures
import http.client
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlencode, urlsplit

atelier, mlflow = sys.argv[1:3]
each = int(os.environ.get("SECONDS_EACH", 10))
points, runs = int(os.environ.get("POINTS", 100_000)), int(os.environ.get("RUNS", 10_000))
workers = os.environ.get("WORKERS", "4")
CONNECTIONS = 8

# Each request has steps of its own, and each connection its own run: nothing is sent twice.
SCRIPT = """
local runs = { %s }
local thread_count, step, turn = 0, 0, 0
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer %s"
function request()
  step, turn = step + 1, turn %% #runs + 1
  return wrk.format(nil, "/api/2.0/mlflow/runs/%s", nil, body(runs[turn], step))
end
local bad = 0
function response(status) if status ~= 200 then bad = bad + 1; wrk.thread:stop() end end
"""
SINGLE = """
function body(run, step)
  return '{"run_id":"' .. run .. '","key":"loss","value":' .. step / 7 .. ',"timestamp":' .. 1700000000000 + step ..
    ',"step":' .. step .. '}'
end
"""
BATCH = """
local parts = {}
for index = 0, 999 do
  parts[#parts + 1] = (index == 0 and '' or ',') .. '{"key":"m' .. index .. '","value":' .. index / 7 .. ',"timestamp":'
  parts[#parts + 1] = ',"step":'
  parts[#parts + 1] = '}'
end
function body(run, step)
  local time, filled = tostring(1700000000000 + step), {}
  for index = 1, #parts, 3 do
    filled[#filled + 1] = parts[index]
    filled[#filled + 1] = string.format("%d", 1700000000000 + step)
    filled[#filled + 1] = parts[index + 1]
    filled[#filled + 1] = step
    filled[#filled + 1] = parts[index + 2]
  end
  return '{"run_id":"' .. run .. '","metrics":[' .. table.concat(filled) .. ']}'
end
"""


class Server:
    """A server, with what it says to requests."""

    def __init__(self, name, words, url, token, env):
        self.name, self.folder = name, None
        log = open(work / f"{name}.log", "w")
        self.process = subprocess.Popen(words, stdout=log, stderr=log, env=env, start_new_session=True)
        self.url, self.token = url, token

    def ready(self, seconds=300):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if callable(self.url):
                    self.url, self.token = self.url()
                if self.ask("GET", "/version")[0] == 200:
                    return self
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.1)
        sys.exit(f"tracking: {self.name} does not answer; see {work}")

    def ask(self, method, path, body=None, connection=None):
        connection = connection or http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=600)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def call(self, path, body, connection=None):
        status, said = self.ask("POST", f"/api/2.0/mlflow/{path}", body, connection)
        if status != 200:
            sys.exit(f"tracking: {self.name}: {path}: {status} {said[:500]}")
        return json.loads(said)

    def new_run(self, experiment, connection=None):
        body = {"experiment_id": experiment, "start_time": int(time.time() * 1000)}
        return self.call("runs/create", body, connection)["run"]["info"]["run_id"]

    def memory(self):
        """MiB that its processes have to themselves or share in proportion."""
        group, total = os.getpgid(self.process.pid), 0
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    if os.getpgid(int(folder.name)) == group:
                        rollup = (folder / "smaps_rollup").read_text()
                        total += int(re.search(r"^Pss:\s+(\d+)", rollup, re.M)[1])
                except (OSError, TypeError):
                    continue
        return round(total / 1024, 1)

    def stop(self):
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)


def ours():
    folder = work / "atelier"
    words = [atelier, "serve", "--listen", "127.0.0.1:0", "--data-dir", str(folder),
             "--request-rate", "1000000000", "--requests-at-once", "100000"]

    def where():
        return (folder / "endpoint").read_text().strip(), (folder / "admin.token").read_text().strip()

    return Server("atelier", words, where, "", {**os.environ, "ATELIER_LOG": "warn"})


def theirs():
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    folder = work / "mlflow"
    folder.mkdir()
    words = [mlflow, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", workers, "--backend-store-uri",
             f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
    return Server("mlflow", words, f"http://127.0.0.1:{port}", "", {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"})


def wrk(server, call, script, experiment):
    """Requests a second."""
    names = ", ".join(f'"{server.new_run(experiment)}"' for _ in range(CONNECTIONS))
    file = work / "load.lua"
    file.write_text(script + SCRIPT % (names, server.token, call))
    words = ["wrk", "-t", "1", "-c", str(CONNECTIONS), "-d", f"{each}s", "--timeout", "60s", "-s", str(file), server.url]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in said:
        sys.exit(f"tracking: {server.name}: {call}: {said}")
    return float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1])


def history(server, experiment):
    """Seconds for the points of one metric, page by page, as MLflow's client asks for them."""
    run = server.new_run(experiment)
    for begin in range(0, points, 1000):
        metrics = [{"key": "loss", "value": step / 7, "timestamp": 1700000000000 + step, "step": step}
                   for step in range(begin, min(begin + 1000, points))]
        server.call("runs/log-batch", {"run_id": run, "metrics": metrics})
    took, token, seen = 0.0, None, 0
    while True:
        query = {"run_id": run, "metric_key": "loss", "max_results": 25000, **({"page_token": token} if token else {})}
        began = time.perf_counter()
        status, said = server.ask("GET", "/api/2.0/mlflow/metrics/get-history?" + urlencode(query))
        took += time.perf_counter() - began
        page = json.loads(said)
        seen, token = seen + len(page["metrics"]), page.get("next_page_token")
        if not token:
            break
    assert status == 200 and seen == points, (status, seen)
    return took


def search(server, experiment):
    """Seconds for the first page of runs by a metric, and for all pages."""
    def some(part):
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=600)
        for index in part:
            run = server.new_run(experiment, connection)
            server.call("runs/log-batch", {
                "run_id": run,
                "params": [{"key": "lr", "value": str(index % 10)}, {"key": "seed", "value": str(index)}],
                "metrics": [{"key": key, "value": index * 7919 % 10007 / 10007, "timestamp": 1, "step": 0}
                            for key in ("loss", "accuracy")],
            }, connection)

    with concurrent.futures.ThreadPoolExecutor(CONNECTIONS) as threads:
        list(threads.map(some, [range(first, runs, CONNECTIONS) for first in range(CONNECTIONS)]))
    body = {"experiment_ids": [experiment], "filter": "metrics.loss < 0.9 and params.lr != '3'",
            "order_by": ["metrics.accuracy DESC"], "max_results": 1000}
    took, found = [], 0
    while True:
        began = time.perf_counter()
        status, said = server.ask("POST", "/api/2.0/mlflow/runs/search", body)
        took.append(time.perf_counter() - began)
        page = json.loads(said)
        found += len(page.get("runs", []))
        body["page_token"] = page.get("next_page_token")
        if not body["page_token"]:
            break
    assert status == 200, said
    return took[0], sum(took), found


def measured(server):
    try:
        server.ready()
        made = [server.call("experiments/create", {"name": name})["experiment_id"] for name in ("one", "many", "long", "all")]
        figures = {"log_metric_per_s": wrk(server, "log-metric", SINGLE, made[0])}
        figures["log_batch_metrics_per_s"] = 1000 * wrk(server, "log-batch", BATCH, made[1])
        figures["history_s"] = statistics.median([history(server, made[2]) for _ in range(3)])
        figures["search_first_s"], figures["search_all_s"], found = search(server, made[3])
        figures["memory_mib"] = server.memory()
        return figures, found
    finally:
        server.stop()


work = Path(tempfile.mkdtemp(prefix="atelier-mlflow-"))
(theirs_had, they_found), (ours_had, we_found) = measured(theirs()), measured(ours())
assert they_found == we_found, (they_found, we_found)
print(f"{'':26}{'mlflow':>12}{'atelier':>12}{'times':>9}")
for name, their in theirs_had.items():
    our = ours_had[name]
    better = our / their if name.endswith("per_s") else their / our
    print(f"{name:26}{their:12.3f}{our:12.3f}{better:9.1f}")
shutil.rmtree(work)
