"""A BERT of 30,000 weights that knows the words of the synthetic shop, made in a moment."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from tests.synthetic import BRANDS, CATEGORIES


def write_tiny_bert(folder: Path, layers: int = 2, width: int = 32, *, typed: bool = False) -> Path:
    """Write model and tokenizer as `two_tower.model` reads them; random weights, held seed.

    Where `typed`, the tokenizer tells the two texts of a pair apart by token types.
    """
    words = itertools.chain.from_iterable(
        re.findall(r"\w+", f"{category} {department} {kinds}")
        for category, (department, kinds) in CATEGORIES.items()
    )
    listed = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ",", "g", "unknown", "item", *words, *BRANDS]
    vocabulary = {word: at for at, word in enumerate(dict.fromkeys(listed))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    kinds = ["token_type_ids"] if typed else []
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", model_input_names=["input_ids", *kinds, "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    return folder
