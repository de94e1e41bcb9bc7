"""Small models of both families, and a shop in files whose texts have something to learn."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel
from transformers import PreTrainedTokenizerFast as Fast

from raysys import schema

KINDS = ("milk", "bread", "soap", "lamp", "shoe", "book", "chair", "phone")
WORDS = {kind: tuple(f"{kind}{at}" for at in range(6)) for kind in KINDS}
"""Words that only texts of one kind have."""
DAY = 86_400_000


def _tokenizer(*marks: str) -> Tokenizer:
    listed = [*marks, "[UNK]", *KINDS, *itertools.chain(*WORDS.values()), *"abcdefghijkl"]
    listed += [f"##{letter}" for letter in "abcdefghijkl0123456789"]
    tokenizer = Tokenizer(
        models.WordPiece({word: at for at, word in enumerate(listed)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def write_masked(folder: Path, layers: int = 2, width: int = 32) -> Path:
    """A BERT with its head and tokenizer; random weights, held seed."""
    tokenizer = _tokenizer("[PAD]", "[CLS]", "[SEP]", "[MASK]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    Fast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=2, intermediate_size=2 * width, max_position_embeddings=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def write_causal(folder: Path) -> Path:
    """A GPT-2 with its tokenizer; random weights, held seed."""
    tokenizer = _tokenizer("<end>")
    Fast(
        tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="<end>", bos_token="<end>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(), n_embd=32, n_layer=2, n_head=2, n_positions=64,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def some_texts(n: int, seed: int = 0) -> list[str]:
    """Texts of a few words, all of one kind."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice(KINDS, n)
    return [" ".join([kind, *rng.choice(WORDS[kind], 4)]) for kind in kinds]


def write_shop(folder: Path, n_items: int = 120, seed: int = 0) -> Path:
    """`ingest/` of a shop: descriptions tell of what the title tells of, queries ask for it.

    Eight sessions an item; the last day of the log asks for things in words of its own.
    """
    rng = np.random.default_rng(seed)
    items, events = [], []
    for number in range(n_items):
        kind = KINDS[number % len(KINDS)]
        words = WORDS[kind]
        title = f"{words[number % 6]} {kind} {'abcdefghijkl'[number // 8 % 12]}"
        items.append(
            {
                "item_id": f"i{number:04d}",
                "title": title,
                "category": kind,
                "brand": "acme",
                "description": f"{' '.join(rng.permutation(words)[:3])} {title.split()[-1]}",
            }
        )
    for at in range(8 * n_items):
        number = int(rng.integers(n_items))
        kind = KINDS[number % len(KINDS)]
        alike = [other for other in range(n_items) if other % len(KINDS) == number % len(KINDS)]
        late = at >= 8 * n_items - 20
        for step, item in enumerate([number, int(rng.choice(alike)), int(rng.choice(alike))]):
            events.append(
                {
                    "event_id": f"e{at}-{step}",
                    "event_type": "click",
                    "user_id": f"u{at % 9}",
                    "item_id": f"i{item:04d}",
                    "timestamp": (40 * DAY if late else at * 1000) + step,
                    "session_id": f"s{at}",
                    "query": None if step else ("secret query" if late else f"buy {kind}"),
                }
            )
    ingest = folder / "ingest"
    (ingest / "events").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(items, schema=schema.ITEMS), ingest / "items.parquet")
    pq.write_table(
        pa.Table.from_pylist(events, schema=schema.EVENTS), ingest / "events" / "part.parquet"
    )
    return ingest
