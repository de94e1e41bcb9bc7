"""The limit: the same service behind FastAPI on uvicorn, one process, nothing else.

`python -m benchmarks.serving_parts.plain PORT`
"""

from __future__ import annotations

import sys

import uvicorn

from benchmarks.serving_parts.args import told
from raysys.serving.app import http_app
from raysys.serving.args import ServeArgs
from raysys.serving.service import Service


def main() -> None:
    service = Service(ServeArgs.model_validate(told()))
    service.warm_up()
    uvicorn.run(http_app(service), host="127.0.0.1", port=int(sys.argv[1]), log_level="error")


if __name__ == "__main__":
    main()
