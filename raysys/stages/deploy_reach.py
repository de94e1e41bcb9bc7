"""Whether HAProxy, as Serve sets it up, reaches the replicas.

It and the replicas' own HTTP servers listen on `http_options.host`. HAProxy connects to those of
its own node by 127.0.0.1 and to others by their node's address, so a host means either this
machine alone or every address of it.
"""

from __future__ import annotations

from raysys.errors import UserError
from raysys.serving.auth import behind_haproxy

LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::")

_WHERE = "http_options.host"
_MEND = (
    "set 0.0.0.0 and let callers through to `http_options.port` alone (docs/security.md, Ports); "
    "or take Ray's own proxy: unset RAY_SERVE_ENABLE_HA_PROXY before `ray start`"
)


def check_host(host: str) -> None:
    """Refuse one address of a machine behind HAProxy: it asks by another one.

    Args:
        host: what `http_options.host` comes to.

    Raises:
        UserError: so it is.
    """
    if behind_haproxy() and host not in (*LOOPBACK, *EVERYWHERE):
        raise UserError(
            f"HAProxy would not reach the replicas: they would listen on {host} alone, and it asks "
            "those of its own node at 127.0.0.1",
            where=_WHERE,
            mend=_MEND,
        )


def check_nodes(host: str, dashboard: str) -> None:
    """Refuse loopback behind HAProxy where replicas may be on another node than the proxy.

    Args:
        host: what `http_options.host` comes to.
        dashboard: URL of the cluster's dashboard; asked only where it matters.

    Raises:
        UserError: so it is; or the dashboard does not tell of its nodes.
    """
    if not behind_haproxy() or host not in LOOPBACK:
        return
    nodes = _alive(dashboard)
    if nodes > 1:
        raise UserError(
            f"on {host} HAProxy reaches the replicas of its own node alone, and this cluster has "
            f"{nodes} nodes",
            where=_WHERE,
            mend=_MEND,
        )


def _alive(dashboard: str) -> int:
    """How many nodes of the cluster are alive."""
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    try:
        return len(list_nodes(address=dashboard, filters=[("state", "=", "ALIVE")]))
    except RayStateApiException as error:
        raise UserError(
            f"the cluster does not say how many nodes it has: {str(error).splitlines()[0]}",
            where=dashboard,
            mend="set http_options.host to 0.0.0.0, which suits any number of them",
        ) from None
