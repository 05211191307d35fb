"""Training the LSTM with torch: truncated backpropagation over chunks of many series."""

from __future__ import annotations

import math
import time as wall
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from detectors.lstm import LstmModel, LstmOptions, LstmSequence
from detectors.lstm_network import VALUE_LIMIT, Network, student_nll

_WINDOWS_PER_EPOCH = 200_000
_Parameters = tuple[torch.Tensor, ...] | list[torch.Tensor]
_BURN_IN = 8  # steps of a fresh state that carry no loss


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """How a training went."""

    epochs: int
    train_nll: list[float]  # per epoch, of augmented data: nats per feature, or the loss with labels
    held_out_nll: list[float]  # per epoch, likewise; empty without a held-out part
    best_epoch: int  # whose weights were kept
    seconds: float
    stopped: str  # "converged" | "epochs" | "time_budget"


@dataclass(frozen=True, slots=True, eq=False)
class _Tensors:
    z: torch.Tensor  # [N, C], all series after each other, clipped, 0 where missing
    mask: torch.Tensor  # [N, C], float
    time: torch.Tensor  # [N, K]
    extra: torch.Tensor  # [N, E], float16: there may be many
    label: torch.Tensor  # [N], int8
    spans: list[tuple[int, int]]  # training rows of each series
    held_spans: list[tuple[int, int]]  # held-out rows


def _tensors(sequences: list[LstmSequence], options: LstmOptions) -> _Tensors:
    masks = [np.logical_and(s.mask, np.isfinite(s.z)) for s in sequences]
    z = np.concatenate([np.where(m, s.z, 0.0) for s, m in zip(sequences, masks, strict=True)])
    spans, held, at = [], [], 0
    for s in sequences:
        kept = len(s.z) - int(len(s.z) * options.held_out) if options.early_stopping else len(s.z)
        spans.append((at, at + kept))
        if kept < len(s.z):
            held.append((at + kept, at + len(s.z)))
        at += len(s.z)
    return _Tensors(
        torch.from_numpy(np.clip(z, -VALUE_LIMIT, VALUE_LIMIT).astype(np.float32)),
        torch.from_numpy(np.concatenate(masks).astype(np.float32)),
        torch.from_numpy(np.concatenate([s.time for s in sequences]).astype(np.float32)),
        torch.from_numpy(np.concatenate([_extra(s) for s in sequences])),
        torch.from_numpy(np.concatenate([_label(s) for s in sequences])),
        spans,
        held,
    )


def _extra(s: LstmSequence) -> npt.NDArray[np.float16]:
    if s.extra is None:
        return np.zeros((len(s.z), 0), np.float16)
    clipped: npt.NDArray[np.float16] = np.clip(s.extra, -VALUE_LIMIT, VALUE_LIMIT).astype(np.float16)
    return clipped


def _label(s: LstmSequence) -> npt.NDArray[np.int8]:
    return np.full(len(s.z), -1, np.int8) if s.label is None else s.label.astype(np.int8)


def _cut(data: _Tensors, starts: list[tuple[int, int]], length: int) -> tuple[torch.Tensor, ...]:
    """Segments (start, end) padded with absent rows to [B, length, ...]."""
    begin = torch.tensor([s for s, _ in starts])[:, None]
    end = torch.tensor([e for _, e in starts])[:, None]
    index = begin + torch.arange(length)[None]
    inside = (index < end).float()[..., None]
    index = torch.minimum(index, end - 1)
    label = torch.where(inside[..., 0] > 0, data.label[index], torch.tensor(-1, dtype=torch.int8))
    return (
        data.z[index] * inside,
        data.mask[index] * inside,
        data.time[index],
        data.extra[index].float() * inside,
        label,
    )


