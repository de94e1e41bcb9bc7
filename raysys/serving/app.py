"""The HTTP application: `build` for Ray Serve, `http_app` for the routes alone.

`serve deploy serve_configs/local.yaml` and `raysys deploy` call `build` with the YAML's `args`.
"""

# No `from __future__ import annotations` here: Serve reads the annotation of `build` as a class.
import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Path, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from raysys import __version__
from raysys.errors import UserError
from raysys.registry import Registry
from raysys.serving.access import with_roles
from raysys.serving.admin_routes import add_admin_routes
from raysys.serving.admission import BodyLimit
from raysys.serving.api import Health, Readiness
from raysys.serving.args import ServeArgs
from raysys.serving.arms import Arms
from raysys.serving.asking import Context
from raysys.serving.edge import minimal, policy_for, protect
from raysys.serving.edge_args import under_home
from raysys.serving.events_routes import add_event_routes
from raysys.serving.list_routes import add_list_routes
from raysys.serving.pages import add_pages
from raysys.serving.problems import ProblemBody, handle_problems
from raysys.serving.profile import Profile
from raysys.serving.service import Service
from raysys.serving.text_routes import add_text_routes
from raysys.serving.tracing import Tracing, check_tracing, open_tracing
from raysys.serving.traffic import Traffic
from raysys.serving.traffic_board import TrafficBoard

if TYPE_CHECKING:
    from ray.serve import Application


def build(args: ServeArgs) -> "Application":
    """The Serve application of one deployment.

    Raises:
        UserError: there is no such bundle; better said now than by a replica that never starts.
    """
    from raysys.serving.replica import Replica, Transformer

    content = settle(args).model_dump(mode="json")
    transformer = None
    if args.transformer is not None and args.bundle is not None:
        transformer = Transformer.bind(content)  # type: ignore[attr-defined]
    return Replica.bind(content, transformer)  # type: ignore[attr-defined]


def settle(args: ServeArgs) -> ServeArgs:
    """The arguments with absolute paths and the bundles' ids, so that all replicas agree.

    Raises:
        UserError: there is no such bundle, or traces cannot be sent from here.
    """
    check_tracing(args.tracing)
    registry = args.registry_path.resolve()
    known = Registry(registry)
    pinned = None if args.bundle is None else _pinned(args, args.bundle, known)
    texts = {
        task: known.resolve(args.pinned_text.get(task, name))
        for task, name in args.text.named().items()
    }
    update: dict[str, Any] = {
        "registry": str(registry),
        "pinned": pinned,
        "pinned_text": texts,
        "auth": args.auth.settled(),
        "experiments": args.experiments.model_copy(
            update={"exposures": str(args.exposures_path.resolve())}
        ),
    }
    if args.events is not None:
        path = str(args.events_path.resolve())
        update["events"] = args.events.model_copy(update={"path": path})
    if args.shown_lists is not None:
        folder = str(args.shown_lists_path.resolve())
        update["shown_lists"] = args.shown_lists.model_copy(update={"folder": folder})
    if args.monitor is not None:
        folder = str(args.monitor_path.resolve())
        update["monitor"] = args.monitor.model_copy(update={"folder": folder})
    if args.stock is not None:
        path = str(under_home(args.stock.path).resolve())
        update["stock"] = args.stock.model_copy(update={"path": path})
    return args.model_copy(update=update)


def _pinned(args: ServeArgs, bundle: str, known: Registry) -> str:
    """The id of the deployment's bundle; where a name is followed, one that is gone needs none."""
    if args.follow and args.pinned is not None:
        with suppress(UserError):
            return known.resolve(args.pinned)
        return known.resolve(bundle)
    return known.resolve(args.pinned or bundle)


