"""Learning to rank for online shops on Ray: from behaviour logs to a served, stacked ensemble."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysys.client import ApiError, AsyncClient, Client, Retries, Unreachable

__version__ = "0.1.0"

__all__ = ["ApiError", "AsyncClient", "Client", "Retries", "Unreachable", "__version__"]


def __getattr__(name: str) -> Any:
    """What is the client's, when it is asked for: importing raysys itself costs nothing."""
    if name in __all__:
        from raysys import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
