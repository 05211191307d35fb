"""Smaller forecasters: pruning, int8 weights, distillation. Which of them pays: docs/lstm-ablation.md."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from detectors.lstm import (
    LstmModel,
    LstmOptions,
    LstmSequence,
    options_from_json,
    options_to_json,
    read_tensors,
    tensors_to_bytes,
)
from detectors.types import Float32

if TYPE_CHECKING:
    from detectors.lstm_network import Network

INT8_FORMAT = "inferwatch-lstm-int8-1"
_MATRICES = ("in_w", "cell_w", "head_w", "query", "keys")


def quantise(model: LstmModel) -> bytes:
    """The model with 8-bit weights: a quarter of the size, symmetric, one scale per output.

    The state must not drift, so the arithmetic stays float32: `load_quantised` gives an ordinary model.
    """
    tensors: dict[str, Any] = {}
    for name, weight in model.weights.items():
        if name not in _MATRICES or weight.size == 0:
            tensors[name] = weight
            continue
        scale = np.maximum(np.abs(weight).max(axis=-2, keepdims=True) / 127.0, 1e-12).astype(np.float32)
        tensors[name] = np.rint(weight / scale).astype(np.int8)
        tensors[name + ".scale"] = scale
    return tensors_to_bytes(tensors, {"format": INT8_FORMAT, "options": options_to_json(model.options)})


def load_quantised(data: bytes) -> LstmModel:
    """Raises ValueError for anything that `quantise` did not write."""
    about, tensors = read_tensors(data)
    if about.get("format") != INT8_FORMAT:
        raise ValueError(f"not an LSTM of format {INT8_FORMAT}")
    weights: dict[str, Float32] = {}
    for name, tensor in tensors.items():
        if name.endswith(".scale"):
            continue
        if tensor.dtype == np.int8:
            if name + ".scale" not in tensors:
                raise ValueError(f"weight {name} has no scale")
            weights[name] = tensor.astype(np.float32) * tensors[name + ".scale"]
        else:
            weights[name] = tensor
    return LstmModel(options_from_json(about.get("options", "")), weights)


def prune(
    model: LstmModel, share: float, sequences: list[LstmSequence], *, epochs: int = 8, seed: int = 7
) -> LstmModel:
    """Set the smallest `share` of the recurrent layer's and the head's weights to zero, then fine-tune.

    Magnitude pruning as in Han et al., "Learning both weights and connections" (2015). The zeros stay
    zero while the rest adapts. share in [0, 1); without sequences there is no fine-tuning.
    """
    if not 0.0 <= share < 1.0:
        raise ValueError(f"share {share} is not in [0, 1)")
    keep = {}
    for name in ("cell_w", "head_w"):
        size = np.abs(model.weights[name])
        keep[name] = size > np.quantile(size, share) if share else np.ones(size.shape, bool)
    thinned = {name: w * keep[name] if name in keep else w for name, w in model.weights.items()}
    pruned = LstmModel(model.options, thinned)
    if not sequences:
        return pruned
    return _fine_tuned(pruned, keep, sequences, epochs, seed)


def _fine_tuned(
    pruned: LstmModel, keep: dict[str, Any], sequences: list[LstmSequence], epochs: int, seed: int
) -> LstmModel:
    import torch

    from detectors.lstm_train import train_lstm

    hidden = pruned.options.hidden
    head = torch.from_numpy(keep["head_w"].T.copy())
    cells = torch.from_numpy(keep["cell_w"].transpose(0, 2, 1).copy())  # [L, 4H, 2H]

    def hold(network: Network) -> None:
        with torch.no_grad():
            network.head.weight.mul_(head)
            for i in range(len(cells)):
                getattr(network.lstm, f"weight_ih_l{i}").mul_(cells[i, :, :hidden])
                getattr(network.lstm, f"weight_hh_l{i}").mul_(cells[i, :, hidden:])

    options = dataclasses.replace(pruned.options, epochs=epochs, learning_rate=1e-3)
    model, _ = train_lstm(sequences, options, seed, start_from=pruned, after_step=hold)
    return LstmModel(pruned.options, model.weights)


def distil(
    teacher: LstmModel, student: LstmOptions, sequences: list[LstmSequence], *, seed: int = 7
) -> LstmModel:
    """A (smaller) model trained on the data and on the teacher's predicted distributions alike."""
    from detectors.lstm_train import train_lstm

    model, _ = train_lstm(sequences, student, seed, teacher=teacher)
    return model
