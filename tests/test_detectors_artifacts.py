"""Model files: the same bytes for the same model, and nothing is parsed that was changed."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors import artifacts, trial
from detectors.ensemble import Ensemble
from tests.detector_windows import WINDOW_MS, batch, windows

PRIOR = (resources.files("detectors") / "prior" / "prior.iwm").read_bytes()


def _load(blob: bytes, key: bytes | None = None) -> Ensemble:
    return artifacts.load(blob, false_alarms_per_week=1.0, window_ms=WINDOW_MS, key=key)


def test_the_shipped_prior_is_small_and_saves_to_itself() -> None:
    assert len(PRIOR) < 4 << 20
    assert artifacts.save(_load(PRIOR)) == PRIOR


def test_a_loaded_model_scores_bit_for_bit_the_same() -> None:
    one, two = _load(PRIOR), _load(artifacts.save(_load(PRIOR)))
    values, counts = windows(np.random.default_rng(3), 60)
    states = one.new_states(), two.new_states()
    for t in range(60):
        b = batch(t, values[t : t + 1], counts[t : t + 1])
        a, c = one.score(b, states[0]), two.score(b, states[1])
        assert (a.score, a.tail_probability) == (c.score, c.tail_probability)


@given(st.integers(0, len(PRIOR) - 1), st.integers(1, 255))
@settings(max_examples=100, deadline=None)
def test_a_changed_byte_is_refused(at: int, change: int) -> None:
    damaged = bytearray(PRIOR)
    damaged[at] ^= change
    with pytest.raises(ValueError, match="artefact"):
        _load(bytes(damaged))


@given(st.integers(0, len(PRIOR) - 1))
@settings(max_examples=50, deadline=None)
def test_a_cut_file_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="artefact"):
        _load(PRIOR[:length])


def test_bytes_behind_the_last_part_are_refused() -> None:
    with pytest.raises(ValueError, match="behind"):
        _load(PRIOR + b"x")


def test_with_a_key_in_the_environment_stored_models_must_be_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can write to the database can make hashes agree, but has no key. The prior is not stored."""
    prior = Ensemble.prior(false_alarms_per_week=1.0, window_ms=WINDOW_MS)
    unsigned = artifacts.save(prior)
    monkeypatch.setenv(artifacts.KEY_VARIABLE, "a key of the daemons")
    signed = artifacts.save(Ensemble.prior(false_alarms_per_week=1.0, window_ms=WINDOW_MS))
    trial.try_out(signed, trial.golden(prior), timeout_s=300)
    with pytest.raises(trial.ModelRefusedError, match="another key, or with none"):
        trial.try_out(unsigned, None)
    with pytest.raises(ValueError, match="another key, or with none"):
        _load(unsigned)
    monkeypatch.setenv(artifacts.KEY_VARIABLE, "a new key")
    with pytest.raises(trial.ModelRefusedError):
        trial.try_out(signed, None)


def test_a_signed_model_needs_its_key() -> None:
    signed = artifacts.save(_load(PRIOR), key=b"secret")
    assert _load(signed, b"secret").version == _load(PRIOR).version
    for key in (None, b"other"):
        with pytest.raises(ValueError, match="digest"):
            _load(signed, key)
    with pytest.raises(ValueError, match="digest"):
        _load(PRIOR, b"secret")


def test_the_budget_belongs_to_the_installation() -> None:
    loaded = artifacts.load(PRIOR, false_alarms_per_week=5.0, window_ms=WINDOW_MS)
    assert loaded.threshold < replace(loaded, false_alarms_per_week=0.2).threshold
