"""What is being tried: a challenger beside the champion, by share of users or in the shadow.

Two places say so: Serve's `user_config` (canary.yaml), and the file `serving/rollout.json` in the
registry, which the admin routes write and every replica reads within seconds. The file wins while
it says anything; a canary that a guard has ended stays ended, whoever asks for it, until an admin
asks for the same bundle again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from raysys.config import Settings, parse_settings
from raysys.errors import UserError
from raysys.serving.guard import Arm, GuardArgs
from raysys.storage import write_atomic

log = logging.getLogger("raysys")

FILE = "serving/rollout.json"

EventType = Literal["impression", "view", "click", "favorite", "cart", "purchase"]


class CanaryArgs(Settings):
    """A challenger beside the champion.

    Attributes:
        bundle: a pointer (`challenger`) or a bundle's id.
        share: of the users, who get the challenger's answers, each always the same arm. 0: none;
            1: the guard has nothing to compare with, which is refused.
        salt: another one draws other users.
        outcomes: events that count for the guard's online metric → their weights.
        shadow: have the challenger answer the champion's requests too, and log both; nobody sees
            its answers. Costs as much CPU again, as far as there is any: what there is no time for
            is left out.
        guard: what turns the canary off by itself.
    """

    bundle: str
    share: Annotated[float, Field(ge=0, le=1)] = 0.0
    salt: Annotated[str, Field(min_length=1, max_length=64)] = "canary"
    outcomes: dict[EventType, Annotated[float, Field(gt=0)]] = {"purchase": 1.0}
    shadow: bool = False
    guard: GuardArgs = GuardArgs()

    @model_validator(mode="after")
    def _does_something(self) -> CanaryArgs:
        if bool(self.share) == self.shadow:
            raise ValueError("give a share above 0, or shadow: true; first one, then the other")
        return self

    @property
    def silent(self) -> tuple[str, str] | None:
        """The setting for which its guard would never say anything, and why; None: it may.

        To be asked where somebody writes it down; what is stored already has to be read.
        """
        if self.share == 1:
            return "share", (
                "with all users the champion has no answers to compare with: the guard would say "
                "nothing, whatever happens; give less, such as 0.95, or promote the bundle"
            )
        return ("guard", self.guard.silent) if self.guard.silent else None

    def arm_of(self, who: str | None) -> Arm:
        """The arm of a user or session; nobody in particular gets the champion."""
        if not who or not self.share:
            return "champion"
        sent = who.encode("utf-8", "surrogatepass")
        drawn = hashlib.blake2b(sent, digest_size=8, key=self.salt.encode()[:64]).digest()
        return "challenger" if int.from_bytes(drawn, "big") < self.share * 2**64 else "champion"


class UserConfig(Settings):
    """What Serve's `user_config` may say; a change of it restarts no replica.

    Attributes:
        canary: what is tried; null: nothing.
        experiments: YAML files of experiments, or patterns of them; relative ones lie under
            RAYSYS_HOME. They are looked at every two seconds; null: no experiment is served.
    """

    canary: CanaryArgs | None = None
    experiments: tuple[str, ...] = ()

    @field_validator("experiments", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else () if value is None else value


class Halt(Settings):
    """A canary that a guard ended."""

    bundle: str
    at: str
    why: str


class RolloutState(Settings):
    """The file.

    Attributes:
        says: whether `canary` counts; else `user_config` does.
        canary: what an admin asked for; null: nothing is to be tried.
        halted: canaries that a guard ended, the newest first.
    """

    says: bool = False
    canary: CanaryArgs | None = None
    halted: tuple[Halt, ...] = ()


class Rollout:
    """The file that says what is tried.

    Args:
        registry: its root.
    """

    def __init__(self, registry: Path) -> None:
        self.path = registry / FILE

    def read(self) -> RolloutState:
        """What it says; nothing where it is missing.

        Raises:
            UserError: it is damaged.
        """
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return RolloutState()
        except (OSError, ValueError) as error:
            raise UserError(
                f"what is rolled out cannot be read: {error}",
                where=str(self.path),
                mend="delete the file: then nothing is tried",
            ) from None
        if not isinstance(content, dict):
            raise UserError("a mapping is expected", where=str(self.path), mend="delete the file")
        return parse_settings(RolloutState, content, where=str(self.path))

    def ask(self, canary: CanaryArgs | None) -> RolloutState:
        """Try this bundle (an id) from now on; None: nothing. Its end by a guard is forgotten."""
        with self._changing() as state:
            kept = [h for h in state.halted if canary is None or h.bundle != canary.bundle]
            return self._write(RolloutState(says=True, canary=canary, halted=tuple(kept)))

    def clear(self) -> RolloutState:
        """Leave it to `user_config` again."""
        with self._changing() as state:
            return self._write(RolloutState(halted=state.halted))

    def halt(self, bundle: str, why: str) -> RolloutState:
        """A guard has ended the canary of this bundle."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with self._changing() as state:
            halted = (Halt(bundle=bundle, at=at, why=why), *state.halted)[:20]
            return self._write(state.model_copy(update={"halted": halted}))

    def _write(self, state: RolloutState) -> RolloutState:
        write_atomic(self.path, state.model_dump_json(indent=1) + "\n")
        return state

    @contextlib.contextmanager
    def _changing(self) -> Iterator[RolloutState]:
        """One writer at a time; what was damaged is written anew."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                state = self.read()
            except UserError as error:
                log.error("%s", error)
                state = RolloutState()
            yield state


def effective(
    state: RolloutState, config: UserConfig, resolve: Callable[[str], str]
) -> CanaryArgs | None:
    """What is tried, all things said, with the bundle's id.

    Args:
        state: the file's.
        config: Serve's.
        resolve: gives a bundle's id for a pointer or an id.
    """
    canary = state.canary if state.says else config.canary
    if canary is None:
        return None
    bundle = resolve(canary.bundle)
    if any(halt.bundle == bundle for halt in state.halted):
        return None
    return canary.model_copy(update={"bundle": bundle})


def plain(settings: Settings | None) -> dict[str, Any] | None:
    """As JSON can say it."""
    return None if settings is None else settings.model_dump(mode="json")
