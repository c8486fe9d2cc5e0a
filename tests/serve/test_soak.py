"""Thirty clients for minutes: nothing is stuck, nothing grows, every error has a name.

    SOAK_MODEL=outputs/quickstart/stage4 SOAK_OUTPUT=outputs/soak python -m pytest -m slow tests/serve/test_soak.py

SOAK_MODEL is by default a tiny one, SOAK_MINUTES 10. The output has soak.json and soak.png.
"""

import asyncio
import os
import re
from collections import Counter
from pathlib import Path
from statistics import median

import pytest
from realtime_client import until
from server_process import ServerProcess
from soak_clients import run_soak

from vita_audio.files.atomic import atomic_path, write_json
from vita_audio.plots import new_figure

NUM_CLIENTS = 30
OPTIONS = ["--max-new-tokens", 200, "--max-queue", NUM_CLIENTS]  # clients get answers, not only refusals
GROWTH = 1.05  # of the memory after the first minute, at most
MUST_HAPPEN = ("talk", "interrupt", "leave", "send_garbage", "closed: too large")


def settled_memory(samples):
    """Return the memory after the first minute and at the end, MiB: medians of a quarter of the time between."""
    last = samples[-1][0]
    rows = [(time, memory) for time, memory, *_ in samples if time >= min(60, last / 2)]
    quarter = len(rows) // 4 + 1
    return tuple(median(memory for _, memory in part) for part in (rows[:quarter], rows[-quarter:]))


def missing(counts):
    """Name what did not happen, or too rarely, to a server that serves its clients."""
    num_answers = counts["response completed"] + counts["response incomplete"]  # tiny models do not end by themselves
    too_rare = ["answers"] if num_answers <= counts["error server_busy"] else []
    return [name for name in MUST_HAPPEN if not counts[name]] + too_rare


def test_a_server_that_refuses_everybody_does_not_pass():
    refusals = Counter(dict.fromkeys(("talk", "interrupt", "leave", "send_garbage", "error server_busy"), 9))
    assert missing(refusals) == ["closed: too large", "answers"]
    served = {"response completed": 6, "response incomplete": 4, "closed: too large": 1}
    assert missing(refusals + Counter(served)) == []
    assert missing(Counter(dict.fromkeys(MUST_HAPPEN, 1))) == ["answers"]


def draw(samples, path):
    times, memory, sessions, streams, waiting, _, files = zip(*samples, strict=True)
    figure = new_figure(10, 6, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.plot(times, memory)
    upper.set(ylabel="MiB of memory", ylim=(0, None), title=f"{NUM_CLIENTS} clients")
    for values, label in ((sessions, "sessions"), (streams, "answers"), (waiting, "waiting"), (files, "open files")):
        lower.plot(times, values, label=label)
    lower.set(xlabel="seconds")
    lower.legend()
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=100, format="png")


@pytest.mark.slow
def test_nothing_is_stuck_and_nothing_grows(toy_folders, tmp_path):
    seconds, output = 60 * float(os.environ.get("SOAK_MINUTES", 10)), Path(os.environ.get("SOAK_OUTPUT", tmp_path))
    model = Path(os.environ["SOAK_MODEL"]) if "SOAK_MODEL" in os.environ else None
    server = ServerProcess.start(toy_folders, *OPTIONS, model=model)
    try:
        soak = asyncio.run(run_soak(server, NUM_CLIENTS, seconds))
        until(lambda: not any(server.metric(name) for name in ("sessions", "streams", "queue")))
        assert server.process.poll() is None
    finally:
        server.end()
    first, last = settled_memory(soak.samples)
    report = {"clients": NUM_CLIENTS, "seconds": seconds, "model": server.name, "faults": soak.faults}
    report |= {"memory_mib": {"after the first minute": round(first), "at the end": round(last)}}
    report |= {"counts": dict(sorted(soak.counts.items()))}
    write_json(output / "soak.json", report)
    draw(soak.samples, output / "soak.png")
    log = server.log.read_text()
    server.log.unlink()
    assert soak.faults == [] and not re.findall(r"Traceback|generation_failed", log), report
    assert missing(soak.counts) == [], report
    assert last <= GROWTH * first, report
