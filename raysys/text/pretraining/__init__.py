"""Pre-training: a transformer learns a shop's language from its own texts and behaviour."""

from raysys.text.pretraining.behaviour import Pairs, PairSettings, gather_pairs
from raysys.text.pretraining.causal import CausalObjective, CausalSettings
from raysys.text.pretraining.contrastive import ContrastiveObjective, ContrastiveSettings
from raysys.text.pretraining.corpus import Corpus, CorpusSettings, TextFiles, write_corpus
from raysys.text.pretraining.masked import MaskedObjective, MaskedSettings
from raysys.text.pretraining.pairs import PairsObjective, PairsSettings
from raysys.text.pretraining.tokens import Tokens, tokenise

__all__ = [
    "CausalObjective",
    "CausalSettings",
    "ContrastiveObjective",
    "ContrastiveSettings",
    "Corpus",
    "CorpusSettings",
    "MaskedObjective",
    "MaskedSettings",
    "PairSettings",
    "Pairs",
    "PairsObjective",
    "PairsSettings",
    "TextFiles",
    "Tokens",
    "gather_pairs",
    "tokenise",
    "write_corpus",
]
