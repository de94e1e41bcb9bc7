"""What a search finds and a random one for the same core-seconds; trials lost when its driver dies.

About six minutes on one core that is free. Searches LightGBM on the examples of `raysys demo`, or
with `--synthetic` on a made-up shop, with three seeds; then kills the driver of a search with
SIGKILL, again and again, and counts.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import yaml

from benchmarks.result import Figure, write_result
from raysys.cluster import ray_session
from raysys.stages import tune
from raysys.storage import Manifest, Workspace
from raysys.tuning.plots import best_so_far
from raysys.tuning.settings import Goal
from raysys.tuning.study import FAILED, RANDOM, Trial, open_study, trials_of

SPACE = {
    "learning_rate": {"kind": "float", "low": 0.01, "high": 0.5, "log": True},
    "num_leaves": {"kind": "int", "low": 4, "high": 127, "log": True},
    "min_child_samples": {"kind": "int", "low": 2, "high": 300, "log": True},
    "subsample": {"kind": "float", "low": 0.3, "high": 1.0},
    "colsample": {"kind": "float", "low": 0.2, "high": 1.0},
    "lambda_l2": {"kind": "float", "low": 0.001, "high": 100, "log": True},
    "truncation_level": {"kind": "choice", "choices": [5, 10, 20, 40]},
}


def content(seconds: float, requests: int, seed: int) -> dict[str, object]:
    """The YAML of one search that may take so many core-seconds."""
    return {
        "name": f"seed{seed}",
        "learner": "lightgbm_ranker",
        "settings": {"n_estimators": 120, "early_stopping_rounds": 30},
        "space": SPACE,
        "trials": 500,
        "core_hours": seconds / 3600,
        "concurrent": 1,
        "scheduler": {"kind": "asha", "grace": 25, "reduction": 3},
        "proxy": {"requests": requests, "validation_requests": 2 * requests},
        "compare_random": True,
        "seed": seed,
    }


def within(trials: list[Trial], seconds: float) -> float:
    """The best score of the first trial and what ended within so many core-seconds after it.

    The first is the same in every search, the learner's own settings, and pays for imports.
    """
    spent, best = best_so_far(trials[1:], Goal(), 1.0)
    able = [score for at, score in zip(spent, best, strict=True) if at <= seconds]
    return max([trials[0].score or 0.0, *able[-1:]])


def compare(
    workspace: Workspace, seconds: float, requests: int, seeds: int
) -> tuple[list[Figure], int]:
    """Figures of searches with several seeds, and how many trials they took in all."""
    best, random, own, counts = [], [], [], []
    with ray_session():
        for seed in range(seeds):
            settings = tune.TuneSettings.model_validate(content(seconds, requests, seed))
            tune.run(settings, workspace)
            folder = tune.folder_of(settings, workspace)
            trials = trials_of(open_study(folder))
            drawn = trials_of(open_study(folder, name=RANDOM))
            spent = min(sum(each.seconds for each in study[1:]) for study in (trials, drawn))
            best.append(within(trials, spent))
            random.append(within(drawn, spent))
            own.append(trials[0].score or 0.0)
            counts.append((len(trials), len(drawn)))
    searched, drawn_ = (float(np.median([each[at] for each in counts])) for at in (0, 1))
    gain = np.array(best) - np.array(random)
    return [
        _figure("best_after_budget", best, f"{searched:.0f} trials in {seconds:.0f} core-seconds, "
                f"median of {seeds} seeds; TPE and ASHA, stopped trials included"),
        _figure("random_search_after_budget", random,
                f"{drawn_:.0f} trials in as many core-seconds, the same run"),
        _figure("gain_over_random", gain.tolist(), "paired by seed"),
        _figure("own_settings", own, "the first trial of both: the learner's own settings"),
    ], sum(sum(each) for each in counts)  # fmt: skip


def _figure(name: str, values: list[float], reference: str) -> Figure:
    return Figure(
        *(name, float(np.median(values)), "ndcg@10", min(values), max(values)),
        reference=reference,
    )


def kill(workspace: Workspace, requests: int, times: int) -> list[Figure]:
    """Kill a search's driver in the midst of trials, run it again, and count what is missing."""
    made = content(10_000, requests, 99) | {
        "trials": 2 * times + 2,
        "compare_random": False,
        "settings": {"n_estimators": 400, "early_stopping_rounds": 400},  # time to be killed in
        "checkpoint_steps": 10,
    }
    config = workspace.root / "killed.yaml"
    config.write_text(yaml.safe_dump(made))
    folder = workspace.tune / "seed99"
    command = [sys.executable, "-m", "raysys", "tune", "-c", str(config), "-w", str(workspace.root)]
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "PYTHONPATH": str(Path.cwd())}
    lost = resumed = 0
    said = workspace.root / "said.log"
    for blow in range(times):
        before = ended(folder)
        running = _begun(command, environment, said)
        while running.poll() is None and not (
            len(ended(folder)) > len(before) + blow % 2 and in_midst(folder)
        ):
            time.sleep(0.1)
        if running.poll() is not None:
            raise RuntimeError(f"it ended before it could be killed:\n{said.read_text()[-2000:]}")
        children = psutil.Process(running.pid).children(recursive=True)
        running.send_signal(signal.SIGKILL)
        running.wait()
        psutil.wait_procs(children, timeout=60)
        lost += sum(ended(folder).get(number) != score for number, score in before.items())
        resumed += in_midst(folder)
    before = ended(folder)
    running = _begun(command, environment, said)
    workers = 0
    while running.poll() is None:  # once a worker, too
        time.sleep(0.1)
        if not workers and len(ended(folder)) > len(before) and in_midst(folder):
            for process in psutil.Process(running.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if "ImplicitFunc" in " ".join(process.cmdline()[:1]):
                        process.kill()
                        workers += 1
    if running.returncode:
        raise RuntimeError(f"it failed after it was killed:\n{said.read_text()[-2000:]}")
    after = {trial.number: trial for trial in trials_of(open_study(folder))}
    lost += sum(after[number].score != score for number, score in before.items())
    lost += 2 * times + 2 - len(after) + sum(trial.state == FAILED for trial in after.values())
    return [
        Figure("kills", times, "kills", reference="SIGKILL of the driver in the midst of a trial"),
        Figure("worker_kills", workers, "kills", reference="SIGKILL of a worker, in the last run"),
        Figure("lost_trials_after_kill", lost, "trials", aim="0",
               reference=f"of {len(after)}; changed, gone, failed or never ended"),
        Figure("resumed_after_kill", resumed, "trials",
               reference="that had a checkpoint when the driver was killed"),
    ]  # fmt: skip


def _begun(command: list[str], environment: dict[str, str], said: Path) -> subprocess.Popen[bytes]:
    with said.open("w") as out:
        return subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)


