"""The loop as a story: champion, shoppers, challenger, off-policy, A/B test, promotion, kills.

About six minutes on two cores with `--seconds 60`. Shoppers are simulated, so what they would have
liked best is known: `reached` is the share of those clicks that were to be expected of the lists.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import polars as pl
import psutil

from benchmarks.parts import write_loop_result
from benchmarks.result import ROOT, Figure
from benchmarks.story_clicks import LOOKS, Looked, look_and_see
from benchmarks.story_shop import SHOPPERS, Shop
from raysys.cluster import ray_session
from raysys.config import load_settings, parse_settings
from raysys.eventlog import rolled as rolled_log
from raysys.eventlog.local import LocalLog
from raysys.eventlog.rolled import Rolled
from raysys.eventlog.settings import LogSettings
from raysys.experiments.off_policy import PolicyValue
from raysys.experiments.verdict import verdict
from raysys.ingest.spread import InProcess
from raysys.registry import Registry
from raysys.simulation.driver import Outcome
from raysys.stages import experiment, features, ingest, life, simulate, train
from raysys.stages.deploy import cluster, deploy
from raysys.stages.deploy_plan import DeploySettings, plan
from raysys.storage import Workspace

REPLICA = "ray::ServeReplica:raysys:Ranker"


@dataclass
class Chapter:
    """Shoppers in front of the shop, for a while.

    Attributes:
        name: what was served.
        outcome: what they saw and did.
        killed: seconds after the beginning at which a replica was killed.
    """

    name: str
    outcome: Outcome
    killed: tuple[float, ...] = ()

    @property
    def reached(self) -> float:
        """Clicks that were to be expected, of those of the best lists."""
        return self.outcome.figures()["reached"]


@dataclass
class Story:
    """What happened.

    Attributes:
        chapters: in order.
        promised: off-policy, what the challenger would have earned on the champion's lists.
        verdict: of the experiment, in sentences.
        lift: of the challenger's click rate, with its interval.
        acknowledged: ids of the events that the shop said it has.
        kept: those that its log holds, and how often.
        looked: what somebody nobody knew looked at, and the lists before and after.
        retrained: events of the deployment that the challenger's features were made of.
    """

    chapters: list[Chapter] = field(default_factory=list)
    promised: PolicyValue | None = None
    verdict: list[str] = field(default_factory=list)
    lift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    acknowledged: list[str] = field(default_factory=list)
    kept: Counter[str] = field(default_factory=Counter)
    looked: Looked | None = None
    retrained: int = 0

    @property
    def failed(self) -> int:
        """Requests that came to nothing; only a busy shop (429, 503) is asked again, twice."""
        return sum(sum(chapter.outcome.failed.values()) for chapter in self.chapters)

    @property
    def lost(self) -> list[str]:
        """Acknowledged ids that the log does not have."""
        return [name for name in self.acknowledged if name not in self.kept]

    @property
    def twice(self) -> list[str]:
        """Ids that the log has more than once."""
        return [name for name, count in self.kept.items() if count > 1]


def tell(root: Path, *, seconds: float, rate: float) -> Story:
    """Live through it.

    Args:
        root: an empty folder.
        seconds: of each chapter.
        rate: visits a second.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        shop = Shop(root, probe.getsockname()[1])
    story = Story()
    with ray_session(dashboard=True), cluster() as (dashboard, _):
        prepare(shop)
        fit(shop, "champion")
        serve_shop(shop, dashboard)
        visit = _Visits(shop, story, seconds, rate)
        visit.chapter("the champion", kill=True)
        story.retrained = learn_from_what_came(shop)
        fit(shop, "challenger")
        story.promised = value_of_challenger(shop)
        shop.begin_experiment()
        serve_shop(shop, dashboard)
        visit.chapter("an A/B test of both", kill=True)
        judge(shop, story)
        life.promote(Workspace(shop.workspace), "challenger", None, force=False)
        wait_for(shop, Registry(shop.workspace / "registry").resolve("challenger"))
        visit.chapter("the challenger, promoted")
        story.looked = look_and_see(shop)
        story.acknowledged += story.looked.acknowledged
        roll(shop)
        story.kept = kept_ids(shop)
        from ray import serve

        serve.shutdown()
    return story


