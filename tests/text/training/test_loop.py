from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from raysys import progress
from raysys.config import parse_settings
from raysys.errors import UserError
from raysys.text.training import TrainingSettings, train
from raysys.text.training.objective import Tensors
from tests.text.training.tasks import FindsWord

QUICK: dict[str, Any] = {
    "epochs": 2, "batch_size": 8, "learning_rate": 3e-3, "precision": "fp32",
}  # fmt: skip
"""To the last digits, also where bfloat16 is fast."""


def weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(folder / "model.safetensors")
    return found


def difference(one: Path, other: Path) -> float:
    first, second = weights(one), weights(other)
    return max(float((first[name] - second[name]).abs().max()) for name in first)


# ── learning and its seed ────────────────────────────────────────────────────────────────────


def test_learns(tmp_path: Path) -> None:
    objective = FindsWord(n=200, layers=1)
    settings = TrainingSettings(epochs=6, batch_size=20, learning_rate=1e-2, dropout=0.0)
    fitted = train(objective, settings, tmp_path / "out")
    assert fitted.history[-1]["training_loss"] < 0.2 < 0.5 < fitted.history[0]["training_loss"]
    assert fitted.figures["loss"] == min(entry["loss"] for entry in fitted.history) < 0.4
    assert fitted.steps == 6 * 10
    assert fitted.examples_per_s > 0
    mean = objective.lengths().mean()
    assert fitted.tokens_per_s / fitted.examples_per_s == pytest.approx(mean)
    kept = json.loads((tmp_path / "out" / "history.json").read_text())
    assert kept["history"] == fitted.history
    assert [entry["step"] for entry in fitted.history] == [10 * at for at in range(1, 7)]
    assert not (tmp_path / "out.training").exists()


def test_the_seed_holds(tmp_path: Path) -> None:
    settings = TrainingSettings(**QUICK)
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        torch.manual_seed(len(name))  # what the caller drew before is of no account
        np.random.seed(len(name))
        train(FindsWord(), settings, tmp_path / name, seed=seed)
    assert difference(tmp_path / "one", tmp_path / "again") == 0
    assert difference(tmp_path / "one", tmp_path / "other") > 0


