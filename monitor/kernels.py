"""Compiled inner loops of the open windows. Importing this module loads numba: do it lazily."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from monitor.sketches import (
    BUCKET_BASE,
    BUCKET_SHIFT,
    CODES,
    EXEMPLARS,
    GRID_CELLS,
    HISTOGRAMS,
    SLICE_SLOTS,
    SUM_INDEX,
)
from monitor.tables import (
    Columns,
    Float32,
    Float64,
    Int8,
    Int32,
    Int64,
    Table,
    compiled,
)

_N = SUM_INDEX["records"]
_ERRORS = SUM_INDEX["errors"]
_STATUS_N = SUM_INDEX["status_n"]
_THROTTLED = SUM_INDEX["throttled"]
_SERVER_ERRORS = SUM_INDEX["server_errors"]
_FINISH_N = SUM_INDEX["finish_n"]
_TRUNCATED = SUM_INDEX["truncated"]
_LABELLED = SUM_INDEX["labelled"]
_CORRECT = SUM_INDEX["correct"]
_LATENCY_LOG = SUM_INDEX["latency_log"]
_INPUT_LOG = SUM_INDEX["input_log"]
_OUTPUT_LOG = SUM_INDEX["output_log"]
_OUTPUT_ZERO = SUM_INDEX["output_zero"]
_LATENCY_INPUT = SUM_INDEX["latency_input_n"]
_LATENCY_OUTPUT = SUM_INDEX["latency_output_n"]
_TIMED_OUTPUT_MS = SUM_INDEX["timed_output_ms"]
_CONFIDENCE_SQUARE = SUM_INDEX["confidence_square"]
_FIRST_FIELD = SUM_INDEX["latency_n"]  # then (n, sum) of every number field, in order
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_LOG_FLOOR = 1e-3  # ms; ln of a latency of zero


@compiled
def _mixed(key: np.uint64, row: int) -> np.uint64:
    mixed = (key ^ (np.uint64(row + 1) * _MULTIPLIER)) * np.uint64(0xD6E8FEB86659FD93)
    mixed ^= mixed >> np.uint64(32)
    return mixed * _MULTIPLIER


@compiled
def _find(
    places: Int32, entry_key: npt.NDArray[np.unsignedinteger], entry_row: Int32, row: int, key: np.uint64
) -> int:
    """Where (row, key) is in `places`, or the free place where it belongs."""
    mask = np.uint64(len(places) - 1)
    place = (_mixed(np.uint64(key), row) >> np.uint64(20)) & mask
    while True:
        entry = places[place] - 1
        if entry < 0 or (entry_key[entry] == key and entry_row[entry] == row):
            return int(place)
        place = (place + np.uint64(1)) & mask


@compiled
def rehash(table: Table, entries: int) -> None:
    """Fill the (zeroed) hash tables from the entries."""
    seen_keys, seen_pairs = table.seen_keys, table.seen_pairs
    entry_row, entry_key, entry_pair = table.entry_row, table.entry_key, table.entry_pair
    for entry in range(entries):
        row, key, pair = entry_row[entry], entry_key[entry], entry_pair[entry]
        if key != 0:
            seen_keys[_find(seen_keys, entry_key, entry_row, row, key)] = entry + 1
        if pair != 0:
            seen_pairs[_find(seen_pairs, entry_pair, entry_row, row, np.uint64(pair))] = entry + 1


@compiled
def _admit(
    table: Table, columns: Columns, bits: Int64, chosen: Int64, row_of: Int32, entries: int
) -> tuple[Int64, Int64]:
    """Drop repeated requests; returns the records that count and their rows, in order, and logs them.

    Every series has a row already, and the arrays have room for all of the chosen records.
    """
    tokens, token_bits = columns.numbers[4], bits[4]
    keys, tenant_hash, sid = columns.key, columns.tenant_hash, columns.sid
    seen_keys, seen_pairs = table.seen_keys, table.seen_pairs
    entry_row, entry_key, entry_pair = table.entry_row, table.entry_key, table.entry_pair
    kept = np.empty(len(chosen), np.int64)
    rows = np.empty(len(chosen), np.int64)
    n = 0
    for i in chosen:
        row, entry = row_of[sid[i]], entries + n
        key = keys[i]
        if key != 0:
            place = _find(seen_keys, entry_key, entry_row, row, key)
            if seen_keys[place] != 0:
                continue
            seen_keys[place] = entry + 1
        entry_row[entry], entry_key[entry], entry_pair[entry] = row, key, 0
        if not np.isnan(tokens[i]):
            mixed = _mixed(tenant_hash[i] ^ (np.uint64(token_bits[i]) * _MULTIPLIER), 0)
            pair = max(np.uint32(mixed >> np.uint64(32)), np.uint32(1))
            place = _find(seen_pairs, entry_pair, entry_row, row, np.uint64(pair))
            if seen_pairs[place] == 0:
                seen_pairs[place] = entry + 1
                entry_pair[entry] = pair
        kept[n], rows[n] = i, row
        n += 1
    return kept[:n].copy(), rows[:n].copy()


@compiled
def _add_numbers(table: Table, numbers: Float64, bits: Int64, kept: Int64, rows: Int64, entries: int) -> None:
    """Sums, extremes and buckets of the number fields; bits = numbers as int64."""
    sums, minima, maxima, codes = table.sums, table.minima, table.maxima, table.entry_codes
    for f in range(numbers.shape[0]):
        at = _FIRST_FIELD + 2 * f
        for j in range(len(kept)):
            row, x = rows[j], numbers[f, kept[j]]
            if np.isnan(x):
                continue
            sums[row, at] += 1.0
            sums[row, at + 1] += x
            if f < HISTOGRAMS:
                code = (bits[f, kept[j]] >> BUCKET_SHIFT) - BUCKET_BASE + 2
                codes[entries + j, f] = min(max(code, 1), CODES - 1)
                minima[row, f] = min(minima[row, f], x)
                maxima[row, f] = max(maxima[row, f], x)
    memory, confidence = numbers[6], numbers[8]
    for j in range(len(kept)):
        row, i = rows[j], kept[j]
        if not np.isnan(memory[i]):
            maxima[row, HISTOGRAMS] = max(maxima[row, HISTOGRAMS], memory[i])
        if not np.isnan(confidence[i]):
            sums[row, _CONFIDENCE_SQUARE] += confidence[i] * confidence[i]


@compiled
def _add_logs(sums: Float64, numbers: Float64, kept: Int64, rows: Int64) -> None:
    """Sums of logarithms, and how latency goes with tokens."""
    latency = numbers[0]
    latency_log = np.full(len(kept), np.nan)
    for j in range(len(kept)):
        x = latency[kept[j]]
        if not np.isnan(x):
            log = latency_log[j] = np.log(max(x, _LOG_FLOOR))
            sums[rows[j], _LATENCY_LOG] += log
            sums[rows[j], _LATENCY_LOG + 1] += log * log
    for f, own, joint in ((4, _INPUT_LOG, _LATENCY_INPUT), (5, _OUTPUT_LOG, _LATENCY_OUTPUT)):
        for j in range(len(kept)):
            row, x = rows[j], numbers[f, kept[j]]
            if np.isnan(x):
                continue
            log = np.log(1.0 + max(x, 0.0))
            sums[row, own] += log
            sums[row, own + 1] += log * log
            if not np.isnan(latency_log[j]):
                sums[row, joint] += 1.0
                sums[row, joint + 1] += latency_log[j]
                sums[row, joint + 2] += log
                sums[row, joint + 3] += latency_log[j] * log
    for j in range(len(kept)):
        row, tokens, ms = rows[j], numbers[5, kept[j]], latency[kept[j]]
        if tokens == 0.0:
            sums[row, _OUTPUT_ZERO] += 1.0
        if not (np.isnan(tokens) or np.isnan(ms)):
            sums[row, _TIMED_OUTPUT_MS] += ms
            sums[row, _TIMED_OUTPUT_MS + 1] += tokens


@compiled
def _add_outcomes(
    table: Table, columns: Columns, kept: Int64, rows: Int64, start_ms: int, cell_ms: float
) -> None:
    """Status, finish reason, label, and when the records were."""
    sums, grid, first_ms, last_ms = table.sums, table.grid, table.first_ms, table.last_ms
    is_error, status, truncated, correct = (
        columns.is_error,
        columns.status,
        columns.truncated,
        columns.correct,
    )
    timestamp_ms = columns.timestamp_ms
    for j in range(len(kept)):
        row, i = rows[j], kept[j]
        sums[row, _N] += 1.0
        sums[row, _ERRORS] += is_error[i]
        if status[i] != 0:
            sums[row, _STATUS_N] += 1.0
            sums[row, _THROTTLED] += status[i] == 429
            sums[row, _SERVER_ERRORS] += status[i] >= 500
        if truncated[i] >= 0:
            sums[row, _FINISH_N] += 1.0
            sums[row, _TRUNCATED] += truncated[i]
        if correct[i] >= 0:
            sums[row, _LABELLED] += 1.0
            sums[row, _CORRECT] += correct[i]
        at_ms = timestamp_ms[i]
        first_ms[row] = min(first_ms[row], at_ms)
        last_ms[row] = max(last_ms[row], at_ms)
        grid[row, min(int((at_ms - start_ms) / cell_ms), GRID_CELLS - 1)] = 1


@compiled
def _add_slices(table: Table, columns: Columns, kept: Int64, rows: Int64) -> None:
    """Records, errors and latency by the values of the slice fields, the first SLICE_SLOTS of each."""
    ids, counts, latency = table.slice_ids, table.slice_counts, table.slice_latency
    texts, is_error, latency_ms = columns.texts, columns.is_error, columns.numbers[0]
    for f in range(texts.shape[0]):
        for j in range(len(kept)):
            row, i = rows[j], kept[j]
            wanted = texts[f, i] + 1
            if wanted == 0:
                continue
            for k in range(SLICE_SLOTS):
                held = ids[row, f, k]
                if held == 0:
                    ids[row, f, k] = wanted
                elif held != wanted:
                    continue
                counts[row, f, k, 0] += 1
                counts[row, f, k, 1] += is_error[i]
                if not np.isnan(latency_ms[i]):
                    counts[row, f, k, 2] += 1
                    latency[row, f, k] += latency_ms[i]
                break


@compiled
def _add_exemplars(table: Table, columns: Columns, kept: Int64, rows: Int64) -> None:
    """The slowest, and the first failed and the first of all records that have a request_id."""
    slowest_ms, exemplars = table.slowest_ms, table.exemplars
    keys, is_error, latency_ms = columns.key, columns.is_error, columns.numbers[0]
    for j in range(len(kept)):
        row, i = rows[j], kept[j]
        if keys[i] == 0:
            continue
        lowest = 0
        for place in range(1, EXEMPLARS):
            if slowest_ms[row, place] < slowest_ms[row, lowest]:
                lowest = place
        if latency_ms[i] > slowest_ms[row, lowest]:
            slowest_ms[row, lowest] = latency_ms[i]
            exemplars[row, 0, lowest] = 2 + i
        for kind in range(1, 3):
            if (kind == 1 and is_error[i] == 0) or exemplars[row, kind, EXEMPLARS - 1] != 0:
                continue
            for place in range(EXEMPLARS):
                if exemplars[row, kind, place] == 0:
                    exemplars[row, kind, place] = 2 + i
                    break


@compiled
def _settle_exemplars(exemplars: Int32, rows: int) -> Int64:
    """[k, 4]: (row, kind, place) that this batch has filled, and with which record. Settles them."""
    found = np.empty((rows * exemplars.shape[1] * EXEMPLARS, 4), np.int64)
    n = 0
    for row in range(rows):
        for kind in range(exemplars.shape[1]):
            for place in range(EXEMPLARS):
                if exemplars[row, kind, place] >= 2:
                    found[n, 0], found[n, 1], found[n, 2] = row, kind, place
                    found[n, 3] = exemplars[row, kind, place] - 2
                    exemplars[row, kind, place] = 1
                    n += 1
    return found[:n].copy()


@compiled
def count(
    table: Table,
    columns: Columns,
    bits: Int64,
    chosen: Int64,
    row_of: Int32,
    entries: int,
    start_ms: int,
    cell_ms: float,
    rows_used: int,
) -> tuple[Int64, Int64, Int64]:
    """Count the chosen records: everything but user metrics, in one call, as a call costs 20 microseconds.

    Returns the records that were no repetition, their rows, and the new exemplars.
    """
    kept, rows = _admit(table, columns, bits, chosen, row_of, entries)
    _add_numbers(table, columns.numbers, bits, kept, rows, entries)
    _add_logs(table.sums, columns.numbers, kept, rows)
    _add_outcomes(table, columns, kept, rows, start_ms, cell_ms)
    _add_slices(table, columns, kept, rows)
    _add_exemplars(table, columns, kept, rows)
    return kept, rows, _settle_exemplars(table.exemplars, rows_used)


@compiled
def mark(
    columns: Columns,
    version: int,
    confidence: int,
    kept: Int64,
    entries: int,
    versions: Int32,
    flags: Int8,
    confidences: Float32,
) -> None:
    """Of the kept records, from entry `entries` on: text id of the version, flags and confidence.

    version, confidence: rows of columns.texts and columns.numbers.
    """
    for j in range(len(kept)):
        i, entry = kept[j], entries + j
        versions[entry] = columns.texts[version, i]
        flags[entry, 0] = columns.is_error[i]
        flags[entry, 1] = columns.truncated[i]
        flags[entry, 2] = columns.correct[i]
        confidences[entry] = columns.numbers[confidence, i]


@compiled
def add_metrics(
    values: Float64, slots: Int64, kept: Int64, rows: Int64, sums: Float64, counts: Float64
) -> int:
    """Add user metrics; values: [names, n], slots: [names], -1 = ignored. Returns how many were ignored."""
    ignored = 0
    for m in range(len(slots)):
        for j in range(len(kept)):
            x = values[m, kept[j]]
            if np.isnan(x):
                continue
            if slots[m] < 0:
                ignored += 1
            else:
                sums[rows[j], slots[m]] += x
                counts[rows[j], slots[m]] += 1.0
    return ignored
