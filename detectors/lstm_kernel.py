"""One step of the forecaster for many series, compiled, float32.

Every sum runs over its inputs in a fixed order and each row is computed on its own, so a row's result
is the same bit for bit whatever else is in the batch. Vectorisation goes over outputs, never over a sum.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from detectors.types import Bool, Float32

ROWS = 8  # rows that share one pass over the weights
VALUE_LIMIT = np.float32(8.0)  # normalised inputs are clipped to +- this
SCALE_LIMIT = np.float32(4.0)  # |ln scale| stays below this
_EPSILON = np.float32(1e-5)


@njit(cache=True, error_model="numpy", inline="always")
def _tanh(x: np.float32) -> np.float32:
    """Lambert's continued fraction, seven terms; absolute error below 1e-5."""
    x = min(max(x, np.float32(-5.7)), np.float32(5.7))
    s = x * x
    top = x * (
        np.float32(2027025.0) + s * (np.float32(270270.0) + s * (np.float32(6930.0) + s * np.float32(36.0)))
    )
    bottom = np.float32(2027025.0) + s * (
        np.float32(945945.0) + s * (np.float32(51975.0) + s * (np.float32(630.0) + s))
    )
    return top / bottom


@njit(cache=True, error_model="numpy")
def _matmul(x: Float32, weight: Float32, bias: Float32, out: Float32, rows: int) -> None:
    """out[:rows] = x[:rows] @ weight + bias, inputs added in ascending order."""
    inputs, outputs = weight.shape
    for r in range(rows):
        for j in range(outputs):
            out[r, j] = bias[j]
    i = 0
    while i + 4 <= inputs:
        for r in range(rows):
            a, b, c, d = x[r, i], x[r, i + 1], x[r, i + 2], x[r, i + 3]
            for j in range(outputs):
                out[r, j] = (
                    ((out[r, j] + a * weight[i, j]) + b * weight[i + 1, j]) + c * weight[i + 2, j]
                ) + d * weight[i + 3, j]
        i += 4
    while i < inputs:
        for r in range(rows):
            a = x[r, i]
            for j in range(outputs):
                out[r, j] += a * weight[i, j]
        i += 1


@njit(cache=True, error_model="numpy")
def _layer_norm(x: Float32, gain: Float32, shift: Float32, rows: int) -> None:
    width = len(gain)
    for r in range(rows):
        total = np.float32(0.0)
        for j in range(width):
            total += x[r, j]
        mean = total / np.float32(width)
        total = np.float32(0.0)
        for j in range(width):
            total += (x[r, j] - mean) * (x[r, j] - mean)
        factor = np.float32(1.0) / np.sqrt(total / np.float32(width) + _EPSILON)
        for j in range(width):
            x[r, j] = (x[r, j] - mean) * factor * gain[j] + shift[j]


@njit(cache=True, error_model="numpy")
def _cell(gates: Float32, hidden: Float32, cell: Float32, rows: int) -> None:
    """Gates (input, forget, candidate, output; [rows, 4H]) advance hidden and cell in place."""
    width = hidden.shape[1]
    half = np.float32(0.5)
    for r in range(rows):
        for j in range(width):
            opened = half + half * _tanh(half * gates[r, j])
            kept = half + half * _tanh(half * gates[r, width + j])
            shown = half + half * _tanh(half * gates[r, 3 * width + j])
            cell[r, j] = kept * cell[r, j] + opened * _tanh(gates[r, 2 * width + j])
            hidden[r, j] = shown * _tanh(cell[r, j])


@njit(cache=True, error_model="numpy")
def _attend(memory: Float32, query: Float32, keys: Float32, filled: int, out: Float32) -> None:
    """Softmax-weighted mean of the newest `filled` rows of memory [K, H]; query, keys: [H, H]."""
    size, width = memory.shape
    asked = np.zeros(width, np.float32)
    for i in range(width):
        for j in range(width):
            asked[j] += memory[size - 1, i] * query[i, j]
    turned = np.zeros(width, np.float32)
    for j in range(width):
        for i in range(width):
            turned[i] += asked[j] * keys[i, j]
    weights = np.zeros(size, np.float32)
    highest = np.float32(-1e30)
    for k in range(size - filled, size):
        total = np.float32(0.0)
        for j in range(width):
            total += turned[j] * memory[k, j]
        weights[k] = total / np.sqrt(np.float32(width))
        highest = max(highest, weights[k])
    mass = np.float32(0.0)
    out[:] = np.float32(0.0)
    for k in range(size - filled, size):
        weight = np.float32(math.exp(weights[k] - highest))
        mass += weight
        for j in range(width):
            out[j] += weight * memory[k, j]
    if filled > 0:
        for j in range(width):
            out[j] /= mass


@njit(cache=True, error_model="numpy")
def _judge(
    z: Float32, mask: Bool, last: Float32, raw: Float32, skip: Float32, dof: float, constant: float,
    mean: Float32, scale: Float32, residual: Float32,
) -> np.float32:  # fmt: skip
    """Student-t negative log-likelihood of one window, a mean over its present features.

    raw: [2C], the head's output; skip: [C], the share of the last value in the mean. dof = inf: Gaussian.
    """
    width = len(z)
    product, total, present = 1.0, 0.0, 0
    for f in range(width):
        log_scale = SCALE_LIMIT * _tanh(raw[width + f] / SCALE_LIMIT)
        scale[f] = np.float32(math.exp(log_scale))
        mean[f] = raw[f] + skip[f] * last[f]
        residual[f] = np.float32(0.0)
        if mask[f]:
            value = min(max(z[f], -VALUE_LIMIT), VALUE_LIMIT)
            residual[f] = (value - mean[f]) / scale[f]
            square = float(residual[f]) * float(residual[f])
            present += 1
            total += float(log_scale) + constant
            if dof == np.inf:
                total += 0.5 * square
            else:
                product *= 1.0 + square / dof
                if product > 1e200:
                    total += 0.5 * (dof + 1.0) * math.log(product)
                    product = 1.0
    if present == 0:
        return np.float32(0.0)
    if dof != np.inf:
        total += 0.5 * (dof + 1.0) * math.log(product)
    return np.float32(total / present)


