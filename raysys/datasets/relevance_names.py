"""Names that judged data sets give to their columns: of queries, items' texts, grades and ids."""

from __future__ import annotations

import re
from typing import Final

Tiers = tuple[tuple[str, ...], ...]

QUERIES: Final[Tiers] = (
    ("query", "searchterm", "searchquery", "querytext", "searchterms", "searchphrase"),
    ("keyword", "keywords", "search", "term", "question", "q", "topictitle",
     "userquery", "rawquery", "searchtext", "querystring", "keywordtext"),
)  # fmt: skip
"""As `small` spells them; names of an earlier tier are taken before others."""

TITLES: Final[Tiers] = (
    ("producttitle", "productname", "itemtitle", "itemname", "doctitle", "goodstitle", "goodsname",
     "skutitle", "skuname", "offertitle", "listingtitle"),
    ("title",),
    ("name",),
)  # fmt: skip
BODIES: Final[Tiers] = (
    ("text", "passage", "document", "passagetext", "documenttext", "doctext", "body", "content",
     "doc", "answer"),
)  # fmt: skip
"""What a document says; a shop's description is taken only when it is asked for."""

DESCRIPTIONS: Final[Tiers] = (
    ("productdescription", "description", "shortdescription", "itemdescription"),
)

LABELS: Final[Tiers] = (
    ("escilabel", "medianrelevance", "relevance", "relevancelabel", "relevancescore",
     "relevancegrade", "relevancejudgement", "relevancejudgment"),
    ("grade", "judgement", "judgment", "rel", "relevancy", "relevant", "isrelevant"),
    ("label", "gain"),
    ("score", "rating", "target"),
)  # fmt: skip

QUERY_IDS: Final = ("queryid", "qid", "topicid", "searchid", "topic", "qno")
ITEM_IDS: Final = (
    "productid", "productuid", "itemid", "docid", "docno", "documentid", "did", "corpusid", "pid",
    "passageid", "asin", "sku", "articleid",
)  # fmt: skip

PLAIN_IDS: Final = ("id", "uid", "key")
"""Of a row: which thing it is says the file's name at most."""

ROW_NUMBERS: Final = ("", "unnamed0", "index", "rowid", "rownumber")
"""Of a file's rows: two files that have them have nothing in common."""

LOCALES: Final = (
    "querylocale", "productlocale", "locale", "lang", "language", "market", "country",
)  # fmt: skip
"""What tells queries of the same words apart; a name that comes first is taken before others."""

MARKETS: Final = (*LOCALES[1:], "site")
"""Part of a key, beside an id."""

_OF_QUERIES: Final = ("quer", "topic", "search", "question")
_OF_ITEMS: Final = (
    "product", "item", "corpus", "collection", "doc", "passage", "catalog", "article", "descri",
    "attribut",
)  # fmt: skip
_SIGNS: Final = re.compile(r"[\W_]+")


def small(name: str) -> str:
    """A column's name without case and signs: `Product-ID` and `product_id` are one."""
    return _SIGNS.sub("", name).lower()


def is_id(name: str) -> bool:
    """Whether a column is called as ids are."""
    plain = small(name)
    known = plain in (*QUERY_IDS, *ITEM_IDS, *PLAIN_IDS)
    return known or re.search(r"(?i)(_|\b)(id|uid|key|ean|gtin|sku|asin|url)$", name) is not None


def side(stem: str) -> str | None:
    """Whether a file's name says that it holds queries or items: "query", "item" or None."""
    plain = stem.lower()
    of_queries = any(word in plain for word in _OF_QUERIES)
    of_items = any(word in plain for word in _OF_ITEMS)
    return None if of_queries == of_items else "query" if of_queries else "item"


def is_known(name: str) -> bool:
    """Whether the name is one of this page: a first line that has it is a header."""
    plain = small(name)
    tiers = (*QUERIES, *TITLES, *BODIES, *DESCRIPTIONS, *LABELS)
    return plain in (*QUERY_IDS, *ITEM_IDS, *PLAIN_IDS) or any(plain in tier for tier in tiers)
