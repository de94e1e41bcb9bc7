"""The routes that change what is served; they need the role admin."""

# No `from __future__ import annotations` here: FastAPI reads the annotations of the routes.
import asyncio
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from raysys.errors import UserError
from raysys.registry import TEXT, Moved, Registry
from raysys.registry.listing import bundles, default_pointer, judge_known
from raysys.serving.arms import Arms
from raysys.serving.keys import who_is
from raysys.serving.problems import FieldError, Problem, invalid
from raysys.serving.rollout import CanaryArgs

Name = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_-]|\.[A-Za-z0-9_-])*$", max_length=100),
    Field(description="A bundle's id, or a pointer's name: no path."),
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PromoteRequest(_Request):
    """Give a bundle a name."""

    bundle: Name
    name: Annotated[Name | None, Field(description="champion, or text-TASK, when left out.")] = None
    force: Annotated[bool, Field(description="Even if its figures are worse.")] = False


class RollbackRequest(_Request):
    """Give a name back to the bundle that had it before."""

    name: Name = "champion"


class CanaryRequest(_Request):
    """What is tried beside the champion; null: nothing."""

    canary: CanaryArgs | None


class PointerAnswer(BaseModel):
    """What a name means now."""

    name: str
    bundle: str
    before: str | None = Field(description="Id of the bundle that it meant.")
    reason: str = Field(description="What the figures say.")
    live: bool = Field(description="Whether replicas load it by themselves (`follow`).")


class BundlesAnswer(BaseModel):
    """All bundles, what the names mean, and how that changed."""

    pointers: dict[str, str]
    bundles: list[dict[str, Any]]
    journal: list[dict[str, str]] = Field(description="The last 100 changes, the oldest first.")


class CanaryAnswer(BaseModel):
    """What this replica serves and tries."""

    champion: str | None
    follow: bool
    asked: dict[str, Any] | None = Field(description="What should be tried.")
    asked_by: Literal["admin", "user_config"] = Field(
        description="Who says so: `user_config` counts until an admin asks for anything."
    )
    canary: dict[str, Any] | None = Field(description="What is: a bundle takes time to load.")
    arms: dict[Literal["champion", "challenger"], dict[str, Any]] = Field(
        description="Answers, errors, milliseconds and outcomes that this replica counted."
    )
    shadow: dict[str, Any] | None
    halted: list[dict[str, Any]] = Field(description="Canaries that a guard ended, and why.")


class ServedExperiment(BaseModel):
    """One experiment of this deployment."""

    name: str
    arms: dict[str, float] = Field(description="Arm → share of the eligible users.")
    bundles: dict[str, str] = Field(description="Arm → id of the bundle that answers it.")
    start: str
    end: str | None
    served: bool = Field(description="Whether this replica draws users into it now.")
    weights: dict[str, float] | None = Field(
        None, description="Arm → probability that a bandit gives it now."
    )
    lists: dict[str, int] | None = Field(None, description="Arm → lists that these are made of.")
    rewarded: dict[str, int] | None = Field(None, description="Arm → those with an event.")


class ServedExperiments(BaseModel):
    """What this replica draws users into."""

    experiments: list[ServedExperiment]
    trouble: dict[str, str] = Field(
        description="`files`, or an experiment's name → why it is not served, or was not changed."
    )


