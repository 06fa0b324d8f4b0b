"""Asks MLflow's own server and the daemon the same, call by call, and compares what they say.

Usage: replay.py ATELIER MLFLOW [WORD]

ATELIER and MLFLOW are the two programs; with WORD the calls whose path has it are printed with their answers. Ids,
times and page tokens become placeholders, in order of their appearance. A call that is said to differ has to: what
is no longer so is to be taken out of docs/mlflow.md, too.
"""

import sys
import tempfile
import time
from pathlib import Path

from calls_models import artifacts, data, pages, registry, unlike
from calls_runs import experiments, runs
from peer import Both, MEMORY, Server, free_port


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
