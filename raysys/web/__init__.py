"""Pages of a shop and of its operators: rendered here, answered by the same calls as HTTP's."""

from raysys.web.answers import Answers, Refused
from raysys.web.console import console
from raysys.web.operations import (
    ArmFacts,
    BundleFacts,
    CallFacts,
    DeploymentFacts,
    ExperimentFacts,
    LiftFacts,
    NameFacts,
    Operations,
    TrafficFacts,
    WatchFacts,
)
from raysys.web.pages import Pages, assets
from raysys.web.storefront import storefront
from raysys.web.visit import Cookies

__all__ = [
    "Answers",
    "ArmFacts",
    "BundleFacts",
    "CallFacts",
    "Cookies",
    "DeploymentFacts",
    "ExperimentFacts",
    "LiftFacts",
    "NameFacts",
    "Operations",
    "Pages",
    "Refused",
    "TrafficFacts",
    "WatchFacts",
    "assets",
    "console",
    "storefront",
]
