"""`raysys evaluate`: the champion judged on the report period, beside its members and fallbacks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from raysys.catalogue import Catalogue
from raysys.config import StageSettings
from raysys.ensemble import FALLBACKS, Combination, Ensemble, Judgements, ndcg
from raysys.ensemble.cost import Subset
from raysys.ensemble.folds import base_score
from raysys.errors import UserError
from raysys.evaluation.diversity import error_overlap, rank_correlation
from raysys.evaluation.figures import Evaluation, Loss
from raysys.evaluation.intervals import Bootstrap
from raysys.evaluation.judge import Period, Scorer, differences, judge_all, score_all
from raysys.evaluation.metrics import recall
from raysys.evaluation.report import write_report
from raysys.evaluation.slices import by_department, by_newness, by_price, read_missed
from raysys.features.batch import Batch
from raysys.features.examples import Examples
from raysys.progress import task
from raysys.registry import Bundle, Registry
from raysys.storage import MANIFEST, Manifest, Workspace, is_done, read_manifest, replacing

log = logging.getLogger("raysys")


class EvaluateSettings(StageSettings):
    """The YAML of `raysys evaluate`.

    Attributes:
        bundle: a name such as `champion`, or the id of a bundle.
        resamples: draws of the bootstrap.
        draw: what it draws: `user` (with all their requests: they resemble each other) or
            `request` (narrower intervals, honest where users hardly come back).
        seed: of the draws.
        diversity: column of the catalogue whose distinct values are diversity.
        price: the feature that tells an item's price where the catalogue has none; null: neither.
    """

    kind_name: ClassVar[str] = "evaluate"

    bundle: str = "champion"
    resamples: int = Field(default=1000, ge=100, le=100_000)
    draw: Literal["user", "request"] = "user"
    seed: int = Field(default=0, ge=0)
    diversity: Literal["department", "category", "subcategory", "brand"] = "category"
    price: str | None = "item_price_112d"


def run(settings: EvaluateSettings, workspace: Workspace, *, force: bool = False) -> Manifest:
    """Write `report.html`, `report.json` and the manifest into `workspace.evaluate`.

    Raises:
        UserError: no features, no such bundle, or a bundle that was trained on other features,
            for which this period may not be unseen; nothing was relevant in the period.
    """
    upstream = read_manifest(workspace.features)
    registry = Registry(workspace.registry)
    bundle_id = registry.resolve(settings.bundle)
    planned = Manifest(
        stage="evaluate",
        inputs={"features": upstream.fingerprint, "bundle": bundle_id},
        settings=settings.model_dump(mode="json"),
    )
    if not force and is_done(workspace.evaluate, planned):
        return read_manifest(workspace.evaluate)
    started = time.monotonic()
    with task("evaluate: loading the bundle"):
        bundle = registry.load(bundle_id)
        _check_origin(bundle, upstream)
    folds = upstream.figures["folds"]
    report_fold, train_folds = int(folds["report"]), tuple(folds["train"])
    examples = Examples(workspace.features, (report_fold,))
    if settings.price is not None and settings.price not in examples.names:
        raise UserError(
            f"no feature {settings.price!r}",
            where="price",
            mend=f"null, or one of: {', '.join(examples.names)}",
        )
    batch = examples.batch()
    with task("evaluate: scoring", len(bundle.learners)) as scoring:
        base, lost = {}, {}
        for name, model in bundle.learners.items():
            said = base_score(name, model, batch, finite=False)
            if bad := int((~np.isfinite(said)).sum()):
                lost[name] = f"{bad:,} of {len(said):,} scores are not finite"
                log.warning("evaluate: %s is left out: %s", name, lost[name])
            else:
                base[name] = said
            scoring.advance()
    if not base:
        raise UserError("no learner gave finite scores", where=bundle_id, mend="train again")
    past = examples.with_folds(*train_folds, int(folds["validation"]))
    period = _period(settings, batch, examples, past, bundle.features.catalogue)
    judgements = period.judgements
    if not judgements.n_relevant.any():
        raise UserError(
            "nothing in the report period was relevant: there is nothing to judge by",
            where=str(workspace.features),
            mend="more report_days in the YAML of `raysys features`, and run it again",
        )
    scorers = score_all(list(_scorers(bundle.ensemble, bundle.families, base, batch)))
    with task("evaluate: judging", len(scorers)) as judging:
        verdicts = judge_all(period, scorers, judging.advance)
    gaps = differences(period.bootstrap, verdicts, "ensemble")
    with task("evaluate: losing members"):
        losses = _losses(bundle.ensemble, base, batch, period, verdicts["ensemble"].ndcg)
    trained = _training(workspace, bundle_id)
    evaluation = Evaluation(
        title="Ranking on the last period",
        bundle=bundle_id,
        period=_facts(batch, examples.requests()),
        ceiling=_retrieved(judgements),
        cluster=settings.draw,
        resamples=settings.resamples,
        verdicts=verdicts,
        differences=gaps,
        slices={(part.group, part.name): part.requests for part in period.slices},
        combinations=bundle.ensemble.fallbacks,
        correlation=rank_correlation(base, batch.offsets),
        overlap=error_overlap(judgements, base),
        learners=tuple(base),
        losses=losses,
        dropped={**trained.get("dropped", {}), **lost},
        milliseconds=trained.get("latency_ms", {}),
        subsets=[Subset.from_dict(each) for each in trained.get("subsets", [])],
    )
    with replacing(workspace.evaluate) as folder:
        with task("evaluate: report"):
            write_report(evaluation, folder)
        best = evaluation.best_single
        planned.seconds = time.monotonic() - started
        planned.counts = {"requests": batch.n_requests, "rows": len(batch)}
        planned.figures = {
            "ndcg10": {name: v.metrics["ndcg@10"].to_dict() for name, v in verdicts.items()},
            "best_single": best,
            "gain": gaps[best].to_dict(),
            "gains": {name: gap.to_dict() for name, gap in gaps.items()},
            "losses": [loss.to_dict() for loss in losses],
        }
        planned.write(folder)
    return planned


def _check_origin(bundle: Bundle, features: Manifest) -> None:
    """Refuse to judge on what the bundle may have been fitted on."""
    origin = bundle.manifest.data.get("features")
    if origin != features.fingerprint:
        raise UserError(
            f"the bundle was trained on other features ({origin}): its training may have seen "
            "this report period",
            where=bundle.id,
            mend="run `raysys train` on these features, or give --workspace of the bundle's own",
        )


def _training(workspace: Workspace, bundle_id: str) -> dict[str, Any]:
    """Figures of the training that published this bundle; none if another came after it."""
    if not (workspace.train / MANIFEST).is_file():
        return {}
    figures = read_manifest(workspace.train).figures
    return figures if figures.get("bundle") == bundle_id else {}


def _scorers(
    ensemble: Ensemble,
    families: dict[str, str],
    base: dict[str, npt.NDArray[np.float32]],
    batch: Batch,
) -> Iterator[Callable[[], Scorer]]:
    """What makes the ensemble, the fallbacks that differ from it, then every member alone."""
    seen: list[Combination] = []

    def combined(name: str, combination: Combination) -> Scorer:
        score, probability = combination.answer(base, batch.offsets, batch)
        full = name == "full"
        return Scorer(
            "ensemble" if full else name, "ensemble" if full else "fallback", score, probability
        )

    def alone(name: str, combination: Combination) -> Scorer:
        kind = "baseline" if families[name] == "baseline" else "learner"
        _, probability = combination.answer(base, batch.offsets)
        return Scorer(name, kind, base[name], probability)

    for name, combination in ensemble.fallbacks.items():
        full = name == "full"
        if any(combination.to_dict() == other.to_dict() for other in seen):
            continue
        if not full and not combination.needed <= base.keys():
            continue
        seen.append(combination)
        yield partial(combined, name, combination)
    for name, combination in ensemble.alone.items():
        if name in base:
            yield partial(alone, name, combination)


def _losses(
    ensemble: Ensemble,
    base: dict[str, npt.NDArray[np.float32]],
    batch: Batch,
    period: Period,
    whole: npt.NDArray[np.float64],
) -> list[Loss]:
    """What is left when a family or a single member is lost, with the fallback that answers."""
    families = ensemble.families
    without = {
        f"only {' and '.join(sorted(wanted))}": [n for n in base if families[n] in wanted]
        for fallback, wanted in FALLBACKS.items()
        if fallback != "full"
    }
    without |= {f"without {name}": [n for n in base if n != name] for name in base}
    judgements, found = period.judgements, []
    for what, present in without.items():
        if not present:
            continue
        if len(present) == len(base):  # nobody is lost
            continue
        said = ensemble.score({name: base[name] for name in present}, batch.offsets, batch)
        values = ndcg(judgements, judgements.ranks(said.score), 10)
        found.append(
            Loss(
                what,
                tuple(present),
                said.fallback,
                period.bootstrap.mean(values),
                period.bootstrap.difference(values, whole),
            )
        )
    return found


def _period(
    settings: EvaluateSettings, batch: Batch, examples: Examples, past: Examples, items: Catalogue
) -> Period:
    """What was relevant in the report period, its slices, and the draws of users."""
    judgements = Judgements.of(batch)
    user = batch.user if settings.draw == "user" else np.arange(batch.n_requests)
    missed = read_missed(examples, settings.price)
    n_orders = examples.requests()["n_orders"].to_numpy()
    slices = [
        *by_newness(judgements, n_orders),
        *by_department(judgements, missed, items),
    ]
    if settings.price is not None:
        price = batch.column(settings.price).astype(np.float64)
        slices += by_price(judgements, missed, price)
    return Period(
        judgements=judgements,
        bootstrap=Bootstrap(user, resamples=settings.resamples, seed=settings.seed),
        user=batch.user,
        kind=items.codes(settings.diversity)[0],
        purchases=_purchases(past, len(items)),
        slices=slices,
    )


def _purchases(past: Examples, n_items: int) -> npt.NDArray[np.float64]:
    """How often each item was bought in earlier requests: float64[n_items]."""
    count = np.zeros(n_items)
    for path in past.files("examples"):
        table = pq.read_table(path, columns=["item", "label"], partitioning=None)
        bought = table["item"].to_numpy()[table["label"].to_numpy() > 0]
        count += np.bincount(bought, minlength=n_items)
    return count


def _retrieved(judgements: Judgements) -> float:
    """Mean share of what a request wanted that is among its candidates: recall at any depth."""
    anywhere = np.ones(len(judgements.relevant), dtype=np.int32)
    return float(np.nanmean(recall(judgements, anywhere, 1)))


def _facts(batch: Batch, requests: pa.Table) -> dict[str, Any]:
    """Facts of the period for the head of the report."""
    moments = requests["timestamp"].to_numpy()
    first, last = str(moments.min())[:10], str(moments.max())[:10]
    days = int((moments.max() - moments.min()) / np.timedelta64(1, "D")) + 1
    return {
        f"days, {first} to {last}": days,
        "requests": f"{batch.n_requests:,}",
        "users": f"{len(np.unique(batch.user)):,}",
        "candidates": f"{len(batch):,}",
    }
