from __future__ import annotations

import datetime as dt
from pathlib import Path

from raysys.text.pretraining.log_read import models_that_read, write_log_read


def test_models_are_found_among_any_settings(tmp_path: Path) -> None:
    until = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    (tmp_path / "read").mkdir()
    (tmp_path / "plain").mkdir()
    (tmp_path / "words.csv").write_text("a")
    write_log_read(tmp_path / "read", until)
    others = [
        "",
        "x" * 9999,
        "a\0b",
        "~nobody/x",
        str(tmp_path / "words.csv"),
        3,
        None,
    ]
    settings = {
        "bi_encoder": {"model": str(tmp_path / "read"), "others": others},
        "cross_encoder": {"model": str(tmp_path / "plain")},
    }
    found = list(models_that_read(settings, "learners"))
    assert found == [("learners.bi_encoder.model", str(tmp_path / "read"), until)]
