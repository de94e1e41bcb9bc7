"""`make bench`: every benchmark, what it measures, and how long it took last time."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

HERE = Path(__file__).parent
WRITES = r"^from benchmarks\.(\w+_results|parts|result) import .*\bwrite_(\w+_)?result\b"


def listing(folder: Path = HERE) -> list[tuple[str, str, str]]:
    """Name, what it measures, and how long it takes: of every benchmark in a folder.

    A benchmark is a script that writes a result. Its docstring's first line says what it measures,
    the second paragraph how long that takes.
    """
    rows = []
    for script in sorted(folder.glob("[!_]*.py")):
        code = script.read_text(encoding="utf-8")
        if not re.search(WRITES, code, re.MULTILINE):
            continue
        what, _, rest = (ast.get_docstring(ast.parse(code)) or "").partition("\n\n")
        takes = " ".join(rest.partition("\n\n")[0].split())
        contents = [
            json.loads(path.read_text(encoding="utf-8"))
            for pattern in (f"{script.stem}.json", f"*/{script.stem}[.-]*json")
            for path in sorted((folder / "results").glob(pattern))
        ]
        if contents:
            seconds = sum(content["seconds"] for content in contents)
            machine = contents[0]["machine"]
            takes = f"{seconds:.0f} s on {machine['cores']} cores of {machine['cpu']}"
        rows.append((script.stem, " ".join(what.split()), takes))
    return rows


def main() -> None:
    """Print the listing."""
    rows = listing()
    for name, what, takes in rows:
        print(f".venv/bin/python -m benchmarks.{name}\n    {what}\n    {takes}")
    if not rows:
        print("no benchmarks yet")


if __name__ == "__main__":
    main()
