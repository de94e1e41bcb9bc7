"""ISO 4217: which currencies there are, and the signs that people write for them."""

from __future__ import annotations

from typing import Final

import polars as pl

CODES: Final = frozenset(
    """
    AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BOV BRL BSD BTN BWP
    BYN BZD CAD CDF CHE CHF CHW CLF CLP CNY COP COU CRC CUC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB
    EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY
    KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU MUR
    MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB
    RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD
    TZS UAH UGX USD USN UYI UYU UYW UZS VED VES VND VUV WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG
    ATS BEF BYR CYP DEM EEK ESP FIM FRF GRD HRK IEP ITL LTL LUF LVL MRO MTL NLG PTE ROL SIT SKK SLL
    STD TRL VEB VEF ZMK ZWL
    """.split()  # noqa: SIM905
)
"""The codes of ISO 4217 list one, then those withdrawn since 1999 (list three): logs may be old."""

SYMBOLS: Final[dict[str, str]] = {
    "€": "EUR",
    "£": "GBP",
    "US$": "USD",
    "R$": "BRL",
    "zł": "PLN",
    "₹": "INR",
    "₽": "RUB",
    "₩": "KRW",
    "₺": "TRY",
    "₴": "UAH",
    "₫": "VND",
    "₪": "ILS",
    "฿": "THB",
}
"""Signs that mean one currency."""


def is_code(text: str) -> bool:
    """Whether this is a code, as it is written.

    >>> is_code("EUR"), is_code("eur"), is_code("€")
    (True, False, False)
    """
    return text in CODES


def as_code(currency: pl.Expr, symbols: dict[str, str]) -> pl.Expr:
    """Currencies in capitals without blanks, and signs as codes; unknown ones in capitals too."""
    bare = currency.str.strip_chars()
    return bare.replace(symbols).str.to_uppercase() if symbols else bare.str.to_uppercase()
