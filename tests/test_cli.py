"""The command line as a user meets it: help, exit codes, and how each ending looks."""

import errno
import io
import json
import signal
import subprocess
import sys

import pytest
from rich.console import Console

from raysys import __version__, progress, terminal
from raysys.errors import UserError
from raysys.storage import Manifest

STAGES = ("ingest", "features", "train", "tune", "evaluate", "deploy", "demo", "doctor")


def raysys(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "raysys", *words],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def test_help_lists_every_stage_in_the_order_a_shop_comes_to_them():
    done = raysys("--help")
    assert done.returncode == 0
    for stage in STAGES:
        assert f"\n  {stage} " in done.stdout
    places = [done.stdout.index(f"\n  {stage} ") for stage in STAGES]
    assert places == sorted(places)


def test_help_imports_nothing_heavy():
    code = (
        "import sys, raysys.cli; heavy = {'ray', 'torch', 'pandas', 'pyarrow', 'polars', 'numpy'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_explains_itself(stage):
    done = raysys(stage, "--help")
    assert done.returncode == 0
    assert "--workspace" in done.stdout


@pytest.mark.parametrize("inner", ["explain", "audit"])
def test_features_has_commands_of_its_own(inner):
    assert f"\n  {inner} " in raysys("features", "--help").stdout
    done = raysys("features", inner, "--help")
    assert done.returncode == 0
    assert "--config" in done.stdout


def test_options_before_a_command_of_features_are_not_dropped_silently(tmp_path):
    done = raysys("features", "--workspace", str(tmp_path), "audit")
    assert done.returncode == 2
    assert "--workspace belongs behind `audit`" in done.stderr


def test_version():
    assert raysys("--version").stdout == f"raysys {__version__}\n"


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("train", "--config", "nothing"), "no such configuration: 'nothing'"),
        (("features", "-w", "{tmp}/none"), "nothing here yet"),
        (("features", "audit", "-w", "{tmp}/none"), "run `raysys ingest` first"),
        (("features", "explain", "--feature", "item_tend"), "did you mean 'item_trend'?"),
        (("tune", "-c", "{tmp}/bad.yaml"), "did you mean 'trials'"),
        (("tune", "-c", "{tmp}/list.yaml"), "a mapping is expected"),
    ],
)
def test_a_users_mistake_is_a_message_and_exit_code_2(tmp_path, words, told):
    (tmp_path / "bad.yaml").write_text("learner: x\ntrails: 3\n")
    (tmp_path / "list.yaml").write_text("- 1\n")
    done = raysys(*(word.format(tmp=tmp_path) for word in words))
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_unknown_command_suggests_the_nearest():
    done = raysys("ingst")
    assert done.returncode == 2
    assert "ingest" in done.stderr


SCRIPT = """
import os, signal, sys
from raysys import terminal
from raysys.errors import UserError
from raysys.progress import task
with terminal.session():
    with task("count", total=3) as t:
        t.advance(2)
        {body}
"""


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        ("raise UserError('bad [bold]value[/]', mend='so')", 2, "error: bad [bold]value[/]"),
        ("open('/dev/null/x')", 2, "error: /dev/null/x: Not a directory"),
        ("raise OSError(28, 'No space left on device')", 2, "make room"),
        ("os.kill(os.getpid(), signal.SIGINT)", 130, "interrupted"),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143, "terminated"),
        ("{}['[/red]']", 1, "KeyError: '[/red]'"),
        ("{}[1]", 1, "raysys doctor --json"),
    ],
)
def test_each_ending_has_its_exit_code(body, code, told):
    script = SCRIPT.replace("{body}", body)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == code
    assert told in done.stderr
    assert ("Traceback" in done.stderr) == (code == 1)


def test_a_closed_pipe_is_no_fault():
    code = "from raysys import terminal\nwith terminal.session():\n    print('x' * 10_000_000)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.read(10)
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait() == 141
    assert errors == b""


def test_sigterm_takes_effect_only_inside_a_session():
    before = signal.getsignal(signal.SIGTERM)
    with terminal.session():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_mistake_is_found_behind_what_ray_wraps_it_in():
    mistake = UserError("bad column", where="events.csv")

    class WrappedError(UserError):  # as Ray's dual exceptions: inherits, but holds only a cause
        def __init__(self) -> None:
            self.cause = mistake

    failure = RuntimeError("training failed")
    failure.worker_failures = {0: WrappedError()}
    assert terminal.users_mistake(WrappedError()) is mistake
    assert terminal.users_mistake(failure) is mistake
    outer = RuntimeError("outer")
    outer.__cause__ = failure
    assert terminal.users_mistake(outer) is mistake
    assert terminal.users_mistake(KeyError("x")) is None


def test_a_full_disk_is_found_behind_what_ray_wraps_it_in():
    from ray.exceptions import RayTaskError

    full = OSError(errno.ENOSPC, "No space left on device", "/data/x.parquet")
    wrapped = RayTaskError("work", "Traceback …", full).as_instanceof_cause()
    assert isinstance(wrapped, OSError) and wrapped.errno is None
    found = terminal.users_mistake(wrapped)
    assert found is not None and found.where == "/data/x.parquet" and "make room" in found.mend
    fault = KeyError("x")  # raised while a mistake was handled: a fault all the same
    fault.__context__ = full
    assert terminal.users_mistake(fault) is None


def test_on_a_terminal_progress_shows_count_and_leaves_a_line():
    console = Console(force_terminal=True, width=120, file=io.StringIO(), record=True)
    with (
        terminal.RichListener(console) as listener,
        progress.listening(listener),
        progress.task("read [events]", total=2_000) as task,
    ):
        task.advance(1_500)
        frame = Console(width=120, record=True, file=io.StringIO())
        frame.print(listener._progress.get_renderable())
        assert "1,500 of 2,000" in frame.export_text()
        task.note = "3 in quarantine"
    shown = console.export_text()
    assert "✓ read [events]" in shown
    assert "3 in quarantine" in shown


def test_elsewhere_progress_is_plain_lines():
    script = SCRIPT.replace("{body}", "t.note = 'all good'")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0
    assert "INFO count …" in done.stderr
    assert "(all good)" in done.stderr
    assert "\x1b" not in done.stderr


def test_what_a_stage_came_to_is_said(tmp_path):
    (tmp_path / "report.html").write_text("")
    console = Console(width=200, record=True, file=io.StringIO())
    manifest = Manifest(stage="ingest", counts={"events": 1_469_307}, seconds=3.21)
    terminal.show_manifest(console, manifest, tmp_path)
    shown = console.export_text()
    assert "ingest 3.2 s" in shown
    assert "events 1,469,307" in shown
    assert "report.html" in shown


def test_doctor_speaks_json():
    done = raysys("doctor", "--json")
    content = json.loads(done.stdout)
    assert done.returncode == (0 if content["healthy"] else 1)
    assert {"area", "name", "state", "found", "mend"} == set(content["findings"][0])
