"""Bandits over arms or items that log the probability of what they chose.

A choice is drawn from a distribution that is computed first and logged with it, so propensities are
exact whatever went into the distribution. That makes what a bandit logged fit for off-policy
evaluation. Choices follow from seed and step alone; a restored bandit goes on as if it had never
stopped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file
from scipy import linalg, special

from raysys.errors import UserError
from raysys.storage import write_atomic

Float64 = npt.NDArray[np.float64]

STATE = "bandit.json"
TENSORS = "bandit.safetensors"

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(128)
_EXACT_ARMS = 24
"""Up to so many arms Thompson's probabilities are integrated, beyond they are sampled."""


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        arms: int64[k], numbers of arms, best slot first.
        propensities: float64[k], with which each was chosen for its slot, given those above.
        step: that the draw belongs to.
    """

    arms: npt.NDArray[np.int64]
    propensities: Float64
    step: int


class Thompson:
    """Thompson sampling of Bernoulli rewards with Beta posteriors (Chapelle and Li, NIPS 2011).

    The distribution that is drawn from is the posterior probability that an arm is the best. Up to
    24 arms it is integrated (Gauss-Legendre over the arm's own quantiles, 128 nodes); beyond it is
    counted over posterior draws, with as many draws as `draws` says.

    Args:
        names: of the arms or items, each once.
        prior: successes and failures that every arm begins with.
        floor: least probability of any arm, below 1/n: keeps weights of later evaluations bounded.
        draws: for many arms.
        seed: of all choices.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        prior: tuple[float, float] = (1.0, 1.0),
        floor: float = 0.0,
        draws: int = 4096,
        seed: int = 0,
    ) -> None:
        _check(names, floor)
        if min(prior) <= 0:
            raise UserError(f"prior {prior}: both counts must be above 0")
        self.names = list(names)
        self.floor, self.draws, self.seed, self.step = floor, draws, seed, 0
        self.updates = 0
        self.successes = np.full(len(names), float(prior[0]))
        self.failures = np.full(len(names), float(prior[1]))
        self._known: Float64 | None = None

    def probabilities(self) -> Float64:
        """With which each arm is chosen next: float64[n], summing to one."""
        if self._known is None:
            integrated = len(self.names) <= _EXACT_ARMS
            best = self._integrated() if integrated else self._counted()
            self._known = _floored(best, self.floor)
        return self._known

    def choose(self, k: int = 1) -> Choice:
        """Draw k different arms, slot by slot.

        Raises:
            UserError: more slots than arms.
        """
        return _draw(self, self.probabilities(), k)

    def update(self, arms: npt.ArrayLike, rewards: npt.ArrayLike) -> None:
        """Learn from shown arms: int[m], and their rewards in [0, 1]: float[m].

        Raises:
            UserError: rewards outside [0, 1].
        """
        shown, earned = np.asarray(arms, np.int64), np.asarray(rewards, np.float64)
        if not ((earned >= 0) & (earned <= 1)).all():
            raise UserError("rewards of a Bernoulli bandit are in [0, 1]")
        np.add.at(self.successes, shown, earned)
        np.add.at(self.failures, shown, 1 - earned)
        self.updates += 1
        self._known = None

    def save(self, folder: Path) -> None:
        """Write the state as JSON."""
        state = {
            "kind": "thompson", "names": self.names, "floor": self.floor, "draws": self.draws,
            "seed": self.seed, "step": self.step, "updates": self.updates,
            "successes": self.successes.tolist(), "failures": self.failures.tolist(),
        }  # fmt: skip
        write_atomic(folder / STATE, json.dumps(state) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Thompson:
        """Read what `save` wrote.

        Raises:
            UserError: nothing there, or something else.
        """
        state = _read(folder, "thompson")
        found = cls(state["names"], floor=state["floor"], draws=state["draws"], seed=state["seed"])
        found.step, found.updates = state["step"], state.get("updates", 0)
        found.successes = np.array(state["successes"], np.float64)
        found.failures = np.array(state["failures"], np.float64)
        return found

    def _integrated(self) -> Float64:
        """P(arm is best) = ∫ Π F_other(F_arm⁻¹(u)) du over (0, 1)."""
        u, weight = (_NODES + 1) / 2, _WEIGHTS / 2
        own = special.betaincinv(self.successes[:, None], self.failures[:, None], u)
        below = special.betainc(
            self.successes[None, :, None], self.failures[None, :, None], own[:, None, :]
        )
        at = np.arange(len(self.names))
        below[at, at] = 1.0
        found = below.prod(1) @ weight
        return np.asarray(found / found.sum(), np.float64)

    def _counted(self) -> Float64:
        # by what was learnt, not by the step: it holds for all choices between two updates
        rng = np.random.default_rng((self.seed, self.updates, 1))
        drawn = rng.beta(self.successes, self.failures, (self.draws, len(self.names)))
        return np.bincount(drawn.argmax(1), minlength=len(self.names)) / self.draws


class LinUCB:
    """Linear rewards with an upper bound (Li, Chu, Langford and Schapire, WWW 2010), shared model.

    One model over features of (context, arm); for a model an arm, give each arm columns of its own.
    The arm with the highest bound is chosen with probability 1 - explore, the rest is spread over
    all evenly: the bound alone chooses with certainty, and its log could judge nothing else.

    Args:
        names: of the features, each once.
        width: of the bound, in posterior deviations (α in the paper).
        ridge: of the prior.
        explore: probability that is spread evenly, in (0, 1).
        seed: of all choices.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        width: float = 1.0,
        ridge: float = 1.0,
        explore: float = 0.1,
        seed: int = 0,
    ) -> None:
        _check(names, 0.0)
        if not 0 < explore < 1:
            raise UserError(f"explore {explore} is not within (0, 1)")
        if ridge <= 0 or width < 0:
            raise UserError("ridge must be above 0, width at least 0")
        self.names = list(names)
        self.width, self.explore, self.seed, self.step = width, explore, seed, 0
        self.precision: Float64 = ridge * np.eye(len(names))
        self.moment: Float64 = np.zeros(len(names))
        self._factor: tuple[Float64, bool] | None = None

    def bounds(self, features: Float64) -> Float64:
        """Upper bounds of the rewards of candidates: float64[n] of float64[n, features]."""
        if self._factor is None:
            self._factor = linalg.cho_factor(self.precision, lower=True)
        mean = features @ linalg.cho_solve(self._factor, self.moment)
        spread = np.einsum("nd,dn->n", features, linalg.cho_solve(self._factor, features.T))
        return np.asarray(mean + self.width * np.sqrt(np.maximum(spread, 0)), np.float64)

    def probabilities(self, features: Float64) -> Float64:
        """With which each candidate is chosen next: float64[n]; equal bounds share."""
        bound = self.bounds(features)
        best = bound >= bound.max() - 1e-12
        return self.explore / len(bound) + (1 - self.explore) * best / best.sum()

    def choose(self, features: Float64, k: int = 1) -> Choice:
        """Draw k different candidates, slot by slot; their numbers are rows of `features`.

        Slot by slot the highest bound of what is left is likely, and anything else possible.

        Raises:
            UserError: more slots than candidates.
        """
        bound = self.bounds(features)
        _check_slots(len(bound), k)
        rng = np.random.default_rng((self.seed, self.step))
        left = np.arange(len(bound))
        arms: list[int] = []
        propensities: list[float] = []
        for _ in range(k):
            best = bound[left] >= bound[left].max() - 1e-12
            p = self.explore / len(left) + (1 - self.explore) * best / best.sum()
            at = int(rng.choice(len(left), p=p / p.sum()))
            arms.append(int(left[at]))
            propensities.append(float(p[at]))
            left = np.delete(left, at)
        self.step += 1
        return Choice(np.array(arms, np.int64), np.array(propensities), self.step - 1)

    def update(self, features: Float64, rewards: npt.ArrayLike) -> None:
        """Learn from what was shown: float64[m, features], and its rewards: float64[m]."""
        self.precision = self.precision + features.T @ features
        self.moment = self.moment + features.T @ np.asarray(rewards, np.float64)
        self._factor = None

    def save(self, folder: Path) -> None:
        """Write the state: settings as JSON, matrices as safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f".{TENSORS}.tmp"
        save_file({"precision": self.precision, "moment": self.moment}, fresh)
        fresh.replace(folder / TENSORS)
        state = {
            "kind": "linucb", "names": self.names, "width": self.width, "explore": self.explore,
            "seed": self.seed, "step": self.step,
        }  # fmt: skip
        write_atomic(folder / STATE, json.dumps(state) + "\n")

    @classmethod
    def load(cls, folder: Path) -> LinUCB:
        """Read what `save` wrote.

        Raises:
            UserError: nothing there, or something else.
        """
        state = _read(folder, "linucb")
        found = cls(
            state["names"], width=state["width"], explore=state["explore"], seed=state["seed"]
        )
        found.step = state["step"]
        tensors = load_file(folder / TENSORS)
        found.precision, found.moment = tensors["precision"], tensors["moment"]
        return found


def _draw(bandit: Thompson, probabilities: Float64, k: int) -> Choice:
    """Slots in order, each from what is left, renormalised."""
    _check_slots(len(probabilities), k)
    rng = np.random.default_rng((bandit.seed, bandit.step))
    left = probabilities.copy()
    arms: list[int] = []
    propensities: list[float] = []
    for _ in range(k):
        if not left.sum() > 0:  # all that is left was never the best of any draw
            left = np.ones(len(left))
            left[arms] = 0
        p = left / left.sum()
        arm = int(rng.choice(len(p), p=p))
        arms.append(arm)
        propensities.append(float(p[arm]))
        left[arm] = 0
    bandit.step += 1
    return Choice(np.array(arms, np.int64), np.array(propensities), bandit.step - 1)


def _floored(probabilities: Float64, floor: float) -> Float64:
    return floor + (1 - floor * len(probabilities)) * probabilities


def _check(names: Sequence[str], floor: float) -> None:
    if not names or len(set(names)) < len(names):
        raise UserError("names are needed, each once")
    if not 0 <= floor * len(names) < 1:
        raise UserError(f"floor {floor} times {len(names)} arms is not below 1")


def _check_slots(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise UserError(f"{k} slots for {n} arms")


def _read(folder: Path, kind: str) -> dict[str, Any]:
    path = folder / STATE
    if not path.is_file():
        raise UserError("no bandit's state here", where=str(folder))
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"damaged: {error}", where=str(path)) from None
    if state.get("kind") != kind:
        raise UserError(f"this is the state of a {state.get('kind')!r}", where=str(path))
    return state
