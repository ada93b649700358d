"""What a thousand spectators cost: latency, processor, memory; asyncio alone beside it, and a client that never reads.

    python benchmarks/broadcast.py                   1,000 clients, 10 readings/s, 15 s each, three times in turn
    python benchmarks/broadcast.py --only stalled    one client more that never reads, 40 s
    python benchmarks/broadcast.py --only training   samples/s of a training with the clients and without

The server, the clients (``_spectators.py``) and the producer are processes of their own. ``ingest`` POSTs each reading
to the server as a training does: it is checked, committed to SQLite, then sent. ``direct`` publishes in the server's
process. ``raw`` is asyncio with nothing around it: ``transport.write`` of as many bytes, to as many connections, as
often. Latency runs from before the producer sends until after a client received, on one clock. Processor time is the
server's own (user and system), so it counts what the kernel does for it; wall times need a machine with nothing else
to do, which the load average beside them tells.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import threading
import time
from typing import Any, Final

from _broadcasters import reading
from _common import machine, median, table
from _processes import Process
from _training import Watched, train

Run = dict[str, Any]


def produce(port: int, session: str, hz: float, seconds: float) -> None:
    """POST readings at a steady rate over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    begun = time.monotonic()
    for number in range(int(hz * seconds)):
        time.sleep(max(0.0, begun + number / hz - time.monotonic()))
        body = json.dumps(reading(number))
        connection.request(
            "POST", f"/api/training/sessions/{session}/metrics", body, {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        if answer.status != 201:
            raise SystemExit(f"the server answered {answer.status}: {answer.read()!r}")
        answer.read()
    connection.close()


def watched(kind: str, options: argparse.Namespace, size: int = 0, *, stalled: bool = False) -> Run:
    """One run of one kind of server with all clients."""
    server = Process("_broadcasters.py", "raw" if kind == "raw" else "gymcast", "--clients", str(options.clients))
    found = json.loads(server.answer())
    where = ("127.0.0.1", str(found["port"]), found["path"])
    first = Process("_spectators.py", *where, "50")  # what the first connections load stays loaded
    first.answer()
    first.end()
    time.sleep(1.5)
    before = server.ask("memory")
    clients = Process("_spectators.py", *where, str(options.clients), *(["--stalled"] if stalled else []))
    clients.answer()
    time.sleep(1.5)  # the count of spectators is told a second after it changed
    connected = server.ask("memory")
    seconds = options.stall_seconds if stalled else options.seconds
    clients.say("go")
    cpu, begun = server.cpu(), time.monotonic()
    cut_off: float | None = None
    if kind == "ingest":
        producer = threading.Thread(target=produce, args=(found["port"], found["sessions"][0], options.hz, seconds))
        producer.start()
        while producer.is_alive():
            producer.join(0.5)
            if stalled and cut_off is None and server.ask("connections") == options.clients:
                cut_off = time.monotonic() - begun
    else:
        server.say(f"publish {options.hz} {size} {seconds}")
        time.sleep(seconds)
    time.sleep(0.3)
    used, wall = server.cpu() - cpu, time.monotonic() - begun
    run: Run = clients.ask("stop")
    run |= {"cpu_share": used / wall, "cpu_us": used / max(1, run["messages"]) * 1e6}
    run["cut_off"] = cut_off
    run |= {"per_connection": (connected - before) / options.clients, "load": os.getloadavg()[0]}
    run |= {"grown": server.ask("memory") - connected, "expected": int(options.hz * seconds) * options.clients}
    clients.end()
    server.end()
    return run


def rows_of(runs: dict[str, list[Run]]) -> list[list[str]]:
    """A row for each kind, medians over its runs."""
    raw = [run["cpu_us"] for run in runs.get("raw", [])]
    rows = []
    for kind, found in runs.items():
        ratios = [run["cpu_us"] / alone for run, alone in zip(found, raw, strict=False)]
        rows.append(
            [
                kind,
                f"{sum(run['messages'] for run in found):,} of {sum(run['expected'] for run in found):,}",
                *(f"{median([run[name] for run in found]):.1f}" for name in ("p50", "p99", "max")),
                f"{median([run['cpu_share'] for run in found]):.1%}",
                f"{median([run['cpu_us'] for run in found]):.2f}",
                f"{median(ratios):.2f}" if ratios else "-",
                f"{median([run['per_connection'] for run in found]) / 1000:.1f}",
                f"{median([run['load'] for run in found]):.1f}",
            ]
        )
    return rows


HEAD: Final = [
    "sent by",
    "messages",
    "p50, ms",
    "p99, ms",
    "max, ms",
    "of a core",
    "CPU µs a message",
    "of raw",
    "KB a connection",
    "load",
]


def fan_out(options: argparse.Namespace) -> None:
    """All kinds in turn."""
    runs: dict[str, list[Run]] = {"direct": [], "raw": [], "ingest": []}
    for _ in range(options.repeats):
        direct = watched("direct", options)
        runs["direct"].append(direct)
        runs["raw"].append(watched("raw", options, direct["bytes"] // max(1, direct["messages"])))
        runs["ingest"].append(watched("ingest", options))
    print(table(HEAD, rows_of(runs)))


def one_stalled(options: argparse.Namespace) -> None:
    """The others beside a client that never reads."""
    runs = {
        "without": watched("ingest", options),
        "with one that never reads": watched("ingest", options, stalled=True),
    }
    print(table(HEAD, rows_of({name: [run] for name, run in runs.items()})))
    run = runs["with one that never reads"]
    gone = "was still there at the end" if run["cut_off"] is None else f"was cut off after {run['cut_off']:.1f} s"
    print(
        f"The one that never reads {gone}; memory grew by {run['grown'] / 1000:,.0f} KB; {run['closed']} others closed."
    )


def beside_training(options: argparse.Namespace) -> None:
    """What the spectators take from a training."""
    runs: dict[int, list[Watched]] = {0: [], options.clients: []}
    for _ in range(options.repeats):
        for clients, found in runs.items():
            found.append(train(options.env, options.train_seconds, clients))
    alone = runs[0]
    rows = [
        [
            f"{clients:,}",
            f"{median([run.samples for run in found]):,.0f}",
            f"{median([run.samples / one.samples for run, one in zip(found, alone, strict=True)]):.3f}",
            f"{median([run.samples_cpu for run in found]):,.0f}",
            f"{median([run.samples_cpu / one.samples_cpu for run, one in zip(found, alone, strict=True)]):.3f}",
            f"{median([float(run.delivered) for run in found]):,.0f}",
        ]
        for clients, found in runs.items()
    ]
    head = [
        "clients",
        "samples/s",
        "of nobody's",
        "samples per CPU s of the trainer",
        "of nobody's",
        "messages delivered",
    ]
    print(table(head, rows))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("fan-out", "stalled", "training"))
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--hz", type=float, default=10.0, help="readings a second")
    parser.add_argument("--seconds", type=float, default=15.0, help="length of each run")
    parser.add_argument("--stall-seconds", type=float, default=40.0, help="length of the run with a stalled client")
    parser.add_argument("--env", default="CartPole-v1", help="what is trained")
    parser.add_argument("--train-seconds", type=float, default=30.0, help="length of each training")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(machine())
    if options.only in (None, "fan-out"):
        fan_out(options)
    if options.only in (None, "stalled"):
        one_stalled(options)
    if options.only == "training":
        beside_training(options)


if __name__ == "__main__":
    main()
