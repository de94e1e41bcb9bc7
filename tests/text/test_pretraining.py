"""Language modelling on a shop's texts: masks, packing, perplexity, and what is learned."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    DistilBertConfig,
    RobertaConfig,
)

from raysys.errors import UserError
from raysys.text.encoder import Encoder
from raysys.text.models import open_model, open_with_head
from raysys.text.pretraining import (
    CausalObjective,
    CausalSettings,
    CorpusSettings,
    MaskedObjective,
    MaskedSettings,
    TextFiles,
    tokenise,
    write_corpus,
)
from raysys.text.pretraining.causal import CausalModel, check_apart, pack
from raysys.text.pretraining.corpus import is_held_out, log_end, text_hashes
from raysys.text.pretraining.masked import IGNORED, MaskedModel, Masking
from raysys.text.pretraining.tokens import Frame
from raysys.text.pretraining.words import word_numbers
from raysys.text.training import TrainingSettings, train
from tests.text.tiny_language import KINDS, some_texts, write_causal, write_masked, write_shop


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_masked(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_causal(tmp_path_factory.mktemp("gpt"))


# ── words and masks ──────────────────────────────────────────────────────────────────────────


def test_words_are_numbered_by_what_belongs_together():
    offsets = [(0, 4), (4, 6), (7, 8), (8, 9)]
    assert word_numbers("headphones x", [0, 0, 1, 1], offsets).tolist() == [0, 0, 1, 1]
    assert word_numbers("ab", [None, 0], [(0, 0), (0, 2)]).tolist() == [0, 1]


def test_chinese_words_are_those_of_the_segmenter_or_characters():
    text = "蓝牙耳机 x"
    offsets = [(0, 1), (1, 2), (2, 3), (3, 4), (5, 6)]
    # a tokenizer that takes the clause for one word
    cut = word_numbers(text, [0, 0, 0, 0, 1], offsets, lambda _: ["蓝牙", "耳机", " ", "x"])
    assert cut.tolist() == [0, 0, 1, 1, 2]
    assert word_numbers(text, [0, 0, 0, 0, 1], offsets).tolist() == [0, 1, 2, 3, 4]


def test_jieba_cuts_what_is_tokenised(bert: Path, tmp_path: Path):
    pytest.importorskip("jieba")
    _, tokenizer = open_model(str(bert), where="model")
    tokens = tokenise([["蓝牙耳机很好"]], tokenizer, tmp_path / "tokens", longest=16)
    words = tokens.words.tolist()
    assert words[0] == words[1] and words[2] == words[3] and words[1] != words[2]


@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=30),
    share=st.floats(0.05, 0.9),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_word_is_hidden_whole_or_not_at_all(lengths: list[int], share: float, seed: int):
    words = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    ids = np.arange(100, 100 + len(words), dtype=np.int32)
    masking = Masking(share, 3, np.arange(500, 600, dtype=np.int32))
    hidden, guessed = masking.hide(ids, words, np.random.default_rng(seed))
    by_word = [guessed[words == word] for word in range(len(lengths))]
    assert all(each.all() or not each.any() for each in by_word)
    count = sum(bool(each.any()) for each in by_word)
    assert max(1, math.floor(share * len(lengths))) <= count <= share * len(lengths) + 1
    assert (hidden[~guessed] == ids[~guessed]).all()
    for word in range(len(lengths)):
        seen = hidden[(words == word) & guessed]
        masked, replaced = seen == 3, seen >= 500
        kept = seen == ids[(words == word) & guessed]
        assert masked.all() or replaced.all() or kept.all()


def test_eight_of_ten_hidden_words_become_masks():
    masking = Masking(0.5, 3, np.arange(500, 600, dtype=np.int32))
    ids = np.arange(100, 300, dtype=np.int32)
    words = np.arange(200, dtype=np.int32)
    rng = np.random.default_rng(0)
    drawn = [masking.hide(ids, words, rng) for _ in range(50)]
    hidden = np.concatenate([each[0][each[1]] for each in drawn])
    same = np.concatenate([ids[each[1]] for each in drawn])
    assert abs((hidden == 3).mean() - 0.8) < 0.02
    assert abs((hidden >= 500).mean() - 0.1) < 0.02
    assert abs((hidden == same).mean() - 0.1) < 0.02


def _tokens(model: Path, folder: Path, longest: int = 30):
    _, tokenizer = open_model(str(model), where="model")
    train_on = tokenise([some_texts(300)], tokenizer, folder / "train", longest=longest)
    held = tokenise([some_texts(40, seed=1)], tokenizer, folder / "held", longest=longest)
    return train_on, held


def test_masks_change_from_time_to_time_and_cover_whole_words(bert: Path, tmp_path: Path):
    train_on, held = _tokens(bert, tmp_path)
    objective = MaskedObjective(str(bert), train_on, held, MaskedSettings(share=0.4, max_tokens=32))
    rows = np.arange(40)
    first, second = (objective.collate(rows, np.random.default_rng(seed)) for seed in (0, 1))
    again = objective.collate(rows, np.random.default_rng(0))
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert not torch.equal(first["input_ids"], second["input_ids"])
    for row in rows.tolist():
        words = train_on.words[train_on.piece(row)]
        guessed = (first["labels"][row, 1 : 1 + len(words)] != IGNORED).numpy()
        for word in np.unique(words):
            assert len(set(guessed[words == word].tolist())) == 1


def test_perplexity_of_masks_equals_a_computation_by_hand(bert: Path, tmp_path: Path):
    train_on, held = _tokens(bert, tmp_path)
    objective = MaskedObjective(str(bert), train_on, held, MaskedSettings(max_tokens=32), seed=5)
    module = objective.build().eval()
    figures = objective.evaluate(module)
    assert figures == objective.evaluate(module)  # the same masks
    whole, _ = open_with_head("mlm", str(bert), where="model")
    surprise, n = 0.0, 0
    for row in range(len(held)):
        where = held.piece(row)
        ids, guessed = objective.masking.hide(
            np.asarray(held.ids[where]), np.asarray(held.words[where]),
            np.random.default_rng([5, row]),
        )  # fmt: skip
        with torch.inference_mode():
            logits = whole(input_ids=torch.tensor([[1, *ids.tolist(), 2]])).logits[0, 1:-1]
        chance = logits.log_softmax(-1)
        for at in np.flatnonzero(guessed):
            surprise -= float(chance[at, int(held.ids[where][at])])
            n += 1
    assert figures["perplexity"] == pytest.approx(math.exp(surprise / n), rel=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        RobertaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                      intermediate_size=32, max_position_embeddings=40),
        DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=32),
        BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                   intermediate_size=32),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_the_head_reads_hidden_words_alone_as_it_reads_all(config):
    model = AutoModelForMaskedLM.from_config(config).eval()
    ids = torch.randint(5, 50, (3, 9))
    guessed = torch.rand(3, 9) < 0.3
    with torch.inference_mode():
        whole = model(input_ids=ids).logits[guessed]
        found = MaskedModel(model)(ids, torch.ones_like(ids), guessed)
    assert torch.allclose(found, whole, atol=1e-5)


@pytest.mark.long
def test_masked_modelling_learns_and_its_folder_is_a_model(bert: Path, tmp_path: Path):
    train_on, held = _tokens(bert, tmp_path)
    steps = TrainingSettings(epochs=12, batch_size=16, learning_rate=8e-3, precision="fp32")
    objective = MaskedObjective(
        str(bert), train_on, held, MaskedSettings(max_tokens=32, training=steps)
    )
    before = objective.evaluate(objective.build().eval())["perplexity"]
    fitted = train(objective, steps, tmp_path / "model")
    assert fitted.figures["perplexity"] < 0.5 * before
    Encoder.open(str(tmp_path / "model"), 16, -1).encode(["milk milk1"])
    model, tokenizer = open_with_head("mlm", str(tmp_path / "model"), where="model")
    tied = model.get_output_embeddings().weight
    assert tied is model.get_input_embeddings().weight
    gaps = tokenizer([f"{kind} {kind}1 [MASK] {kind}2" for kind in KINDS], return_tensors="pt")
    with torch.inference_mode():
        best = model(**gaps).logits[gaps["input_ids"] == tokenizer.mask_token_id].argmax(-1)
    said = tokenizer.convert_ids_to_tokens(best.tolist())
    assert sum(word.startswith(kind) for word, kind in zip(said, KINDS, strict=True)) >= 6
    # and the next objective begins where this one ended
    again = MaskedObjective(str(tmp_path / "model"), train_on, held, MaskedSettings(max_tokens=32))
    assert again.evaluate(again.build().eval())["perplexity"] == pytest.approx(
        fitted.figures["perplexity"], rel=1e-4
    )


def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(bert: Path, tmp_path: Path):
    train_on, held = _tokens(bert, tmp_path)
    steps = TrainingSettings(
        max_steps=6, batch_size=8, evaluate_every={"steps": 2}, checkpoint_every={"steps": 1}
    )

    class Cut(MaskedObjective):
        left = 4

        def loss(self, module, batch):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().loss(module, batch)

    settings_ = MaskedSettings(max_tokens=32, training=steps)
    straight = train(MaskedObjective(str(bert), train_on, held, settings_), steps, tmp_path / "a")
    cut = Cut(str(bert), train_on, held, settings_)
    with pytest.raises(KeyboardInterrupt):
        train(cut, steps, tmp_path / "b")
    cut.left = 100
    resumed = train(cut, steps, tmp_path / "b")
    assert resumed.figures == straight.figures


def test_a_piece_that_is_longer_than_the_model_reads_is_refused(bert: Path, tmp_path: Path):
    train_on, held = _tokens(bert, tmp_path)
    with pytest.raises(UserError, match="reads 64 tokens, not 65"):
        MaskedObjective(str(bert), train_on, held, MaskedSettings(max_tokens=65))


# ── tokens ───────────────────────────────────────────────────────────────────────────────────


def test_long_texts_become_pieces_and_no_character_is_lost(bert: Path, tmp_path: Path):
    _, tokenizer = open_model(str(bert), where="model")
    texts = ["milk milk1  bread", "", "shoe " * 25 + "book"]
    tokens = tokenise([texts[:1], texts[1:]], tokenizer, tmp_path / "tokens", longest=8)
    assert tokens.texts.tolist() == [0, 2, 2, 2, 2]
    assert tokens.lengths.tolist() == [3, 8, 8, 8, 2]
    sums = np.bincount(tokens.texts, tokens.characters)
    assert sums.tolist() == [len(texts[0]), 0, len(texts[2])]
    short = tokenise([texts], tokenizer, tmp_path / "short", longest=8, pieces=False)
    assert short.lengths.tolist() == [3, 0, 8]


def test_a_frame_puts_the_marks_that_the_tokenizer_puts(bert: Path):
    model, tokenizer = open_model(str(bert), where="model")
    frame = Frame.of(tokenizer, model)
    one, two = (np.array(tokenizer(t, add_special_tokens=False)["input_ids"])
                for t in ("milk", "soap lamp"))  # fmt: skip
    expected = tokenizer("milk", "soap lamp")
    assert frame.two(one, two) == (expected["input_ids"], expected["token_type_ids"])
    assert frame.one(two)[0] == tokenizer("soap lamp")["input_ids"]
    batch = frame.batch([frame.one(one), frame.two(one, two)])
    assert batch["attention_mask"].sum(1).tolist() == [3, 6]


# ── causal ───────────────────────────────────────────────────────────────────────────────────


@given(lengths=st.lists(st.integers(1, 32), max_size=60), seed=st.integers(0, 1000))
def test_packing_takes_every_piece_once_and_overfills_no_block(lengths: list[int], seed: int):
    each = np.array(lengths, np.int64)
    blocks = pack(each, 32, seed)
    assert sorted(np.concatenate([*blocks, np.empty(0, np.int64)]).tolist()) == list(
        range(len(each))
    )
    fill = [int(each[block].sum()) for block in blocks]
    assert all(0 < f <= 32 for f in fill)
    half_empty = sum(f <= 16 for f in fill)
    assert half_empty <= 1  # two of them would have been one


def test_texts_of_one_block_do_not_see_each_other(gpt: Path, tmp_path: Path):
    train_on, held = _tokens(gpt, tmp_path)
    objective = CausalObjective(str(gpt), train_on, held, CausalSettings(block=64))
    module = objective.build().eval()
    batch = objective.collate(np.array([0]), np.random.default_rng(0))
    pieces = objective.blocks[0]
    assert len(pieces) > 2
    with torch.inference_mode():
        together = module(batch["input_ids"], batch["texts"], batch["position_ids"])[0]
        at = 0
        for piece in pieces.tolist():
            ids = [0, *train_on.ids[train_on.piece(piece)].tolist(), 0]
            alone = module.model(input_ids=torch.tensor([ids])).logits[0]
            assert torch.allclose(together[at : at + len(ids)], alone, atol=1e-5)
            at += len(ids)


SMALL = {"vocab_size": 60, "hidden_size": 32, "num_attention_heads": 2}
LAYERS = {"num_hidden_layers": 2, "intermediate_size": 48, "max_position_embeddings": 64}
DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 60, "n_positions": 64},
    "gpt_neo": {
        "vocab_size": 60, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "window_size": 8,
        "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64,
    },
    "gptj": {
        "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 60, "n_positions": 64,
        "rotary_dim": 8,
    },
    "opt": {
        "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "ffn_dim": 48,
        "num_attention_heads": 2, "max_position_embeddings": 64, "word_embed_proj_dim": 32,
    },
    "qwen2": {**SMALL, **LAYERS, "num_key_value_heads": 2},
}  # fmt: skip


def _decoder(kind: str, **more: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **more, initializer_range=0.3)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_no_decoder_sees_the_neighbours_of_a_text(kind: str, attention: str, bf16: bool):
    model = _decoder(kind, **DECODERS[kind])
    if attention == "sdpa" and not model._supports_sdpa:
        pytest.skip("knows eager attention alone")
    model.set_attn_implementation(attention)
    check_apart(model, where="model")
    texts = torch.tensor([[0] * 6 + [1] * 7 + [2] * 5 + [-1] * 2])
    places = torch.tensor([[*range(6), *range(7), *range(5), 0, 0]])
    ids = torch.arange(3, 23)[None]
    blocks = CausalModel(model)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        said = blocks(ids, texts, places)
        assert torch.isfinite(said).all()
        for text in range(3):
            other = blocks(torch.where(texts == text, ids, ids + 20), texts, places)
            own = texts == text
            assert torch.equal(said[own], other[own])
            assert not torch.allclose(said[~own], other[~own], atol=0.1)
            if not bf16:
                alone = model(input_ids=ids[own][None]).logits[0]
                assert torch.allclose(said[own], alone, atol=1e-4)


def test_a_decoder_without_masks_of_pairs_of_tokens_is_refused(gpt: Path, tmp_path: Path):
    whole = {"n_layer": 2, "n_head": 2, "hidden_size": 32, "vocab_size": 70}
    with pytest.raises(UserError, match="a bloom cannot be told which tokens see each other"):
        check_apart(_decoder("bloom", **whole), where="model")
    _, tokenizer = open_model(str(gpt), where="model")
    folder = tmp_path / "bloom"
    whole["vocab_size"] = len(tokenizer)
    _decoder("bloom", **whole, bos_token_id=0, eos_token_id=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    train_on, held = _tokens(gpt, tmp_path)
    with pytest.raises(UserError, match="cannot be told") as refused:
        CausalObjective(str(folder), train_on, held, CausalSettings(block=64))
    assert refused.value.mend is not None and "GPT-2" in refused.value.mend


def test_a_decoder_that_heeds_no_mask_is_refused():
    model = _decoder("gpt2", **DECODERS["gpt2"])
    forward = model.forward
    bare = {"attention_mask": None, "position_ids": None}
    model.forward = lambda **given: forward(**{**given, **bare})
    with pytest.raises(UserError, match="lets texts of one block see each other"):
        check_apart(model, where="model")


def test_perplexities_of_a_decoder_equal_a_computation_by_hand(gpt: Path, tmp_path: Path):
    train_on, held = _tokens(gpt, tmp_path)
    objective = CausalObjective(str(gpt), train_on, held, CausalSettings(block=64))
    module = objective.build().eval()
    figures = objective.evaluate(module)
    surprise, n, characters = 0.0, 0, 0
    for text, row in zip(some_texts(40, seed=1), range(len(held)), strict=True):
        ids = [0, *held.ids[held.piece(row)].tolist(), 0]
        with torch.inference_mode():
            logits = module.model(input_ids=torch.tensor([ids])).logits[0]
        chance = logits.log_softmax(-1)
        surprise -= sum(float(chance[at, ids[at + 1]]) for at in range(len(ids) - 1))
        n += len(ids) - 1
        characters += len(text) + 1
    assert figures["perplexity"] == pytest.approx(math.exp(surprise / n), rel=1e-4)
    assert figures["character_perplexity"] == pytest.approx(
        math.exp(surprise / characters), rel=1e-4
    )


def test_causal_modelling_learns_and_its_folder_is_a_model(gpt: Path, tmp_path: Path):
    train_on, held = _tokens(gpt, tmp_path)
    steps = TrainingSettings(epochs=8, batch_size=4, learning_rate=3e-3)
    objective = CausalObjective(str(gpt), train_on, held, CausalSettings(block=64, training=steps))
    before = objective.evaluate(objective.build().eval())
    fitted = train(objective, steps, tmp_path / "model")
    assert fitted.figures["perplexity"] < 0.5 * before["perplexity"]
    open_with_head("clm", str(tmp_path / "model"), where="model")


# ── corpus ───────────────────────────────────────────────────────────────────────────────────


def test_a_corpus_has_each_text_once_and_holds_some_out(tmp_path: Path):
    ingest = write_shop(tmp_path)
    reviews = tmp_path / "reviews.csv"
    reviews.write_text(
        "head,body\nGood,bread a b\n,bread a  b\nGood,BREAD a b\nx,\n", encoding="utf-8"
    )
    files = TextFiles(paths=(str(reviews),), text=("head", "body"), name="reviews")
    settings_ = CorpusSettings(files=(files,), held_out=0.2)
    corpus = write_corpus(settings_, tmp_path / "corpus", ingest=ingest, until=log_end(ingest, 1))
    parts = {part: [t for b in corpus.batches(part) for t in b] for part in ("train", "held_out")}
    texts = parts["train"] + parts["held_out"]
    assert len(texts) == len({text.casefold() for text in texts})
    assert "Good bread a b" in texts and "bread a b" in texts
    assert corpus.counts["reviews"] == 2 and corpus.counts["repeated"] >= 1
    assert corpus.counts["too_short"] == 1
    assert sum(text.startswith("buy ") for text in texts) == 8
    assert "secret query" not in texts  # of the days that are held back
    assert len(parts["train"]) == corpus.counts["train"]
    assert corpus.characters == sum(map(len, texts))
    hashes = text_hashes(parts["held_out"])
    assert is_held_out(hashes, 0.2).all() and len(hashes) == corpus.counts["held_out"] > 0


def test_a_text_repeated_in_a_later_batch_is_found(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sys.modules["raysys.text.pretraining.corpus"], "BATCH", 3)
    table = tmp_path / "texts.csv"
    table.write_text("text\n" + "\n".join([f"text {at % 7}" for at in range(40)]), "utf-8")
    settings_ = CorpusSettings(files=(TextFiles(paths=(str(table),), text="text"),))
    corpus = write_corpus(settings_, tmp_path / "corpus")
    assert corpus.counts["files"] == 7 and corpus.counts["repeated"] == 33


@settings(max_examples=25)
@given(st.lists(st.text(max_size=8), min_size=1, max_size=20), st.floats(0.01, 0.9))
def test_more_held_out_holds_out_the_same_and_more(texts: list[str], share: float):
    hashes = text_hashes(texts)
    assert (is_held_out(hashes, share) <= is_held_out(hashes, min(0.99, share + 0.05))).all()


def test_a_corpus_without_texts_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="not a single text"):
        write_corpus(CorpusSettings(), tmp_path / "corpus")
