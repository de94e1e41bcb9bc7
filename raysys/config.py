"""Typed YAML: loading, and errors that name the path, the value and what is allowed."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from raysys.errors import UserError

PACKAGE = Path(__file__).parent
PRESETS = PACKAGE / "presets"


class Settings(BaseModel):
    """Base of every YAML model: unknown keys are refused, values are frozen after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class StageSettings(Settings):
    """Base of one YAML kind; `kind` names the stage that reads it."""

    kind_name: ClassVar[str]


S = TypeVar("S", bound=Settings)


def find_config(name: str | Path, kind: str) -> Path:
    """The YAML file that `name` means: a path, or a preset such as `complete_journey`.

    Raises:
        UserError: when there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    for root in (PACKAGE.parent, PRESETS):  # a checkout, then an installed wheel
        if (root / path).is_file():
            return root / path
    preset = PRESETS / str(name) / f"{kind}.yaml"
    if preset.is_file():
        return preset
    known = sorted(p.name for p in PRESETS.iterdir() if (p / f"{kind}.yaml").is_file())
    raise UserError(
        f"no such configuration: {str(name)!r}",
        where=f"raysys {kind} --config",
        mend=f"give a YAML file, or one of the presets: {', '.join(known)}",
    )


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        UserError: not YAML, not UTF-8, or not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
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
    for problem in error.errors():
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


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Names of the fields that the model has at a path of the YAML; empty where it branches."""
    current: Any = model
    for part in path:
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(str(part))
            current = field.annotation if field else None
        if not isinstance(current, type):  # a list, dict or union: step into the model it holds
            models = _models_in(current)
            tagged = [model for model in models if _tag(model) == part]
            current = next(iter(tagged or models), None)
    if isinstance(current, type) and issubclass(current, BaseModel):
        return sorted(current.model_fields)
    return sorted({name for m in _models_in(current) for name in m.model_fields})


def _tag(model: type[BaseModel]) -> object:
    """The value of the model's `kind` discriminator, if it has one."""
    field = model.model_fields.get("kind")
    return field.default if field else None


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation mentions, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for inner in getattr(annotation, "__args__", ()):
        found.extend(_models_in(inner))
    return found
