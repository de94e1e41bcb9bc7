"""A search on two nodes of a cluster, one of which is killed in the midst of a trial.

`python -m tests.tuning.killed_node FOLDER` prints what its trials told, as JSON. A process of its
own, as Ray keeps its token for good.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.cluster import nodes
from benchmarks.measure import stop_tree
from raysys.cluster import ray_session
from raysys.learners.protocol import Resources
from raysys.storage import write_atomic
from raysys.tuning.objective import Job, LearnerObjective, Rows, Tell
from raysys.tuning.search import search
from tests.synthetic import write_examples
from tests.tuning import toy

HELD = 4
"""Epochs after which both trials wait for the kill; the last checkpoint is of the one before."""
KILLED = "killed"
"""The file that names the process of the node that was killed, once it is."""
LEARNER = {"settings": {"width": 8, "layers": 1, "heads": 1, "epochs": 9, "batch_size": 32}}
SPACE = {"settings.learning_rate": {"kind": "float", "low": 0.001, "high": 0.01, "log": True}}


@dataclass(frozen=True)
class Watched:
    """A trial that writes each epoch and its node's process, and waits until a node was killed.

    Attributes:
        inner: what is watched.
        folder: seen by all nodes.
    """

    inner: LearnerObjective
    folder: Path

    def __call__(self, job: Job, tell: Tell) -> dict[str, float]:
        """See `Objective`."""

        killed, home = self.folder / KILLED, os.getppid()

        def told(step: int, score: float) -> None:
            with (self.folder / f"told-{job.number}").open("a") as file:
                file.write(f"{step} {home}\n")
            # a worker outlives its node's process by a moment, in which it must not go on
            while step == HELD and not (killed.exists() and killed.read_text() != str(home)):
                time.sleep(0.05)
            tell(step, score)

        return self.inner(job, told)


def told(folder: Path, number: int) -> list[list[int]]:
    """Epochs that a trial told, and the process of the node that each was told from."""
    place = folder / f"told-{number}"
    lines = place.read_text().splitlines() if place.is_file() else []
    return [[int(part) for part in line.split()] for line in lines]


def drive(folder: Path) -> None:
    """The search as its driver runs it; then the same two trials with nobody killed."""
    examples, catalogue = write_examples(folder / "features", 120, 60)
    rows = Rows(examples.with_folds(0, 1), examples.with_folds(2).batch())
    made = replace(
        toy.plan(folder / "tune", learner="next_item", space=SPACE, trials=2),
        resources=Resources(1, 1.0, 0.0),
    )
    objective = LearnerObjective(
        *("next_item", LEARNER, rows, catalogue, made.checkpoints, 17), grace=1, every=1
    )
    with ray_session():
        trials = search(Watched(objective, folder), made)
    whole = replace(objective, folder=folder / "whole")
    undisturbed = [whole(Job(each.number, each.values), lambda *_: None) for each in trials]
    content = {
        "states": [each.state for each in trials],
        "scores": [each.score for each in trials],
        "undisturbed": [each["ndcg@10"] for each in undisturbed],
    }
    (folder / "outcome.json").write_text(json.dumps(content))


def run(folder: Path) -> dict[str, Any]:
    """Kill the node of trial 1 while both trials are held; what came of them.

    Raises:
        RuntimeError: the search failed.
    """
    said = folder / "said"
    with nodes(2) as (cluster, environment), said.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.tuning.killed_node", str(folder), "--drive"],
            env={**os.environ, **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            while process.poll() is None:
                held = [told(folder, number)[-1:] for number in (0, 1)]
                if all(each and each[0][0] == HELD for each in held):
                    break
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.05)
            homes = {
                node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes
            }
            if process.poll() is None:
                home = held[1][0][1]
                cluster.remove_node(homes[home], allow_graceful=False)
                write_atomic(folder / KILLED, str(home))
                process.wait()
        finally:
            if process.poll() is None:
                stop_tree(process.pid)
    if process.returncode:
        raise RuntimeError(said.read_text(errors="replace")[-4000:])
    outcome: dict[str, Any] = json.loads((folder / "outcome.json").read_text())
    return {**outcome, "told": [told(folder, number) for number in (0, 1)]}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    if "--drive" in sys.argv:
        drive(place)
    else:
        print(json.dumps(run(place)))
