"""See `spool`. Runs as a job."""

import json
import os
import statistics
import subprocess
import sys
import time

from mlflow.tracking import MlflowClient

count, block = int(os.environ.get("COUNT", 2000)), 50
run = os.environ["MLFLOW_RUN_ID"]

# Reads a request as far as its length says, and answers.
AT_ONCE = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
answer = b"HTTP/1.1 200 OK\\r\\ncontent-type: application/json\\r\\ncontent-length: 2\\r\\n\\r\\n{}"
while True:
    stream, _ = listener.accept()
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    got = b""
    while data := stream.recv(65536):
        got += data
        head, end, body = got.partition(b"\\r\\n\\r\\n")
        if end and len(body) >= int(head.lower().partition(b"content-length:")[2].partition(b"\\r")[0]):
            stream.sendall(answer)
            got = b""
"""

server = subprocess.Popen([sys.executable, "-c", AT_ONCE], stdout=subprocess.PIPE, text=True)
try:
    at_once = f"http://127.0.0.1:{int(server.stdout.readline())}"
    places = {
        "agent": os.environ["MLFLOW_TRACKING_URI"],
        "at_once": at_once,
        "daemon": os.environ["AZUREML_SERVICE_ENDPOINT"],
    }
    clients = {name: MlflowClient(url) for name, url in places.items()}
    took = {name: [] for name in places}
    step = 0
    # In turns: what else the machine does is shared by all.
    while len(took["agent"]) < count + block:
        for name, client in clients.items():
            for _ in range(block):
                step += 1
                began = time.perf_counter()
                client.log_metric(run, name, step / 7, timestamp=1_700_000_000_000 + step, step=step)
                took[name].append(time.perf_counter() - began)
    figures = {}
    for name, all in took.items():
        all = sorted(all[block:])
        figures[name] = {
            # Without much of what others on the machine do.
            "p10_ms": round(1000 * all[len(all) // 10], 3),
            "median_ms": round(1000 * statistics.median(all), 3),
            "mean_ms": round(1000 * statistics.fmean(all), 3),
            "p95_ms": round(1000 * all[int(len(all) * 0.95)], 3),
            "p99_ms": round(1000 * all[int(len(all) * 0.99)], 3),
        }
    figures["added_ms"] = {
        name: round(figures["agent"][name] - figures["at_once"][name], 3) for name in figures["agent"]
    }
    print(json.dumps(figures))
finally:
    server.kill()
