"""Imitated services with faults, as window statistics, to train the shipped prior on.

Arrivals and tokens come from the real workloads of shared/data/servegen; latency, errors, memory and the
rest are modelled here with characters drawn at random, on purpose another model than monitor/generate.py,
on which the result is judged. Faults act on records: any mix of effects, sizes, shapes and shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numba import njit

from detectors.types import STATISTIC_INDEX, STATISTICS

S = len(STATISTICS)
BIN_S = 600
EFFECTS = (  # what a fault may do to the records it hits
    "latency", "ttft", "tpot", "queue", "tail", "error_fast", "error_slow", "throttle", "rate", "retry",
    "empty", "runaway", "input", "output", "memory", "gpu", "confidence", "accuracy", "cost", "spread",
)  # fmt: skip
E = {name: i for i, name in enumerate(EFFECTS)}
_I = STATISTIC_INDEX


@dataclass(frozen=True, slots=True)
class Client:
    """One real workload: rates and variation per 10 minutes, token quantiles per 6 hours."""

    name: str
    rate: np.ndarray
    cv: np.ndarray
    levels: np.ndarray
    inputs: np.ndarray  # [slots, 16]
    outputs: np.ndarray


@dataclass(frozen=True, slots=True)
class Fault:
    start: int  # windows
    end: int
    effect: str
    size: float
    share: float


@dataclass(slots=True)
class Simulated:
    values: np.ndarray  # [T, S]
    counts: np.ndarray
    hit: np.ndarray  # [T], records a fault touched; -1 inside a fault that touched none
    faults: list[Fault]


def load_clients(folder: Path) -> list[Client]:
    """All clients of shared/data/servegen."""
    import pandas as pd

    rates, tokens = pd.read_parquet(folder / "rates.parquet"), pd.read_parquet(folder / "tokens.parquet")
    levels = np.array([0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1])
    clients = []
    for row in rates.itertuples():
        mine = tokens[tokens.client == row.client]
        slot = (mine.t_s.to_numpy() // 21_600).astype(int)
        nearest = np.abs(np.arange(56)[:, None] - slot[None, :]).argmin(axis=1)
        both = [np.stack(mine[c].to_list())[nearest] for c in ("input_tokens_q", "output_tokens_q")]
        clients.append(
            Client(f"{row.model}-{row.client}", np.array(row.rate_per_s), np.array(row.cv), levels, *both)
        )
    return clients


@njit(cache=True)
def _quantile(ordered: np.ndarray, q: float) -> float:
    at = min(max(int(np.ceil(q * len(ordered))) - 1, 0), len(ordered) - 1)
    v = ordered[at]
    return np.exp(np.round(np.log(v + 1e-9) / 0.03) * 0.03) if v > 0 else 0.0


@njit(cache=True)
def _put(values, counts, name, value, n):
    if n > 0:
        values[name] = value
        counts[name] = n


@njit(cache=True)
def _arrivals(rate, cv, window_s, renewal, times):
    """Arrival times of one 10-minute bin -> how many were written."""
    k = 1.0 / min(max(cv, 0.3), 12.0) ** 2 if cv > 0 else 1.0
    n = 0
    if rate <= 0:
        return 0
    if renewal:
        t = np.random.gamma(k) / k / rate * np.random.random()
        while t < BIN_S and n < len(times):
            times[n] = t
            n += 1
            t += np.random.gamma(k) / k / rate
        return n
    n = min(np.random.poisson(rate * BIN_S), len(times))
    t = 0.0
    for i in range(n):
        t += np.random.gamma(k) + 1e-9
        times[i] = t
    turn = np.random.random()
    whole = t + np.random.gamma(k)
    for i in range(n):
        times[i] = (times[i] / whole + turn) % 1.0 * BIN_S
    times[:n].sort()
    return n


@njit(cache=True)
def _simulate(  # noqa: C901  (one compiled pass over the records)
    seed, rate, cv, levels, in_q, out_q, windows, window_s, p, wander, effect, share, values, counts, hit
):
    """Records window by window. p: parameters (see `_character`); wander: [T, 4] slow factors;
    effect: [T, effects] (0 = none; the size of each effect otherwise); share: [T]."""
    np.random.seed(seed)
    times, pool = np.zeros(60000), np.zeros(60000)
    n_times, at, bin_now = 0, 0, -1
    rows = np.zeros((40000, 12))
    load = 0.0
    for w in range(windows):
        t0 = w * window_s
        m = 0
        touched = 0.0
        e = effect[w]
        while True:
            if at >= n_times:
                if (bin_now + 1) * BIN_S >= t0 + window_s:
                    break
                bin_now += 1
                boost = 1.0
                n_times = _arrivals(
                    rate[bin_now % len(rate)] * boost, cv[bin_now % len(rate)], window_s, p[24] > 0, pool
                )
                times[:n_times] = pool[:n_times] + bin_now * BIN_S
                at = 0
                continue
            if times[at] >= t0 + window_s:
                break
            t = times[at]
            at += 1
            copies = 1
            struck = np.random.random() < share[w]
            if e[8] != 0.0:
                factor = e[8]
                if factor < 1.0:
                    if np.random.random() > max(factor, 0.0):
                        touched += 1
                        continue
                else:
                    copies = int(factor + np.random.random())
                    touched += copies - 1
            slot = (int(t // 21600)) % len(in_q)
            u, v = np.random.random(), np.random.random()
            tin = np.interp(u, levels, in_q[slot])
            tout = np.interp(u if np.random.random() < p[25] else v, levels, out_q[slot])
            for c in range(copies):
                if m >= len(rows):
                    break
                if c > 0:
                    tin = np.interp(np.random.random(), levels, in_q[slot])
                    tout = np.interp(np.random.random(), levels, out_q[slot])
                tries = 1
                k = 0
                while k < tries and m < len(rows):
                    touched += _record(rows[m], t - t0, tin, tout, load, p, wander[w], e, struck)
                    if k == 0 and e[9] > 0 and (rows[m, 4] >= 400 or struck):
                        tries = 1 + np.random.poisson(e[9])
                        touched += tries - 1
                    m += 1
                    k += 1
        _window(rows[:m], m, window_s, values[w], counts[w], p)
        work = 0.0
        for i in range(m):
            work += rows[i, 0]
        load = 0.6 * load + 0.4 * min(work / (window_s * 1000.0 * p[0]), 0.97)
        hit[w] = touched


@njit(cache=True)
def _record(r, t, tin, tout, load, p, wander, e, struck):  # noqa: C901  (every effect in one place)  # noqa: C901  (every effect once, compiled)
    """Fill one record: latency, ttft, tpot, queue, status, in, out, memory, gpu, confidence, correct, t."""
    hit = 0.0
    if struck and e[12] > 0:
        tin, hit = tin * e[12], 1.0
    if struck and e[13] > 0:
        tout, hit = max(tout * e[13], 1.0), 1.0
    limit = p[10]
    if struck and e[11] > 0 and np.random.random() < e[11]:
        tout, hit = limit, 1.0
    if struck and e[10] > 0 and np.random.random() < e[10]:
        tout, hit = 0.0, 1.0
    tin, tout = np.round(tin), np.round(min(tout, limit))
    noise = np.exp(p[4] * np.random.standard_normal()) * wander[0]
    if np.random.random() < p[5]:
        noise *= min(1.0 + np.random.pareto(p[6]), 30.0)
    busy = 1.0 + p[7] * load / (1.0 - load)
    ttft = (p[1] + p[2] * tin) * noise * busy
    tpot = p[3] * wander[0] * (1 + 0.5 * p[7] * load) * np.exp(0.4 * p[4] * np.random.standard_normal())
    queue = np.random.exponential(1.0) * p[8] * (0.05 + load / (1.0 - load))
    if struck:
        if e[0] > 0:
            ttft, tpot, hit = ttft * e[0], tpot * e[0], 1.0
        if e[1] > 0:
            ttft, hit = ttft * e[1], 1.0
        if e[2] > 0:
            tpot, hit = tpot * e[2], 1.0
        if e[3] > 0:
            queue, hit = queue + np.random.exponential(e[3]) * (ttft + tpot * tout) * 0.5, 1.0
        if e[4] > 0:
            ttft, tpot, hit = ttft * e[4], tpot * e[4], 1.0
        if e[19] > 0:
            f = np.exp(e[19] * np.random.standard_normal())
            ttft, tpot, hit = ttft * f, tpot * f, 1.0
    latency = queue + ttft + tpot * max(tout - 1, 0.0)
    status = 200.0
    if np.random.random() < p[9] * wander[1]:
        u = np.random.random()
        status = 429.0 if u < p[26] else 500.0 if u < 0.8 else 503.0
    if struck:
        u = np.random.random()
        if u < e[5]:
            status, hit = 500.0, 1.0
            latency = latency * np.random.random()
        elif u < e[5] + e[6]:
            status, hit = 504.0, 1.0
            latency = latency * 2 + p[27]
        elif u < e[5] + e[6] + e[7]:
            status, hit = 429.0, 1.0
            latency = 5.0 * np.random.random() + 2.0
    r[0], r[1], r[2], r[3], r[4], r[5], r[6] = latency, ttft, tpot, queue, status, tin, tout
    r[7] = p[11] * wander[2] * (1 + 0.004 * np.random.standard_normal())
    r[8] = min(
        max((p[13] + (0.95 - p[13]) * load) * wander[3] + 0.03 * np.random.standard_normal(), 0.0), 1.0
    )
    r[9] = min(max(p[14] * (1 + 0.3 * (wander[3] - 1)) + p[15] * np.random.standard_normal(), 0.0), 1.0)
    right = p[16]
    if e[14] > 0:
        r[7], hit = r[7] * e[14], 1.0
    if e[15] > 0:
        r[8], hit = min(r[8] * e[15], 1.0), 1.0
    if struck and e[16] != 0:
        r[9], hit = min(max(r[9] + e[16], 0.0), 1.0), 1.0
    labelled = np.random.random() < p[17]
    if struck and e[17] > 0:
        right = right * (1 - e[17])
        hit = max(hit, 1.0 if labelled else 0.0)
    r[10] = -1.0
    if labelled and status < 400:
        r[10] = 1.0 if np.random.random() < right else 0.0
    r[11] = t
    if status >= 400 and p[28] > 0:
        r[6] = np.nan
    elif status >= 400:
        r[6] = 0.0
    if e[18] > 0:
        hit = 1.0
    return hit


@njit(cache=True)
def _window(r, n, window_s, v, c, p):
    """Records of one window -> statistics, in the order of STATISTICS."""
    v[0], c[0] = n, n
    v[35], c[35] = window_s, n
    if n == 0:
        return
    ok = np.zeros(n, np.bool_)
    errors = throttled = broken = 0.0
    for i in range(n):
        ok[i] = r[i, 4] < 400
        errors += r[i, 4] >= 400
        throttled += r[i, 4] == 429
        broken += r[i, 4] >= 500
    _put(v, c, 1, errors / n, n)
    _put(v, c, 32, throttled / n, n)
    _put(v, c, 33, broken / n, n)
    lat = np.sort(r[:, 0])
    _put(v, c, 2, _quantile(lat, 0.5), n)
    _put(v, c, 3, _quantile(lat, 0.95), n)
    _put(v, c, 4, _quantile(lat, 0.99), n)
    _put(v, c, 19, lat.mean(), n)
    _put(v, c, 20, lat[-1], n)
    ln = np.log(r[:, 0] + 1e-3)
    _put(v, c, 21, ln.mean(), n)
    _put(v, c, 22, ln.std(), n)
    good = int(ok.sum())
    for col, a, b in ((1, 5, 6), (2, 7, 38), (3, 8, 8)):
        part = np.sort(r[ok, col])
        if good > 0:
            _put(v, c, a, _quantile(part, 0.95 if col == 3 else 0.5), good)
            if col != 3:
                _put(v, c, b, _quantile(part, 0.95), good)
    tin = r[:, 5]
    lin = np.log1p(tin)
    _put(v, c, 9, tin.mean(), n)
    _put(v, c, 23, lin.mean(), n)
    _put(v, c, 25, lin.std(), n)
    _put(v, c, 27, ((lin - lin.mean()) * (ln - ln.mean())).mean(), n)
    _put(v, c, 29, _quantile(np.sort(tin), 0.95), n)
    distinct = 1
    ordered = np.sort(tin)
    for i in range(1, n):
        distinct += ordered[i] != ordered[i - 1]
    _put(v, c, 34, 1.0 - distinct / n, n)
    has = ~np.isnan(r[:, 6])
    k = int(has.sum())
    if k > 0:
        tout, l2 = r[has, 6], ln[has]
        lout = np.log1p(tout)
        ordered = np.sort(tout)
        _put(v, c, 10, tout.mean(), k)
        _put(v, c, 11, _quantile(ordered, 0.95), k)
        _put(v, c, 12, (tout == 0).mean(), k)
        _put(v, c, 24, lout.mean(), k)
        _put(v, c, 26, lout.std(), k)
        _put(v, c, 28, ((lout - lout.mean()) * (l2 - l2.mean())).mean(), k)
        _put(v, c, 30, _quantile(ordered, 0.5), k)
        if tout.sum() > 0:
            _put(v, c, 31, r[has, 0].sum() / tout.sum(), k)
        _put(v, c, 13, (tout >= p[10]).mean(), k)
    _put(v, c, 14, r[:, 7].max(), n)
    _put(v, c, 36, r[:, 7].mean(), n)
    _put(v, c, 15, r[:, 8].mean(), n)
    if good > 0:
        _put(v, c, 16, r[ok, 9].mean(), good)
        _put(v, c, 37, r[ok, 9].std(), good)
    labels = r[:, 10]
    labels = labels[labels >= 0]
    if len(labels) > 0:
        _put(v, c, 17, labels.mean(), len(labels))
    if good > 0:
        _put(v, c, 18, (r[ok, 5] * p[18] + np.where(np.isnan(r[ok, 6]), 0.0, r[ok, 6]) * p[19]).sum(), good)
    gap, last = 0.0, 0.0
    for i in range(n):
        gap = max(gap, r[i, 11] - last)
        last = r[i, 11]
    v[35] = max(gap, window_s - last)


def _log_uniform(rng, low, high):
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _character(rng, client: Client, scale: float) -> np.ndarray:
    p = np.zeros(32)
    llm = rng.random() < 0.75
    p[1] = _log_uniform(rng, 5, 600)
    p[2] = _log_uniform(rng, 0.005, 0.5)
    p[3] = _log_uniform(rng, 5, 80) if llm else 0.0
    p[4] = _log_uniform(rng, 0.05, 0.7)
    p[5], p[6] = _log_uniform(rng, 0.0003, 0.03), rng.uniform(1.2, 3.0)
    p[7], p[8] = rng.uniform(0, 1.5), _log_uniform(rng, 0.5, 80)
    mean_work = p[1] + p[2] * client.inputs[:, 7].mean() + p[3] * client.outputs[:, 7].mean()
    peak = float(np.quantile(client.rate, 0.97)) * scale * mean_work / 1000
    p[0] = max(peak / rng.uniform(0.15, 0.8), 1.0)
    p[9] = _log_uniform(rng, 0.0001, 0.03) if rng.random() < 0.9 else 0.0
    p[10] = np.ceil(max(client.outputs[:, -4:-1].max() * rng.uniform(0.4, 1.5), 8))
    p[11], p[13] = _log_uniform(rng, 500, 90_000), rng.uniform(0.02, 0.4)
    p[14], p[15] = rng.uniform(0.55, 0.97), rng.uniform(0.02, 0.15)
    p[16], p[17] = rng.uniform(0.6, 0.99), _log_uniform(rng, 0.005, 0.6)
    p[18], p[19] = _log_uniform(rng, 1e-7, 5e-6), _log_uniform(rng, 4e-7, 2e-5)
    p[24], p[25], p[26] = float(rng.random() < 0.5), rng.uniform(0, 0.5), rng.random() * 0.6
    p[27], p[28] = _log_uniform(rng, 5_000, 90_000), float(rng.random() < 0.5)
    return p


def _wander(rng, windows: int, window_s: float) -> np.ndarray:
    """[T, 4] slow factors of latency, error rate, memory and gauges: waves, drifts, sawtooth, releases."""
    t = np.arange(windows) * window_s / 3600
    out = np.zeros((windows, 4))
    for k, high in enumerate((0.12, 0.6, 0.03, 0.08)):
        size = _log_uniform(rng, high / 20, high)
        for _ in range(6):
            period = _log_uniform(rng, 0.7, 96)
            out[:, k] += size * 0.6 * np.sin(2 * np.pi * (t / period + rng.random()))
        steps = rng.normal(0, size * 0.02, windows)
        out[:, k] += np.convolve(steps, np.exp(-np.arange(60) / 20), "full")[:windows]
        for _ in range(rng.poisson(windows * window_s / 86_400 * 0.25)):  # releases that change little
            out[int(rng.integers(windows)) :, k] += rng.normal(0, size * 0.6)
    period = _log_uniform(rng, 3, 80)
    out[:, 2] += rng.uniform(0, 0.15) * ((t / period + rng.random()) % 1.0)
    for _ in range(rng.poisson(rng.uniform(0, 1.2) * windows * window_s / 86_400)):  # hiccups
        at = int(rng.integers(windows))
        out[at : at + int(rng.integers(1, 3)), 0] += rng.uniform(0.1, 0.7)
    return np.exp(out)


def _shape(rng, length: int) -> np.ndarray:
    """[length] intensity in (0, 1]: step, ramp, bump, on-off, decay."""
    u = (np.arange(length) + 1) / length
    kind = rng.choice(6, p=[0.45, 0.2, 0.1, 0.1, 0.1, 0.05])
    if kind == 0:
        return np.ones(length)
    if kind == 1:
        return u
    if kind == 2:
        return np.sin(np.pi * np.clip(u, 0.05, 0.95))
    if kind == 3:
        period = max(2, int(rng.integers(2, 20)))
        return ((np.arange(length) // period) % 2 == 0).astype(float)
    if kind == 4:
        return np.maximum(1.0 - 0.8 * u, 0.1)
    return (rng.random(length) < rng.uniform(0.3, 0.9)).astype(float)


_MULTIPLY = {"latency", "ttft", "tpot", "tail", "memory", "gpu", "input", "output", "cost"}


_SIZES: dict[str, tuple[float, float]] = {  # from just visible to gross
    "latency": (1.4, 10), "ttft": (1.7, 12), "tpot": (1.4, 8), "tail": (3.5, 25), "queue": (0.8, 12),
    "error_fast": (0.06, 1), "error_slow": (0.04, 1), "throttle": (0.06, 1), "empty": (0.06, 1),
    "runaway": (0.06, 1), "retry": (1, 7), "memory": (1.15, 2.5), "accuracy": (0.2, 0.95), "cost": (1.6, 8),
    "spread": (0.6, 1.8), "confidence": (0.05, 0.45), "gpu": (0.03, 0.6), "input": (2.5, 12),
    "output": (2.2, 12),
}  # fmt: skip
_MAY_FALL = {"memory": 0.1, "input": 0.4, "output": 0.5, "cost": 0.2}  # how often the factor is below 1
_BENIGN = (1.05, 1.4)  # growth of the inputs that is no fault


def _size(rng, effect: str) -> float:
    if effect == "rate":
        kind = rng.random()
        if kind < 0.5:
            return 0.0
        return _log_uniform(rng, 0.03, 0.5) if kind < 0.72 else _log_uniform(rng, 2.5, 12)
    size = _log_uniform(rng, *_SIZES[effect])
    if effect == "confidence":
        return -size if rng.random() < 0.85 else size
    if effect == "gpu" and rng.random() < 0.4:
        return _log_uniform(rng, 1.5, 5)
    return 1 / size if rng.random() < _MAY_FALL.get(effect, 0.0) else size


def _plan_faults(rng, windows: int, window_s: float, first: int, gap_h: float, kinds) -> tuple:
    effect, share = np.zeros((windows, len(EFFECTS))), np.ones(windows)
    faults: list[Fault] = []
    at = first + int(rng.exponential(gap_h * 1800 / window_s))
    odds = np.array([4.0 if kind == "rate" else 1.0 for kind in kinds])
    odds /= odds.sum()
    while at < windows - 10:
        length = max(3, int(_log_uniform(rng, 4, 5 * 3600 / window_s)))
        end = min(at + length, windows)
        name = str(rng.choice(kinds, p=odds))
        size = _size(rng, name)
        part = 1.0 if rng.random() < 0.5 else rng.uniform(0.1, 1.0)
        if name == "tail":
            part = _log_uniform(rng, 0.025, 0.2)
        elif name in ("rate", "memory", "gpu", "cost", "queue", "accuracy"):
            part = 1.0
        elif name == "retry":
            part = rng.uniform(0.1, 0.7)
        curve = _shape(rng, end - at)
        if name in _MULTIPLY or (name == "rate" and size > 1):
            level = np.exp(np.log(size) * curve)
        elif name == "rate":
            level = np.where(curve > 0, np.maximum(1 - (1 - size) * np.sqrt(curve), 1e-6), 0.0)
        else:
            level = size * curve
        effect[at:end, E[name]] = np.where(curve > 0, level, 0.0)
        share[at:end] = part
        if name == "retry" and rng.random() < 0.7:
            effect[at:end, E["error_fast"]] = rng.uniform(0.05, 0.6) * curve
        if name in ("latency", "error_fast", "error_slow") and rng.random() < 0.15:
            effect[at:end, E["queue"]] = rng.uniform(0.3, 3) * curve
        if len(kinds) > 2 and rng.random() < 0.2:
            other = str(rng.choice([k for k in kinds if k not in ("rate", name)]))
            if other in _MULTIPLY:
                more = np.exp(np.log(_size(rng, other)) * curve)
            else:
                more = _size(rng, other) * curve
            effect[at:end, E[other]] = np.where(curve > 0, more, 0.0)
        faults.append(Fault(at, end, name, size, part))
        at = end + 60 + int(rng.exponential(gap_h * 3600 / window_s))
    return effect, share, faults


_GROUPS = (
    ((5, 6), 0.25), ((7, 38), 0.35), ((8,), 0.4), ((14, 36), 0.3), ((15,), 0.35), ((16, 37), 0.5),
    ((17,), 0.5), ((18,), 0.35), ((13,), 0.25), ((10, 11, 12, 13, 24, 26, 28, 30, 31), 0.12),
    ((9, 23, 25, 27, 29, 34), 0.04),
)  # fmt: skip


def simulate(
    client: Client, seed: int, *, days: float, window_s: float = 60.0, gap_h: float | None = 7.0,
    rate_per_s: float | None = None, kinds: tuple[str, ...] = EFFECTS, quiet_h: float = 12.0,
) -> Simulated:  # fmt: skip
    """One imaginary service on a client's traffic. gap_h: mean hours between faults; None = no faults."""
    rng = np.random.default_rng(seed)
    windows = int(days * 86_400 / window_s)
    wanted = rate_per_s if rate_per_s is not None else _log_uniform(rng, 0.03, 8)
    natural = max(float(client.rate.mean()), 1e-6)
    scale = float(np.clip(wanted / natural, 0.05, 30)) if rng.random() < 0.6 else 1.0
    scale = min(scale, 10.0 / natural)
    p = _character(rng, client, scale)
    effect, share, faults = np.zeros((windows, len(EFFECTS))), np.ones(windows), []
    for _ in range(rng.poisson(days * 0.3)):
        begin = int(rng.integers(windows))
        effect[begin : begin + int(_log_uniform(rng, 30, 360)), E["input"]] = rng.uniform(*_BENIGN)
    benign = effect.copy()
    if gap_h is not None:
        first = int(quiet_h * 3600 / window_s)
        if p[3] == 0:
            kinds = tuple(kind for kind in kinds if kind != "tpot")
        effect, share, faults = _plan_faults(rng, windows, window_s, first, gap_h, kinds)
        for fault in faults:
            benign[fault.start : fault.end] = 0.0
        inside = effect.any(axis=1)
        effect = np.where(inside[:, None], effect, benign)
        share = np.where(inside, share, 1.0)
    values, counts, hit = np.full((windows, S), np.nan), np.zeros((windows, S)), np.zeros(windows)
    start = int(rng.integers(0, 14)) * 144
    thinned = np.sqrt(np.maximum(min(scale, 1.0) * (client.cv**2 - 1) + 1, 0.05))
    _simulate(
        int(rng.integers(2**31)), np.roll(client.rate * scale, -start),
        np.roll(np.where(client.cv > 0, thinned, 0), -start),
        client.levels, np.roll(client.inputs, -start // 36, 0), np.roll(client.outputs, -start // 36, 0),
        windows, window_s, p, _wander(rng, windows, window_s), effect, share, values, counts, hit,
    )  # fmt: skip
    if "cost" in kinds:
        factor = np.where(effect[:, E["cost"]] > 0, effect[:, E["cost"]], 1.0)
        values[:, _I["cost_usd_sum"]] *= factor
    if p[3] == 0:
        for c in (5, 6, 7, 38):
            values[:, c], counts[:, c] = np.nan, 0
    for group, odds in _GROUPS:
        if rng.random() < odds:
            values[:, list(group)], counts[:, list(group)] = np.nan, 0
    hit, faults = _visible(hit, counts, faults)
    return Simulated(values, counts, hit, faults)


_SHOWS_IN = {
    "memory": 14, "gpu": 15, "confidence": 16, "accuracy": 17, "cost": 18, "empty": 12, "runaway": 10,
    "input": 9, "output": 10, "queue": 2, "ttft": 2, "tpot": 2,
}  # fmt: skip


def _visible(hit, counts, faults):
    """Records hit per window, -1 inside a fault where nothing shows; faults that never show are dropped."""
    touched, hit = hit, np.zeros(len(hit))
    kept = []
    for fault in faults:
        part = slice(fault.start, fault.end)
        hit[part] = np.where(touched[part] > 0, touched[part], -1.0)
        shown = _SHOWS_IN.get(fault.effect)
        if shown is not None:
            hit[part] = np.where(counts[part, shown] > 0, hit[part], -1.0)
        if np.maximum(hit[part], 0).sum() >= 3:
            kept.append(fault)
        else:
            hit[part] = -1.0
    return hit, kept