def ended(folder: Path) -> dict[int, float | None]:
    """Scores of all trials that ended, by number."""
    if not (folder / "trials.log").is_file():
        return {}
    return {trial.number: trial.score for trial in trials_of(open_study(folder))}


def in_midst(folder: Path) -> bool:
    """Whether a trial that has not ended left a checkpoint."""
    numbers = ended(folder)
    places = (folder / "scratch" / "search").glob("trial-*/step-*")
    return any(int(place.parent.name.partition("-")[2]) not in numbers for place in places)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", default="runs/demo/features", help="of `raysys features`")
    parser.add_argument("--synthetic", action="store_true", help="on a made-up shop instead")
    parser.add_argument("--seconds", type=float, default=30, help="core-seconds of each search")
    parser.add_argument("--requests", type=int, default=500, help="fitted on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=3)
    asked = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        workspace = Workspace(Path(place))
        if asked.synthetic:
            from tests.synthetic import write_examples

            write_examples(workspace.features, 2000)
            folds = {"train": [0, 1], "validation": 2, "report": 3}
            Manifest(stage="features", figures={"folds": folds}).write(workspace.features)
        else:
            workspace.features.symlink_to(Path(asked.features).resolve())
        figures, trials = compare(workspace, asked.seconds, asked.requests, asked.seeds)
        figures.append(Figure("trials", trials, "trials", reference="of all seeds, both ways"))
        figures += kill(workspace, asked.requests, asked.kills)
    write_result("tuning", figures, time.monotonic() - began)


if __name__ == "__main__":
    main()
