"""The tokens of JSON as far as they are simple, for compiled code. Loads numba: import lazily.

Positions are addresses of memory that the caller holds. A function that meets what is not so simple (escapes,
non-ASCII, exponents, more digits than a float64 holds) answers -1 for the place behind it.
"""

from __future__ import annotations

import numpy as np

from monitor.formats.words import (
    BACKSLASHES,
    BEYOND_NINES,
    HIGHS,
    MASKS,
    ONES,
    PAIRS,
    QUOTES,
    SPACES,
    ZEROS,
    byte_at,
    first_marked,
    word_at,
)
from monitor.tables import Int64, compiled

_EXACT = 1 << 53  # integers below are float64s
_TENS = 10.0 ** np.arange(23)  # exact
_MONTH_DAYS = np.array([0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])


@compiled
def word(at: int, length: int) -> np.uint64:
    """The bytes from `at`, at most eight, zeros behind them."""
    if at & 4095 <= 4088:  # inside one page, which can be read as a whole
        return np.uint64(word_at(at) & MASKS[min(length, 8)])
    found: np.uint64 = np.uint64(0)
    for i in range(min(length, 8)):
        found = found | np.uint64(byte_at(at + i)) << np.uint64(8 * i)
    return found


@compiled
def same(a: int, b: int, length: int) -> bool:
    """Are two stretches equal; where they are longer than a word, the last one overlaps the one before it."""
    last, done = length - 8, 0
    if last < 0:
        return bool(word(a, length) == word(b, length))
    while done < last:
        if word_at(a + done) != word_at(b + done):
            return False
        done += 8
    return bool(word_at(a + last) == word_at(b + last))


@compiled
def blank(at: int, end: int) -> int:
    """Behind white space."""
    while at < end:
        c = byte_at(at)
        if c != 32 and c != 10 and c != 13 and c != 9:
            break
        at += 1
    return at


@compiled
def text_end(at: int, end: int) -> int:
    """The closing quote of a string that begins at `at`, -1 before any escape, control or non-ASCII."""
    while at + 8 <= end:
        eight = word_at(at)
        quoted, escaped = eight ^ QUOTES, eight ^ BACKSLASHES
        marked = ((quoted - ONES) & ~quoted) | ((escaped - ONES) & ~escaped)
        marked |= ((eight - SPACES) & ~eight) | eight
        marked &= HIGHS
        if marked != 0:
            at += first_marked(marked)
            return at if byte_at(at) == 34 else -1
        at += 8
    while at < end:
        c = byte_at(at)
        if c == 34:
            return at
        if c == 92 or c < 32 or c >= 128:
            return -1
        at += 1
    return -1


@compiled
def _digits(at: int) -> tuple[int, int]:
    """(how many, value) of up to seven digits; (0, 0) where they are more, or close to the end of a page.

    All of a word at once: Lemire, "Quickly parsing eight digits" (2018).
    """
    if at & 4095 > 4088:
        return 0, 0
    x = word_at(at) ^ ZEROS
    others = ((x + BEYOND_NINES) | x) & HIGHS
    if others == 0:
        return 0, 0
    count = first_marked(others)
    if count == 0:
        return 0, 0
    x <<= np.uint64(8 * (8 - count))
    x = x * np.uint64(10) + (x >> np.uint64(8))
    high = (x & PAIRS) * np.uint64(100 + (1_000_000 << 32))
    low = ((x >> np.uint64(16)) & PAIRS) * np.uint64(1 + (10_000 << 32))
    return count, int(np.int64((high + low) >> np.uint64(32)))


@compiled
def number(at: int, end: int) -> tuple[int, float, bool]:
    """(behind it, value, whole) of digits with at most one point; behind = -1 where it is not so simple."""
    whole, value = _digits(at)
    if whole == 1 or (whole > 1 and byte_at(at) != 48):
        behind = at + whole
        if byte_at(behind) != 46:
            if behind < end and byte_at(behind) | 32 != 101:  # no exponent
                return behind, float(value), True
        else:
            parts, part = _digits(behind + 1)
            behind += 1 + parts
            if parts > 0 and behind < end and byte_at(behind) | 32 != 101:
                scale = _TENS[parts]
                return behind, (value * np.int64(scale) + part) / scale, False
    return _any_number(at, end)


@compiled
def _any_number(at: int, end: int) -> tuple[int, float, bool]:
    """As `number`, digit by digit."""
    mantissa, begin, point = 0, at, -1
    while at < end:
        c = byte_at(at)
        digit = c - 48
        if 0 <= digit <= 9:
            mantissa = 10 * mantissa + digit
        elif c == 46 and point < 0 and at > begin:
            point = at
        else:
            break
        at += 1
    digits = at - begin - (1 if point >= 0 else 0)
    if digits == 0 or digits > 18 or mantissa >= _EXACT or at >= end or point == at - 1:
        return -1, 0.0, False
    if byte_at(begin) == 48 and at > begin + 1 and point != begin + 1:
        return -1, 0.0, False  # a leading zero
    c = byte_at(at)
    if c == 101 or c == 69:
        return -1, 0.0, False  # an exponent
    if point < 0:
        return at, float(mantissa), True
    return at, mantissa / _TENS[at - 1 - point], False


