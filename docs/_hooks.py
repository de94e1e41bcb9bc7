"""mkdocs hooks: settings and YAML files shown in the pages are read from the code itself.

<!-- settings: raysys.stages.tune:TuneSettings -->   a table for the model and each it holds
<!-- yaml: tune_configs/demo.yaml -->                the file
<!-- figures: demo ndcg10_.* -->                     figures of a benchmark whose names match
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import types
import typing
from importlib import import_module
from inspect import cleandoc
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from raysys.config import Settings, StageSettings

ROOT = Path(__file__).parent.parent
_MARK = re.compile(r"^<!-- (settings|yaml|figures): (\S.*) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill a page's marks; a settings model that several hold is shown once."""
    seen: set[type[BaseModel]] = set()

    def fill(mark: re.Match[str]) -> str:
        if mark[1] == "settings":
            return settings_tables(mark[2], seen)
        return _FILL[mark[1]](mark[2])

    return _MARK.sub(fill, markdown)


def settings_tables(target: str, seen: set[type[BaseModel]] | None = None) -> str:
    """Markdown tables of a settings model and of every model it holds, less those in `seen`."""
    module, _, name = target.partition(":")
    waiting: list[type[BaseModel]] = [getattr(import_module(module), name)]
    seen = set() if seen is None else seen
    parts = []
    while waiting:
        model = waiting.pop(0)
        if model in seen:
            continue
        if model.__name__ in {each.__name__ for each in seen}:
            raise ValueError(f"two models of a page are called {model.__name__}: links name one")
        seen.add(model)
        parts.append(_table(model))
        for info in model.model_fields.values():
            waiting.extend(_models_in(info.annotation))
    return "\n\n".join(parts)


def yaml_file(path: str) -> str:
    """A file of the repository as a block of code."""
    return f'```yaml title="{path}"\n{(ROOT / path).read_text(encoding="utf-8").rstrip()}\n```'


def figures(target: str) -> str:
    """A table of a benchmark's figures: its name, a space, a pattern for whole names."""
    name, _, pattern = target.partition(" ")
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    lines = ["| figure | value | low – high | compared with |", "|---|---:|---|---|"]
    for figure in json.loads(path.read_text(encoding="utf-8"))["figures"]:
        if re.fullmatch(pattern, figure["name"]):
            low, high = figure["low"], figure["high"]
            spread = "" if low is None else f"{low:.3f} – {high:.3f}"
            value = float(figure["value"])
            told = f"{value:,.0f}" if value.is_integer() and low is None else f"{value:,.3f}"
            cells = (f"`{figure['name']}`", told, spread, figure["reference"])
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


_FILL = {"yaml": yaml_file, "figures": figures}


def _table(model: type[BaseModel]) -> str:
    lead, notes = _documentation(model)
    lines = [f"### {model.__name__} {{ #{model.__name__.lower()} }}", "", lead, ""]
    lines += ["| key | type | default | what it is |", "|---|---|---|---|"]
    for name, info in model.model_fields.items():
        default = "required"
        if info.default is not PydanticUndefined:
            default = f"`{_shown(info.default)}`"
        elif info.default_factory is not None:
            default = "`{}`"
        limits = ", ".join(
            f"{sign} {getattr(limit, attribute)}"
            for limit in info.metadata
            for attribute, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
            if hasattr(limit, attribute)
        )
        note = notes.get(name, "")
        text = "; ".join(part for part in (note, limits) if part)
        lines.append(f"| `{info.alias or name}` | {_type(info.annotation)} | {default} | {text} |")
    return "\n".join(lines)


def _documentation(model: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """What a docstring says of the model, and under `Attributes:` of each field; bases included."""
    notes: dict[str, str] = {}
    lead = ""
    for base in reversed(model.__mro__):
        text = cleandoc(base.__doc__ or "") if issubclass(base, BaseModel) else ""
        if base in (BaseModel, Settings, StageSettings) or not text:
            continue
        lead, _, attributes = text.partition("\nAttributes:\n")
        name = ""
        for line in attributes.splitlines():
            start = re.match(r" {4}(\w+): (.*)", line)
            if start:
                name = start[1]
                notes[name] = start[2]
            elif name and line.strip():
                notes[name] += " " + line.strip()
        notes |= _strings_after_fields(base)
    return lead.replace("\n\n", "<br>").replace("\n", " ").strip(), notes


def _strings_after_fields(model: type[BaseModel]) -> dict[str, str]:
    """What string literals below fields say of them."""
    body = ast.parse(dedent(inspect.getsource(model))).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: " ".join(said.value.value.split())
        for field, said in pairwise(body.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(said, ast.Expr)
        and isinstance(said.value, ast.Constant)
        and isinstance(said.value.value, str)
    }


def _type(annotation: Any) -> str:
    """An annotation in the words of YAML."""
    origin = typing.get_origin(annotation)
    inner = [part for part in typing.get_args(annotation) if part is not type(None)]
    optional = len(inner) < len(typing.get_args(annotation))
    if origin is typing.Annotated:
        return _type(inner[0])
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join([*(_type(part) for part in inner), *(["null"] if optional else [])])
    if origin in (list, tuple, set, frozenset):
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return f"mapping to {_type(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    words = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}
    name = getattr(annotation, "__name__", str(annotation))
    return words.get(name, name)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "{}"
    if isinstance(value, tuple):
        value = [_shown(item) if isinstance(item, BaseModel) else item for item in value]
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return str(value) if value != "" else '""'
