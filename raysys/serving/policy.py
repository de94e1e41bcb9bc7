"""What is done with a ranking before it is shown: leave out, and keep kinds from crowding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from raysys.catalogue import Catalogue
from raysys.config import Settings

Int32 = npt.NDArray[np.int32]


class PolicyArgs(Settings):
    """What may be shown.

    A grocer's customers buy the same things again, so nothing bought is left out by default; a
    shop that sells a thing once sets `exclude_bought`.

    Attributes:
        exclude_bought: leave out what the user has in the history that the bundle keeps.
        exclude_items: item ids that are never shown.
        at_most: most items of one value of a column in a list, such as {category: 4}. What goes
            beyond comes after everything else, so a list is never cut short by it.
    """

    exclude_bought: bool = False
    exclude_items: Annotated[list[str], Field(max_length=100_000)] = []
    at_most: dict[
        Literal["department", "category", "subcategory", "brand", "manufacturer", "title"],
        Annotated[int, Field(ge=1, le=1000)],
    ] = {}


@dataclass(frozen=True)
class Policy:
    """A policy with its columns looked up once.

    Attributes:
        args: as configured.
        caps: column -> most items of one value.
        codes: column -> int32[n_items], -1 where missing, of the capped columns.
        never: bool[n_items], items that are never shown.
    """

    args: PolicyArgs
    caps: dict[str, int]
    codes: dict[str, Int32]
    never: npt.NDArray[np.bool_] = field(repr=False)

    @classmethod
    def of(cls, args: PolicyArgs, catalogue: Catalogue) -> Policy:
        """Look the policy's columns up in the catalogue; ids it does not have are ignored."""
        codes: dict[str, Int32] = {name: catalogue.codes(name)[0] for name in args.at_most}
        never = np.zeros(len(catalogue), dtype=bool)
        numbers = [catalogue.number(item_id) for item_id in args.exclude_items]
        never[[number for number in numbers if number is not None]] = True
        return cls(args, {str(name): most for name, most in args.at_most.items()}, codes, never)

    def allows(self, items: Int32, bought: Int32) -> npt.NDArray[np.bool_]:
        """Which candidates may be shown: bool[n].

        Args:
            items: the candidates.
            bought: the user's history.
        """
        allowed = ~self.never[items]
        if self.args.exclude_bought:
            allowed &= ~np.isin(items, bought)
        return allowed

    def choose(self, items: Int32, scores: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.intp]:
        """Positions of the k candidates to show, in order: int[≤ k].

        Best score first, equal scores in the order given; those that exceed a cap come last.
        """
        order = np.argsort(-scores, kind="stable")
        if not self.codes:
            return order[:k]
        shown: list[int] = []
        surplus: list[int] = []
        seen: dict[tuple[str, int], int] = {}
        for position in order.tolist():
            item = int(items[position])
            # where a column is missing nothing is known to crowd
            keys = [(name, int(codes[item])) for name, codes in self.codes.items()]
            keys = [key for key in keys if key[1] >= 0]
            if any(seen.get(key, 0) >= self.caps[key[0]] for key in keys):
                surplus.append(position)
                continue
            for key in keys:
                seen[key] = seen.get(key, 0) + 1
            shown.append(position)
            if len(shown) == k:
                break
        return np.array((shown + surplus)[:k], dtype=np.intp)
