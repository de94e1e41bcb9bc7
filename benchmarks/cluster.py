"""Ingest and features on simulated nodes: what reaches the driver, and what a killed node costs.

About ten minutes with logs of 1 and 10 million events on two cores.

Nodes are processes of one machine (Ray's `cluster_utils`), one CPU each: more of them than there
are cores share those, so time shows that nothing gathers in one place, not how far it scales.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.events_at_scale import make_log, rows_of, write_settings
from benchmarks.measure import fingerprint_events, measured, stop_tree
from benchmarks.result import Figure, write_result
from raysys.storage import Workspace

STORE_BYTES = 200 << 20  # of each node
TOKEN = os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(16)  # Ray reads it once a process


@contextlib.contextmanager
def nodes(count: int) -> Iterator[tuple[Any, dict[str, str]]]:
    """A cluster of a head without CPUs and `count` nodes of one CPU; what a driver's env needs.

    Every process of a node keeps to one thread, as a machine with one core would.
    """
    folder = tempfile.mkdtemp(prefix="ray-")  # sockets must have short names
    environment = {
        "RAY_TMPDIR": folder,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
        "POLARS_MAX_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *_python_path()]),
    }
    with _set(environment):
        from ray.cluster_utils import Cluster

        one = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args={**one, "num_cpus": 0})
        try:
            for _ in range(count):
                cluster.add_node(**one)
            yield cluster, {**environment, "RAY_ADDRESS": cluster.address}
        finally:
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Attempts:
    """Which pieces of work were begun, how often, told by the folders they are written into.

    A piece is written into `.KEY.*.tmp`, which is renamed to KEY when it is whole: a folder that
    did not become a piece was begun in vain, and a piece whose folder was replaced was done twice.

    Attributes:
        begun: inode of every folder seen → its piece; done: piece → inode of its folder.
        redone: pieces that were done and then done again.
    """

    root: Path
    begun: dict[int, str] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    redone: set[str] = field(default_factory=set)

    def look(self) -> None:
        """Take note of what is there now."""
        for kind in os.scandir(self.root) if self.root.is_dir() else ():
            for entry in os.scandir(kind.path):
                with contextlib.suppress(FileNotFoundError):
                    inode = entry.inode()
                    if entry.name.startswith("."):
                        self.begun[inode] = f"{kind.name}/{entry.name[1:].split('.')[0]}"
                        continue
                    key = f"{kind.name}/{entry.name}"
                    self.begun[inode] = key
                    if self.done.setdefault(key, inode) != inode:
                        self.redone.add(key)
                        self.done[key] = inode

    @property
    def lost(self) -> set[str]:
        """Pieces that were begun in vain."""
        whole = set(self.done.values())
        return {piece for inode, piece in self.begun.items() if inode not in whole}


@dataclass(frozen=True)
class Killed:
    """What killing a node in the middle of a stage cost.

    Attributes:
        pieces: of the whole stage; done_before: when the node was killed.
        again: pieces that were begun more than once, of them `redone` had been done already.
    """

    pieces: int
    done_before: int
    again: int
    redone: int


def raysys(stage: str, config: Path, workspace: Path) -> list[str]:
    """The command that a user would type."""
    command = [sys.executable, "-m", "raysys", stage, "--quiet"]
    return [*command, "--config", str(config), "--workspace", str(workspace)]


def kill_a_node(config: Path, workspace: Path, *, count: int = 2, after: int = 3) -> Killed:
    """Ingest on `count` nodes, one of which is killed once `after` pieces are done.

    Raises:
        RuntimeError: the command failed, or ended before the node was killed.
    """
    attempts = Attempts(Workspace(workspace).pieces)
    with nodes(count) as (cluster, environment), tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            raysys("ingest", config, workspace),
            env={**os.environ, **environment},
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        try:
            before = None
            while process.poll() is None:
                attempts.look()
                if before is None and len(attempts.done) >= after:
                    for node in filter(_is_busy, list(cluster.worker_nodes)):
                        before = len(attempts.done)
                        cluster.remove_node(node, allow_graceful=False)
                        break
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.005)
        finally:
            if process.poll() is None:
                stop_tree(process.pid)
        said.seek(0)
        if process.returncode or before is None:
            words = said.read().decode(errors="replace")[-4000:]
            raise RuntimeError(
                f"exit status {process.returncode}, {len(attempts.done)} pieces, "
                f"{'no node' if before is None else 'one node'} killed:\n{words}"
            )
    attempts.look()
    return Killed(len(attempts.done), before, len(attempts.lost), len(attempts.redone))


def _is_busy(node: Any) -> bool:
    """Whether a worker of the node is within a task."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for worker in raylet.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if " ".join(worker.cmdline()).startswith("ray::read and check"):
                return True
    return False


@dataclass(frozen=True)
class Driven:
    """What a stage took on a cluster, as its driver saw it."""

    seconds: float
    driver_peak: int
    driver_bytes: int


