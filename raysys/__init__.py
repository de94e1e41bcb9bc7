"""Learning to rank for online shops on Ray: from behaviour logs to a served, stacked ensemble."""

__version__ = "0.1.0"

__all__ = ["__version__"]
