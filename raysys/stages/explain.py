"""`raysys features explain`: a plan in words."""

from __future__ import annotations

import difflib

from raysys.errors import UserError
from raysys.features.explain import as_markdown as as_table
from raysys.features.explain import as_text, explain
from raysys.stages.features_settings import FeaturesSettings


def run(
    settings: FeaturesSettings, feature: str | None = None, *, as_markdown: bool = False
) -> None:
    """Print what the features of a plan are.

    Args:
        settings: with the plan.
        feature: only this one.
        as_markdown: as it stands, instead of drawn for the terminal.

    Raises:
        UserError: the plan has no such feature.
    """
    names = settings.plan.names
    if feature is not None and feature not in names:
        near = difflib.get_close_matches(feature, names, n=1)
        raise UserError(
            f"the plan has no feature {feature!r}",
            where="raysys features explain --feature",
            mend=f"did you mean {near[0]!r}?" if near else f"one of: {', '.join(names)}",
        )
    found = [each for each in explain(settings.plan) if feature in (None, each.name)]
    print(as_table(found) if as_markdown else as_text(found), end="")
