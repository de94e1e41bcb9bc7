"""`raysys train` that was cut off: the same command goes on, another begins anew."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from torch import Tensor, nn

from raysys.config import parse_settings
from raysys.errors import UserError
from raysys.features.examples import Examples
from raysys.learners.baselines import Popular
from raysys.learners.protocol import Context, Model
from raysys.stages import train, train_fits
from raysys.stages.train_settings import TrainSettings
from raysys.storage import Workspace, read_manifest
from raysys.text.training import TrainingSettings
from raysys.text.training import train as train_transformer
from tests.stages.workspace import write_features
from tests.text.training.tasks import FindsWord

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("without_ray")]


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "ray_session", contextlib.nullcontext)


def settings(**more: Any) -> TrainSettings:
    learners: dict[str, Any] = {"popular": {}, "repeat_purchase": {}, "co_occurrence": {}}
    ensemble = {"methods": ["average_standard"]}
    content = {"learners": learners, "out_of_fold": 2, "ensemble": ensemble, **more}
    return parse_settings(TrainSettings, content, where="test")


def scores(workspace: Workspace) -> list[Any]:
    paths = sorted((workspace.train / "base_scores").glob("*.parquet"))
    return [pq.read_table(path, partitioning=None) for path in paths]


def fitting(monkeypatch: pytest.MonkeyPatch, killed: str | None = None) -> list[str]:
    """Names of the learners that are fitted from now on; one of them ends in a kill."""
    fitted: list[str] = []
    fit = train_fits.fit_forward

    def watched(learner: Any, *rest: Any) -> Any:
        if learner.name == killed:
            raise KeyboardInterrupt
        fitted.append(learner.name)
        return fit(learner, *rest)

    monkeypatch.setattr(train_fits, "fit_forward", watched)
    return fitted


def test_learners_of_a_killed_run_are_not_fitted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = (write_features(tmp_path / name, n_requests=80) for name in ("whole", "cut"))
    train.run(settings(), whole)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        fitting(patch, killed="co_occurrence")
        train.run(settings(), cut)
    assert not cut.train.exists()
    with monkeypatch.context() as patch:
        fitted = fitting(patch)
        done = train.run(settings(), cut)
    assert fitted == ["co_occurrence"]
    assert scores(cut) == scores(whole) and len(scores(cut)) == 2
    assert set(done.figures["seconds"]) == set(settings().learners)
    assert sorted(path.name for path in (cut.train / "models").iterdir()) == sorted(
        settings().learners
    )
    assert sorted(path.name for path in cut.train.iterdir()) == sorted(
        path.name for path in whole.train.iterdir()
    )
    assert not list(cut.root.glob(".train.*"))


def test_another_run_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = write_features(tmp_path, n_requests=80)
    for changed, force in ((settings(seed=1), False), (settings(), True)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            fitting(patch, killed="co_occurrence")
            train.run(settings(), workspace)
        with monkeypatch.context() as patch:
            fitted = fitting(patch)
            train.run(changed, workspace, force=force)
        assert fitted == list(settings().learners)


class GoesAstray(FindsWord):
    """Its loss is no number from a step on, as long as `astray`."""

    astray = True
    steps = 0

    def loss(self, module: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        found = super().loss(module, batch)
        type(self).steps += module.training
        return found * math.nan if self.astray and type(self).steps > 5 else found


def _trains_a_transformer(self: Any, examples: Examples, context: Context) -> Model:
    assert context.checkpoint is not None
    told = TrainingSettings(max_steps=8, batch_size=4, learning_rate=1e-3)
    train_transformer(GoesAstray(n=40), told, context.checkpoint.root / "popular")
    return Popular.fit_before(self, examples, context)  # type: ignore[attr-defined,no-any-return]


def test_the_weights_before_a_loss_that_is_no_number_are_where_the_message_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = write_features(tmp_path, n_requests=80)
    monkeypatch.setattr(Popular, "fit_before", Popular.fit, raising=False)
    monkeypatch.setattr(Popular, "fit", _trains_a_transformer)
    monkeypatch.setattr(GoesAstray, "steps", 0)
    with pytest.raises(UserError, match=r"the loss is nan at step 6 of 8") as caught:
        train.run(settings(out_of_fold=1), workspace)
    kept = Path(re.findall(r"kept in (\S+)", caught.value.what)[0])
    assert (kept / "weights.safetensors").is_file()
    assert kept.name == "step-000000005" and workspace.root in kept.parents
    monkeypatch.setattr(GoesAstray, "astray", False)
    monkeypatch.setattr(GoesAstray, "steps", 0)
    train.run(settings(out_of_fold=1), workspace)
    assert GoesAstray.steps == 3  # the last three of eight
    assert read_manifest(workspace.train).figures["bundle"]
    assert not kept.exists() and not list(workspace.root.glob(".train.*"))
