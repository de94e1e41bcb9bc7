"""Features that nobody knows when a list is made, and the refusal of models that score by them.

At what position a candidate was shown is in the log, and teaches a learner how much of a click is
owed to the position (`position`, `unbiased`). When a list is made nothing has been shown yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raysys.errors import UserError
from raysys.storage import Manifest


def require_served(reads: Mapping[str, Sequence[str]], features: Manifest) -> None:
    """Refuse what scores by the position at which its candidates were shown.

    Args:
        reads: the features that each learner, or its model, scores by.
        features: of the features stage, whose plan says which are positions.

    Raises:
        UserError: one reads a position.
    """
    shown = {
        each["name"]
        for each in (features.settings.get("plan") or {}).get("features", ())
        if each["kind"] == "shown_position"
    }
    for name, names in reads.items():
        if read := sorted(shown & set(names)):
            exclude = f"exclude: [{', '.join(read)}]"
            raise UserError(
                f"{name} scores by {', '.join(read)}, at which the log showed the candidates: "
                "when serving, nothing has been shown yet",
                where=f"learners.{name}",
                mend=f"give it `{exclude}`; two_tower's head: `head: {{{exclude}}}`",
            )