def prepare(shop: Shop) -> None:
    """Ingest and features of what the log holds by now."""
    workspace, root = Workspace(shop.workspace), shop.root
    settings = load_settings(ingest.IngestSettings, root / "ingest.yaml")
    ingest.run(settings, workspace, spread=InProcess())
    features.run(load_settings(features.FeaturesSettings, root / "features.yaml"), workspace)


def fit(shop: Shop, name: str) -> None:
    """`raysys train --config NAME.yaml --as NAME`."""
    settings = load_settings(train.TrainSettings, shop.root / f"{name}.yaml")
    train.run(settings.model_copy(update={"publish_as": name}), Workspace(shop.workspace))


def serve_shop(shop: Shop, dashboard: str) -> None:
    """`raysys deploy --config serve.yaml`."""
    settings = load_settings(DeploySettings, shop.root / "serve.yaml")
    deploy(*plan(settings, None), dashboard)


def learn_from_what_came(shop: Shop) -> int:
    """Roll the event log, ingest it beside the old one, make features: how many events were new."""
    came = roll(shop)
    shop.with_event_log()
    prepare(shop)
    return came


def roll(shop: Shop) -> int:
    """Events of the deployment so far, all of them in Parquet from now on."""
    folder = Workspace(shop.workspace).eventlog
    log = LocalLog(folder, LogSettings())
    try:
        rolled = Rolled(folder)
        rolled_log.roll(log, rolled)
        return sum(stretch.events for stretch in rolled.stretches())
    finally:
        log.close()


def kept_ids(shop: Shop) -> Counter[str]:
    """Ids of the events that were rolled, and how often each is there."""
    rolled = Rolled(Workspace(shop.workspace).eventlog)
    found: Counter[str] = Counter()
    for stretch in rolled.stretches():
        if stretch.events:
            rows = pl.read_parquet(rolled.events / f"{stretch.name}.parquet", columns=["event_id"])
            found.update(rows["event_id"].to_list())
    return found


def value_of_challenger(shop: Shop) -> PolicyValue:
    """`raysys experiment off-policy SHOWN --events EVENTLOG --bundle challenger`."""
    workspace = Workspace(shop.workspace)
    found = experiment.run_off_policy(
        workspace.shown_lists,
        workspace,
        bundle="challenger",
        events=workspace.eventlog,
        estimators=experiment.estimators(["dr"]),
    )
    return found[experiment.estimators(["dr"])[0]]


def judge(shop: Shop, story: Story) -> None:
    """`raysys experiment analyse experiments.yaml`, once all exposures are on the disk."""
    time.sleep(4)  # two segments
    found = experiment.run_analysis(
        shop.root / "experiments.yaml",
        Workspace(shop.workspace),
        experiment.AnalyseOptions(),
    )
    story.verdict = verdict(found)
    lift = next(each.relative for each in found.comparisons if each.role == "primary")
    story.lift = (lift.value, lift.low, lift.high)


def wait_for(shop: Shop, bundle: str, patience_s: float = 120) -> None:
    """Until every answer comes from a bundle."""
    end, in_a_row = time.monotonic() + patience_s, 0
    while in_a_row < 20:
        if time.monotonic() > end:
            raise SystemExit(f"{bundle} is not served after {patience_s:.0f} s")
        answer = httpx.get(f"http://127.0.0.1:{shop.port}/readyz").json()
        in_a_row = in_a_row + 1 if answer.get("bundle") == bundle else 0
        if not in_a_row:
            time.sleep(0.5)


class _Visits:
    """Chapters of the story, one after the other."""

    def __init__(self, shop: Shop, story: Story, seconds: float, rate: float) -> None:
        self.shop, self.story, self.seconds, self.rate = shop, story, seconds, rate

    def chapter(self, name: str, *, kill: bool = False) -> None:
        """`raysys simulate`; half-way a replica dies."""
        number = len(self.story.chapters)
        content = {
            "url": f"http://127.0.0.1:{self.shop.port}",
            "shoppers": SHOPPERS,
            "drive": {
                "seconds": self.seconds, "rate": self.rate, "search": 0,
                "days_per_second": 0.02, "seed": number,
            },
        }  # fmt: skip
        killed: list[int] = []
        timer = threading.Timer(self.seconds / 2, lambda: killed.extend(kill_a_replica()))
        if kill:
            timer.start()
        outcome = simulate.run(
            parse_settings(simulate.SimulateSettings, content, where="story"),
            Workspace(self.shop.workspace),
            self.shop.root / f"chapter-{number}",
        )
        timer.cancel()
        chapter = Chapter(name, outcome, tuple(self.seconds / 2 for _ in killed))
        self.story.chapters.append(chapter)
        self.story.acknowledged += outcome.acknowledged