def drive(stage: str, config: Path, workspace: Path, environment: dict[str, str]) -> Driven:
    """Run a stage on a cluster, counting what its driver gets from there."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "bytes"
        command = [sys.executable, "-m", "benchmarks.cluster", "--as-driver", str(told)]
        command += raysys(stage, config, workspace)[3:]
        taken = measured(command, environment=environment).demand()
        return Driven(taken.seconds, taken.driver_peak, int(told.read_text()))


def as_driver(told: Path, arguments: Sequence[str]) -> None:
    """Be `raysys ARGUMENTS`, and write how many bytes of objects this process was given."""
    from ray._private.worker import Worker

    given = 0
    inner = Worker.deserialize_objects

    def counting(self: Worker, objects: Any, *rest: Any, **named: Any) -> Any:
        nonlocal given
        given += sum(len(data) for data, *_ in objects if data is not None)
        return inner(self, objects, *rest, **named)

    Worker.deserialize_objects = counting
    from raysys.cli import main as command_line

    sys.argv = ["raysys", *arguments]
    try:
        command_line()
    finally:
        told.write_text(str(given))


def main() -> None:
    if "--as-driver" in sys.argv:
        at = sys.argv.index("--as-driver")
        as_driver(Path(sys.argv[at + 1]), sys.argv[at + 2 :])
        return
    if "--kill-a-node" in sys.argv:  # a process of its own, as Ray keeps its token for good
        config, workspace = (Path(path) for path in sys.argv[2:4])
        print(json.dumps(asdict(kill_a_node(config, workspace))))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="folder that keeps the logs")
    parser.add_argument("--sizes", default="1m,10m", help="of the logs that drivers are watched on")
    parser.add_argument("--nodes", default="1,2,4")
    arguments = parser.parse_args()
    sizes, counts = arguments.sizes.split(","), [int(n) for n in arguments.nodes.split(",")]
    began = time.monotonic()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        figures += _flat_driver(sizes, arguments.cache, scratch)
        figures += _by_nodes(sizes[0], counts, arguments.cache, scratch)
        figures += _one_killed(sizes[0], arguments.cache, scratch)
    write_result("cluster", figures, time.monotonic() - began)


def _flat_driver(sizes: Sequence[str], cache: Path, scratch: Path) -> list[Figure]:
    """Memory of the driver and what reaches it, on two nodes, as the log grows."""
    figures = []
    for size in sizes:
        log, _ = make_log(size, cache)
        ingest, features = write_settings(log, scratch / size)
        with nodes(2) as (_, environment):
            for stage, config in (("ingest", ingest), ("features", features)):
                took = drive(stage, config, scratch / size / "run", environment)
                base = f"{rows_of(sizes[0]):,} events" if size != sizes[0] else ""
                figures += [
                    Figure(
                        *(f"{stage}_driver_peak_mb_{size}", took.driver_peak / 2**20, "MB"),
                        aim="as much for ten times the events",
                        reference=base,
                    ),
                    Figure(
                        *(f"{stage}_driver_received_kb_{size}", took.driver_bytes / 2**10, "KB"),
                        aim="grows with tasks, not with events",
                        reference=base,
                    ),
                ]
    return figures


def _by_nodes(size: str, counts: Sequence[int], cache: Path, scratch: Path) -> list[Figure]:
    """Seconds on 1, 2, 4 nodes of one CPU; more nodes than cores cannot be faster."""
    figures = []
    cores = len(os.sched_getaffinity(0))
    log, _ = make_log(size, cache)
    for count in counts:
        folder = scratch / f"{count}-nodes"
        ingest, features = write_settings(log, folder)
        with nodes(count) as (_, environment):
            for stage, config in (("ingest", ingest), ("features", features)):
                took = drive(stage, config, folder / "run", environment)
                figures.append(
                    Figure(
                        *(f"{stage}_s_{count}_nodes", took.seconds, "s"),
                        reference=f"{count} nodes share {cores} cores" if count > cores else "",
                    )
                )
    return figures


def _one_killed(size: str, cache: Path, scratch: Path) -> list[Figure]:
    """One of two nodes killed in the middle of ingest; the outcome of an undisturbed run."""
    log, _ = make_log(size, cache)
    undisturbed = scratch / "2-nodes" / "run"
    ingest, _ = write_settings(log, scratch / "killed")
    if not undisturbed.exists():
        with nodes(2) as (_, environment):
            drive("ingest", ingest, undisturbed, environment)
    workspace = scratch / "killed" / "run"
    cost = kill_a_node(ingest, workspace)
    same = fingerprint_events(workspace / "ingest" / "events") == fingerprint_events(
        undisturbed / "ingest" / "events"
    )
    return [
        Figure("pieces", cost.pieces, "", reference=f"{cost.done_before} done before the kill"),
        Figure("pieces_begun_again", cost.again, "", aim="those of the killed node only"),
        Figure("pieces_done_twice", cost.redone, "", aim="0"),
        Figure("outcome_equal", float(same), "", aim="1", reference="an undisturbed run"),
    ]


def _python_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


@contextlib.contextmanager
def _set(variables: dict[str, str]) -> Iterator[None]:
    """Variables of this process for a while: Ray's nodes inherit them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


if __name__ == "__main__":
    main()
