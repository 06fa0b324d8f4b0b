"""Times a command, whole process, the same way for every system.

    measure.py RUNS [--warm N] -- COMMAND…

Prints one JSON line: milliseconds of wall clock from before the process starts to after it is
reaped. `floor_ms` is the same for /bin/true, so that the measuring itself can be subtracted.
"""

import json
import os
import statistics
import sys
import time


def once(words, silence):
    began = time.perf_counter_ns()
    child = os.posix_spawnp(
        words[0], words, os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, silence, 1)],
    )
    _, status = os.waitpid(child, 0)
    took = (time.perf_counter_ns() - began) / 1e6
    if status != 0:
        sys.exit(f"measure: {' '.join(words)}: status {status}")
    return took


def summary(samples):
    ordered = sorted(samples)

    def at(fraction):
        return round(ordered[min(len(ordered) - 1, int(fraction * len(ordered)))], 2)

    return {
        "p50_ms": round(statistics.median(ordered), 2),
        "p10_ms": at(0.1),
        "p90_ms": at(0.9),
        "p99_ms": at(0.99),
        "runs": len(ordered),
    }


def main():
    split = sys.argv.index("--")
    before, words = sys.argv[1:split], sys.argv[split + 1 :]
    warm = int(before[before.index("--warm") + 1]) if "--warm" in before else 5
    silence = os.open(os.devnull, os.O_WRONLY)
    for _ in range(warm):
        once(words, silence)
    samples = [once(words, silence) for _ in range(int(before[0]))]
    floor = statistics.median(once(["true"], silence) for _ in range(50))
    print(json.dumps({"command": " ".join(words), **summary(samples), "floor_ms": round(floor, 2)}))


if __name__ == "__main__":
    main()
