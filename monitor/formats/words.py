"""Bytes of memory, one or eight at a time, for compiled code. Loads numba: import lazily.

None of these check bounds; a caller does. Words are little-endian, so that the first byte is the lowest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WORD = 8
_ONES = 0x0101010101010101
ONES, HIGHS = np.uint64(_ONES), np.uint64(0x80 * _ONES)
QUOTES, BACKSLASHES = np.uint64(0x22 * _ONES), np.uint64(0x5C * _ONES)
SPACES, ZEROS = np.uint64(0x20 * _ONES), np.uint64(0x30 * _ONES)
BEYOND_NINES = np.uint64(0x76 * _ONES)  # added to a byte above nine, it sets the highest bit
PAIRS = np.uint64(0x000000FF000000FF)
MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)  # [n] keeps the first n bytes


def _load(builder: Any, address: Any, width: int) -> Any:
    integer = ir.IntType(width)
    loaded = builder.load(builder.inttoptr(address, integer.as_pointer()))
    loaded.align = 1
    return loaded


def _word_at(typing_context: Any, address: Any) -> Any:
    """The eight bytes at an address as uint64."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _load(builder, values[0], 64)

    return types.uint64(types.int64), generate


def _byte_at(typing_context: Any, address: Any) -> Any:
    """The byte at an address as int64."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.zext(_load(builder, values[0], 8), ir.IntType(64))

    return types.int64(types.int64), generate


def _first_marked(typing_context: Any, word: Any) -> Any:
    """Which byte (0-7) of a word is the first with a bit set; the word is not zero."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        zeros = builder.cttz(values[0], ir.Constant(ir.IntType(1), 1))
        return builder.lshr(zeros, ir.Constant(ir.IntType(64), 3))

    return types.int64(types.uint64), generate


def _borrowed(typing_context: Any, array: Any) -> Any:
    """The same array without its reference count, which compiled code touches at every use of a tuple.

    Only of what the caller in Python holds: an array that the compiled function has made itself is freed at
    once, for this is its last use.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        tools: Any = cgutils
        held = tools.create_struct_proxy(signature.args[0])(context, builder, value=values[0])
        held.meminfo = tools.get_null_value(held.meminfo.type)
        held.parent = tools.get_null_value(held.parent.type)
        return held._getvalue()

    return array(array), generate


word_at = cast(Callable[[int], np.uint64], intrinsic(_word_at))
byte_at = cast(Callable[[int], int], intrinsic(_byte_at))
first_marked = cast(Callable[[np.uint64], int], intrinsic(_first_marked))
borrowed = cast(Callable[[Any], Any], intrinsic(_borrowed))
