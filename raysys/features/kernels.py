"""The compiled kernels of a table: replay columns, apply one event, read; one set for both ways."""

from __future__ import annotations

import numpy as np
from numba import njit

from raysys.features.hashing import lookup as _lookup

DAY_MS = 86_400_000.0
_EMPTY = -1
_NEVER = -(1 << 62)
_FOREVER = 1 << 61  # ms; no two moments are further apart
_AHEAD = 64  # rows whose records are looked up together, so that the cache misses overlap


@njit(cache=True)
def _chain(keys, fan, head, following):  # type: ignore[no-untyped-def]
    for record in range(len(keys)):
        first = keys[record] // fan
        following[record] = head[first]
        head[first] = record


@njit(cache=True, inline="always")
def _tell(  # type: ignore[no-untyped-def]
    record, time, half_lives, idle, counts, sums, times, at, out_counts, out_means, clocks
):
    """What a record says at a moment, into column `at`; nothing of record -1 or an aged-out one."""
    if record < 0 or time - times[record, 2] > idle:
        out_counts[:, at] = 0.0
        out_means[:, at] = np.nan
        clocks[0, at] = 0.0
        clocks[1:, at] = np.nan
        return
    moments, first, last = times[record, 0], times[record, 1], times[record, 2]
    for h in range(len(half_lives)):
        factor = 2.0 ** (-(time - last) / half_lives[h])
        out_counts[h, at] = counts[record, h] * factor
        total = counts[record, h]
        out_means[h, at] = sums[record, h] / total if total > 0 else np.nan
    clocks[0, at] = moments
    clocks[1, at] = (time - last) / DAY_MS
    clocks[2, at] = (time - first) / DAY_MS
    clocks[3, at] = (last - first) / DAY_MS / (moments - 1) if moments > 1 else np.nan


@njit(cache=True)
def _read(  # type: ignore[no-untyped-def]
    records, time, half_lives, idle, counts, sums, times, out_counts, out_means, clocks
):
    for at in range(len(records)):
        _tell(
            records[at],
            time,
            half_lives,
            idle,
            counts,
            sums,
            times,
            at,
            out_counts,
            out_means,
            clocks,
        )


@njit(cache=True, inline="always")
def _count(  # type: ignore[no-untyped-def]
    record, time, weight_of, value_of, half_lives, counts, sums, times
):
    """One event onto its record."""
    last = times[record, 2]
    if time > last or times[record, 0] == 0:
        times[record, 0] += 1
    late = 0.0
    if time > last:  # most events of an order share one moment: nothing decays
        for h in range(len(half_lives)):
            factor = 2.0 ** (-(time - last) / half_lives[h])
            counts[record, h] *= factor
            sums[record, h] *= factor
        times[record, 2] = time
    elif time < last:
        late = float(last - time)
        if time < times[record, 1]:
            times[record, 1] = time
    for h in range(len(half_lives)):
        weight = weight_of
        if late > 0.0:
            weight *= 2.0 ** (-late / half_lives[h])
        value = value_of
        if value != value:  # NaN: the mean so far, so that the mean stays as it is
            value = sums[record, h] / counts[record, h] if counts[record, h] > 0 else 0.0
        counts[record, h] += weight
        sums[record, h] += weight * value


@njit(cache=True, inline="always")
def _enter(  # type: ignore[no-untyped-def]
    key, time, place, fan, size, slots, known, counts, sums, times, head, following
):
    """A record for a key never seen or aged out, at its place in the hash.

    The aged-out one stays behind until `compact`, so records are numbered alike whenever that is.
    """
    record = size[0]
    size[0] += 1
    slots[place] = record
    known[record] = key
    counts[record, :] = 0.0
    sums[record, :] = 0.0
    times[record, 0] = 0
    times[record, 1] = time
    times[record, 2] = time
    if fan > 1:
        first = key // fan
        following[record] = head[first]
        head[first] = record
    return record


@njit(cache=True)
def _apply(  # type: ignore[no-untyped-def]
    event,
    keys,
    when,
    weights,
    values,
    half_lives,
    idle,
    fan,
    clock,
    size,
    slots,
    known,
    counts,
    sums,
    times,
    head,
    following,
):
    """From `event` on: the event to go on with; below n when the table is too small."""
    while event < len(keys):
        key, time = keys[event], when[event]
        if key >= 0 and clock[0] - time <= idle:
            now = max(clock[0], time)
            place = _lookup(key, slots, known)
            record = np.int64(slots[place])
            if record == -1 or now - times[record, 2] > idle:
                if size[0] == len(known):
                    break
                record = _enter(
                    key, time, place, fan, size, slots, known, counts, sums, times, head, following
                )
            clock[0] = now
            _count(record, time, weights[event], values[event], half_lives, counts, sums, times)
        event += 1
    return event


@njit(cache=True)
def _replay(  # type: ignore[no-untyped-def]
    row,
    read,
    keys,
    when,
    weights,
    values,
    counted,
    reads,
    half_lives,
    idle,
    fan,
    clock,
    size,
    slots,
    known,
    counts,
    sums,
    times,
    head,
    following,
    out_counts,
    out_means,
    clocks,
):
    """From `row` on: the row and the read to go on with; a row below n when the table is too small.

    Records are looked up some rows ahead, all independent of each other, so that the processor
    waits for memory once for many rows and finds them in its cache when it counts.
    """
    n = len(keys)
    records = np.empty(n, dtype=np.int64)
    ahead = row
    while row < n:
        time = when[row]
        end = row + 1
        while end < n and when[end] == time:
            end += 1
        if size[0] + (end - row) > len(known):
            break
        if end > ahead:
            ahead = min(n, max(end, row + _AHEAD))
            for event in range(row, ahead):
                key = keys[event]
                records[event] = -1 if key < 0 else slots[_lookup(key, slots, known)]
        for event in range(row, end):
            if not reads[event]:
                continue
            record = records[event]
            if keys[event] >= 0 and (record == -1 or time - times[record, 2] > idle):
                record = slots[_lookup(keys[event], slots, known)]  # entered since?
            _tell(
                record,
                time,
                half_lives,
                idle,
                counts,
                sums,
                times,
                read,
                out_counts,
                out_means,
                clocks,
            )
            read += 1
        for event in range(row, end):
            key = keys[event]
            if key < 0 or not counted[event] or clock[0] - time > idle:
                continue
            clock[0] = max(clock[0], time)
            record = records[event]
            if record == -1 or clock[0] - times[record, 2] > idle:
                place = _lookup(key, slots, known)
                record = np.int64(slots[place])
                if record == -1 or clock[0] - times[record, 2] > idle:
                    record = _enter(
                        key,
                        time,
                        place,
                        fan,
                        size,
                        slots,
                        known,
                        counts,
                        sums,
                        times,
                        head,
                        following,
                    )
            _count(record, time, weights[event], values[event], half_lives, counts, sums, times)
        row = end
    return row, read


@njit(cache=True)
def _members(first, head, following):  # type: ignore[no-untyped-def]
    count = 0
    record = head[first]
    while record != -1:
        count += 1
        record = following[record]
    found = np.empty(count, dtype=np.int64)
    record = head[first]
    for i in range(count):
        found[i] = record
        record = following[record]
    return found