@njit(cache=True, error_model="numpy", nogil=True)
def advance(  # noqa: C901 (one compiled loop; split up, the buffers would be handed around)
    z: Float32, mask: Bool, time: Float32, extra: Float32, state: Float32,
    in_w: Float32, in_b: Float32, in_norm: Float32,
    cell_w: Float32, cell_b: Float32, out_norm: Float32,
    query: Float32, keys: Float32, head_w: Float32, head_b: Float32, skip: Float32, alarm_w: Float32,
    dof: float, constant: float, residual_link: bool,
    nll: Float32, mean: Float32, scale: Float32, residual: Float32, logit: Float32,
) -> None:  # fmt: skip
    """Judge z [m, C] by each row's state [m, S], then advance the states in place.

    extra [m, E] is seen with the window and not predicted; alarm_w [0 or 2H + 1] weighs the output, the
    projected input and 1 into the log-odds `logit` [m] that this window is part of a fault.

    in_norm [0 or 2, H] and out_norm [0 or 2, H] hold gain and shift; cell_w [L, 2H, 4H]; query and keys
    [0 or H, H]. The state is: per layer hidden and cell, the summary [H], last values [C], and with
    attention the memory [K, H] and the number of its rows in use.
    """
    windows, features = z.shape
    layers, hidden_size = cell_w.shape[0], in_b.shape[0]
    times = time.shape[1]
    at_summary = 2 * layers * hidden_size
    at_last = at_summary + hidden_size
    at_memory = at_last + features
    attention = query.shape[0] > 0
    slots = (state.shape[1] - at_memory - 1) // hidden_size if attention else 0
    at_time = head_w.shape[0] - times
    source = np.zeros((ROWS, in_w.shape[0]), np.float32)
    link = np.zeros((ROWS, hidden_size), np.float32)
    joined = np.zeros((ROWS, 2 * hidden_size), np.float32)
    gates = np.zeros((ROWS, 4 * hidden_size), np.float32)
    hidden = np.zeros((ROWS, hidden_size), np.float32)
    cell = np.zeros((ROWS, hidden_size), np.float32)
    seen = np.zeros((ROWS, head_w.shape[0]), np.float32)
    raw = np.zeros((ROWS, 2 * features), np.float32)
    for start in range(0, windows, ROWS):
        rows = min(ROWS, windows - start)
        for r in range(rows):
            row = state[start + r]
            seen[r, :hidden_size] = row[at_summary:at_last]
            if attention:
                memory = row[at_memory : at_memory + slots * hidden_size].reshape((slots, hidden_size))
                _attend(memory, query, keys, int(row[-1]), seen[r, hidden_size : 2 * hidden_size])
            seen[r, at_time:] = time[start + r]
        _matmul(seen, head_w, head_b, raw, rows)
        for r in range(rows):
            row = state[start + r]
            i = start + r
            last = row[at_last:at_memory]
            nll[i] = _judge(z[i], mask[i], last, raw[r], skip, dof, constant, mean[i], scale[i], residual[i])
            for f in range(features):
                source[r, f] = np.float32(0.0)
                source[r, features + f] = np.float32(0.0)
                if mask[i, f]:
                    last[f] = min(max(z[i, f], -VALUE_LIMIT), VALUE_LIMIT)
                    source[r, f] = last[f]
                    source[r, features + f] = np.float32(1.0)
            source[r, 2 * features : 2 * features + times] = time[i]
            source[r, 2 * features + times :] = extra[i]
        _matmul(source, in_w, in_b, link, rows)
        if in_norm.shape[0] > 0:
            _layer_norm(link, in_norm[0], in_norm[1], rows)
        for layer in range(layers):
            at = 2 * layer * hidden_size
            for r in range(rows):
                row = state[start + r]
                joined[r, :hidden_size] = link[r] if layer == 0 else hidden[r]
                joined[r, hidden_size:] = row[at : at + hidden_size]
                cell[r] = row[at + hidden_size : at + 2 * hidden_size]
            _matmul(joined, cell_w[layer], cell_b[layer], gates, rows)
            _cell(gates, hidden, cell, rows)
            for r in range(rows):
                state[start + r, at : at + hidden_size] = hidden[r]
                state[start + r, at + hidden_size : at + 2 * hidden_size] = cell[r]
        if out_norm.shape[0] > 0:
            _layer_norm(hidden, out_norm[0], out_norm[1], rows)
        for r in range(rows if alarm_w.shape[0] > 0 else 0):
            total = alarm_w[2 * hidden_size]
            for j in range(hidden_size):
                total += hidden[r, j] * alarm_w[j] + link[r, j] * alarm_w[hidden_size + j]
            logit[start + r] = total
        for r in range(rows):
            row = state[start + r]
            for j in range(hidden_size):
                row[at_summary + j] = hidden[r, j] + link[r, j] if residual_link else hidden[r, j]
            if attention:
                memory = row[at_memory : at_memory + slots * hidden_size].reshape((slots, hidden_size))
                for k in range(slots - 1):
                    memory[k] = memory[k + 1]
                memory[slots - 1] = row[at_summary:at_last]
                row[-1] = min(row[-1] + np.float32(1.0), np.float32(slots))
