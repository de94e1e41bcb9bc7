"""What a next-item benchmark says: figures of each member and the ensemble, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raysys.ensemble.next_item import NextItemEnsemble
from raysys.evaluation.intervals import Bootstrap
from raysys.stages.next_item_members import Member
from raysys.stages.next_item_problem import Int64, Problem


def figures_of(
    problem: Problem,
    members: Mapping[str, Member],
    ensemble: NextItemEnsemble,
    ranks: Mapping[str, Int64],
    group: Int64,
    seed: int,
) -> dict[str, Any]:
    """Figures of the test cases that were judged, as JSON can say them.

    Args:
        problem: what was asked.
        members: with their settings.
        ensemble: of them.
        ranks: int64[r] by member, and of `ensemble`: where the right item stands.
        group: int64[r], cases of one session or user: the bootstrap draws them together.
        seed: of the bootstrap.
    """
    draws = Bootstrap(group, seed=seed)
    values = {
        name: {measure.name: measure.of(rank) for measure in problem.measures}
        for name, rank in ranks.items()
    }
    told = {
        name: {m: draws.mean(value).to_dict() for m, value in of.items()}
        for name, of in values.items()
    }

    def quality(name: str) -> tuple[float, ...]:
        # where there are few items all are hits: the second measure decides
        return tuple(float(values[name][measure.name].mean()) for measure in problem.measures)

    best = max(members, key=quality)
    gain = {
        m: draws.difference(value, values[best][m]).to_dict()
        for m, value in values["ensemble"].items()
    }
    return {
        "counts": {**problem.counts, "test_cases_judged": len(group)},
        "members": {
            name: {
                **told[name],
                "validation": member.value,
                "seconds": round(member.seconds, 1),
                "learner": member.learner,
                "settings": member.settings,
            }
            for name, member in members.items()
        },
        "ensemble": {
            **told["ensemble"],
            "method": ensemble.method,
            "weights": dict(zip(ensemble.members, ensemble.weights.tolist(), strict=True)),
            "validation": ensemble.figures,
        },
        "best_member": best,
        "gain": gain,
    }
