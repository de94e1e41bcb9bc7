"""Documentation that works: commands run, links lead somewhere, no page is forgotten."""

import functools
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raysys.cli import app
from raysys.config import find_config

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
# ```bash blocks are run as they stand, ```sh blocks are read: they start servers, take minutes, or
# need a cluster; the stages in them are run by the tests of each stage and of the demo.
_BLOCK = re.compile(r"^```(bash|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(kind: str) -> list[tuple[str, str]]:
    return [
        (page.name, text)
        for page in PAGES
        for found, text in _BLOCK.findall(page.read_text(encoding="utf-8"))
        if found == kind
    ]


def commands() -> list[tuple[str, str]]:
    """Every line of every block, continuation lines joined, comments left out."""
    found = []
    for kind in ("bash", "sh"):
        for page, text in blocks(kind):
            for line in text.replace("\\\n", " ").splitlines():
                if line.strip() and not line.lstrip().startswith("#"):
                    found.append((page, line.strip()))
    return found


def stages() -> set[str]:
    """Every command; of a group its name."""
    plain = {command.callback.__name__ for command in app.registered_commands}
    return plain | {group.name for group in app.registered_groups}


def inner(stage: str) -> set[str]:
    """Sub-commands of a stage that is a group."""
    groups = {group.name: group.typer_instance for group in app.registered_groups}
    if stage not in groups:
        return set()
    commands = groups[stage].registered_commands
    return {command.name or command.callback.__name__ for command in commands}


@pytest.mark.long
@pytest.mark.parametrize(("page", "text"), blocks("bash"))
def test_commands_run(page, text, tmp_path):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-eu", "-c", text],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    healthy = {0, 1} if "doctor" in text else {0}  # the doctor may find something
    assert done.returncode in healthy, done.stderr
    assert done.stdout


@functools.cache
def help_of(command: tuple[str, ...]) -> str:
    """What a command says of its options."""
    terminal = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
    return CliRunner().invoke(app, [*command, "--help"], env=terminal).output


@pytest.mark.long
@pytest.mark.parametrize(("page", "line"), commands())
def test_every_stage_and_option_in_the_pages_exists(page, line):
    words = shlex.split(line, comments=True)
    if "raysys" not in words or words[0] == "cp":
        return
    words = words[words.index("raysys") + 1 :]
    if words[0].startswith("-") or words[0] == "STAGE":
        return
    assert words[0] in stages()
    command = words[: 2 if len(words) > 1 and words[1] in inner(words[0]) else 1]
    if "--config" in words:
        config = words[words.index("--config") + 1]
        if page == "your-shop.md":  # shows the file that it has beside it as the reader's own
            config = re.sub("^shop/", f"{ROOT}/docs/your-shop/", config)
        own = page == "story.md"  # whose files benchmarks/story_shop.py makes
        if not (own or config.isupper() or "YOUR" in config or "NAME" in config):
            find_config(config, words[0])
    options = help_of(tuple(command))
    for option in (word for word in words if word.startswith("--")):
        assert option in options


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_make_targets_in_the_pages_exist():
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), (page.name, target)


def test_make_bench_says_how_long_each_takes():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    names = re.findall(r"benchmarks\.(\w+)\n {4}\S.*\n {4}\S", done.stdout)
    assert len(names) == done.stdout.count("python -m")


def test_every_stage_has_a_page_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    elsewhere = {"experiment", "key", "bundles", "promote", "rollback", "monitor"}
    named = {"audit", "experiments", "security", "model-life", "monitoring"}
    for stage in (stages() - elsewhere) | named:
        assert (ROOT / "docs" / f"{stage}.md").is_file()
        assert f"- {stage}.md" in text


def test_no_page_loads_anything_from_elsewhere():
    assert "font: false" in (ROOT / "mkdocs.yml").read_text()


@pytest.mark.long
def test_the_reference_says_what_the_code_says(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from _hooks import on_page_markdown

    page = on_page_markdown((ROOT / "docs" / "reference.md").read_text(encoding="utf-8"))
    assert "<!--" not in page
    assert "| `requests` | whole number or null | `null` | fit on about so many" in page
    assert "### LightGBMSettings" in page
    assert "| `gap_minutes` |" in page
    for mark in re.findall(r"<!-- yaml: (\S+) -->", "".join(p.read_text() for p in PAGES)):
        assert (ROOT / mark).is_file()


def test_figures_in_the_pages_come_from_the_benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from _hooks import figures

    marks = re.findall(r"<!-- figures: (.+) -->", "".join(p.read_text() for p in PAGES))
    assert marks
    for mark in marks:
        assert figures(mark).count("\n") > 2, f"{mark}: no such figures"


def test_the_readme_names_the_pythons_that_are_supported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    readme = (ROOT / "README.md").read_text()
    for classifier in project["classifiers"]:
        version = re.search(r"Python :: (3\.\d+)$", classifier)
        if version:
            assert version[1] in readme


def test_constraints_pin_every_requirement_and_nothing_of_one_machine():
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        wanted.extend(extra)
    for requirement in wanted:
        name = re.match(r"[A-Za-z0-9-]+", requirement)[0].lower()
        if name == "raysys":  # an extra of ours, whose packages are listed where it stands
            continue
        assert name in pins, f"{name} is not pinned: run `make pins`"
    assert not [name for name, version in pins.items() if "+" in version or "nvidia" in name]
    assert pins["xgboost"] == pins["xgboost-cpu"]


@pytest.mark.slow
def test_the_documentation_builds_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "tune.html").read_text()
    assert "learning_rate" in page
    assert not re.search(r'(?:src|href)="https?://[^"]+\.(?:js|css|woff2?)"', page)


@pytest.mark.slow
def test_a_wheel_holds_all_that_runs_without_a_checkout(tmp_path):
    pip = [sys.executable, "-m", "pip"]
    subprocess.run(
        [*pip, "wheel", "-qq", "--no-deps", "-w", str(tmp_path), str(ROOT)], check=True, timeout=120
    )
    (wheel,) = tmp_path.glob("raysys-*.whl")
    subprocess.run(
        [*pip, "install", "-qq", "--no-deps", "--target", str(tmp_path / "lib"), str(wheel)],
        check=True,
        timeout=120,
    )
    script = (
        "import raysys; from raysys.config import find_config, load_yaml\n"
        "print(raysys.__file__)\n"
        "for name, kind in (('complete_journey', 'features'), "
        "('tune_configs/demo.yaml', 'tune'), ('serve_configs/local.yaml', 'deploy')):\n"
        "    print(find_config(name, kind)); assert load_yaml(find_config(name, kind))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "lib")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split()
    assert len(lines) == 4
    assert all(line.startswith(str(tmp_path / "lib" / "raysys")) for line in lines)
    script = tmp_path / "lib" / "bin" / "raysys"
    assert script.is_file()