@compiled
def integer(at: int, end: int) -> tuple[int, int]:
    """(behind it, value) of at most 18 digits without a sign; behind = -1 where it is not so simple."""
    value, begin = 0, at
    while at < end and 0 <= byte_at(at) - 48 <= 9:
        value = 10 * value + byte_at(at) - 48
        at += 1
    if at == begin or at - begin > 18 or at >= end or (byte_at(begin) == 48 and at > begin + 1):
        return -1, 0
    c = byte_at(at)
    return (-1 if c == 46 or c == 101 or c == 69 else at), value


@compiled
def literal(at: int, end: int) -> tuple[int, int]:
    """(behind it, 0 null | 1 true | 2 false); behind = -1 for anything else."""
    if at + 4 <= end:
        four = word(at, 4)
        if four == np.uint64(0x6C6C756E):
            return at + 4, 0
        if four == np.uint64(0x65757274):
            return at + 4, 1
        if four == np.uint64(0x736C6166) and at + 5 <= end and byte_at(at + 4) == 101:
            return at + 5, 2
    return -1, 0


@compiled
def _two(at: int) -> int:
    """Two digits, or a number far below zero."""
    tens, ones = byte_at(at) - 48, byte_at(at + 1) - 48
    if tens < 0 or tens > 9 or ones < 0 or ones > 9:
        return -1_000_000
    return tens * 10 + ones


@compiled
def _minute_ms(at: int) -> int:
    """Epoch ms of the seventeen bytes 2026-01-31T12:00: and -1 where they are none."""
    if byte_at(at + 4) != 45 or byte_at(at + 7) != 45:
        return -1
    if byte_at(at + 10) != 84 or byte_at(at + 13) != 58 or byte_at(at + 16) != 58:
        return -1
    year = 100 * _two(at) + _two(at + 2)
    month, day = _two(at + 5), _two(at + 8)
    hour, minute = _two(at + 11), _two(at + 14)
    if year < 1971 or month < 1 or month > 12 or day < 1 or day > _MONTH_DAYS[month]:
        return -1
    if month == 2 and day == 29 and (year % 4 != 0 or (year % 100 == 0 and year % 400 != 0)):
        return -1
    if hour < 0 or hour > 23 or minute < 0 or minute > 59:
        return -1
    shifted, shifted_year = (month + 9) % 12, year - (1 if month <= 2 else 0)  # years that begin in March
    days = 365 * shifted_year + shifted_year // 4 - shifted_year // 100 + shifted_year // 400
    days += (153 * shifted + 2) // 5 + day - 1 - 719_468
    return int(((days * 24 + hour) * 60 + minute) * 60_000)


@compiled
def iso_ms(at: int, end: int, known: Int64) -> int:
    """Epoch ms of 2026-01-31T12:00:00[.123456](Z|+02:00), rounded down; -1 where it is not so simple.

    known: [2], where such a text stands (0 = nowhere yet) and its minute: most are in the one before's.
    """
    if end - at < 20:
        return -1
    if known[0] == 0 or not same(known[0], at, 17):
        known[0], known[1] = at, _minute_ms(at)
    second = _two(at + 17)
    if known[1] < 0 or second < 0 or second > 59:
        return -1
    ms = int(known[1]) + second * 1000
    at += 19
    if byte_at(at) == 46:
        at, scale, begin = at + 1, 100, at + 1
        while at < end and 0 <= byte_at(at) - 48 <= 9:
            ms += scale * (byte_at(at) - 48)
            scale //= 10
            at += 1
        if at == begin or at > begin + 6:
            return -1
    if at + 1 == end and byte_at(at) == 90:
        return ms
    if at + 6 != end or byte_at(at + 3) != 58:
        return -1
    ahead_h, ahead_m, sign = _two(at + 1), _two(at + 4), byte_at(at)
    if ahead_h < 0 or ahead_h > 23 or ahead_m < 0 or ahead_m > 59 or (sign != 43 and sign != 45):
        return -1
    ahead_ms = (60 * ahead_h + ahead_m) * 60_000
    return ms - ahead_ms if sign == 43 else ms + ahead_ms


@compiled
def epoch_ms(found: float) -> int:
    """As records._timestamps_ms does it."""
    scale = 1e-6
    if found < 1e11:
        scale = 1e3
    elif found < 1e14:
        scale = 1.0
    elif found < 1e17:
        scale = 1e-3
    return int(np.floor(found * scale + 5e-4))


@compiled
def value_at(at: int, end: int) -> int:
    """Behind a colon and the white space around it, -1 without one, or at the end."""
    at = blank(at, end)
    if at >= end or byte_at(at) != 58:
        return -1
    at = blank(at + 1, end)
    return at if at < end else -1


@compiled
def next_name(at: int, end: int) -> tuple[int, bool]:
    """(behind a comma and white space, False), (behind a closing brace, True), or -1."""
    at = blank(at, end)
    if at >= end:
        return -1, False
    c = byte_at(at)
    if c == 125:
        return at + 1, True
    return (blank(at + 1, end) if c == 44 else -1), False


@compiled
def name_end(at: int, end: int) -> int:
    """The closing quote of the name whose opening quote is at `at`, -1 without one."""
    if at < 0 or at >= end or byte_at(at) != 34:
        return -1
    return text_end(at + 1, end)


@compiled
def skip(at: int, end: int) -> int:
    """Behind a scalar that nobody wants, -1 where it is not so simple."""
    c = byte_at(at)
    if c == 34:
        stop = text_end(at + 1, end)
        return stop + 1 if stop >= 0 else -1
    if c == 45 or 0 <= c - 48 <= 9:
        return number(at + 1 if c == 45 else at, end)[0]
    return literal(at, end)[0]
