"""Serving: five servers compared, a request's budget, growth, overload, kills, fuzzing.

About forty-five minutes in all; each part also alone: `compare`, `stages`, `growth`, `overload`,
`kills`, `fuzz`. Needs the bundle of a finished demo (`make demo`), and pip for two of the peers,
which get environments of their own.

Servers, clients and load share this machine's cores, so what a peer or the load generator takes is
taken from what answers. In `compare` runs alternate and figures are medians of five, those of
`stages` are medians of several rounds, and so is the capacity of `overload`. All others are of one
run: percentiles of its requests (`growth`, `overload`), one kill of each kind (`kills`), counts of
cases (`fuzz`).
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.parts import write_serving_result
from benchmarks.result import ROOT, Figure

PARTS = ("compare", "stages", "growth", "overload", "kills", "fuzz")


def compare(given: argparse.Namespace) -> list[Figure]:
    from benchmarks.serving_parts import compare
    from benchmarks.serving_parts.servers import NAMES

    names = given.servers.split(",") if given.servers else NAMES
    rounds, seconds = (2, 0.7) if given.quick else (compare.ROUNDS, compare.SECONDS)
    return compare.measure(
        given.registry, given.environments, rounds=rounds, seconds=seconds, servers=names
    )


def stages(given: argparse.Namespace) -> list[Figure]:
    from benchmarks.serving_parts import stages

    return stages.measure(given.registry, requests=60 if given.quick else 400)


def growth(given: argparse.Namespace) -> list[Figure]:
    from benchmarks.serving_parts import growth

    return growth.measure(growth.QUICK if given.quick else growth.SIZES)


def overload(given: argparse.Namespace) -> list[Figure]:
    from benchmarks.serving_parts import overload

    seconds, rounds = (5.0, 2) if given.quick else (60.0, 5)
    return overload.measure(given.registry, given.environments, seconds=seconds, rounds=rounds)


def kills(given: argparse.Namespace) -> list[Figure]:
    from benchmarks.serving_parts import kills

    seconds = 16.0 if given.quick else 40.0
    return kills.measure(given.registry, given.environments, seconds=seconds)


def fuzz(given: argparse.Namespace) -> list[Figure]:
    from benchmarks.serving_parts import fuzz

    return fuzz.measure(given.environments, seconds=15 if given.quick else 240)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=("all", *PARTS), default="all")
    parser.add_argument("--registry", type=Path, default=ROOT / "runs" / "demo" / "registry")
    parser.add_argument("--environments", type=Path, default=ROOT / "runs" / "environments")
    parser.add_argument("--servers", help="of `compare`, separated by commas; all unless given")
    parser.add_argument("--quick", action="store_true", help="tiny runs; print, write nothing")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended in any case
    given.environments.mkdir(parents=True, exist_ok=True)
    work: dict[str, Callable[[argparse.Namespace], list[Figure]]] = {
        "compare": compare, "stages": stages, "growth": growth,
        "overload": overload, "kills": kills, "fuzz": fuzz,
    }  # fmt: skip
    for part in PARTS if given.part == "all" else (given.part,):
        began = time.perf_counter()
        figures = work[part](given)
        if given.quick:
            for figure in figures:
                print(
                    f"{figure.name:44s} {figure.value:10.4g} {figure.unit:12s} {figure.reference}"
                )
        else:
            write_serving_result(part, figures, time.perf_counter() - began)


if __name__ == "__main__":
    main()
