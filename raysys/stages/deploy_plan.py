"""A serve config, checked at every depth, as Ray is to take it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Union, get_args, get_origin

from pydantic import BaseModel, create_model
from ray.serve.schema import ServeDeploySchema

from raysys.config import Settings, StageSettings, find_config, load_settings, parse_settings
from raysys.errors import UserError
from raysys.registry import Registry
from raysys.serving.app import settle
from raysys.serving.args import ServeArgs
from raysys.serving.auth import behind_haproxy
from raysys.serving.edge_args import under_home
from raysys.serving.experiments import AcceptedFile, check_served, load_experiments, places_of
from raysys.serving.keys import KeyFile
from raysys.serving.rollout import Rollout, UserConfig
from raysys.stages.deploy_reach import LOOPBACK, check_host
from raysys.storage import Workspace

OURS = "raysys.serving.app:build"

log = logging.getLogger("raysys")


def strict(model: type[BaseModel]) -> type[Settings]:
    """The same fields as a model of Ray's, at every depth, but unknown keys are refused.

    Ray's own models ignore them, so a misspelt option would silently not apply.
    """
    fields: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        kind = _strict_annotation(info.annotation)
        fields[name] = (kind, ...) if info.is_required() else (kind | None, None)
    made: type[Settings] = create_model(model.__name__, __base__=Settings, **fields)
    return made


def _strict_annotation(annotation: Any) -> Any:
    """Models within an annotation made strict; what else it says Ray checks when it takes it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return strict(annotation)
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is list and inner:
        return list[_strict_annotation(inner[0])]  # type: ignore[misc]
    if origin in (Union, UnionType):  # of a model, perhaps a mapping that becomes it, and None
        parts = [part for part in inner if part is not type(None) and get_origin(part) is not dict]
        if len(parts) == 1:
            return _strict_annotation(parts[0])
    return Any


_Schema: Any = strict(ServeDeploySchema)


class DeploySettings(_Schema, StageSettings):
    """A serve config: Ray Serve's fields, and `ServeArgs` under our application's `args`."""

    kind_name: ClassVar[str] = "deploy"


def serve_args(config: str | Path, workspace: Workspace | None) -> list[ServeArgs]:
    """Arguments of our applications in a serve config, as `plan` takes them.

    Args:
        config: a file, or a preset's name.
        workspace: its registry takes the place of the config's, and what lies beside that; None:
            the config's.

    Raises:
        UserError: no such file, or a key or value that nobody takes.
    """
    path = find_config(str(config), "deploy")
    settings = load_settings(DeploySettings, path)
    content = settings.model_dump(mode="json", exclude_unset=True)
    return [
        _placed(app, workspace, f"{path}: applications.{number}.args")
        for number, app in enumerate(content["applications"])
        if app["import_path"] == OURS
    ]


def _placed(app: Mapping[str, Any], workspace: Workspace | None, where: str) -> ServeArgs:
    args = parse_settings(ServeArgs, app.get("args") or {}, where=where)
    if workspace is None:
        return args
    return args.model_copy(update={"registry": str(workspace.registry.resolve())})


def plan(settings: DeploySettings, workspace: Workspace | None) -> tuple[dict[str, Any], str]:
    """The config as Ray takes it, with our arguments settled; and the first application's bundle.

    Raises:
        UserError: a value Ray refuses, arguments nobody reads, no bundle or a damaged one, or a
            host where HAProxy would not reach the replicas.
    """
    said = settings.model_dump(mode="json", exclude_unset=True)
    config: dict[str, Any] = {key: value for key, value in said.items() if value is not None}
    ours = [
        (number, app)
        for number, app in enumerate(config["applications"])
        if app["import_path"] == OURS
    ]
    if not ours:
        raise UserError(
            "no application of raysys",
            where="applications",
            mend=f"give one the import_path {OURS}",
        )
    for number, app in ours:
        where = f"applications.{number}.args"
        args = settle(_placed(app, workspace, where))
        for name in filter(None, (args.pinned, *args.pinned_text.values())):
            Registry(args.registry).verify(name)  # said here rather than by a replica's log
        _check_who_may_call(args, config.get("http_options", {}), where)
        _check_names(args, app.get("deployments") or (), f"applications.{number}.deployments")
        for at, deployment in enumerate(app.get("deployments") or ()):
            if deployment.get("user_config") is not None:
                place = f"applications.{number}.deployments.{at}.user_config"
                deployment["user_config"] = _settle_tried(args, deployment["user_config"], place)
        app["args"] = args.model_dump(mode="json")
    parse_settings(ServeDeploySchema, config, where="serve config")
    host, port = listens_on(config)
    if not 0 < port < 65_536:
        raise UserError(
            f"{port} is no port",
            where="http_options.port",
            mend="give one from 1 to 65535",
        )
    check_host(host)
    _check_tls(config)
    return config, ours[0][1]["args"]["pinned"] or ""


def listens_on(config: dict[str, Any]) -> tuple[str, int]:
    """Host and port of a config that Ray takes, as Ray reads them."""
    options = ServeDeploySchema.model_validate(config).http_options
    return options.host, options.port