def kill_a_replica() -> list[int]:
    """SIGKILL for one of this story's replicas: its pid."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if REPLICA in " ".join(process.cmdline()) or REPLICA in process.name():
                process.kill()
                return [process.pid]
    return []


def figures(story: Story) -> list[Figure]:
    """What the story comes to, as numbers."""
    first, _, last = story.chapters
    assert story.promised is not None and story.looked is not None
    gain, looked = story.promised.gain, story.looked
    lists = sum(len(chapter.outcome.answers) for chapter in story.chapters)
    return [
        Figure("reached_by_champion", first.reached, "", reference="of the best possible"),
        Figure("reached_by_challenger", last.reached, "", aim="above the champion's"),
        Figure("promised_off_policy", gain.value, "clicks a place", gain.low, gain.high),
        Figure("ab_test_lift", story.lift[0], "", *story.lift[1:], aim="its interval above 0"),
        Figure("lists", lists, ""),
        Figure("replicas_killed", sum(len(chapter.killed) for chapter in story.chapters), ""),
        Figure("looked_at_before", looked.share(looked.before), "share of the first ten",
               reference=f"of a kind, {looked.kind}, before somebody new looked at {LOOKS}"),
        Figure("looked_at_after", looked.share(looked.after), "share of the first ten",
               aim="above what it was", reference="in the next list"),
        Figure("requests_failed", story.failed, "",
               reference="without raysys.Client: only a busy shop (429, 503) is asked again"),
        Figure("events_acknowledged", len(set(story.acknowledged)), ""),
        Figure("events_lost", len(story.lost), "", aim="0", reference="by their ids"),
        Figure("events_twice", len(story.twice), "", aim="0", reference="by their ids"),
    ]  # fmt: skip


def draw(story: Story, path: Path, width_s: float = 10) -> None:
    """What the lists of each bundle reached, over the chapters, as an SVG."""
    from raysys.report import COLOURS, new_figure

    figure, axes = new_figure(9, 3.4)
    began, names = 0.0, {}
    for chapter in story.chapters:
        answers = pl.DataFrame(chapter.outcome.answers)
        second = (answers["timestamp"] - answers["timestamp"].min()) / 1000
        windows = (
            answers.with_columns(at=(second // width_s) * width_s + width_s / 2)
            .group_by("bundle", "at")
            .agg(pl.col("expected_clicks").sum(), pl.col("best_clicks").sum(), lists=pl.len())
            .filter(pl.col("lists") >= 10)
            .sort("at")
        )
        for (bundle,), rows in windows.group_by("bundle", maintain_order=True):
            name = str(bundle).rpartition("-")[0]
            colour = names.setdefault(name, COLOURS[len(names)])
            share = rows["expected_clicks"] / rows["best_clicks"]
            axes.plot(began + rows["at"], share, color=colour, marker="o", markersize=3)
        for moment in chapter.killed:
            axes.axvline(began + moment, color="#b0413e", linestyle=":", linewidth=1)
            axes.annotate("kill -9", (began + moment, 1.0), xycoords=("data", "axes fraction"),
                          ha="center", va="bottom", fontsize=8, color="#b0413e")  # fmt: skip
        axes.axvspan(began, began + chapter.outcome.seconds, color="#7a7a7a", alpha=0.06)
        axes.annotate(chapter.name, (began + chapter.outcome.seconds / 2, 0.02),
                      xycoords=("data", "axes fraction"), ha="center", fontsize=9)  # fmt: skip
        began += chapter.outcome.seconds * 1.08
    for name, colour in names.items():
        axes.plot([], [], color=colour, label=name)
    axes.legend(frameon=False, loc="upper left")
    axes.set_xlabel("seconds")
    axes.set_ylabel("of the best possible clicks")
    axes.set_ylim(0.4, 1)
    figure.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="of each of three chapters")
    parser.add_argument("--rate", type=float, default=12, help="visits a second")
    parser.add_argument("--workspace", type=Path, help="default: a new temporary folder")
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.workspace or Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        story = tell(root, seconds=arguments.seconds, rate=arguments.rate)
    for line in story.verdict:
        print(line)
    draw(story, ROOT / "docs" / "story.svg")
    write_loop_result("story", figures(story), time.monotonic() - began)


if __name__ == "__main__":
    main()