def http_app(service: Service, arms: Arms | None = None, tracing: Tracing | None = None) -> FastAPI:
    """The routes over a service; runs on any ASGI server, Ray Serve or not.

    Args:
        service: answers; may be the arms themselves.
        arms: what the admin routes change; None: there are none.
        tracing: makes traces of answers; None: as the arguments say.

    Raises:
        UserError: the arguments ask for traces, which cannot be sent from here.
    """
    tracing = tracing or open_tracing(service.args.tracing)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if board is not None:
            board.start()
        yield
        service.close()
        if board is not None:
            board.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)

    app = FastAPI(
        title="raysys",
        version=__version__,
        description="Ranked lists for an online shop. Errors are problem+json (RFC 9457).",
        docs_url=None,  # ours below needs no CDN
        redoc_url=None,
        lifespan=lifespan,
        # its spans would name whole paths, in which users' ids stand; ours are `args.tracing`
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    traffic = Traffic()
    board = None
    if service.args.pages.console and service.args.bundle is not None:
        place = service.args.registry_path
        counts = service.metrics.read if arms is None else arms.counts
        board = TrafficBoard(place, traffic, counts)
    app.add_middleware(BodyLimit)
    protect(app, service.args, traffic, lambda: service.metrics, lambda: service.workers)
    handle_problems(app)

    add_list_routes(app, service, tracing)

    # an id may hold slashes: a server decodes %2F before routes are looked at
    @app.get("/v1/users/{user_id:path}/profile", tags=["users"], summary="What is known of a user")
    async def profile(
        user_id: Annotated[str, Path(min_length=1, max_length=200)],
    ) -> Profile:
        """What is known of a user, with its evidence."""
        return await service.run(lambda: service.profile(user_id), Context(time.perf_counter()))

    add_text_routes(app, service)
    add_event_routes(app, service, arms)
    if arms is not None:
        add_admin_routes(app, arms)

    @app.get("/healthz", tags=["operations"], summary="Liveness")
    async def healthz() -> Health:
        """Whether the process answers."""
        return Health()

    @app.get("/readyz", tags=["operations"], summary="Readiness, and what answers")
    async def readyz(request: Request) -> Readiness:
        """Whether it answers well, and from which bundle; 503 until it is warm."""
        return minimal(service.readiness(), request)

    add_pages(app, service, arms, board)
    _serve_docs(app, service.args)
    return app


def _serve_docs(app: FastAPI, args: ServeArgs) -> None:
    """Swagger UI at /docs from files that are installed: it works without the internet."""
    assets = files("fastapi_offline") / "static"
    app.mount("/docs-assets", StaticFiles(directory=str(assets)), name="docs-assets")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        page = get_swagger_ui_html(
            openapi_url="openapi.json",  # relative: right behind any prefix
            title="raysys: HTTP API",
            swagger_js_url="docs-assets/swagger-ui-bundle.js",
            swagger_css_url="docs-assets/swagger-ui.css",
            swagger_favicon_url="docs-assets/favicon.png",
        )
        own = "style-src 'self' 'unsafe-inline'; img-src 'self' data:"  # Swagger UI's icons
        page.headers["Content-Security-Policy"] = policy_for(bytes(page.body).decode(), own)
        return page

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = _with_problems(
                get_openapi(
                    title=app.title,
                    version=app.version,
                    description=app.description,
                    routes=app.routes,
                )
            )
            app.openapi_schema = with_roles(schema, open_to_all=args.auth.keys is None)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _with_problems(schema: dict[str, Any]) -> dict[str, Any]:
    """Say of every route that its errors are problem+json; FastAPI would show its own form."""
    schemas = schema["components"]["schemas"]
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    own = ProblemBody.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(own.pop("$defs"))
    schemas["Problem"] = own
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            responses = operation["responses"]
            responses.pop("422", None)
            responses["default"] = {"description": "Problem (RFC 9457)", "content": content}
            if path.startswith("/v1/users"):
                responses["404"] = {"description": "Unknown user", "content": content}
    return json.loads(json.dumps(schema))