def tls_files(config: dict[str, Any]) -> dict[str, Path]:
    """The files that a config's TLS needs, by key of `http_options`; none where it speaks HTTP."""
    options = config.get("http_options") or {}
    keys = ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs")
    return {key: Path(str(options[key])) for key in keys if options.get(key)}


def _check_tls(config: dict[str, Any]) -> None:
    """Refuse what asks for TLS and would be answered in plain HTTP.

    Raises:
        UserError: a key without a certificate; or HAProxy, which Serve gives none.
    """
    files = tls_files(config)
    if files and "ssl_certfile" not in files:
        raise UserError(
            "without a certificate Serve speaks plain HTTP",
            where="http_options.ssl_certfile",
            mend="name the certificate that belongs to the key",
        )
    for key, path in files.items():
        if not path.is_absolute():
            raise UserError(
                f"{path} is not a whole path, and the proxy runs in a folder of its own",
                where=f"http_options.{key}",
                mend="begin with /",
            )
    if files and behind_haproxy():
        raise UserError(
            "HAProxy, as Serve sets it up, speaks plain HTTP whatever certificate is named",
            where="http_options.ssl_certfile",
            mend="end TLS in the load balancer before it, or take Ray's own proxy: unset "
            "RAY_SERVE_ENABLE_HA_PROXY",
        )


def _settle_tried(args: ServeArgs, content: Any, where: str) -> dict[str, Any]:
    """The `user_config` with the id of the bundle that is tried and the whole paths of files.

    Raises:
        UserError: what nobody reads; no such bundle, or a damaged one; experiments that are wrong,
            or changed as they must not be while they run.
    """
    if not isinstance(content, dict):
        raise UserError(f"a mapping is expected, found {content!r}", where=where)
    asked = parse_settings(UserConfig, content, where=where)
    canary, rollout = asked.canary, Rollout(Path(args.registry))
    if "canary" in content and rollout.read().says:
        log.warning(
            "%s.canary does not count: what an admin asked for does (%s); leave it to user_config "
            "with DELETE /v1/admin/canary, or `Client.leave_canary()`", where, rollout.path,
        )  # fmt: skip
    if canary is not None:
        if canary.silent is not None:
            setting, why = canary.silent
            raise UserError(why, where=f"{where}.canary.{setting}")
        bundle = Registry(args.registry).verify(canary.bundle).id
        canary = canary.model_copy(update={"bundle": bundle})
    files = tuple(str(under_home(each).resolve()) for each in asked.experiments)
    if files:
        _check_experiments(args, files)
    return UserConfig(canary=canary, experiments=files).model_dump(mode="json")


def _check_experiments(args: ServeArgs, files: tuple[str, ...]) -> None:
    """Refuse what replicas would only log.

    Raises:
        UserError: see `check_served` and `check_change`; an arm's bundle is not there.
    """
    where, now = ", ".join(files), datetime.now(UTC)
    settings = load_experiments(files)
    check_served(settings, args, where)
    registry = Registry(args.registry)
    AcceptedFile(registry.root).check(settings, now, where)
    for experiment in settings.experiments:
        if places_of(experiment) and experiment.runs_at(now):
            for arm in experiment.arms:
                if arm.bundle is not None:
                    registry.verify(arm.bundle)


def _check_names(args: ServeArgs, deployments: Any, where: str) -> None:
    """Refuse options of a deployment that the application does not have.

    Raises:
        UserError: there are some.
    """
    apart = args.transformer is not None and args.bundle is not None
    known = ["Ranker", *(["Transformer"] if apart else [])]
    for at, deployment in enumerate(deployments):
        if (name := deployment.get("name")) not in known:
            mend = "say `transformer: {}` in the args" if name == "Transformer" else "mend it"
            raise UserError(
                f"the application has no deployment {name!r}; it has {', '.join(known)}",
                where=f"{where}.{at}.name",
                mend=f"{mend}, or leave its options out",
            )


def _check_who_may_call(args: ServeArgs, options: dict[str, Any], where: str) -> None:
    """Refuse to answer other machines without keys, unless that is what was asked for.

    Raises:
        UserError: so it is; or there are to be keys, and they cannot be read.
    """
    if (path := args.auth.keys_path) is not None:
        KeyFile(path).read()
        return
    host = options.get("host") or "0.0.0.0"  # Serve's own default
    keys = "`raysys key create NAME --role read`, then `auth: {keys: FILE}` in the args"
    wide = "`auth: {open: true}` if anybody may"
    if args.auth.open:
        return
    if behind_haproxy():
        raise UserError(
            "without keys nobody would be answered: behind HAProxy a replica cannot tell who is of "
            "this machine",
            where=f"{where}.auth",
            mend=f"{keys}; or {wide}",
        )
    if host not in LOOPBACK:
        raise UserError(
            f"without keys, anybody who reaches this machine could call (host {host})",
            where="http_options.host",
            mend=f"{keys}; or host 127.0.0.1; or {wide}",
        )
