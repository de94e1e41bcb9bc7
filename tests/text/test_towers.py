from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from raysys.text.encoder import Encoder, States
from raysys.text.histories import PAD
from raysys.text.items import item_texts
from raysys.text.towers import Towers, sampled_softmax_loss
from raysys.text.tuning import Course, Requests
from tests.synthetic import write_examples
from tests.text.tiny import write_tiny_bert

COURSE = Course(
    steps=5, batch_size=8, history_sample=4, negatives=3, learning_rate=1e-3,
    head_learning_rate=1e-3, warm_up=0.1, weight_decay=0.0, temperature=0.1,
    popularity_correction=1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU without bfloat16: sums are exact enough to compare."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)


@pytest.mark.skipif(
    not torch.cpu.get_capabilities().get("avx512_bf16"), reason="this CPU has no bfloat16"
)
def test_bfloat16_hardly_moves_a_vector(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["whole milk, acme", "bread", "cheddar cheese, dairy, north", "soap"]
    fast = Encoder.open(str(bert), 16, 1).encode(texts)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    exact = Encoder.open(str(bert), 16, 1).encode(texts)
    assert not np.array_equal(fast, exact)
    assert (fast * exact).sum(1).min() > 0.999


def test_frozen_layers_and_the_rest_make_the_whole_model(bert: Path, in_float32: None) -> None:
    """Lower layers once, upper layers after: the vectors of the unbroken transformer."""
    texts = ["whole milk, acme", "bread", "cheddar cheese, dairy, north", "soap"]
    whole = Encoder.open(str(bert), 16, -1)
    halves = Encoder.open(str(bert), 16, 1)
    assert (whole.frozen, halves.frozen) == (0, 1)
    np.testing.assert_allclose(halves.encode(texts), whole.encode(texts), atol=2e-3)
    tokens = whole.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = whole.transformer(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).last_hidden_state
    mask = tokens["attention_mask"][:, :, None]
    mean = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    np.testing.assert_allclose(whole.encode(texts), mean.numpy(), atol=1e-5)


def test_a_text_has_one_vector_whatever_is_beside_it(bert: Path) -> None:
    encoder = Encoder.open(str(bert), 16, 1)
    alone = encoder.encode(["milk"])[0]
    beside = encoder.encode(["whole milk, dairy, acme, 500 g", "milk", "bread"])[1]
    np.testing.assert_allclose(alone, beside, atol=1e-5)


def test_like_lengths_together_give_the_same_vectors_in_their_order(bert: Path) -> None:
    encoder = Encoder.open(str(bert), 16, 1)
    some = ["whole milk, dairy, acme, 500 g", "milk", "bread", "cola soda", "soap", "a b c d e f"]
    for texts in (some, some[:1]):
        states = encoder.states(texts)
        padded, mask = states.padded(torch.arange(len(texts)), torch.device("cpu"))
        with torch.no_grad():
            together, by_length = (
                each(padded, mask) for each in (encoder.upper, encoder.upper.by_length)
            )
        np.testing.assert_allclose(by_length, together, atol=1e-5)


def test_scores_with_gradients_and_without_are_the_same(bert: Path, in_float32: None) -> None:
    encoder = Encoder.open(str(bert), 16, 1)
    states: States = encoder.states(["milk", "bread", "soap", "cola soda"])
    towers = Towers(encoder.upper, 32, length=3, sharpness=8.0)
    with torch.no_grad():
        towers.turn.normal_(0, 0.2, generator=torch.manual_seed(1))
        towers.common.normal_(0, 0.2)
    padded, mask = states.padded(torch.arange(4), torch.device("cpu"))
    history = torch.tensor([[2, 0, 2], [1, PAD, PAD]])
    with torch.no_grad():
        found = towers(padded, mask, history, torch.tensor([0, 1, 3])).numpy()
    vectors = encoder.vectors(states).numpy()
    side = towers.user_side()
    interests = side.interests(vectors)
    for row, held in enumerate(([2, 0, 2], [1])):
        np.testing.assert_allclose(
            side.score(interests[held], vectors[[0, 1, 3]]), found[row], atol=1e-5
        )


def test_the_loss_is_the_textbook_one() -> None:
    """One positive each and no correction: cross-entropy; other positives are not negatives."""
    scores = torch.tensor([[0.3, -0.2, 0.5], [0.1, 0.9, -0.4]], dtype=torch.float64)
    one = torch.tensor([[True, False, False], [False, True, False]])
    expected = torch.nn.functional.cross_entropy(scores / 0.1, torch.tensor([0, 1]))
    assert sampled_softmax_loss(scores, one, torch.zeros(3), 0.1) == pytest.approx(float(expected))
    both = torch.tensor([[True, False, True], [False, True, False]])
    near = torch.nn.functional.cross_entropy(scores[:1, :2] / 0.1, torch.tensor([0]))
    far = torch.nn.functional.cross_entropy(scores[:1, 1:] / 0.1, torch.tensor([1]))
    other = torch.nn.functional.cross_entropy(scores[1:] / 0.1, torch.tensor([1]))
    loss = sampled_softmax_loss(scores, both, torch.zeros(3), 0.1)
    assert loss == pytest.approx(float(((near + far) / 2 + other) / 2), rel=1e-5)


def test_a_frequent_item_is_not_punished_for_being_drawn_often() -> None:
    scores = torch.zeros(1, 3, requires_grad=True)
    positive = torch.tensor([[True, False, False]])
    log_q = torch.log(torch.tensor([0.1, 0.8, 0.1]))
    sampled_softmax_loss(scores, positive, log_q, 1.0).backward()
    assert scores.grad is not None
    assert scores.grad[0, 1] < scores.grad[0, 2]


def test_lessons_cover_every_request_and_mask_what_was_wanted(tmp_path: Path) -> None:
    examples, catalogue = write_examples(tmp_path, n_requests=80, n_items=50)
    texts = item_texts(catalogue, ("title", "brand"))
    batch = examples.batch()
    requests = Requests(batch, texts, length=10)
    course = Course(**{**COURSE.__dict__, "steps": len(requests.useful) // 8})
    seen = 0
    for lesson in requests.lessons(course, seed=1):
        seen += len(lesson.history)
        assert len(np.unique(lesson.columns)) == len(lesson.columns)
        assert lesson.positive.any(axis=1).all() and not lesson.positive.all(axis=1).any()
        assert ((lesson.history != PAD).sum(axis=1) <= 4).all()
        assert lesson.history.max() < len(lesson.texts)
    assert seen == course.steps * 8
    again = [lesson.texts for lesson in requests.lessons(course, seed=1)]
    for left, right in zip(again, requests.lessons(course, seed=1), strict=True):
        np.testing.assert_array_equal(left, right.texts)
