"""Native records of the common shape -> columns, in one compiled pass. Loads numba: import lazily.

The scanner takes a row only if it understands every byte of it: one flat object of ASCII without escapes,
no known field twice, numbers without exponents whose digits fit a float64 exactly; beyond the known
fields, scalars are passed over. Anything else it leaves alone: monitor.formats.native reads such a row, and
both give the same values (tests/test_scanner.py). Positions are addresses, as in monitor.formats.tokens.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from monitor.formats.field_names import (
    HIGHEST,
    ID,
    KINDS,
    METRICS,
    MULTIPLIER,
    NUMBER,
    OUTCOME,
    REQUIRED,
    SLOTS,
    STATUS,
    TIME,
    UNKNOWN,
    field_of,
)
from monitor.formats.native import MAX_METRIC_NAME_CHARS, MAX_NUMBER, MAX_TEXT_CHARS
from monitor.formats.request_keys import request_key
from monitor.formats.scan import GUESSED, NAMES, TAKEN, TOMBSTONE, TOO_LARGE, Scan
from monitor.formats.tokens import (
    blank,
    epoch_ms,
    integer,
    iso_ms,
    literal,
    name_end,
    next_name,
    number,
    same,
    skip,
    text_end,
    value_at,
    word,
)
from monitor.formats.words import borrowed, byte_at, word_at
from monitor.tables import compiled, inlined

Int64 = npt.NDArray[np.int64]

_TIMED = GUESSED  # behind the guesses: where a timestamp stands, and its minute
_MIX = np.uint64(0xD6E8FEB86659FD93)


@inlined
def _code(start: int, end: int, which: int, out: Scan) -> int:
    """The code of the bytes [start, end) in a dictionary, into which they go where they are new."""
    length, done = end - start, 0
    mixed = np.uint64(length) * _MIX
    while done < length - 8:
        mixed = (mixed ^ word_at(start + done)) * MULTIPLIER
        mixed ^= mixed >> np.uint64(32)
        done += 8
    mixed = (mixed ^ (word_at(end - 8) if length >= 8 else word(start, length))) * MULTIPLIER
    mixed ^= mixed >> np.uint64(32)
    places = out.places[which]
    mask = len(places) - 1
    place = np.int64(mixed >> np.uint64(8)) & mask
    while True:
        code = places[place] - 1
        if code < 0:
            break
        begin = out.value_start[which, code]
        if out.value_end[which, code] - begin == length and same(begin, start, length):
            return int(code)
        place = (place + 1) & mask
    code = out.sizes[which]
    if code == out.value_start.shape[1]:
        return -1  # full; only names of metrics can come so far
    places[place] = code + 1
    out.value_start[which, code], out.value_end[which, code] = start, end
    out.sizes[which] = code + 1
    return int(code)


@compiled
def _metric_value(at: int, end: int) -> tuple[int, float]:
    """(behind it, value), NaN for null; behind = -1 where it is not so simple."""
    c = byte_at(at)
    if c == 110:
        return literal(at, end)[0], np.nan
    at, value, _ = number(at + 1 if c == 45 else at, end)
    if value > MAX_NUMBER or (c == 45 and value == 0.0):
        return -1, np.nan
    return at, (-value if c == 45 else value)


@inlined
def _metrics(at: int, end: int, row: int, out: Scan) -> int:
    """One flat object of name: number | null; returns the place behind it, -1 where it is not so simple."""
    first = out.entries[0]
    at = blank(at + 1, end)
    if at < end and byte_at(at) == 125:
        return at + 1
    closed = False
    while not closed:
        stop = name_end(at, end)
        start, entry = at + 1, out.entries[0]
        if stop <= start or stop - start > MAX_METRIC_NAME_CHARS or entry >= len(out.metric_row):
            return -1
        at = value_at(stop + 1, end)
        if at < 0:
            return -1
        at, value = _metric_value(at, end)
        name = _code(start, stop, NAMES, out)
        if at < 0 or name < 0:
            return -1
        for earlier in range(first, entry):
            if out.metric_name[earlier] == name:
                return -1
        out.metric_row[entry], out.metric_name[entry], out.metric_value[entry] = row, name, value
        out.entries[0] = entry + 1
        at, closed = next_name(at, end)
        if at < 0:
            return -1
    return at


@compiled
def _outcome(at: int, end: int) -> tuple[int, int, int, int]:
    """A prediction or label: (behind it, 0 null | 1 text | 2 integer | 3 boolean, what tells it)."""
    c = byte_at(at)
    if c == 34:
        stop = text_end(at + 1, end)
        return (stop + 1 if stop >= 0 else -1), 1, at + 1, stop
    if 0 <= c - 48 <= 9:
        at, value = integer(at, end)
        return at, 2, value, 0
    at, which = literal(at, end)
    return at, (0 if which == 0 else 3), which, 0


@compiled
def _correct(label: tuple[int, int, int], prediction: tuple[int, int, int]) -> int:
    """-1 no label, 1/0 = equal or not, -2 = a boolean beside a number, which only Python compares."""
    if label[0] == 0:
        return -1
    if label[0] != prediction[0]:
        return -2 if label[0] + prediction[0] == 5 else 0
    if label[0] > 1:
        return 1 if label[1] == prediction[1] else 0
    length = label[2] - label[1]
    if prediction[2] - prediction[1] != length:
        return 0
    return 1 if same(label[1], prediction[1], length) else 0


@inlined
def _text_value(at: int, quoted: bool, end: int, field: int, row: int, out: Scan) -> int:
    """A string or null, or a status; returns the place behind it, -1 where it is not so simple."""
    kind = KINDS[field]
    if not quoted:
        if byte_at(at) == 110:
            behind, which = literal(at, end)
            return behind if which == 0 else -1
        if kind != STATUS:
            return -1
        behind, status = integer(at, end)
        out.status[row] = status if behind >= 0 else 0
        return behind if 100 <= status <= 599 else -1
    start, stop = at, text_end(at, end)
    if stop < 0:
        return -1
    length = stop - start
    if kind == STATUS:
        said = word(start, length)
        if length == 2 and said == np.uint64(0x6B6F):  # ok
            out.status[row] = 200
        elif length == 5 and said == np.uint64(0x726F727265):  # error
            out.status[row] = 500
        else:
            return -1
        return stop + 1
    if length > MAX_TEXT_CHARS:
        return -1
    if kind == ID:
        out.id_start[row], out.id_end[row] = start, stop
        out.key[row] = request_key(start, stop) if length else np.uint64(0)
    elif length:
        out.codes[SLOTS[field], row] = _code(start, stop, SLOTS[field], out)
    elif field == 1:
        return -1  # a model needs a name
    return stop + 1


@inlined
def _time_value(at: int, quoted: bool, end: int, row: int, known: Int64, out: Scan) -> int:
    if quoted:
        stop = text_end(at, end)
        ms = iso_ms(at, stop, known) if stop >= 0 else -1
        out.timestamp_ms[row] = ms
        return stop + 1 if ms >= 0 else -1
    begin = at
    at, found, _ = number(begin, end)
    if at < 0:  # nanoseconds are beyond 2^53
        at, whole = integer(begin, end)
        found = float(whole)
    if at >= 0:
        out.timestamp_ms[row] = epoch_ms(found)
    return at


@inlined
def _value(at: int, quoted: bool, end: int, field: int, row: int, known: Int64, out: Scan) -> int:
    """The value of a known field but prediction and label, behind its quote if it has one; returns the place
    behind it or -1."""
    kind = KINDS[field]
    if kind == NUMBER:
        if quoted:
            return -1
        if byte_at(at) == 110:
            behind, which = literal(at, end)
            return behind if which == 0 else -1
        at, found, _ = number(at, end)
        if found > HIGHEST[SLOTS[field]]:
            return -1
        out.numbers[SLOTS[field], row] = found
        return at
    if kind == TIME:
        return _time_value(at, quoted, end, row, known, out)
    if kind == METRICS:
        if quoted:
            return -1
        if byte_at(at) == 123:
            return _metrics(at, end, row, out)
        behind, which = literal(at, end)
        return behind if which == 0 else -1
    return _text_value(at, quoted, end, field, row, out)


@compiled
def _next_field(at: int, end: int, first: bool) -> tuple[int, int, bool, bool]:
    """(place of the next value, behind its quote if it has one; its field; quoted; the row is closed).

    at: behind the value before, or the begin of the row. The place is -1 where it is not so simple.
    """
    if first:
        at = blank(at, end)
        at = blank(at + 1, end) if at < end and byte_at(at) == 123 else -1
    else:
        at, closed = next_name(at, end)
        if closed:
            return at, UNKNOWN, False, True
    stop = name_end(at, end)
    if stop < 0:
        return -1, UNKNOWN, False, False
    field = field_of(at + 1, stop - at - 1)
    at = value_at(stop + 1, end)
    if at >= 0 and byte_at(at) == 34:
        return at + 1, field, True, False
    return at, field, False, False


@inlined
def _scan_row(at: int, end: int, row: int, out: Scan) -> bool:
    """True if the whole row was understood.

    out.guesses holds what stood between two values of a row before: where, how long, of which field, and
    whether it ends with a quote. Most rows have the same fields in the same order.
    """
    seen, place, guesses = 0, 0, out.guesses
    label = prediction = (0, 0, 0)
    while True:
        length = guesses[place, 1]
        if length > 0 and at + length < end and same(guesses[place, 0], at, length):
            at, field, quoted = at + length, guesses[place, 2], guesses[place, 3] != 0
        else:
            begin = at
            at, field, quoted, closed = _next_field(at, end, place == 0)
            if closed:
                break
            if at < 0:
                return False
            guesses[place, 0], guesses[place, 1] = begin, at - begin
            guesses[place, 2], guesses[place, 3] = field, 1 if quoted else 0
        place = min(place + 1, GUESSED - 1)
        if field == UNKNOWN:
            at = skip(at - 1 if quoted else at, end)
        elif seen >> field & 1:
            return False
        elif KINDS[field] == OUTCOME:
            at, kind, a, b = _outcome(at - 1 if quoted else at, end)
            if SLOTS[field] == 0:
                prediction = (kind, a, b)
            else:
                label = (kind, a, b)
        else:
            at = _value(at, quoted, end, field, row, guesses[_TIMED], out)
        if at < 0:
            return False
        seen |= 0 if field == UNKNOWN else 1 << field
    if blank(at, end) != end or seen & REQUIRED != REQUIRED or out.codes[0, row] < 0:
        return False
    correct = _correct(label, prediction)
    out.correct[row] = correct
    return correct > -2


@compiled
def scan(buffer: npt.NDArray[np.uint8], starts: Int64, ends: Int64, max_bytes: int, out: Scan) -> int:
    """Fill `out` with the messages buffer[starts[i]:ends[i]]; returns how many were not TAKEN.

    starts: -1 = a tombstone. A row larger than max_bytes is not looked at.
    """
    out = Scan(
        *(borrowed(out.state), borrowed(out.timestamp_ms), borrowed(out.numbers), borrowed(out.status)),
        *(borrowed(out.correct), borrowed(out.id_start), borrowed(out.id_end), borrowed(out.key)),
        *(borrowed(out.codes), borrowed(out.places), borrowed(out.value_start), borrowed(out.value_end)),
        *(borrowed(out.sizes), borrowed(out.metric_row), borrowed(out.metric_name)),
        *(borrowed(out.metric_value), borrowed(out.entries), borrowed(out.guesses)),
    )
    left, base = 0, np.int64(buffer.ctypes.data)
    for row in range(len(starts)):
        start, end = starts[row], ends[row]
        if start < 0:
            out.state[row] = TOMBSTONE
        elif end - start > max_bytes:
            out.state[row] = TOO_LARGE
        else:
            entries = out.entries[0]
            if _scan_row(base + start, base + end, row, out):
                out.state[row] = TAKEN
                if out.id_end[row] != 0:
                    out.id_start[row] -= base
                    out.id_end[row] -= base
                continue
            out.entries[0] = entries
        left += 1
    for which in range(len(out.sizes)):
        for code in range(out.sizes[which]):
            out.value_start[which, code] -= base
            out.value_end[which, code] -= base
    return left
