"""The trainable twin of the LSTM's serving step, and its loss."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from detectors.lstm import LstmModel, LstmOptions, likelihood_constant, weight_shapes
from detectors.types import Float32

VALUE_LIMIT, SCALE_LIMIT = 8.0, 4.0  # as in lstm_kernel

State = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""hidden and cell [L, B, H], summary [B, H], last values [B, C], memory [B, K, H] with K the rows in use"""


class Network(nn.Module):
    """The trainable twin of the serving step; the formulas are those of lstm_kernel."""

    def __init__(self, options: LstmOptions, features: int, times: int, extras: int = 0) -> None:
        super().__init__()
        self.options, self.features = options, features
        hidden = options.hidden
        seen = weight_shapes(options, features, times)["head_w"][0]
        self.enter = nn.Linear(2 * features + times + extras, hidden)
        self.enter_norm = nn.LayerNorm(hidden) if options.layer_norm else nn.Identity()
        self.lstm = nn.LSTM(hidden, hidden, options.layers, batch_first=True)
        self.leave_norm = nn.LayerNorm(hidden) if options.layer_norm else nn.Identity()
        self.head = nn.Linear(seen, 2 * features)
        self.alarm = nn.Linear(2 * hidden, 1) if options.alarm_weight else None
        self.skip = nn.Parameter(torch.full((features,), 0.5 if options.residual else 0.0))
        self.skip.requires_grad_(options.residual)
        if options.attention:
            self.query = nn.Parameter(torch.empty(hidden, hidden))
            self.keys = nn.Parameter(torch.empty(hidden, hidden))
            nn.init.xavier_uniform_(self.query)
            nn.init.xavier_uniform_(self.keys)
        if options.initialisation == "designed":
            self._initialise()

    def _initialise(self) -> None:
        """Xavier for inputs, orthogonal for the recurrence, forget gates open, He (small) for the head."""
        hidden = self.options.hidden
        nn.init.xavier_uniform_(self.enter.weight)
        nn.init.zeros_(self.enter.bias)
        for name, tensor in self.lstm.named_parameters():
            if "weight_ih" in name:
                nn.init.xavier_uniform_(tensor)
            elif "weight_hh" in name:
                for gate in range(4):
                    nn.init.orthogonal_(tensor.data[gate * hidden : (gate + 1) * hidden])
            else:
                nn.init.zeros_(tensor)
                if "bias_ih" in name:
                    tensor.data[hidden : 2 * hidden] = 1.0
        nn.init.kaiming_normal_(self.head.weight, nonlinearity="linear")
        self.head.weight.data *= 0.1
        nn.init.zeros_(self.head.bias)
        if self.alarm is not None:
            nn.init.xavier_uniform_(self.alarm.weight)
            nn.init.constant_(self.alarm.bias, -2.0)  # faults are rare

    def new_state(self, batch: int) -> State:
        hidden = self.options.hidden
        zeros = torch.zeros(self.options.layers, batch, hidden)
        return (
            zeros,
            zeros,
            torch.zeros(batch, hidden),
            torch.zeros(batch, self.features),
            torch.zeros(batch, 0, hidden),
        )

    def forward(
        self, z: torch.Tensor, mask: torch.Tensor, times: torch.Tensor, extra: torch.Tensor, state: State
    ) -> tuple[torch.Tensor, torch.Tensor, State, torch.Tensor]:
        """z, mask (float) [B, T, C], times [B, T, K], extra [B, T, E] -> mean, ln scale [B, T, C] from what
        came before, the new state, and the log-odds [B, T] of a fault, which know the window itself."""
        options = self.options
        hidden, cell, summary, last, memory = state
        known = z * mask
        link = self.enter_norm(self.enter(torch.cat([known, mask, times, extra], dim=2)))
        if self.training and options.dropout:
            link = nn.functional.dropout(link, options.dropout)
        out, (hidden, cell) = self.lstm(link, (hidden, cell))
        out = self.leave_norm(out)
        if self.training and options.dropout:
            out = nn.functional.dropout(out, options.dropout)
        summaries = out + link if options.residual else out
        before = torch.cat([summary[:, None], summaries[:, :-1]], dim=1)
        parts = [before]
        if options.attention:
            parts.append(self._attend(torch.cat([memory, summaries[:, :-1]], dim=1), z.shape[1]))
        raw = self.head(torch.cat([*parts, times], dim=2))
        held = _last_values(known, mask, last)
        mean = raw[..., : self.features] + self.skip * held[:, :-1]
        log_scale = SCALE_LIMIT * torch.tanh(raw[..., self.features :] / SCALE_LIMIT)
        memory = torch.cat([memory, summaries], dim=1)[:, -max(options.attention, 1) :]
        odds = torch.zeros(z.shape[:2])
        if self.alarm is not None:
            odds = self.alarm(torch.cat([out, link], dim=2))[..., 0]
        return mean, log_scale, (hidden, cell, summaries[:, -1], held[:, -1], memory), odds

    def _attend(self, memory: torch.Tensor, steps: int) -> torch.Tensor:
        """memory [B, R + T - 1, H], the R rows before the chunk first -> contexts [B, T, H]."""
        size, width = self.options.attention, self.options.hidden
        batch, rows = memory.shape[0], memory.shape[1]
        before = rows - (steps - 1)
        padded = torch.cat([memory.new_zeros(batch, size, width), memory], dim=1)
        windows = padded.unfold(1, size, 1)[:, before : before + steps].transpose(2, 3)  # [B, T, K, H]
        filled = (torch.arange(steps) + before).clamp(max=size)
        usable = torch.arange(size)[None] >= size - filled[:, None]  # [T, K]
        asked = windows[:, :, -1] @ self.query @ self.keys.T
        scores = torch.einsum("bth,btkh->btk", asked, windows) / math.sqrt(width)
        scores = scores.masked_fill(~usable, -1e30)
        weights = torch.softmax(scores, dim=2) * usable
        return torch.einsum("btk,btkh->bth", weights, windows)

    def export(self) -> LstmModel:
        """The weights as the serving model reads them."""

        def array(tensor: torch.Tensor) -> Float32:
            return tensor.detach().numpy().astype(np.float32)

        def norm(layer: nn.Module) -> Float32:
            if not isinstance(layer, nn.LayerNorm):
                return np.zeros((0, self.options.hidden), np.float32)
            return array(torch.stack([layer.weight, layer.bias]))

        cells, biases = [], []
        for i in range(self.options.layers):
            w = [
                getattr(self.lstm, f"{kind}_l{i}")
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            ]
            cells.append(array(torch.cat([w[0].T, w[1].T])))
            biases.append(array(w[2] + w[3]))
        empty = torch.zeros(0, self.options.hidden)
        alarm = torch.zeros(0)
        if self.alarm is not None:
            alarm = torch.cat([self.alarm.weight[0], self.alarm.bias])
        weights = {
            "in_w": array(self.enter.weight.T), "in_b": array(self.enter.bias),
            "in_norm": norm(self.enter_norm), "out_norm": norm(self.leave_norm),
            "cell_w": np.stack(cells), "cell_b": np.stack(biases),
            "query": array(self.query if self.options.attention else empty),
            "keys": array(self.keys if self.options.attention else empty),
            "head_w": array(self.head.weight.T), "head_b": array(self.head.bias), "skip": array(self.skip),
            "alarm_w": array(alarm),
        }  # fmt: skip
        return LstmModel(self.options, weights)

    def adopt(self, model: LstmModel) -> None:
        """Start from a trained model of the same options (fine-tuning)."""
        w = {name: torch.from_numpy(tensor.copy()) for name, tensor in model.weights.items()}
        hidden = self.options.hidden
        with torch.no_grad():
            self.enter.weight.copy_(w["in_w"].T)
            self.enter.bias.copy_(w["in_b"])
            self.head.weight.copy_(w["head_w"].T)
            self.head.bias.copy_(w["head_b"])
            self.skip.copy_(w["skip"])
            if self.alarm is not None:
                self.alarm.weight.copy_(w["alarm_w"][None, :-1])
                self.alarm.bias.copy_(w["alarm_w"][-1:])
            for layer, pair in ((self.enter_norm, w["in_norm"]), (self.leave_norm, w["out_norm"])):
                if isinstance(layer, nn.LayerNorm):
                    layer.weight.copy_(pair[0])
                    layer.bias.copy_(pair[1])
            for i in range(self.options.layers):
                getattr(self.lstm, f"weight_ih_l{i}").copy_(w["cell_w"][i, :hidden].T)
                getattr(self.lstm, f"weight_hh_l{i}").copy_(w["cell_w"][i, hidden:].T)
                getattr(self.lstm, f"bias_ih_l{i}").copy_(w["cell_b"][i])
                getattr(self.lstm, f"bias_hh_l{i}").zero_()
            if self.options.attention:
                self.query.copy_(w["query"])
                self.keys.copy_(w["keys"])


def _last_values(known: torch.Tensor, mask: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """[B, T + 1, C]: the newest present value before each step (and, at the end, after the chunk)."""
    steps = known.shape[1]
    values = torch.cat([last[:, None], known], dim=1)
    position = torch.arange(1, steps + 1)[None, :, None] * mask.long()
    start = torch.zeros_like(position[:, :1])
    newest = torch.cat([start, position], dim=1).cummax(dim=1).values
    return torch.gather(values, 1, newest)


def student_nll(
    z: torch.Tensor, mask: torch.Tensor, mean: torch.Tensor, log_scale: torch.Tensor, dof: float
) -> torch.Tensor:
    """Mean negative log-likelihood over the present entries, nats."""
    square = ((z - mean) * torch.exp(-log_scale)) ** 2
    each = 0.5 * square if math.isinf(dof) else 0.5 * (dof + 1) * torch.log1p(square / dof)
    each = each + log_scale + likelihood_constant(dof)
    return (each * mask).sum() / mask.sum().clamp(min=1.0)
