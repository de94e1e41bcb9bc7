"""What watches a deployment, as its arguments want it."""

from __future__ import annotations

import logging
from pathlib import Path

from raysys.monitoring.reference import Reference
from raysys.monitoring.served import follow_log
from raysys.serving.args import ServeArgs
from raysys.serving.drift import DriftWatch
from raysys.serving.events import EventService
from raysys.serving.feedback import FeedbackWatch
from raysys.serving.metrics import Metrics

log = logging.getLogger("raysys")


def open_monitor(
    args: ServeArgs, bundle: Path, items: int, events: EventService | None, metrics: Metrics
) -> tuple[DriftWatch | None, FeedbackWatch | None]:
    """Who counts features and scores, and who knows what came of the lists; None: nobody does.

    Args:
        args: of the deployment.
        bundle: folder of the bundle.
        items: of its catalogue.
        events: of the deployment.
        metrics: gets the gauges.

    Raises:
        UserError: the bundle's reference is damaged.
    """
    wanted = args.monitor
    if wanted is None:
        return None, None
    reference = Reference.load(bundle)
    drift = feedback = None
    if reference is None:
        log.warning(
            "drift is not watched: %s does not say how its training data were distributed; "
            "train again",
            bundle.name,
        )
    elif wanted.share:
        arm = args.bundle or ""
        drift = DriftWatch(wanted, args.monitor_path, bundle.name, reference, metrics, arm)
    if wanted.feedback_s and not wanted.beside and args.shown_lists is not None:
        feedback = FeedbackWatch(
            wanted,
            args.monitor_path,
            args.shown_lists_path,
            None if events is None else follow_log(events.log, events.rolled),
            {} if reference is None else reference.outcomes,
            items,
            metrics,
        )
    return drift, feedback
