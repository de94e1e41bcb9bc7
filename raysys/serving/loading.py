"""Services of other bundles than the one that a replica began with, loaded and warm."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from raysys.errors import UserError
from raysys.registry import Registry
from raysys.serving.args import ServeArgs, TextArgs
from raysys.serving.lease import Rest
from raysys.serving.metrics import Sums
from raysys.serving.pauses import let_go
from raysys.serving.rollout import CanaryArgs
from raysys.serving.service import Service

log = logging.getLogger("raysys")


class Loading:
    """Loads services that share what a deployment has once: the text tasks of the first.

    Args:
        args: the deployment's, as they are now.
        make: makes a service.

    Attributes:
        counted: what all services together have counted, those that have ended too.
    """

    def __init__(self, args: Callable[[], ServeArgs], make: Callable[[ServeArgs], Service]) -> None:
        self._args, self._make = args, make
        self._resting: dict[str, Rest] = {}
        self.counted = Sums()

    def first(self) -> Service:
        """The one that a replica begins with; not warm yet.

        Raises:
            UserError: it cannot be loaded, nor another one in its place.
        """
        args = self._args()
        *better, last = begins_with(args)
        for bundle in better:
            try:
                service = self._made(args.model_copy(update={"pinned": bundle}))
                break
            except Exception as error:
                self.failed(bundle or "", error)
        else:
            service = self._made(args.model_copy(update={"pinned": last}))
        self._text = service.text
        return service

    def failed(self, bundle: str, error: Exception) -> None:
        """A bundle could not be loaded or warmed, and another has to do: for a while nobody tries
        it again."""
        fault = None if isinstance(error, UserError) else error
        log.error("%s cannot be loaded, and another has to do: %s", bundle, error, exc_info=fault)
        self._rest(bundle, error)

    def _rest(self, bundle: str, error: Exception) -> None:
        rest = self._resting.get(bundle)
        self._resting[bundle] = Rest.after(rest, f"{bundle} cannot be loaded: {error}")

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
            self.counted.leave_out(service.metrics)
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
            service = self._made(args.model_copy(update={**update, **alone}))
            try:
                service.args = args.model_copy(update=update)
                service.warm_up()
            except BaseException:
                service.close()  # or its threads would hold the bundle in memory
                let_go()
                raise
        except Exception as error:
            self._rest(bundle, error)
            raise
        self._resting.pop(bundle, None)
        service.text = self._text
        return service

    def _made(self, args: ServeArgs) -> Service:
        service = self._make(args)
        self.counted.add(service.metrics)
        return service


def begins_with(args: ServeArgs) -> tuple[str | None, ...]:
    """Ids of the bundles that a replica may begin with, the best first; None: whatever `bundle` is.

    Where a name is followed, that is what the name means by now: the bundle of the deployment
    would be loaded only to be replaced, and may be gone. It stays the way out.
    """
    if not args.follow or args.bundle is None:
        return (args.pinned,)
    try:
        now = Registry(args.registry_path).resolve(args.bundle)
    except UserError as error:
        log.error("%s cannot be followed yet: %s", args.bundle, error)
        return (args.pinned,)
    return (now,) if args.pinned in (None, now) else (now, args.pinned)
