"""The same service behind BentoML with one worker: `bentoml serve …peer_bentoml:Lists`.

The surface stands in the body as for LitServe: POST /v1/any.
"""

from typing import Any

import bentoml

from benchmarks.serving_parts.args import told


@bentoml.service(workers=1, threads=2, traffic={"timeout": 30}, metrics={"enabled": False})
class Lists:
    """All surfaces of one service."""

    def __init__(self) -> None:
        from benchmarks.serving_parts.ask import Answers

        self.answers = Answers(told())

    @bentoml.api(route="/v1/any")
    def any(self, surface: str, asked: dict[str, Any]) -> dict[str, Any]:
        """One list."""
        return self.answers.content(surface, asked)
