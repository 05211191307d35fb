"""The LSTM detector as it serves: one step per window, no torch.

Before a window is seen, each series' state gives a Student-t distribution for every feature of it; how
unlikely the window then is, is evidence. A model trained with labels also says, once it has seen the window,
how likely it is part of a fault: it knows the windows before it, which the GBDT does not.

Cell: Hochreiter & Schmidhuber, "Long short-term memory"
(Neural Computation, 1997), with the forget gate of Gers et al. (2000).
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from detectors.types import Bool, Float32

FORMAT = "inferwatch-lstm-2"


@dataclass(frozen=True, slots=True)
class LstmOptions:
    """Every technique by name; docs/lstm-ablation.md says what each brings and why it is on or off."""

    hidden: int = 32  # units per layer, 1..64
    layers: int = 1  # 1..2
    dof: float = 5.0  # degrees of freedom of the predicted Student-t; inf = Gaussian
    residual: bool = True  # summary = output + projected input; mean = head + share * last value
    layer_norm: bool = True  # of the projected input and of the output (Ba et al., 2016)
    attention: int = 0  # recent summaries that the head may look at, 0 = off
    initialisation: Literal["designed", "default"] = "designed"  # Xavier in, orthogonal recurrent, He head
    dropout: float = 0.1  # share of projected inputs and outputs dropped in training
    noise_std: float = 0.0  # Gaussian noise on training inputs, in normalised units
    jitter_std: float = 0.0  # level offset per segment and feature, on inputs and targets
    mask_rate: float = 0.05  # share of present inputs hidden in training
    learning_rate: float = 3e-3  # of AdamW, falling to a tenth as a cosine
    weight_decay: float = 1e-2  # of AdamW (Loshchilov & Hutter, 2019)
    clip_norm: float = 1.0  # gradient norm at most; 0 = no clipping
    early_stopping: int = 6  # epochs without a better held-out loss; 0 = run all epochs, keep the last
    epochs: int = 40  # at most
    chunk: int = 32  # steps of one truncated backpropagation
    chunks_per_segment: int = 4  # chunks through which a state is carried
    averaging: float = 0.0  # decay per step of a running mean of the weights, which is what is kept; 0 = off
    held_out: float = 0.15  # newest share of every series, kept for early stopping
    alarm_weight: float = 0.0  # of the labels' cross-entropy beside the likelihood; 0 = a forecaster only


@dataclass(frozen=True, slots=True, eq=False)
class LstmSequence:
    """The windows of one series in order."""

    z: Float32  # [n, C], normalised: about 0 +- 1 when all is normal; clipped to +-8 inside
    mask: Bool  # [n, C], True = present
    time: Float32  # [n, K], known in advance (hour of day as sine and cosine ...); K may be 0
    extra: npt.NDArray[np.floating[Any]] | None = None  # [n, E], seen with the window and not predicted
    label: npt.NDArray[np.int8] | None = None  # [n], 1 part of a fault, 0 normal, -1 unknown


@dataclass(frozen=True, slots=True, eq=False)
class LstmStep:
    """What the forecaster says of m windows (or of n windows in a row of one series)."""

    nll: Float32  # [m], mean negative log-likelihood of the present features, nats; 0 if none is present
    residual: Float32  # [m, C], (z - mean) / scale, 0 where missing
    mean: Float32  # [m, C], predicted before z was seen
    scale: Float32  # [m, C], > 0
    state: Float32  # [m, S], after the window
    logit: Float32  # [m], log-odds that the window is part of a fault; 0 of a forecaster only


def likelihood_constant(dof: float) -> float:
    """The part of the Student-t (or, for dof = inf, Gaussian) negative log-density that is constant."""
    if math.isinf(dof):
        return 0.5 * math.log(2 * math.pi)
    return math.lgamma(dof / 2) - math.lgamma((dof + 1) / 2) + 0.5 * math.log(dof * math.pi)


class LstmModel:
    """Trained weights with the step that uses them. Immutable; states belong to the caller."""

    def __init__(self, options: LstmOptions, weights: dict[str, Float32]) -> None:
        """Raises ValueError when the weights do not fit the options or are not finite."""
        self.options = options
        self.weights = {name: np.ascontiguousarray(w, dtype=np.float32) for name, w in weights.items()}
        self._check()
        self.feature_count = len(self.weights["skip"])
        hidden = options.hidden
        self.time_count, self.extra_count = self._inputs()
        self.state_size = (2 * options.layers + 1) * hidden + self.feature_count
        if options.attention:
            self.state_size += options.attention * hidden + 1
        self._constant = likelihood_constant(options.dof)

    def _check(self) -> None:
        o, w = self.options, self.weights
        if set(w) != set(WEIGHTS):
            raise ValueError(f"weights {sorted(set(w) ^ set(WEIGHTS))} are missing or unknown")
        if not all(np.isfinite(tensor).all() for tensor in w.values()):
            raise ValueError("a weight is not finite")
        times, extras = self._inputs()
        expected = weight_shapes(o, w["skip"].size, times, extras)
        for name, tensor in w.items():
            if min(times, extras) < 0 or tensor.shape != expected[name]:
                raise ValueError(f"weight {name} has shape {tensor.shape}, not {expected[name]}")

    def _inputs(self) -> tuple[int, int]:
        """How many inputs are known in advance, and how many come with the window beside its features."""
        o, w = self.options, self.weights
        if w["head_w"].ndim != 2 or w["in_w"].ndim != 2:
            return -1, -1
        times = w["head_w"].shape[0] - o.hidden * (2 if o.attention else 1)
        return times, w["in_w"].shape[0] - 2 * w["skip"].size - times

    def new_state(self, series: int) -> Float32:
        """[series, S] states of series that have not been seen."""
        return np.zeros((series, self.state_size), np.float32)

    def step(
        self, z: Float32, mask: Bool, time: Float32, state: Float32, extra: Float32 | None = None
    ) -> LstmStep:
        """Judge one window of each of m series, then advance; `state` itself is left as it was.

        z, mask: [m, C]; time: [m, K]; state: [m, S]; extra: [m, E], of a model that has such inputs.
        A row's answer is bit-equal in any batch.
        """
        return self._run(z, mask, time, np.array(state, dtype=np.float32, order="C"), extra)

    def _run(self, z: Float32, mask: Bool, time: Float32, state: Float32, extra: Float32 | None) -> LstmStep:
        from detectors.lstm_kernel import advance

        rows, features = z.shape
        extra = np.zeros((rows, 0), np.float32) if extra is None else extra
        if extra.shape != (rows, self.extra_count):
            raise ValueError(f"extra {extra.shape} is not of this model")
        if features != self.feature_count or time.shape != (rows, self.time_count):
            raise ValueError(f"z {z.shape} and time {time.shape} are not of this model")
        if mask.shape != z.shape or state.shape != (rows, self.state_size):
            raise ValueError(f"mask {mask.shape} or state {state.shape} does not fit z {z.shape}")
        known = np.logical_and(mask, np.isfinite(z))
        w, o = self.weights, self.options
        nll, logit = np.empty(rows, np.float32), np.zeros(rows, np.float32)
        mean, scale, residual = (np.empty((rows, features), np.float32) for _ in range(3))
        advance(
            np.ascontiguousarray(z, np.float32), known, np.ascontiguousarray(time, np.float32),
            np.ascontiguousarray(extra, np.float32), state,
            w["in_w"], w["in_b"], w["in_norm"], w["cell_w"], w["cell_b"], w["out_norm"],
            w["query"], w["keys"], w["head_w"], w["head_b"], w["skip"], w["alarm_w"],
            float(o.dof), self._constant, o.residual, nll, mean, scale, residual, logit,
        )  # fmt: skip
        return LstmStep(nll, residual, mean, scale, state, logit)

    def sequence(
        self, z: Float32, mask: Bool, time: Float32, state: Float32 | None = None,
        extra: Float32 | None = None,
    ) -> LstmStep:  # fmt: skip
        """n windows of one series in a row: the same numbers as n calls of `step` with one row.

        z, mask: [n, C]; time: [n, K]; state: [1, S]. The answer's arrays lead with n, its state is [1, S].
        """
        state = self.new_state(1) if state is None else np.array(state, np.float32)
        steps = []
        for i in range(len(z)):
            seen = extra[i : i + 1] if extra is not None else None
            step = self._run(z[i : i + 1], mask[i : i + 1], time[i : i + 1], state, seen)
            steps.append(step)
        if not steps:
            empty = np.empty((0, self.feature_count), np.float32)
            nothing = np.empty(0, np.float32)
            return LstmStep(nothing, empty, empty, empty, state, nothing)
        return LstmStep(
            np.concatenate([s.nll for s in steps]),
            np.concatenate([s.residual for s in steps]),
            np.concatenate([s.mean for s in steps]),
            np.concatenate([s.scale for s in steps]),
            state,
            np.concatenate([s.logit for s in steps]),
        )

    def to_bytes(self) -> bytes:
        """The model as safetensors; the same model always gives the same bytes."""
        return tensors_to_bytes(self.weights, {"format": FORMAT, "options": options_to_json(self.options)})

    @classmethod
    def from_bytes(cls, data: bytes) -> LstmModel:
        """Raises ValueError for anything that `to_bytes` did not write."""
        about, tensors = read_tensors(data)
        if about.get("format") != FORMAT:
            raise ValueError(f"not an LSTM of format {FORMAT}")
        return cls(options_from_json(about.get("options", "")), tensors)


WEIGHTS = (
    "in_w", "in_b", "in_norm", "cell_w", "cell_b", "out_norm", "query", "keys", "head_w", "head_b", "skip",
    "alarm_w",
)  # fmt: skip


def weight_shapes(
    options: LstmOptions, features: int, times: int, extras: int = 0
) -> dict[str, tuple[int, ...]]:
    """The shape of every weight of a model of so many features, time features and other inputs."""
    hidden = options.hidden
    norm = (2, hidden) if options.layer_norm else (0, hidden)
    look = (hidden, hidden) if options.attention else (0, hidden)
    seen = hidden * (2 if options.attention else 1) + times
    return {
        "in_w": (2 * features + times + extras, hidden),
        "in_b": (hidden,),
        "in_norm": norm,
        "cell_w": (options.layers, 2 * hidden, 4 * hidden),
        "cell_b": (options.layers, 4 * hidden),
        "out_norm": norm,
        "query": look,
        "keys": look,
        "head_w": (seen, 2 * features),
        "head_b": (2 * features,),
        "skip": (features,),
        "alarm_w": (2 * hidden + 1,) if options.alarm_weight else (0,),
    }


def tensors_to_bytes(tensors: dict[str, Any], about: dict[str, str]) -> bytes:
    """safetensors with `about` as one metadata entry: several have no fixed order in the file."""
    data: bytes = save_tensors(dict(sorted(tensors.items())), {"about": json.dumps(about, sort_keys=True)})
    return data


def read_tensors(data: bytes) -> tuple[dict[str, str], dict[str, Any]]:
    """safetensors bytes -> (metadata, tensors). Raises ValueError for bytes that are not."""
    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        return json.loads(header["__metadata__"]["about"]), load_tensors(data)
    except Exception as error:  # safetensors raises its own type for most, and others for some
        raise ValueError(f"not safetensors: {error}") from error


def options_to_json(options: LstmOptions) -> str:
    values = dataclasses.asdict(options)
    values["dof"] = repr(options.dof)  # JSON has no infinity
    return json.dumps(values, sort_keys=True)


def options_from_json(text: str) -> LstmOptions:
    """Raises ValueError for unknown options or malformed JSON."""
    try:
        values = json.loads(text)
        values["dof"] = float(values["dof"])
        return LstmOptions(**values)
    except (TypeError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"not the options of an LSTM: {error}") from error
