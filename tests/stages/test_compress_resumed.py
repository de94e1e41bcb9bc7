"""`raysys compress` cut off in the middle: what was taught and measured is not done again."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysys.config import parse_settings
from raysys.stages import compress
from raysys.stages.compress import CompressSettings
from raysys.stages.compressible import MeanQuality
from raysys.storage import Workspace
from raysys.text.compression.probe import Cost
from tests.text.tiny import write_tiny_bert

WORDS = ("dairy", "milk", "frozen", "pizza", "rye", "bread")
QUALITY = {"whole": 0.5, "fp32": 0.5, "bf16": 0.49, "float32": 0.5, "scalar": 0.499, "product": 0.2}


class Interrupted(BaseException):
    """A kill, as far as files go."""


class Bench:
    """A subject that needs no bundle, and what was done to it; ends in a kill where it is told."""

    measure = "NDCG@10"
    encoder = Path("encoder")

    def __init__(self, root: Path, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.learner = root / "learner"
        if not self.learner.is_dir():
            shutil.copytree(bert, self.learner / "encoder")
        self.ground = {"features": "as they were"}
        self.done: Counter[str] = Counter()
        self.kill: str | None = None
        self.place = ""
        export, train = compress.export, compress.train

        def exported(backbone: Any, tokenizer: Any, name: str, place: Path, **more: Any) -> Path:
            assert not place.exists()
            found = export(backbone, tokenizer, name, place, **more)
            self.note(f"export {place.name}")
            return found

        def taught(objective: Any, settings: Any, place: Path, **more: Any) -> Any:
            found = train(objective, settings, place, **more)
            self.note(f"teach {place.name}")
            return found

        def cost(place: Path, shapes: Any, threads: int) -> Cost:
            self.place = place.name
            self.note(f"cost {place.name}")
            return Cost({"1x8": float(len(place.name))}, 1.0, 2.0)

        for name, replaced in (("export", exported), ("train", taught), ("cost_of", cost)):
            monkeypatch.setattr(compress, name, replaced)
        monkeypatch.setattr(compress, "_subject", lambda *_: self)

    def note(self, what: str) -> None:
        self.done[what] += 1
        if what == self.kill:
            raise Interrupted

    def texts(self, limit: int) -> list[str]:
        return [f"{one} {other}" for one in WORDS for other in WORDS]

    def quality(self, learner: Path) -> MeanQuality:
        name = "whole" if learner == self.learner else self.place
        self.note(f"quality {name}")
        value = QUALITY[name.rpartition("_")[2]]
        return MeanQuality(np.array([np.nan, *[value, value + len(name) / 1e4] * 10]))

    def vector_kinds(self) -> bool:
        return True

    def vector_quality(self, kind: str) -> tuple[MeanQuality, int]:
        self.note(f"vectors {kind}")
        return MeanQuality(np.array([np.nan, *[QUALITY[kind]] * 20])), 1000 + len(kind)

    def publish(self, learner: Path, kind: str | None, note: dict[str, object]) -> str:
        self.note("publish")
        assert (learner / "encoder" / "config.json").is_file()
        return f"made-of-{note['transformer']['name']}-{kind}"  # type: ignore[index]


def settings(**more: object) -> CompressSettings:
    content = {
        "bundle": "b1", "variants": ["torch_bf16"], "vectors": ["scalar", "product"],
        "distil": {"layers": [1], "training": {"epochs": 1, "batch_size": 8}, "max_tokens": 8},
        "shapes": [[1, 8]], "requests": 10, "largest_loss": 0.05, **more,
    }  # fmt: skip
    return parse_settings(CompressSettings, content, where="test")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("bert"))


def workspace(root: Path) -> Workspace:
    found = Workspace(root)
    (found.registry / "bundles" / "b1").mkdir(parents=True)
    return found


@pytest.mark.long
@pytest.mark.parametrize(
    "kill",
    ["teach student-1", "cost 1_layers_torch_fp32",
     "quality 1_layers_torch_bf16", "vectors scalar", "publish"],
)  # fmt: skip
def test_what_was_measured_before_a_kill_is_not_measured_again(
    kill: str, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, bert, monkeypatch)
    whole = compress.run(settings(), workspace(tmp_path / "whole"))
    once = bench.done.copy()
    assert set(once.values()) == {1}
    bench.done.clear()
    bench.kill = kill
    cut = workspace(tmp_path / "cut")
    with pytest.raises(Interrupted):
        compress.run(settings(), cut)
    assert not (cut.compress / "b1").exists()
    before = bench.done.copy()
    bench.done.clear()
    bench.kill = None
    resumed = compress.run(settings(), cut)
    assert resumed.figures == whole.figures
    # what was going on when it was cut off, the model that all are held against, and no more
    stage = kill.partition(" ")[2]
    again = {what for what, count in (before + bench.done).items() if count > 1}
    assert again <= {kill, "quality whole", f"export {stage}", f"cost {stage}"}
    assert not list(cut.compress.glob(".*"))


@pytest.mark.long
def test_what_was_measured_on_other_grounds_is_measured_anew(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, bert, monkeypatch)
    cut = workspace(tmp_path / "cut")
    bench.kill = "vectors product"

    def measured(**more: object) -> set[str]:
        bench.done.clear()
        with pytest.raises(Interrupted):
            compress.run(settings(**more), cut)
        return {what for what in bench.done if what.startswith("cost")}

    every = measured()
    assert len(every) == 4
    assert measured() == set()
    assert measured(largest_loss=0.2, pointer="other") == set()  # measures are what they were
    assert measured(requests=20) == every
    bench.ground = {"features": "replayed anew"}
    assert measured(requests=20) == every
    monkeypatch.setattr(compress, "machine", lambda: {"processor": "a faster one"})
    assert measured(requests=20) == every
    bench.kill = None
    bench.done.clear()
    compress.run(settings(requests=20), cut, force=True)
    assert every <= set(bench.done)