def test_the_callers_random_numbers_go_on(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    train(FindsWord(), TrainingSettings(max_steps=1), tmp_path / "out")
    assert torch.equal(torch.rand(2), expected)


# ── steps ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("micro", [1, 3, 5])
def test_micro_batches_make_the_same_step(tmp_path: Path, micro: int) -> None:
    settings = TrainingSettings(**QUICK, dropout=0.0)
    train(FindsWord(), settings, tmp_path / "whole")
    smaller = settings.model_copy(update={"micro_batch_size": micro})
    fitted = train(FindsWord(), smaller, tmp_path / "parts")
    assert fitted.micro_batch_size == micro
    assert difference(tmp_path / "whole", tmp_path / "parts") < 1e-5


class PerToken(FindsWord):
    """A mean over the tokens of a batch: a micro-batch counts by its tokens."""

    def loss(self, module: nn.Module, batch: Tensors) -> Tensor:
        found = module(batch["ids"], batch["mask"]).logsumexp(1)
        tokens = batch["mask"].sum(1)
        total: Tensor = (found * tokens).sum() / tokens.sum()
        return total

    def weight(self, rows: Any, batch: Tensors) -> float:
        return float(batch["mask"].sum())


def test_micro_batches_count_by_their_weight(tmp_path: Path) -> None:
    settings = TrainingSettings(**QUICK, dropout=0.0, length_window=1)
    train(PerToken(), settings, tmp_path / "whole")
    smaller = settings.model_copy(update={"micro_batch_size": 3})
    train(PerToken(), smaller, tmp_path / "parts")
    assert difference(tmp_path / "whole", tmp_path / "parts") < 1e-5


def test_gradient_checkpointing_changes_no_weight(tmp_path: Path) -> None:
    settings = TrainingSettings(**QUICK)
    train(FindsWord(), settings, tmp_path / "plain")
    again = settings.model_copy(update={"gradient_checkpointing": True})
    train(FindsWord(), again, tmp_path / "again")
    assert difference(tmp_path / "plain", tmp_path / "again") < 1e-6


def test_clipping_limits_a_step(tmp_path: Path) -> None:
    """The second moment forgets the scale of all gradients, but not that one step's is larger."""

    class Shocked(FindsWord):
        def loss(self, module: nn.Module, batch: Tensors) -> Tensor:
            scale = 1e4 if 0 in batch["row"] else 1.0
            return super().loss(module, batch) * scale

        def collate(self, rows: Any, rng: np.random.Generator) -> Tensors:
            return {**super().collate(rows, rng), "row": torch.from_numpy(rows)}

    settings = TrainingSettings(**{**QUICK, "dropout": 0.0, "keep": "last"})
    train(FindsWord(), settings.model_copy(update={"clip": 1e-3}), tmp_path / "calm")
    train(Shocked(), settings.model_copy(update={"clip": 1e-3}), tmp_path / "clipped")
    train(Shocked(), settings.model_copy(update={"clip": None}), tmp_path / "unclipped")
    calm = difference(tmp_path / "calm", tmp_path / "clipped")
    assert calm < 1e-5 < difference(tmp_path / "calm", tmp_path / "unclipped")


def test_decay_spares_biases_and_norms(tmp_path: Path) -> None:
    class Still(FindsWord):
        def loss(self, module: nn.Module, batch: Tensors) -> Tensor:
            return super().loss(module, batch) * 0.0

    settings = TrainingSettings(
        max_steps=1, batch_size=8, learning_rate=0.1, weight_decay=0.5, warm_up=0, clip=None,
        keep="last",
    )  # fmt: skip
    train(Still(), settings, tmp_path / "out", seed=4)
    torch.manual_seed(4)
    for name, before in Still().build().state_dict().items():
        after = weights(tmp_path / "out")[name]
        decays = before.ndim > 1 and "pooler" not in name  # which the loss does not reach
        assert torch.allclose(after, before * (0.95 if decays else 1.0)), name


def test_bf16_where_it_is_asked_for(tmp_path: Path) -> None:
    class Sees(FindsWord):
        kinds: set[Any] = set()

        def loss(self, module: nn.Module, batch: Tensors) -> Tensor:
            out = module(batch["ids"], batch["mask"])
            self.kinds.add(out.dtype)
            return nn.functional.cross_entropy(out.float(), batch["label"])

    for precision, kind in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        Sees.kinds = set()
        settings = TrainingSettings(max_steps=2, batch_size=4, precision=precision)
        train(Sees(), settings, tmp_path / precision)
        assert Sees.kinds == {kind}
        assert weights(tmp_path / precision)["head.weight"].dtype == torch.float32


# ── when to stop, what to keep ───────────────────────────────────────────────────────────────


class Judged(FindsWord):
    """Says prescribed figures, and remembers the head at each."""

    criterion = "score"
    maximise = True

    def __init__(self, scores: list[float], **how: Any) -> None:
        super().__init__(**how)
        self.scores, self.heads = scores, list[Tensor]()

    def evaluate(self, module: nn.Module) -> Mapping[str, float]:
        assert not module.training
        assert not torch.is_grad_enabled()
        self.heads.append(module.head.weight.detach().clone().cpu())  # type: ignore[operator, union-attr]
        return {"score": self.scores[len(self.heads) - 1], "number": len(self.heads)}


@pytest.mark.parametrize(
    ("scores", "patience", "stops", "best"),
    [
        ([1, 3, 2, 2, 9, 9], 2, 4, 2),
        ([1, 3, 2, 4, 3, 3], 2, 6, 4),
        ([1, 1, 9, 9, 9, 9], 1, 2, 1),
        ([1, 3, 2, 2, 9, 9], None, 6, 5),
        ([math.nan, 1, math.nan, 0, 0, 0], 3, 5, 2),
    ],
)
def test_early_stopping_keeps_the_best(
    tmp_path: Path, scores: list[float], patience: int | None, stops: int, best: int
) -> None:
    objective = Judged(scores)
    settings = TrainingSettings(
        epochs=6, batch_size=16, learning_rate=1e-2, patience=patience,
        evaluate_every={"epochs": 1},
    )  # fmt: skip
    told: list[tuple[int, float]] = []
    fitted = train(objective, settings, tmp_path / "out",
                   report=lambda *each: told.append(each))  # fmt: skip
    assert fitted.steps == 3 * stops
    assert fitted.figures == {"score": scores[best - 1], "number": best}
    assert [step for step, _ in told] == [3 * at for at in range(1, stops + 1)]
    assert torch.equal(weights(tmp_path / "out")["head.weight"], objective.heads[best - 1])


def test_keeping_the_last(tmp_path: Path) -> None:
    objective = Judged([3, 2, 1, 0])
    settings = TrainingSettings(
        epochs=2, batch_size=16, keep="last", evaluate_every={"epochs": 0.5}
    )
    fitted = train(objective, settings, tmp_path / "out")
    assert fitted.figures["number"] == 4
    assert torch.equal(weights(tmp_path / "out")["head.weight"], objective.heads[3])


def test_without_validation_the_last_is_kept(tmp_path: Path) -> None:
    class Unjudged(FindsWord):
        def evaluate(self, module: nn.Module) -> Mapping[str, float]:
            return {}

    fitted = train(Unjudged(), TrainingSettings(**QUICK, patience=1), tmp_path / "out")
    assert fitted.steps == 10
    assert fitted.figures == {}


def test_a_report_may_end_the_run(tmp_path: Path) -> None:
    class Enough(Exception):  # noqa: N818
        pass

    def report(step: int, criterion: float) -> None:
        raise Enough

    with pytest.raises(Enough):
        train(FindsWord(), TrainingSettings(**QUICK), tmp_path / "out", report=report)


def test_progress_counts_steps(tmp_path: Path) -> None:
    class Listens:
        said: list[tuple[int, int | None]] = []

        def start(self, name: str, total: int | None) -> int:
            assert name == FindsWord.title
            return 0

        def advance(self, key: int, done: int, total: int | None) -> None:
            self.said.append((done, total))

        def finish(self, key: int, note: str) -> None:
            assert re.fullmatch(r"[\d,]+ examples/s", note)

    listener = Listens()
    with progress.listening(listener):
        train(FindsWord(), TrainingSettings(**QUICK), tmp_path / "out")
    assert listener.said == [(step, 10) for step in range(1, 11)]


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────


class Explodes(FindsWord):
    """Its loss is no number for one example; before it, all is well."""

    bad = math.nan
    row = 17

    def loss(self, module: nn.Module, batch: Tensors) -> Tensor:
        found = super().loss(module, batch)
        return found * self.bad if self.row in batch["row"] else found

    def collate(self, rows: Any, rng: np.random.Generator) -> Tensors:
        return {**super().collate(rows, rng), "row": torch.from_numpy(rows)}


class ExplodesBackwards(Explodes):
    """Its loss is fine, its gradient is not."""

    def loss(self, module: nn.Module, batch: Tensors) -> Tensor:
        found = FindsWord.loss(self, module, batch)
        return found + (found - found.detach()).sqrt() if self.row in batch["row"] else found


@pytest.mark.parametrize(
    ("kind", "bad", "what"),
    [
        (Explodes, math.nan, "the loss is nan"),
        (Explodes, math.inf, "the loss is inf"),
        (ExplodesBackwards, 0.0, "its gradients are (nan|inf)"),
    ],
)
def test_a_loss_that_is_no_number(tmp_path: Path, kind: Any, bad: float, what: str) -> None:
    objective = kind()
    objective.bad = bad
    with pytest.raises(UserError) as caught:
        train(objective, TrainingSettings(**QUICK), tmp_path / "out")
    said = str(caught.value)
    found = re.search(
        rf"{what} at step (\d+) of 10, learning rate (\S+), examples ([\d, ]+);.* kept in (\S+)",
        said,
    )
    assert found, said
    step, rate, examples, place = found.groups()[-4:]
    assert "17" in examples.split(", ")
    assert 0 < float(rate) <= 3e-3
    assert Path(place).name == f"step-{int(step) - 1:09d}"
    kept = load_file(Path(place) / "weights.safetensors")
    assert all(bool(each.isfinite().all()) for each in kept.values())
    assert "learning_rate" in caught.value.mend
    assert not (tmp_path / "out").exists()


class Narrow(FindsWord):
    """Takes no more than so many examples at once; the longest fit `room` tokens of them."""

    def __init__(self, limit: int, error: type[Exception], **how: Any) -> None:
        super().__init__(**how)
        self.limit, self.error = limit, error
        self.sizes: list[int] = []

    def loss(self, module: nn.Module, batch: Tensors) -> Tensor:
        if module.training:
            if len(batch["ids"]) > self.limit:
                # the pass has begun: gradients of a part must not be left over
                part = {name: each[: max(1, self.limit)] for name, each in batch.items()}
                super().loss(module, part).backward()
                raise self.error("DefaultCPUAllocator: not enough memory: you tried to allocate 9")
            self.sizes.append(len(batch["ids"]))
        return super().loss(module, batch)


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError, MemoryError])
def test_out_of_memory_halves_the_micro_batch(
    tmp_path: Path, error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    settings = TrainingSettings(**QUICK, dropout=0.0)
    objective = Narrow(3, error)
    with caplog.at_level(logging.WARNING, "raysys"):
        fitted = train(objective, settings, tmp_path / "narrow")
    assert fitted.micro_batch_size == 2
    assert max(objective.sizes) == 2
    assert sum(objective.sizes) == 80
    warnings = [each.getMessage() for each in caplog.records if each.name == "raysys"]
    assert [each[:52] for each in warnings] == [
        "out of memory at step 1 with 8 examples at once: goi",
        "out of memory at step 1 with 4 examples at once: goi",
    ]
    train(FindsWord(), settings, tmp_path / "wide")
    assert difference(tmp_path / "narrow", tmp_path / "wide") < 1e-5


def test_out_of_memory_with_one_example(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not enough memory for one example of \d+ tokens"):
        train(Narrow(0, RuntimeError), TrainingSettings(**QUICK), tmp_path / "out")


def test_out_of_memory_elsewhere(tmp_path: Path) -> None:
    class Large(FindsWord):
        def evaluate(self, module: nn.Module) -> Mapping[str, float]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    with pytest.raises(UserError, match="or an evaluation: CUDA out of memory"):
        train(Large(), TrainingSettings(max_steps=1), tmp_path / "out")


def test_another_error_stays_what_it_is(tmp_path: Path) -> None:
    class Broken(FindsWord):
        def loss(self, module: nn.Module, batch: Tensors) -> Tensor:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(Broken(), TrainingSettings(**QUICK), tmp_path / "out")


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not one example"):
        train(FindsWord(n=0), TrainingSettings(**QUICK), tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"evaluate_every": {"steps": 1, "epochs": 1}}, "give either steps or epochs"),
        ({"checkpoint_every": {}}, "give steps or seconds"),
        ({"strategy": "zero"}, "'ddp' or 'fsdp'"),
        ({"lora": {"rnak": 4}}, "did you mean 'rank'"),
        ({"precision": "fp16"}, "precision"),
    ],
)
def test_settings_that_cannot_be(content: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_settings(TrainingSettings, content, where="x.yaml")


@contextmanager
def _without(package: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    yield


def test_adapters_without_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TrainingSettings(**QUICK, lora={})
    with (
        _without("peft", monkeypatch),
        pytest.raises(UserError, match=r"pip install 'raysys\[lora\]'"),
    ):
        train(FindsWord(), settings, tmp_path / "out")
