"""Two Marian models of a few thousand weights that know a furniture shop's words, trained on them.

One translates English to German, the other back, into its own words: a couch comes home as a sofa.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import sentencepiece
import torch
from transformers import MarianConfig, MarianMTModel, MarianTokenizer

COLOURS = (("red", "rot"), ("blue", "blau"), ("green", "gruen"))
THINGS = (("couch", "sofa", "kanape"), ("lamp", "light", "leuchte"), ("rug", "carpet", "teppich"))


def write_tiny_marians(folder: Path) -> tuple[Path, Path]:
    """Train and write both; their folders, there and back."""
    there, back = {}, {}
    for (colour, farbe), (thing, other, ding) in itertools.product(COLOURS, THINGS):
        there[f"{colour} {thing}"] = f"{farbe} {ding}"
        back[f"{farbe} {ding}"] = f"{colour} {other}"
    _write(folder / "there", there, 0)
    _write(folder / "back", back, 1)
    return folder / "there", folder / "back"


def _write(folder: Path, pairs: dict[str, str], seed: int) -> None:
    folder.mkdir(parents=True)
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join([*pairs, *pairs.values()] * 5), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "source"), vocab_size=60, model_type="unigram",
        hard_vocab_limit=False, minloglevel=2, num_threads=1,
    )  # fmt: skip
    (folder / "source.model").rename(folder / "source.spm")
    (folder / "target.spm").write_bytes((folder / "source.spm").read_bytes())
    (folder / "source.vocab").unlink()
    corpus.unlink()
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "source.spm"))
    listed = ["</s>", "<unk>", *(pieces.id_to_piece(at) for at in range(pieces.get_piece_size()))]
    vocabulary = {piece: at for at, piece in enumerate(dict.fromkeys([*listed, "<pad>"]))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    tokenizer = MarianTokenizer(
        str(folder / "source.spm"), str(folder / "target.spm"), str(folder / "vocab.json")
    )
    pad = vocabulary["<pad>"]
    config = MarianConfig(
        vocab_size=len(vocabulary), d_model=48, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64,
        decoder_ffn_dim=64, max_position_embeddings=32, pad_token_id=pad, eos_token_id=0,
        decoder_start_token_id=pad, forced_eos_token_id=0, dropout=0.0, attention_dropout=0.0,
        activation_dropout=0.0, max_length=32,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = MarianMTModel(config)
    inputs = tokenizer(list(pairs), text_target=list(pairs.values()), padding=True,
                       return_tensors="pt")  # fmt: skip
    inputs["labels"][inputs["labels"] == pad] = -100
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(250):
        loss = model(**inputs).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