def _segments(
    spans: list[tuple[int, int]], length: int, limit: int, random: np.random.Generator | None
) -> list[tuple[int, int]]:
    """Cover every span with pieces of `length`; `random` shifts the grid and the order, and thins out."""
    pieces = []
    for start, end in spans:
        offset = int(random.integers(0, length)) if random is not None and end - start > length else 0
        if offset:
            pieces.append((start, start + offset))
        pieces += [(s, min(s + length, end)) for s in range(start + offset, end, length)]
    if random is not None:
        pieces = [pieces[i] for i in random.permutation(len(pieces))]
        pieces = pieces[: max(1, limit // length)]
    return pieces


def _augment(
    z: torch.Tensor, mask: torch.Tensor, options: LstmOptions
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """-> inputs, input mask, targets: level jitter on both sides, noise and hiding on the inputs."""
    target = z
    if options.jitter_std:
        target = z + options.jitter_std * torch.randn(z.shape[0], 1, z.shape[2])
    source = target + options.noise_std * torch.randn_like(z) if options.noise_std else target
    shown = mask * (torch.rand_like(mask) >= options.mask_rate) if options.mask_rate else mask
    return source, shown, target


def _loss(
    network: Network, target: torch.Tensor, judged: torch.Tensor, said: tuple[torch.Tensor, ...],
    label: torch.Tensor, burn_in: int,
) -> torch.Tensor:  # fmt: skip
    """Likelihood of what is no fault, and what the alarm head makes of the labels."""
    mean, log_scale, odds = said
    options = network.options
    judged = judged * (label != 1)[..., None]
    judged[:, :burn_in] = 0.0
    loss = student_nll(target, judged, mean, log_scale, options.dof)
    if options.alarm_weight:
        known = (label >= 0).float()
        known[:, :burn_in] = 0.0
        truth = label.clamp(min=0).float()
        wrong = nn.functional.binary_cross_entropy_with_logits(odds, truth, reduction="none")
        loss = loss + options.alarm_weight * (wrong * known).sum() / known.sum().clamp(min=1.0)
    return loss


def _held_out_loss(network: Network, data: _Tensors) -> float:
    length = network.options.chunk * network.options.chunks_per_segment
    pieces = _segments(data.held_spans, length, 0, None)
    stride = max(1, len(pieces) * length // 50_000)
    pieces = pieces[::stride]
    network.eval()
    total, weight = 0.0, 0.0
    with torch.no_grad():
        for at in range(0, len(pieces), 128):
            z, mask, times, extra, label = _cut(data, pieces[at : at + 128], length)
            mean, log_scale, _, odds = network(z, mask, times, extra, network.new_state(len(z)))
            present = float(mask[:, _BURN_IN:].sum())
            said = (mean, log_scale, odds)
            total += float(_loss(network, z, mask, said, label, _BURN_IN)) * present
            weight += present
    return total / max(weight, 1.0)


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """torch's global generator, thread count and choice of algorithms, set and put back."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(strict)


def train_lstm(
    sequences: list[LstmSequence],
    options: LstmOptions | None = None,
    seed: int = 7,
    *,
    time_budget_s: float | None = None,
    log_dir: Path | None = None,
    start_from: LstmModel | None = None,
    teacher: LstmModel | None = None,
    after_step: Callable[[Network], None] | None = None,
    now_s: Callable[[], float] = wall.perf_counter,
) -> tuple[LstmModel, TrainingReport]:
    """Fit one global forecaster to the windows of all series.

    The same data, options and seed give the same model, unless `time_budget_s` ends the training early.
    `log_dir` receives TensorBoard event files (needs the tensorboard package). `start_from` continues a
    model of the same options. A `teacher`'s predictions count as much as the data (distillation, Hinton
    et al., 2015). `after_step` runs after every optimiser step (pruning keeps its zeros there).
    Raises ValueError without a window to learn from.
    """
    options = options or LstmOptions()
    sequences = [s for s in sequences if len(s.z) > 1]
    if not sequences:
        raise ValueError("no series with more than one window to learn from")
    with _reproducible(seed):
        data = _tensors(sequences, options)
        features, times = sequences[0].z.shape[1], sequences[0].time.shape[1]
        network = Network(options, features, times, data.extra.shape[1])
        if start_from is not None:
            network.adopt(start_from)
        guide = None
        if teacher is not None:
            guide = Network(teacher.options, features, times, teacher.extra_count)
            guide.adopt(teacher)
            guide.eval()
        learner = _Learner(network, guide, np.random.default_rng(seed), after_step)
        report = _fit(learner, data, time_budget_s, log_dir, now_s)
        return network.export(), report


@dataclass(frozen=True, slots=True, eq=False)
class _Learner:
    network: Network
    teacher: Network | None
    random: np.random.Generator
    after_step: Callable[[Network], None] | None


def _fit(
    learner: _Learner,
    data: _Tensors,
    time_budget_s: float | None,
    log_dir: Path | None,
    now_s: Callable[[], float],
) -> TrainingReport:
    network, options = learner.network, learner.network.options
    began = now_s()
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda e: 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, e / options.epochs)))
    )
    train, held, best, best_epoch, kept = [], [], math.inf, 0, network.state_dict()
    stopped = "epochs"
    write = _writer(log_dir)
    average = _average(network)
    mean = cast(Network, average.module)
    for epoch in range(options.epochs):
        train.append(_epoch(learner, data, optimiser, average))
        schedule.step()
        write("train_nll", train[-1], epoch)
        if data.held_spans:
            held.append(_held_out_loss(mean, data))
            write("held_out_nll", held[-1], epoch)
            if held[-1] < best - 1e-4:
                best, best_epoch = held[-1], epoch
                kept = {name: tensor.clone() for name, tensor in mean.state_dict().items()}
            if options.early_stopping and epoch - best_epoch >= options.early_stopping:
                stopped = "converged"
                break
        else:
            best_epoch, kept = epoch, mean.state_dict()
        if time_budget_s is not None and now_s() - began >= time_budget_s:
            stopped = "time_budget"
            break
    network.load_state_dict(kept)
    network.eval()
    return TrainingReport(len(train), train, held, best_epoch, now_s() - began, stopped)


def _average(network: Network) -> AveragedModel:
    """The running mean of the weights over the newest steps (Polyak and Juditsky, 1992); over a tenth of
    all steps at most, so that a short training is not held at its start."""

    def move(mean: _Parameters, now: _Parameters, steps: torch.Tensor | int) -> None:
        decay = min(network.options.averaging, (1.0 + float(steps)) / (10.0 + float(steps)))
        torch._foreach_lerp_(mean, now, 1.0 - decay)

    return AveragedModel(network, multi_avg_fn=move)


def _epoch(
    learner: _Learner, data: _Tensors, optimiser: torch.optim.Optimizer, average: AveragedModel
) -> float:
    """One pass; returns the mean loss. States run on from chunk to chunk, gradients do not."""
    network, teacher, options = learner.network, learner.teacher, learner.network.options
    length = options.chunk * options.chunks_per_segment
    pieces = _segments(data.spans, length, _WINDOWS_PER_EPOCH, learner.random)
    batch = min(64, max(4, len(pieces) // 8))
    losses = []
    network.train()
    for at in range(0, len(pieces), batch):
        z, mask, times, extra, label = _cut(data, pieces[at : at + batch], length)
        source, shown, target = _augment(z, mask, options)
        if options.mask_rate and extra.shape[2]:
            extra = extra * (torch.rand(len(extra), 1, extra.shape[2]) >= options.mask_rate)
        state = network.new_state(len(z))
        guide_state = teacher.new_state(len(z)) if teacher is not None else None
        for chunk in range(options.chunks_per_segment):
            part = slice(chunk * options.chunk, (chunk + 1) * options.chunk)
            state = tuple(t.detach() for t in state)  # type: ignore[assignment]
            shown_now = (source[:, part], shown[:, part], times[:, part], extra[:, part])
            mean, log_scale, state, odds = network(*shown_now, state)
            judged = mask[:, part]
            said, burn_in = (mean, log_scale, odds), _BURN_IN if chunk == 0 else 0
            loss = _loss(network, target[:, part], judged, said, label[:, part], burn_in)
            if teacher is not None and guide_state is not None:
                with torch.no_grad():
                    known = (target[:, part], mask[:, part], times[:, part], extra[:, part])
                    guide_mean, guide_scale, guide_state, _ = teacher(*known, guide_state)
                loss = loss + _distance(mean, log_scale, guide_mean, guide_scale, judged)
            if not loss.requires_grad or not (judged.any() or (label[:, part] >= 0).any()):
                continue
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if options.clip_norm:
                nn.utils.clip_grad_norm_(network.parameters(), options.clip_norm)
            optimiser.step()
            if learner.after_step is not None:
                learner.after_step(network)
            average.update_parameters(network)
            losses.append(loss.item())
    return float(np.mean(losses)) if losses else math.nan


def _distance(
    mean: torch.Tensor,
    log_scale: torch.Tensor,
    guide: torch.Tensor,
    guide_scale: torch.Tensor,
    mask: torch.Tensor,
) -> torch.Tensor:
    """How far a prediction lies from the teacher's: Kullback-Leibler divergence of the Gaussians, nats."""
    ratio = guide_scale - log_scale
    shift = ((mean - guide) * torch.exp(-log_scale)) ** 2
    each = 0.5 * (torch.exp(2 * ratio) + shift - 1) - ratio
    return (each * mask).sum() / mask.sum().clamp(min=1.0)


def _writer(log_dir: Path | None) -> Callable[[str, float, int], None]:
    if log_dir is None:
        return lambda name, value, epoch: None
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(log_dir))

    def write(name: str, value: float, epoch: int) -> None:
        writer.add_scalar(name, value, epoch)
        writer.flush()

    return write
