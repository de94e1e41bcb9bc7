from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    BertTokenizer,
    CamembertConfig,
    CamembertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from raysys.errors import UserError
from raysys.text.encoder import Encoder
from raysys.text.models import (
    PACKAGED,
    layers_of,
    longest_input,
    model_folder,
    open_model,
    open_with_head,
    readable,
)
from tests.text.precision import in_float32
from tests.text.tiny import write_tiny_bert
from tests.text.tiny_language import write_masked

TEXTS = ["whole milk, dairy, acme, 500 g", "milk", "bread, bakery", "hand soap unheard of"]
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 66,
    "initializer_range": 0.2,
}
# positions begin behind the padding token's id, 0 here; MPNet's is always 1
FAMILIES: dict[str, tuple[Any, Any, int]] = {
    "roberta": (RobertaConfig, RobertaModel, 65),
    "xlm-roberta": (XLMRobertaConfig, XLMRobertaModel, 65),
    "camembert": (CamembertConfig, CamembertModel, 65),
    "mpnet": (MPNetConfig, MPNetModel, 64),
    "electra": (ElectraConfig, ElectraModel, 66),
    "distilbert": (DistilBertConfig, DistilBertModel, 66),
}


def write_gpt(folder: Path, head: bool = False, **changes: Any) -> Path:
    """A byte-level GPT-2 with no padding token, as the real one has none."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: at for at, sign in enumerate([*alphabet, "<|endoftext|>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        **{"vocab_size": 257, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, **changes}
    )
    (GPT2LMHeadModel if head else GPT2Model)(config).save_pretrained(folder)
    return folder


def write_family(folder: Path, family: str) -> Path:
    """A model of the family with the words of the tiny BERT, padded as its config says."""
    config, model, _ = FAMILIES[family]
    write_tiny_bert(folder)
    small = {**SMALL, "embedding_size": 16} if family == "electra" else SMALL
    torch.manual_seed(0)
    made = model(config(**small, vocab_size=200, pad_token_id=0))
    made.eval().save_pretrained(folder)
    return folder


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return write_tiny_bert(tmp_path / "bert")


def test_the_packaged_model_opens_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, tokenizer = open_model(PACKAGED, where="x")
    assert len(layers_of(model)) == 6 and longest_input(model) == 512 == tokenizer.model_max_length
    assert not model.training and {each.dtype for each in model.parameters()} == {torch.float32}


def test_a_tokenizer_that_may_be_another_models_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def told(folder: Path, **changed: Any) -> list[str]:
        write_tiny_bert(folder)
        config = BertConfig.from_pretrained(folder)
        size = config.vocab_size
        known = {
            name: round(size * x) if name == "vocab_size" else x for name, x in changed.items()
        }
        config.update(known)
        BertModel(config).save_pretrained(folder)
        caplog.clear()
        for _ in range(2):
            open_model(str(folder), where="bi_encoder.model")
        return [each.getMessage() for each in caplog.records if each.name == "raysys"]

    assert told(tmp_path / "right") == [] == told(tmp_path / "padded", vocab_size=1.03)
    (fewer,) = told(tmp_path / "fewer", vocab_size=1.5)
    assert fewer.startswith("bi_encoder.model: the tokenizer of") and "embeddings" in fewer
    (other,) = told(tmp_path / "other", pad_token_id=3)
    assert "its pad_token_id is 0, that of config.json 3" in other
    assert told(tmp_path / "default", bos_token_id=50256) == []  # not the model's
    caplog.clear()
    open_model(str(write_gpt(tmp_path / "gpt", pad_token_id=3)), where="x")
    assert "raysys" not in {
        each.name for each in caplog.records
    }  # its padding is borrowed from the end of text


def test_a_head_that_was_drawn_is_told_from_one_that_was_read(tmp_path: Path) -> None:
    def drawn(kind: Literal["mlm", "clm"], model: str | Path) -> bool:
        found: Any = open_with_head(kind, str(model), where="x")[0]
        return bool(found.head_is_new)

    assert drawn("mlm", PACKAGED) and not drawn("mlm", write_masked(tmp_path / "bert"))
    assert not drawn("clm", write_gpt(tmp_path / "gpt", head=True))
    assert not drawn("clm", write_gpt(tmp_path / "body"))  # its words' vectors are the head
    untied = write_gpt(tmp_path / "untied", tie_word_embeddings=False)
    assert drawn("clm", untied)


def test_a_folder_opens_the_same_however_it_is_written(bert: Path) -> None:
    first, _ = open_model(str(bert), where="x")
    half, _ = open_model(str(bert), where="x")
    half.half().save_pretrained(bert)
    again, _ = open_model(f"{bert}/", where="x")
    for name, weight in first.state_dict().items():
        assert again.state_dict()[name].dtype == torch.float32
        torch.testing.assert_close(again.state_dict()[name], weight, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_run_in_two_parts_as_in_one(family: str, tmp_path: Path) -> None:
    folder = write_family(tmp_path, family)
    whole = Encoder.open(str(folder), 16, -1)
    parts = Encoder.open(str(folder), 16, 1)
    assert parts.frozen == 2 and len(layers_of(parts.transformer)) == 3
    vectors = whole.encode(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(parts.encode(TEXTS), vectors, atol=2e-3)  # states are float16
    np.testing.assert_allclose(whole.encode(TEXTS[1:2])[0], vectors[1], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_text_is_longer_than_the_positions(family: str, tmp_path: Path) -> None:
    folder = write_family(tmp_path, family)
    encoder = Encoder.open(str(folder), 512, -1)
    assert encoder.max_tokens == FAMILIES[family][2] == longest_input(encoder.transformer)
    assert np.isfinite(encoder.encode(["milk " * 5_000, "milk"])).all()


def test_layers_that_are_one_cannot_be_told_apart(tmp_path: Path) -> None:
    write_tiny_bert(tmp_path)
    AlbertModel(AlbertConfig(**SMALL, vocab_size=200, embedding_size=16)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="AlbertModel cannot be told apart") as error:
        Encoder.open(str(tmp_path), 16, 1)
    assert error.value.where == "two_tower.trainable_layers"
    assert np.isfinite(Encoder.open(str(tmp_path), 16, -1).encode(TEXTS)).all()


def test_tuned_layers_are_saved(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "a", "distilbert")
    encoder = Encoder.open(str(folder), 16, 1)
    with torch.no_grad():
        for weight in encoder.upper.parameters():
            weight.mul_(1.5)
    encoder.save(tmp_path / "b")
    again = Encoder.open(str(tmp_path / "b"), 16, 1)
    assert not np.allclose(again.encode(TEXTS), Encoder.open(str(folder), 16, 1).encode(TEXTS))
    np.testing.assert_allclose(again.encode(TEXTS), encoder.encode(TEXTS), atol=1e-5)


class TestDecoder:
    @pytest.mark.parametrize("head", [False, True])
    def test_pads_with_its_end_of_text(self, tmp_path: Path, head: bool) -> None:
        model, tokenizer = open_model(str(write_gpt(tmp_path, head=head)), where="x")
        assert isinstance(model, GPT2Model)
        assert tokenizer.pad_token_id == tokenizer.eos_token_id == model.config.pad_token_id == 256

    def test_its_vector_is_the_mean_over_its_real_tokens(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        in_float32(monkeypatch)  # as the mean below is computed
        encoder = Encoder.open(str(write_gpt(tmp_path)), 24, -1)
        beside = encoder.encode(TEXTS)
        for text, vector in zip(TEXTS, beside, strict=True):
            ids = torch.tensor([encoder.tokens([text])[0]])
            with torch.inference_mode():
                mean = encoder.transformer(ids)[0][0].mean(0)
            expected = torch.nn.functional.normalize(mean, dim=0).numpy()
            np.testing.assert_allclose(vector, expected, atol=1e-5)

    def test_an_empty_text_breaks_nothing(self, tmp_path: Path) -> None:
        encoder = Encoder.open(str(write_gpt(tmp_path)), 24, -1)
        vectors = encoder.vectors(encoder.states(["", "milk"])).numpy()
        assert np.isfinite(vectors).all()
        assert not encoder.encode([""]).any()

    def test_is_saved_and_read_again(self, tmp_path: Path) -> None:
        encoder = Encoder.open(str(write_gpt(tmp_path / "a")), 24, -1)
        encoder.save(tmp_path / "b")
        again = Encoder.open(str(tmp_path / "b"), 24, 2)
        np.testing.assert_allclose(again.encode(TEXTS), encoder.encode(TEXTS), atol=1e-6)

    def test_is_tuned_whole_or_not_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="cannot train 1 layers of a GPT2Model") as error:
            Encoder.open(str(write_gpt(tmp_path)), 24, 1)
        assert error.value.where == "two_tower.trainable_layers" and "-1" in error.value.mend


class TestHeads:
    def test_each_kind_has_its_own(self, bert: Path, tmp_path: Path) -> None:
        tokenizer = json.loads((bert / "tokenizer_config.json").read_text())
        (bert / "tokenizer_config.json").write_text(
            json.dumps({**tokenizer, "mask_token": "[UNK]"})
        )
        for kind, folder in (("mlm", bert), ("clm", write_gpt(tmp_path / "gpt", head=True))):
            model, tokens = open_with_head(kind, str(folder), where="x")  # type: ignore[arg-type]
            batch = tokens(["milk"], return_tensors="pt")
            logits = model(**batch, labels=batch["input_ids"])
            assert logits.logits.shape[-1] == model.config.vocab_size and logits.loss.isfinite()

    def test_a_new_head_follows_the_seed(self, bert: Path) -> None:
        text = (bert / "tokenizer_config.json").read_text()
        (bert / "tokenizer_config.json").write_text(
            json.dumps({**json.loads(text), "mask_token": "[UNK]"})
        )
        drawn = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            model, _ = open_with_head("mlm", str(bert), where="x")
            drawn.append(model.state_dict()["cls.predictions.transform.dense.weight"])
        assert drawn[0].equal(drawn[1]) and not drawn[0].equal(drawn[2])

    @pytest.mark.parametrize(
        ("kind", "says", "mend"),
        [("mlm", "reads one way", "clm"), ("clm", "would have to guess", "mlm")],
    )
    def test_a_model_that_reads_the_other_way(
        self, bert: Path, tmp_path: Path, kind: Any, says: str, mend: str
    ) -> None:
        folder = write_gpt(tmp_path / "gpt") if kind == "mlm" else bert
        with pytest.raises(UserError, match=says) as error:
            open_with_head(kind, str(folder), where="pretraining.model")
        assert error.value.where == "pretraining.model" and mend in error.value.mend

    def test_masking_needs_a_mask(self, bert: Path) -> None:
        with pytest.raises(UserError, match="no mask token"):
            open_with_head("mlm", str(bert), where="x")


def _edit(name: str, **changes: Any) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        for key, value in changes.items():
            content.pop(key, None) if value is None else content.update({key: value})
        (folder / name).write_text(json.dumps(content))

    return act


def _write(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


def _drop(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def _pickled_only(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _without_unknown(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"] = {
        word: at for word, at in content["model"]["vocab"].items() if word != "[UNK]"
    }
    content["added_tokens"] = [
        each for each in content["added_tokens"] if each["content"] != "[UNK]"
    ]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    _edit("tokenizer_config.json", unk_token=None)(folder)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_drop("config.json"), "no config.json"),
        (_write("config.json", "{"), "config.json: "),
        (_write("config.json", "[]"), "config.json: no JSON object"),
        (_edit("config.json", model_type="zork"), "config.json: .*zork"),
        (_edit("config.json", model_type="zork", auto_map={"AutoConfig": "a.B"}),
         "Python code of its own"),
        (lambda folder: T5Config().save_pretrained(folder), "encoder with a decoder"),
        (_write("adapter_config.json", "{}"), "an adapter"),
        (_drop("model.safetensors"), "no model.safetensors"),
        (_pickled_only, r"pickled \(pytorch_model.bin\)"),
        (_write("model.safetensors", "nonsense, but long enough"), "header"),
        (_edit("config.json", hidden_size=64), "other shapes"),
        (_edit("config.json", num_hidden_layers=3), "lacks 16 of the weights"),
        (_drop("tokenizer.json", "tokenizer_config.json"), "okenizer"),
        (_write("tokenizer.json", "{"), "tokenizer cannot be opened"),
        (_edit("tokenizer_config.json", pad_token=None), "neither a padding token"),
        (_without_unknown, "no token for what it does not know"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_opened(
    bert: Path, spoil: Callable[[Path], object], says: str
) -> None:
    spoil(bert)
    with pytest.raises(UserError, match=says) as error:
        open_model(str(bert), where="two_tower.model")
    assert error.value.where == "two_tower.model" and error.value.mend
    assert repr(str(bert)) in error.value.what


def test_a_tokenizer_of_another_model(bert: Path, tmp_path: Path) -> None:
    packaged = model_folder(PACKAGED, where="x")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(packaged / name, bert / name)
    with pytest.raises(UserError, match=r"ids up to 30521, the model has \d+ embeddings"):
        open_model(str(bert), where="x")


def test_an_old_folder_with_a_list_of_words_alone(tmp_path: Path) -> None:
    packaged = model_folder(PACKAGED, where="x")
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        shutil.copy(packaged / name, tmp_path / name)
    _, tokenizer = open_model(str(tmp_path), where="x")
    assert isinstance(tokenizer, BertTokenizer)
    assert tokenizer.tokenize("whole milk") == ["whole", "milk"]


@pytest.mark.long
def test_a_slow_tokenizer_is_refused(bert: Path) -> None:
    (bert / "tokenizer.json").unlink()
    _edit("tokenizer_config.json", tokenizer_class="CanineTokenizer")(bert)
    with pytest.raises(UserError, match=r"CanineTokenizer.* is a slow one"):
        open_model(str(bert), where="x")


@pytest.mark.parametrize("model", ["/no/such", "./no/such", "~/no-such-folder", "", "  "])
def test_no_such_folder(model: str) -> None:
    with pytest.raises(UserError, match="no model folder") as error:
        open_model(model, where="two_tower.model")
    assert error.value.where == "two_tower.model"


@pytest.mark.parametrize("model", ["a/b/c", "bert base", "-x", "models\\bert"])
def test_what_is_neither_a_folder_nor_an_id(model: str) -> None:
    with pytest.raises(UserError, match=r"no model folder.*no id of the hub looks like this"):
        open_model(model, where="x")


def test_without_a_network_it_says_how_to_fetch_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="the Hugging Face hub cannot be reached") as error:
        open_model("google-bert/bert-base-uncased", where="two_tower.model")
    assert "hf download google-bert/bert-base-uncased --local-dir" in error.value.mend
    assert PACKAGED in error.value.mend


def test_what_was_fetched_before_is_read_without_a_network(
    bert: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = tmp_path / "cache" / "models--shop--bert"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    shutil.copytree(bert, place / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    model, _ = open_model("shop/bert", where="x")
    assert len(layers_of(model)) == 2


class TestReadable:
    @pytest.mark.parametrize(
        ("text", "read"),
        [("milk", "milk"), ("", ""), ("  牛奶", "牛奶"), ("a\ud800b", "a\ufffdb"),
         ("\udc00", "\ufffd"), ("\ud83e\udd84", "\U0001f984"), ("a\x00b", "a\x00b")],
    )  # fmt: skip
    def test_changes_only_what_no_tokenizer_takes(self, text: str, read: str) -> None:
        assert readable(text, 8) == read

    def test_cuts_far_behind_what_is_read(self) -> None:
        assert readable(" " * 100_000 + "milk " * 100_000, 24) == ("milk " * 1000)[: 24 * 32]

    @pytest.mark.parametrize("text", ["\ud800 milk", "milk\x00", "\x00", "\ufffe\uffff", "\u200b"])
    def test_encoders_take_every_text(self, bert: Path, tmp_path: Path, text: str) -> None:
        for folder in (bert, write_gpt(tmp_path / "gpt")):
            encoder = Encoder.open(str(folder), 16, -1)
            assert np.isfinite(encoder.encode([text, "milk"])).all()

    def test_a_text_without_end_is_its_beginning(self, bert: Path) -> None:
        encoder = Encoder.open(str(bert), 16, -1)
        text = "whole milk bread, "
        np.testing.assert_array_equal(encoder.encode([text * 6_000]), encoder.encode([text * 28]))
        assert len(encoder.tokens(["x" * 100_000])[0]) <= 16
