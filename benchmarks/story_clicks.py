"""One chapter of the story: somebody nobody knows looks at things of a kind, and the next list
shows it; with what the feature state said of them before and after."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import httpx
import numpy as np

from benchmarks.story_shop import Shop

LOOKS: Final = 6
"""Items that are clicked."""
TOP: Final = 10
"""Of a list, as the home page shows it."""
_K: Final = 100
_PATIENCE_S: Final = 60.0
OF_KIND: Final = ("user_category_ctr", "user_category_clicks")
"""Features that count what a user did with things of a kind."""


@dataclass(frozen=True)
class Listed:
    """One item of an explained list.

    Attributes:
        item_id: of it.
        kind: its category.
        score: of the ranking.
        features: by name; None: knows nothing.
        moved_by: what set it apart from the other candidates, in standard deviations of the
            ensemble; of the first twenty of a list.
    """

    item_id: str
    kind: str
    score: float
    features: dict[str, float | None]
    moved_by: dict[str, float]


@dataclass(frozen=True)
class Looked:
    """What came of looking at some things of a kind.

    Attributes:
        kind: their category: of all the one of which the first list showed least.
        before, after: lists, the best first, without the chance that the policy adds.
        acknowledged: ids of the events that the shop said it has.
    """

    kind: str
    before: tuple[Listed, ...]
    after: tuple[Listed, ...]
    acknowledged: tuple[str, ...]

    def share(self, listed: tuple[Listed, ...]) -> float:
        """Of the kind among the first ten."""
        return sum(each.kind == self.kind for each in listed[:TOP]) / TOP

    def known(self, listed: tuple[Listed, ...], feature: str) -> list[float | None]:
        """What a feature says of the items of the kind, in their order."""
        return [each.features[feature] for each in listed if each.kind == self.kind]

    @property
    def moved(self) -> float:
        """By how many standard deviations the features of `OF_KIND` lift the kind's items, on
        average of those among the first twenty of the second list; NaN: there are none."""
        told = [
            sum(each.moved_by.get(name, 0.0) for name in OF_KIND)
            for each in self.after
            if each.kind == self.kind and each.moved_by
        ]
        return float(np.mean(told)) if told else float("nan")


def look_and_see(shop: Shop, user: str = "somebody-new") -> Looked:
    """Ask for a list, click things of the kind it shows least of, and ask again.

    Another replica than the one that took the events may answer: it is asked until it has counted
    them, too.

    Raises:
        TimeoutError: no list showed them within a minute.
    """
    kinds = dict(
        zip(shop.catalogue.ids.tolist(), shop.catalogue.table["category"].to_pylist(), strict=True)
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{shop.port}", timeout=30) as client:
        before = _list(client, user, kinds)
        shown = Counter(each.kind for each in before[:TOP])
        kind = min(sorted(set(kinds.values())), key=lambda name: shown[name])
        items = [item for item, of in kinds.items() if of == kind][:LOOKS]
        events = [
            {
                "event_id": f"{user}-{what}-{item}", "event_type": what, "user_id": user,
                "session_id": f"{user}-looks", "item_id": item, "position": place,
            }
            for place, item in enumerate(items, start=1)
            for what in ("impression", "click")
        ]  # fmt: skip
        answer = client.post("/v1/events", json={"events": events}).raise_for_status().json()
        taken = [told["event_id"] for told in answer["events"] if told["status"] == "accepted"]
        until = time.monotonic() + _PATIENCE_S
        while True:
            after = _list(client, user, kinds)
            looked = Looked(kind, before, after, tuple(taken))
            counted = looked.known(after, "user_category_clicks")
            if counted and all(counted):
                return looked
            if time.monotonic() > until:
                raise TimeoutError(f"no list shows the clicks of {user}: {looked}")


def _list(client: httpx.Client, user: str, kinds: dict[str, Any]) -> tuple[Listed, ...]:
    """An explained list of the home page, which leaves no record, by its scores."""
    asked = {"user_id": user, "k": _K, "explain": True}
    answer = client.post("/v1/recommend", json=asked).raise_for_status().json()
    listed = [
        Listed(
            each["item_id"], kinds[each["item_id"]], each["score"], each["why"]["features"],
            each["why"]["moved_by"],
        )
        for each in answer["items"]
    ]  # fmt: skip
    return tuple(sorted(listed, key=lambda each: -each.score))
