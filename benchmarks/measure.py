"""What a command takes: seconds, CPU, memory of all its processes; and whether results agree."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import psutil


@dataclass(frozen=True)
class Taken:
    """What a command took.

    Attributes:
        seconds: from start to end; cpu_seconds: of all its processes.
        peak: bytes that it and all below it held at most, shared pages counted once (PSS).
        driver_peak: bytes of the process itself at most.
        outcome: `done`, `ran out of memory` (it was stopped at the cap, or the system did it),
            or `failed`.
        output: the end of what it printed.
    """

    seconds: float
    cpu_seconds: float
    peak: int
    driver_peak: int
    outcome: str
    output: str

    def demand(self) -> Taken:
        """Itself if done.

        Raises:
            RuntimeError: with the command's last words.
        """
        if self.outcome != "done":
            raise RuntimeError(f"{self.outcome} after {self.seconds:.0f} s:\n{self.output}")
        return self


def tree_memory(pid: int) -> int:
    """Bytes that a process and everything below it hold, shared pages counted once (PSS)."""
    return sum(pss for _, pss, _ in _tree(pid))


def measured(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    cap: int | None = None,
    every: float = 1.0,
) -> Taken:
    """Run a command to its end, or to the cap.

    Args:
        command: with its arguments.
        environment: variables beside those of this process.
        cap: bytes; once all its processes hold more, they are stopped.
        every: seconds between looks, at the least: looking takes a twentieth of the time at most,
            since it halts whoever is looked at. Memory that was held for less may be missed; CPU
            is read at every look too, as workers that were killed tell nobody afterwards.
    """
    peak = driver_peak = 0
    cpu: dict[tuple[int, float], float] = {}
    with tempfile.TemporaryFile() as said:
        began = time.monotonic()
        process = subprocess.Popen(
            command,
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        outcome = ""
        try:
            while process.poll() is None:
                looked = time.monotonic()
                found = list(_tree(process.pid, cpu))
                total = sum(pss for _, pss, _ in found)
                peak = max(peak, total)
                driver_peak = max(
                    driver_peak, *(pss for pid, pss, _ in found if pid == process.pid), 0
                )
                if cap is not None and total > cap:
                    outcome = "ran out of memory"
                    stop_tree(process.pid)
                    break
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(every, 19 * (time.monotonic() - looked)))
        finally:
            if process.poll() is None:
                stop_tree(process.pid)
            process.wait()
        seconds = time.monotonic() - began
        if not outcome:
            killed = process.returncode == -signal.SIGKILL
            outcome = "ran out of memory" if killed else "failed" if process.returncode else "done"
        said.seek(0, os.SEEK_END)
        said.seek(max(0, said.tell() - 4000))
        output = said.read().decode(errors="replace")
    return Taken(seconds, sum(cpu.values()), peak, driver_peak, outcome, output)


def stop_tree(pid: int) -> None:
    """Kill a process that this one started, and all below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in [*parent.children(recursive=True), parent]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _tree(
    pid: int, cpu: dict[tuple[int, float], float] | None = None
) -> Iterator[tuple[int, int, float]]:
    """Process id, PSS and CPU seconds of a process and all below it."""
    try:
        parent = psutil.Process(pid)
        processes = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            times = process.cpu_times()
            used = times.user + times.system
            if cpu is not None:
                cpu[process.pid, process.create_time()] = used
            yield process.pid, int(process.memory_full_info().pss), used


def fingerprint_events(folder: Path) -> dict[str, int]:
    """What clean events say, whatever the order of rows: counts, and sums of hashes.

    Rows, sessions, rows a type; `events` and `in_sessions` are sums (modulo 2^64) of hashes of
    event ids and of event ids with their session's, so one row in another session shows.
    """
    scan = pl.scan_parquet(folder / "**" / "*.parquet", hive_partitioning=False)
    told = pl.concat_str("event_id", "session_id", separator="\n")
    folded = scan.select(
        rows=pl.len(),
        sessions=pl.struct("user_id", "session_id").n_unique(),
        events=_hash_sum(pl.col("event_id")),
        in_sessions=_hash_sum(told),
        moments=_hash_sum(pl.col("timestamp").dt.epoch("ms")),
    ).collect(engine="streaming")
    types = scan.group_by("event_type").len().collect(engine="streaming")
    found = {name: int(value) for name, value in folded.row(0, named=True).items()}
    return found | {f"type {name}": int(count) for name, count in types.sort("event_type").rows()}


def _hash_sum(value: pl.Expr) -> pl.Expr:
    """A sum of hashes that cannot overflow: of their lower 32 bits."""
    return (value.hash(17) % (1 << 32)).cast(pl.UInt64).sum()


def differences(
    mine: pl.DataFrame, theirs: pl.DataFrame, keys: Sequence[str], *, tolerance: float = 1e-4
) -> dict[str, float]:
    """Per column the largest relative difference of two tables with the same keys.

    NaN and null agree with each other only; such a disagreement is infinite.

    Raises:
        ValueError: the tables do not have the same keys, each once, or differ by more than
            `tolerance`, with the worst row.
    """
    columns = [name for name in theirs.columns if name not in keys]
    if mine.select(keys).is_duplicated().any() or theirs.select(keys).is_duplicated().any():
        raise ValueError("keys come more than once")
    both = mine.select(*keys, *columns).join(theirs, on=keys, how="inner", suffix="_theirs")
    if not mine.height == theirs.height == both.height:
        raise ValueError(
            f"{mine.height:,} and {theirs.height:,} rows have {both.height:,} in common"
        )
    found: dict[str, float] = {}
    for name in columns:
        a = pl.col(name).cast(pl.Float64).fill_null(float("nan"))
        b = pl.col(f"{name}_theirs").cast(pl.Float64).fill_null(float("nan"))
        scale = pl.max_horizontal(a.abs(), b.abs(), 1e-6)
        apart = (
            pl.when(a.is_nan() & b.is_nan())
            .then(0.0)
            .when(a.is_nan() | b.is_nan())
            .then(float("inf"))
            .otherwise((a - b).abs() / scale)
        )
        apart_of = both.select(apart.alias("apart"))["apart"]
        found[name] = float(apart_of.max() or 0.0)  # type: ignore[arg-type]
        if found[name] > tolerance:
            worst = both.row(int(apart_of.arg_max() or 0), named=True)
            shown = {k: worst[k] for k in (*keys, name, f"{name}_theirs")}
            raise ValueError(f"{name} differs by {found[name]:.3g}: {shown}")
    return found
