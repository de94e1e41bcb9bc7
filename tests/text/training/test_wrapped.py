"""Every objective's module goes through a step in DDP, as it does with more than one worker."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from raysys.learners.entity_objective import EntityObjective, NetworkPlan
from raysys.learners.text_classifier import TextClassifier, TextClassifierSettings
from raysys.learners.text_labels import LabelledTexts, LabelSet
from raysys.text.bi_encoder import BiEncoding, Lesson
from raysys.text.compression.distil import HiddenStateDistillation
from raysys.text.cross_encoder import CrossEncoding
from raysys.text.models import open_model
from raysys.text.pairs import Pairs, Scale
from raysys.text.pretraining import (
    CausalObjective,
    CausalSettings,
    ContrastiveObjective,
    ContrastiveSettings,
    MaskedObjective,
    MaskedSettings,
    PairsObjective,
    PairsSettings,
    tokenise,
)
from raysys.text.pretraining.behaviour import Pairs as TextPairs
from raysys.text.reader import Reader
from raysys.text.spans import Span
from raysys.text.tags import Lost, Tags
from raysys.text.training import Objective
from raysys.text.training.objective import digest
from raysys.text.units import Splitter
from tests.text.shop_pairs import judged_pairs
from tests.text.tiny_language import some_texts, write_causal, write_masked

LOSSES = ("cross_entropy", "ordinal", "mse", "margin", "listwise")
Made = Callable[[Path, Path], Objective]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_masked(tmp_path_factory.mktemp("bert"), layers=1)


@pytest.fixture(scope="module", autouse=True)
def gloo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    meeting = tmp_path_factory.mktemp("gloo") / "meeting"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def judged() -> tuple[Pairs, Scale]:
    pairs = Pairs.of(judged_pairs(n_queries=6))
    return pairs, Scale.of(pairs.grade, where="")


def cross(loss: Any, bert: Path, _: Path) -> Objective:
    pairs, scale = judged()
    return CrossEncoding(
        str(bert), pairs, None, scale, loss=loss, max_tokens=32, list_size=4, temperature=0.3
    )


def bi(loss: Any, contrast: float, bert: Path, _: Path) -> Objective:
    pairs, scale = judged()
    lesson = Lesson(loss, 0.3, contrast, 0.05, 0.5, 1.0, 0.5)
    teacher = pairs.grade.copy()
    return BiEncoding(
        str(bert), pairs, None, scale, lesson, max_tokens=32, list_size=4, teacher=teacher
    )


def masked(bert: Path, folder: Path) -> Objective:
    _, tokenizer = open_model(str(bert), where="")
    tokens = tokenise([some_texts(20)], tokenizer, folder / "tokens", longest=30)
    return MaskedObjective(str(bert), tokens, tokens, MaskedSettings(max_tokens=32))


def causal(_: Path, folder: Path) -> Objective:
    gpt = write_causal(folder / "gpt")
    _, tokenizer = open_model(str(gpt), where="")
    tokens = tokenise([some_texts(20)], tokenizer, folder / "tokens", longest=30)
    return CausalObjective(str(gpt), tokens, tokens, CausalSettings(block=64))


def text_pairs(bert: Path, folder: Path) -> tuple[TextPairs, Any]:
    texts = some_texts(24)
    found = [("titles", a, b, at, at, 0) for at, (a, b) in enumerate(itertools.pairwise(texts))]
    pairs = TextPairs.of(found, 0.2)  # type: ignore[arg-type]
    _, tokenizer = open_model(str(bert), where="")
    return pairs, tokenise([pairs.texts], tokenizer, folder / "t", longest=16, pieces=False)


def paired(bert: Path, folder: Path) -> Objective:
    settings = PairsSettings.model_validate({"pairs": {"sources": ["titles"]}, "max_tokens": 32})
    return PairsObjective(str(bert), *text_pairs(bert, folder), settings)


def contrastive(bert: Path, folder: Path) -> Objective:
    given = {"pairs": {"sources": ["titles"]}, "max_tokens": 32}
    settings = ContrastiveSettings.model_validate(given)
    return ContrastiveObjective(str(bert), *text_pairs(bert, folder), settings)


def reading(hierarchy: Any, bert: Path, _: Path) -> Objective:
    labels = LabelSet(("food > milk", "food > rice", "tools > saw"))
    n = 12
    rating = np.where(np.arange(n) % 2, np.nan, np.arange(n)).astype(np.float32)
    texts = LabelledTexts(
        some_texts(n), np.arange(n) % 3, rating, np.ones(n, np.float32), np.arange(n)
    )
    settings = TextClassifierSettings(model=str(bert), hierarchy=hierarchy)
    return TextClassifier(settings)._objective(str(bert), labels, texts, texts)


def tagging(crf: bool, surface: int, bert: Path, _: Path) -> Objective:
    tags = Tags(("kind",), "bioes")
    plan = NetworkPlan(tags, crf, surface, 0.1, str(bert))
    texts = some_texts(12)
    splitter = Splitter()
    units = [splitter(text) for text in texts]
    reader = Reader(splitter, None, plan.tokenizer())
    spans = [[Span(0, text.index(" "), "kind")] for text in texts]
    encoded = [tags.encode(u, s, {"kind": 1}, Lost()) for u, s in zip(units, spans, strict=True)]
    return EntityObjective(plan, reader, reader.windows(units), encoded, [], 4)


def distilled(bert: Path, folder: Path) -> Objective:
    teacher, tokenizer = open_model(str(write_masked(folder / "teacher", layers=2)), where="")
    return HiddenStateDistillation(teacher, tokenizer, 1, some_texts(20))


OBJECTIVES: dict[str, Made] = {
    **{f"cross_{loss}": partial(cross, loss) for loss in LOSSES},
    **{f"bi_{loss}": partial(bi, loss, 0.0) for loss in LOSSES},
    "bi_contrast": partial(bi, "ordinal", 0.5),
    "masked": masked,
    "causal": causal,
    "pairs": paired,
    "contrastive": contrastive,
    "reading_marginal": partial(reading, "marginal"),
    "reading_heads": partial(reading, "heads"),
    "tagging_crf": partial(tagging, True, 8),
    "tagging_alone": partial(tagging, False, 0),
    "distilled": distilled,
}


CHANGES: dict[str, Callable[[Any], object]] = {
    "cross_mse": lambda o: o.target.__setitem__(-1, 0.123),
    "cross_ordinal": lambda o: setattr(o, "kind", "mse"),
    "bi_mse": lambda o: setattr(o, "lesson", replace(o.lesson, contrast=0.25)),
    "bi_listwise": lambda o: o.teacher.__setitem__(-1, 9.0),
    "masked": lambda o: setattr(o, "settings", o.settings.model_copy(update={"share": 0.3})),
    "causal": lambda o: o.blocks.reverse(),
    "pairs": lambda o: setattr(o, "settings", o.settings.model_copy(update={"masked": 0.5})),
    "contrastive": lambda o: setattr(
        o, "settings", o.settings.model_copy(update={"temperature": 0.2})
    ),
    "reading_marginal": lambda o: o.train.codes.__setitem__(-1, 0),
    "reading_heads": lambda o: setattr(o, "losses", replace(o.losses, level_weight=3.0)),
    "tagging_crf": lambda o: o.tags[-1].__setitem__(0, 0),
    "distilled": lambda o: o.read.reverse(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_decides_the_outcome_is_in_the_identity(name: str, bert: Path, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    first, again = OBJECTIVES[name](bert, tmp_path), OBJECTIVES[name](bert, tmp_path / "again")
    told = digest(first.identity())
    assert digest(again.identity()) == told
    CHANGES[name](again)
    assert digest(again.identity()) != told


@pytest.mark.parametrize("name", OBJECTIVES)
def test_ddp_gives_the_gradients_of_the_bare_module(name: str, bert: Path, tmp_path: Path) -> None:
    objective = OBJECTIVES[name](bert, tmp_path)
    rows = np.arange(min(4, len(objective.lengths())))
    batch = objective.collate(rows, np.random.default_rng(0))
    torch.manual_seed(0)
    module = objective.build().eval()  # without dropout both passes say the same
    objective.loss(module, batch).backward()
    alone = {n: each.grad for n, each in module.named_parameters() if each.grad is not None}
    module.zero_grad(set_to_none=True)
    wrapped = nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)
    objective.loss(wrapped, batch).backward()
    assert alone and any(each.abs().sum() > 0 for each in alone.values())
    for n, each in module.named_parameters():
        if n in alone:
            assert each.grad is not None and torch.isfinite(each.grad).all()
            assert torch.allclose(each.grad, alone[n], atol=1e-6), n
