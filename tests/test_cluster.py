"""A node that dies costs what it was doing, nothing else, and changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.cluster import Attempts, raysys
from benchmarks.events_at_scale import make_log, write_settings
from benchmarks.measure import fingerprint_events


def test_attempts_tell_lost_and_repeated_work(tmp_path) -> None:
    pieces = tmp_path / "pieces"
    seen = Attempts(tmp_path)
    seen.look()  # nothing there yet
    for key in ("a", "b", "c"):
        (pieces / f".{key}.1234.tmp").mkdir(parents=True)
    seen.look()
    (pieces / ".a.1234.tmp").rename(pieces / "a")
    (pieces / ".c.1234.tmp").rename(pieces / "c")
    (pieces / ".b.5678.tmp").mkdir()  # b again: whoever began it is dead
    seen.look()
    assert seen.done.keys() == {"pieces/a", "pieces/c"} and seen.lost == {"pieces/b"}
    (pieces / ".b.5678.tmp").rename(pieces / "b")
    (pieces / "c").rename(tmp_path / "elsewhere")
    (pieces / "c").mkdir()  # c was done, and done again
    seen.look()
    assert seen.done.keys() == {"pieces/a", "pieces/b", "pieces/c"}
    assert seen.lost == {"pieces/b", "pieces/c"} and seen.redone == {"pieces/c"}


@pytest.mark.slow
def test_a_killed_node_costs_only_its_own_pieces(tmp_path) -> None:
    log, facts = make_log("20k", tmp_path)
    config, _ = write_settings(log, tmp_path)
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    command = [sys.executable, "-m", "benchmarks.cluster", "--kill-a-node"]
    done = subprocess.run([*command, config, disturbed], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    cost = json.loads(done.stdout.splitlines()[-1])
    assert 0 < cost["done_before"] < cost["pieces"]
    assert cost["redone"] == 0
    assert cost["again"] <= 1  # one CPU does one piece at a time
    subprocess.run(raysys("ingest", config, undisturbed), check=True)
    outcome = fingerprint_events(disturbed / "ingest" / "events")
    assert outcome == fingerprint_events(undisturbed / "ingest" / "events")
    assert outcome["rows"] == facts.clean
