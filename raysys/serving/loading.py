"""Services of other bundles than the one that a replica began with, loaded and warm."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from raysys.errors import UserError
from raysys.serving.args import ServeArgs, TextArgs
from raysys.serving.lease import Rest
from raysys.serving.rollout import CanaryArgs
from raysys.serving.service import Service
from raysys.serving.text import TextService


class Loading:
    """Loads services that share what a deployment has once.

    Args:
        args: the deployment's, as they are now.
        make: makes a service.
        text: the text tasks of the first one, which all share.
    """

    def __init__(
        self, args: Callable[[], ServeArgs], make: Callable[[ServeArgs], Service], text: TextService
    ) -> None:
        self._args, self._make, self._text = args, make, text
        self._resting: dict[str, Rest] = {}

    def at_once(self) -> None:
        """Try again what could not be loaded."""
        self._resting.clear()

    def challenger(self, canary: CanaryArgs) -> Service:
        """Who is tried beside the champion; see `load`."""
        # nobody is shown what a shadow says
        update = {"shown_lists": None, "monitor": None} if canary.shadow else {}
        service = self.beside("challenger", canary.bundle, **update)
        if canary.shadow:
            service.metrics.close()  # nor does it count
        return service

    def beside(self, name: str, bundle: str, **update: Any) -> Service:
        """A service beside the champion: it leaves the event log's files to that; see `load`."""
        args = self._args()
        if args.events is not None:
            update["events"] = args.events.model_copy(update={"roll_events": 0})
        if args.monitor is not None:  # the champion tells what came of all lists
            beside = args.monitor.model_copy(update={"beside": True})
            update = {"monitor": beside, **update}
        return self.load(name, bundle, **update)

    def load(self, name: str, bundle: str, **update: Any) -> Service:
        """A warm service of a bundle.

        Args:
            name: that it goes by, such as `champion`.
            bundle: its id.
            update: of the deployment's arguments.

        Raises:
            UserError: it cannot be loaded; for a while nobody tries again.
        """
        rest = self._resting.get(bundle)
        if rest is not None and time.monotonic() < rest.until:
            raise UserError(rest.why)
        args = self._args()
        update = {"bundle": name, "pinned": bundle, **update}
        alone = {"text": TextArgs(), "pinned_text": {}}
        try:
            service = self._make(args.model_copy(update={**update, **alone}))
            try:
                service.args = args.model_copy(update=update)
                service.warm_up()
            except BaseException:
                service.close()  # or its threads would hold the bundle in memory
                raise
        except Exception as error:
            self._resting[bundle] = Rest.after(rest, f"{bundle} cannot be loaded: {error}")
            raise
        self._resting.pop(bundle, None)
        service.text = self._text
        return service
