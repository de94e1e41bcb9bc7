"""The same service behind LitServe with one worker: `python -P peer_litserve.py PORT`.

LitServe has one call a path, so the surface stands in the body: POST /v1/any.
"""

import sys
from typing import Any

import litserve

from benchmarks.serving_parts.args import told


class Lists(litserve.LitAPI):
    """All surfaces of one service."""

    def setup(self, device: str) -> None:
        from benchmarks.serving_parts.ask import Answers

        self.answers = Answers(told())

    def decode_request(self, request):  # without a type it is the JSON of the body
        return request

    def predict(self, given: dict[str, Any]) -> dict[str, Any]:
        return self.answers.content(given["surface"], given["asked"])

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    server = litserve.LitServer(
        Lists(api_path="/v1/any"), accelerator="cpu", workers_per_device=1, timeout=30
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        log_level="error",
        generate_client_file=False,
    )
