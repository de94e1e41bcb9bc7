"""Typed YAML: loading, and errors that name the path, the value and what is allowed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails
from yaml.constructor import ConstructorError

from raysys.errors import UserError

PACKAGE = Path(__file__).parent
PRESETS = PACKAGE / "presets"
_FOLDERS = {"tune": "tune_configs", "deploy": "serve_configs"}


class Settings(BaseModel):
    """Base of every YAML model: unknown keys are refused, values are frozen after loading.

    Attributes:
        goes_over_default: of a field of this type, what a mapping does not say is as the field's
            default has it, not as this type has it: who changes one rate of a learner's training
            keeps the learner's others.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
    goes_over_default: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, told: Any) -> Any:
        if not isinstance(told, Mapping):
            return told
        found = dict(told)
        for name, field in cls.model_fields.items():
            own, given = field.default, found.get(name)
            if isinstance(own, Settings) and own.goes_over_default and isinstance(given, Mapping):
                found[name] = {**own.model_dump(exclude_unset=True), **given}
        return found


class StageSettings(Settings):
    """Base of one YAML kind; `kind` names the stage that reads it."""

    kind_name: ClassVar[str]


S = TypeVar("S", bound=Settings)


def find_config(name: str | Path, kind: str) -> Path:
    """The YAML file that `name` means: a path, a preset, or a file of `tune_configs` and the like.

    Raises:
        UserError: when there is none of these.
    """
    roots = (PACKAGE.parent, PRESETS)  # a checkout, then an installed wheel
    folder = _FOLDERS.get(kind, "")
    for path in (
        Path(name),
        *(root / name for root in roots),
        PRESETS / name / f"{kind}.yaml",
        *(root / folder / f"{name}.yaml" for root in roots if folder),
    ):
        if path.is_file():
            return path
    known = {path.parent.name for path in PRESETS.glob(f"*/{kind}.yaml")}
    if folder:
        known |= {
            f"{folder}/{path.name}" for root in roots for path in root.glob(f"{folder}/*.yaml")
        }
    raise UserError(
        f"no such configuration: {str(name)!r}",
        where=f"raysys {kind} --config",
        mend=f"give a YAML file, or one of: {', '.join(sorted(known))}",
    )


_BOOL: Final = "tag:yaml.org,2002:bool"
_INT: Final = "tag:yaml.org,2002:int"
_FLOAT: Final = "tag:yaml.org,2002:float"
_WORDS: Final = {
    # as in YAML 1.2, but that digits behind a zero are an id and no number
    _BOOL: ("^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    _INT: ("^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$", "-+0123456789"),
    _FLOAT: (
        r"^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+0123456789.",
    ),
}


class _Loader(yaml.SafeLoader):
    """Refuses what YAML's own loader takes silently, or fails at without a line.

    Bare `off`, `on`, `yes` and `no` are words, as in YAML 1.2; settings that are true or false
    still take them. So are `12:30` and `00123`, which were 750 and 83, and `1e-4` is a number.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping as written: every key once. What it merges (`<<`) comes later, and yields."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    problem = f"the key {key.value!r} is there twice"
                    raise ConstructorError(None, None, problem, key.start_mark)
                seen.add((key.tag, key.value))
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A value; one that cannot be, such as 2024-06-31, with its line."""
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            problem = f"{node.value!r}: {error}"
            raise ConstructorError(None, None, problem, node.start_mark) from None


_Loader.yaml_implicit_resolvers = {
    first: [one for one in tried if one[0] not in _WORDS]
    for first, tried in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """Quotes every text that this loader or another would take for something else."""


for _meaning, (_pattern, _first) in _WORDS.items():
    _Loader.add_implicit_resolver(_meaning, re.compile(_pattern), list(_first))
    _Dumper.add_implicit_resolver(_meaning, re.compile(_pattern), list(_first))


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        UserError: not YAML, not UTF-8, a key that is there twice, or not a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506  a SafeLoader
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 at byte {error.start}", where=str(path)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", "") or str(error)
        raise UserError(f"not valid YAML{line}: {problem}", where=str(path)) from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise UserError(f"a mapping is expected, found {type(content).__name__}", where=str(path))
    return content


def dump_yaml(content: dict[str, Any]) -> str:
    """A mapping as `load_yaml` reads it again, keys in their order."""
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False)
    return text


def load_settings(model: type[S], path: Path) -> S:
    """Read and check one YAML file against its model.

    Raises:
        UserError: naming file, path within it, value, and what is allowed.
    """
    return parse_settings(model, load_yaml(path), where=str(path))


def parse_settings(model: type[S], content: dict[str, Any], *, where: str) -> S:
    """Check a mapping against its model; see `load_settings`."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(_describe(error, model), where=where) from None


def _describe(error: ValidationError, model: type[BaseModel]) -> str:
    """Every problem of a validation on a line of its own: path, value, what is allowed."""
    lines = []
    found = error.errors()
    for problem in found:
        if _only_lost_members(problem, found):
            continue
        path = ".".join(str(part) for part in problem["loc"]) or "(top)"
        if problem["type"] == "extra_forbidden":
            allowed = _fields_at(model, problem["loc"][:-1])
            key = str(problem["loc"][-1])
            near = difflib.get_close_matches(key, allowed, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            lines.append(f"{path}: unknown key{hint} (allowed: {', '.join(allowed)})")
        elif problem["type"] == "missing":
            lines.append(f"{path}: required, but missing")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            if isinstance(problem.get("input"), dict):  # a rule over the whole block
                lines.append(f"{path}: {message}")
                continue
            value = repr(problem.get("input"))
            value = value if len(value) <= 80 else value[:77] + "..."
            lines.append(f"{path}: {value}: {message[0].lower() + message[1:]}")
    return "\n  ".join(lines)


def _only_lost_members(problem: ErrorDetails, found: list[ErrorDetails]) -> bool:
    """Whether a list is called short only as members of it are wrong, which is told of them.

    pydantic counts those that remain, of tuples and sets; as written there were enough.
    """
    if problem["type"] != "too_short":
        return False
    loc, written = problem["loc"], problem.get("input")
    enough = isinstance(written, Sized) and len(written) >= problem["ctx"]["min_length"]
    return enough and any(
        len(other["loc"]) > len(loc) and other["loc"][: len(loc)] == loc for other in found
    )


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Names of the fields that the model has at a path of the YAML; empty where there are none.

    A part of the path that names no field picks one model of a union (by its `kind`, or as
    pydantic calls it), or is a key of a mapping or a place in a list.
    """
    models = [model]
    for part in path:
        holders = [found for found in models if part in found.model_fields]
        if holders:
            annotations = [found.model_fields[str(part)].annotation for found in holders]
            models = [inner for annotation in annotations for inner in _models_in(annotation)]
        else:
            picked = [found for found in models if part in (_tag(found), found.__name__)]
            models = picked or models
    fields = (field for found in models for field in found.model_fields.items())
    return sorted({info.alias or name for name, info in fields})


def _tag(model: type[BaseModel]) -> object:
    """The value of the model's discriminator (`kind`, or `from`), if it has one."""
    field = model.model_fields.get("kind") or model.model_fields.get("from_")
    return field.default if field else None


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation mentions, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for inner in getattr(annotation, "__args__", ()):
        found.extend(_models_in(inner))
    return found
