"""What another bundle would have shown in recorded lists: a policy to be judged off-policy.

Each list is scored again from the features that were recorded with it, by the other bundle's
learners, ensemble and the deployment's policy. For every place the outcome is whom the other would
have put there, and with which probability, given what was shown above it. Candidates are those that
were there: what the other bundle would have retrieved beside them, nobody can know.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq

from raysys.errors import UserError
from raysys.features.batch import Batch
from raysys.features.plan import Static
from raysys.features.user_attributes import attributes_read
from raysys.registry import Bundle, Registry
from raysys.retrieval.merge import Candidates
from raysys.segments import segments
from raysys.serving.asking import Ranking
from raysys.serving.problems import Problem
from raysys.serving.replay import ask_again, open_service
from raysys.serving.service import Service
from raysys.serving.shown_lists import batch_of, ranking_of

POLICY: Final = {
    "request_id": pl.String,
    "position": pl.Int64,
    "item_id": pl.String,
    "probability": pl.Float64,
}
"""A row for whom the policy might put into a place of a list; positions count from 1."""

_ROWS: Final = 1000  # read at a time


@dataclass
class WouldShow:
    """What came of it.

    Attributes:
        policy: see `POLICY`; of the lists that could be scored again, and no others.
        lists: how many these are.
        left_out: why others are not among them → how many.
    """

    policy: pl.DataFrame
    lists: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def would_show(
    folder: Path,
    bundle: str,
    *,
    registry: Path | None = None,
    advance: Callable[[], None] = lambda: None,
) -> WouldShow:
    """Let a bundle rank every recorded list whose features were recorded.

    Args:
        folder: of the shown lists.
        bundle: a name or an id.
        registry: where bundles lie; None: where those of the lists lay.
        advance: told after each segment.

    Raises:
        UserError: no lists with features, no such bundle, or one that reads features which were
            not recorded.
    """
    rows: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    judges: dict[tuple[str, str], _Judge] = {}
    lists = 0
    for record in _records(folder, advance):
        if record["inputs"] is None:
            left_out["without recorded features"] += 1
            continue
        key = (record["bundle"], record["settings"])
        if key not in judges:
            judges[key] = _Judge(record, folder, bundle, registry)
        try:
            rows += judges[key].rows(record)
        except Problem:  # it asked for what the other bundle has never heard of
            left_out["unanswerable by this bundle"] += 1
            continue
        lists += 1
    for judge in judges.values():
        judge.service.close()
    if not lists:
        told = ", ".join(f"{n:,} {why}" for why, n in left_out.items()) or "none at all"
        raise UserError(
            f"no shown list that could be ranked again: {told}",
            where=str(folder),
            mend="record features: `shown_lists: {folder: …, inputs_share: 1}` in the serve config",
        )
    return WouldShow(pl.DataFrame(rows, schema=POLICY), lists, left_out)


def _records(folder: Path, advance: Callable[[], None]) -> Iterator[dict[str, Any]]:
    """Rows of the shown lists, the newest segment first."""
    for each in segments(folder):
        with contextlib.suppress(FileNotFoundError), pq.ParquetFile(each.path) as file:
            for batch in file.iter_batches(batch_size=_ROWS):
                yield from batch.to_pylist()
        advance()


class _Judge:
    """The other bundle in a deployment's place, for the lists of one bundle of that deployment.

    Args:
        record: of the first such list.
        folder: of the shown lists.
        bundle: the other, by name or id.
        registry: see `would_show`.

    Raises:
        UserError: a bundle is gone, or the other reads features that were not recorded.
    """

    def __init__(
        self, record: dict[str, Any], folder: Path, bundle: str, registry: Path | None
    ) -> None:
        self.service: Service = open_service(record, folder, registry, bundle=bundle)
        root = Path(self.service.args.registry)
        self.shown_by: Bundle = Registry(root).load(record["bundle"])
        mine = self.service.bundle
        known = {*self.shown_by.features.names, *(feature.name for feature in self._statics)}
        wanted = {name for learner in mine.learners.values() for name in learner.requires}
        if lacking := sorted(wanted - known):
            raise UserError(
                f"{mine.manifest.id} reads features that were not recorded: {', '.join(lacking)}",
                where=str(folder),
                mend="judge bundles of the same feature plan, or let this one be shown first",
            )

    @property
    def _statics(self) -> list[Static]:
        """Features of the catalogue: read anew, as labels may be numbered otherwise."""
        plan = self.service.bundle.features.plan
        return [feature for feature in plan.features if isinstance(feature, Static)]

    @cached_property
    def _number(self) -> npt.NDArray[np.int32]:
        """Of every item of the bundle that showed: its number here, -1 for none."""
        catalogue = self.service.catalogue
        found = [catalogue.number(each) for each in self.shown_by.features.catalogue.ids.tolist()]
        return np.array([-1 if each is None else each for each in found], np.int32)

    def rows(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """`POLICY` rows of one list."""
        service = self.service
        ask = ask_again(record, service)
        pool, batch = self._pool(record)
        batch = replace(batch, user=np.array([ask.user], np.int32))
        ranking = replace(pool, batch=batch)
        service.ranker.scores(ranking, ask)
        at = {int(item): place for place, item in enumerate(ranking.pool.items)}
        numbers = (service.catalogue.number(each) for each in record["item_ids"])
        shown = [-1 if number is None else at.get(number, -1) for number in numbers]
        policy = service.ranker.policies[ask.surface]
        places = policy.options(
            ranking.pool.items, ranking.scores, shown, now=ask.at, query=ask.text
        )
        ids = service.catalogue.ids[ranking.pool.items]
        return [
            {
                "request_id": record["request_id"],
                "position": place,
                "item_id": str(ids[who]),
                "probability": float(probability),
            }
            for place, (open_to, share) in enumerate(places, start=1)
            for who, probability in zip(open_to.tolist(), share.tolist(), strict=True)
        ]

    def _pool(self, record: dict[str, Any]) -> tuple[Ranking, Batch]:
        """Candidates and features in this bundle's numbers, without items that it does not know."""
        shown_by = self.shown_by.features
        recorded = ranking_of(record["pool"], round(record["features_at"].timestamp() * 1000))
        told = batch_of(record["inputs"], shown_by.names)
        items = self._number[told.item]
        kept = np.flatnonzero(items >= 0)
        items = items[kept]
        features = {name: told.features[kept, at] for at, name in enumerate(told.names)}
        mine = self.service.bundle.features
        features |= {each.name: mine.of_items.static(each)[items] for each in self._statics}
        for each in attributes_read(mine.plan):  # their labels, too
            if each.name in features:
                said = features[each.name]
                features[each.name] = mine.attributes.recoded(each, said, shown_by.attributes)
        history = self._number[told.history[0]]
        batch = Batch(
            names=tuple(features),
            features=np.column_stack(list(features.values())).astype(np.float32),
            item=items,
            offsets=np.array([0, len(items)], np.int64),
            history=[history[history >= 0]],
            user=told.user,
        )
        relevance = None if recorded.relevance is None else recorded.relevance[kept]
        pool = Candidates(items, recorded.pool.sources[kept], recorded.pool.names)
        return Ranking(pool, recorded.timestamp, relevance=relevance), batch