def add_admin_routes(app: FastAPI, arms: Arms) -> None:
    """Add `/v1/admin/*`."""
    registry = Registry(arms.args.registry_path)

    @app.get("/v1/admin/bundles", tags=["admin"], summary="Bundles, names and their history")
    async def list_bundles() -> BundlesAnswer:
        """Every bundle with its figures, what the names mean, and how that changed."""

        def work() -> BundlesAnswer:
            return BundlesAnswer(
                pointers=registry.pointers(),
                bundles=bundles(registry),
                journal=[vars(change) for change in registry.journal()[-100:]],
            )

        return await asyncio.to_thread(work)

    @app.post("/v1/admin/promote", tags=["admin"], summary="Give a bundle the champion's name")
    async def promote(asked: PromoteRequest, request: Request) -> PointerAnswer:
        """409 if its figures are worse than those of the bundle that it would replace, or another
        one takes the name meanwhile."""
        who = who_is(request.state.key)

        def work() -> PointerAnswer:
            with _named("body.bundle", asked.bundle):
                challenger = registry.verify(asked.bundle)
            name = asked.name or default_pointer(registry, challenger)
            before = registry.pointers().get(name)
            judged = judge_known(registry, challenger, before)
            if not judged.passes and not asked.force:
                error = FieldError(path="body.bundle", message=judged.reason, value=challenger.id)
                detail = f"{challenger.id} is not promoted: {judged.reason}; force does it anyway"
                raise Problem(409, "worse-bundle", detail, [error])
            forced = "" if judged.passes else ", forced"
            cause = f"promoted by {who}{forced}: {judged.reason}"
            try:
                registry.point(name, challenger.id, cause=cause, expected=before or "")
            except Moved as error:
                raise Problem(409, "name-moved", error.what) from None
            arms.wake()
            return PointerAnswer(
                name=name,
                bundle=challenger.id,
                before=before,
                reason=judged.reason,
                live=arms.args.follow and name == arms.args.bundle,
            )

        return await asyncio.to_thread(work)

    @app.post("/v1/admin/rollback", tags=["admin"], summary="Give a name back")
    async def rollback(asked: RollbackRequest, request: Request) -> PointerAnswer:
        """404 if it never meant another bundle, or that one is damaged."""
        who = who_is(request.state.key)

        def work() -> PointerAnswer:
            before = registry.pointers().get(asked.name)
            with _named("body.name", asked.name):
                bundle = registry.rollback(asked.name, cause=f"rolled back by {who}")
            arms.wake()
            live = arms.args.follow and asked.name == arms.args.bundle
            return PointerAnswer(
                name=asked.name, bundle=bundle, before=before, reason="rolled back", live=live
            )

        return await asyncio.to_thread(work)

    @app.get("/v1/admin/canary", tags=["admin"], summary="What is tried, and how it does")
    async def canary() -> CanaryAnswer:
        """Of the replica that answers; others count their own."""
        return CanaryAnswer.model_validate(await asyncio.to_thread(arms.status))

    @app.get("/v1/admin/experiments", tags=["admin"], summary="Experiments that are served")
    async def experiments() -> ServedExperiments:
        """Of the replica that answers, with what keeps any of them from being served."""
        return ServedExperiments.model_validate(arms.experiments.status())

    @app.post("/v1/admin/canary", tags=["admin"], summary="Try a bundle, or stop")
    async def try_canary(asked: CanaryRequest) -> CanaryAnswer:
        """All replicas do so within seconds; none loses a request over it."""

        def work() -> CanaryAnswer:
            wanted = asked.canary
            if wanted is not None:
                if wanted.silent is not None:
                    setting, why = wanted.silent
                    raise invalid(f"body.canary.{setting}", why, "")
                with _named("body.canary.bundle", wanted.bundle):
                    manifest = registry.verify(wanted.bundle)
                    bundle = manifest.id
                if manifest.surface == TEXT:
                    raise invalid("body.canary.bundle", "a text task ranks nothing", bundle)
                wanted = wanted.model_copy(update={"bundle": bundle})
            arms.rollout.ask(wanted)
            arms.wake()
            return CanaryAnswer.model_validate(arms.status())

        return await asyncio.to_thread(work)

    @app.delete("/v1/admin/canary", tags=["admin"], summary="Leave it to user_config again")
    async def leave_canary() -> CanaryAnswer:
        """What an admin asked for is forgotten; what a guard ended stays ended."""

        def work() -> CanaryAnswer:
            arms.rollout.clear()
            arms.wake()
            return CanaryAnswer.model_validate(arms.status())

        return await asyncio.to_thread(work)


class _named:  # noqa: N801  reads as a phrase: with _named("body.bundle", …)
    """Turns a registry's complaint into a 404 that names the field."""

    def __init__(self, path: str, value: str) -> None:
        self.path, self.value = path, value

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UserError):
            # `where` is a path on the server, which is nobody's business
            found = FieldError(path=self.path, message=error.what, value=self.value[:80])
            raise Problem(404, "no-such-bundle", error.what, [found]) from None
