"""Versions of the model at a terminal: what was measured, how a training went, who put which one in force."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monitor.cli import build_app
from monitor.errors import InferwatchError
from monitor.measured import measured
from storage import history, queries
from storage.engine import connect, upgrade
from storage.models import ModelRegistry
from storage.outbox import Outbox
from storage.types import ModelVersionRow
from tests.stored import populate

Call = Callable[..., str]
CURVES = {"lstm_train_loss": [0.9, 0.7, 0.65], "trees_loss": [0.5, 0.45, 0.4, 0.38]}


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'models.db'}"
    populate(url)
    engine = connect(url)
    upgrade(engine)
    registry = ModelRegistry(engine)
    for n, version in enumerate(("first", "second", "third")):
        metrics: dict[str, Any] = {"windows": 1_000 + n, "curves": CURVES, "golden": [0.1, 0.2]}
        registry.add(ModelVersionRow(version, "ensemble", n, "champion", metrics, b"bytes", "00", "better"))
    engine.dispose()
    return url


@pytest.fixture
def call(url: str, capsys: pytest.CaptureFixture[str]) -> Call:
    def call(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            build_app(arguments[0])([*arguments, "--database", url], prog_name="inferwatch")
        assert end.value.code in (0, None)
        return capsys.readouterr().out

    return call


def test_a_version_is_shown_with_the_curves_of_its_training(call: Call) -> None:
    shown = call("models", "show", "second")
    assert "windows  1001" in shown and "golden" not in shown
    assert "lstm train loss: 0.9000 to 0.6500 in 3 rounds" in shown
    assert "trees loss: 0.5000 to 0.3800 in 4 rounds" in shown
    chart = shown[shown.index("trees loss") :].splitlines()[1:9]
    assert chart[0].startswith("0.5000 ┤•") and chart[-1].startswith("0.3800 ┤") and chart[-1].endswith("•")
    assert len(chart[-1]) > 40
    assert json.loads(call("models", "show", "second", "--json"))["metrics"]["curves"] == CURVES


def test_what_people_do_to_models_and_deliveries_is_kept_with_who_and_why(call: Call, url: str) -> None:
    engine = connect(url)
    outbox = Outbox(engine)
    (sent, *_) = (each.delivery_id for each in outbox.claim("test", 10**12, 10, 60_000))
    assert outbox.dead(sent, "test", 10**12, "gone")
    why = ("--by", "ada", "--comment", "because")
    call("models", "promote", "first", *why)
    call("models", "rollback", *why)
    call("models", "refuse", "first", *why)
    call("deliveries", "retry", sent, *why)
    silence = json.loads(call("silences", "add", "model=chat", *why, "--json"))["silence_id"]
    call("silences", "remove", silence, *why)
    rows = [(a["action"], a["subject"], a["actor"], a["reason"]) for a in history.actions(engine)]
    assert rows[::-1] == [
        ("model.promoted", "first", "ada", "because"),
        ("model.rolled_back", "first", "ada", "because"),
        ("model.refused", "first", "ada", "because"),
        ("delivery.retried", sent, "ada", "because"),
        ("silence.created", silence, "ada", "because"),
        ("silence.ended", silence, "ada", "because"),
    ]
    assert {row["version"]: (row["status"], row["reason"]) for row in queries.models(engine)} == {
        "first": ("refused", "because"),
        "second": ("retired", "better"),
        "third": ("champion", "better"),
    }
    engine.dispose()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["models", "refuse", "third"], "third is in force"),
        (["models", "refuse", "fourth"], "no model version fourth"),
        (["models", "promote", "fourth"], "no model version fourth"),
        (["models", "show", "fourth"], "no model version fourth"),
    ],
)
def test_what_cannot_be_done_to_a_version_is_said(arguments: list[str], said: str, url: str) -> None:
    with pytest.raises(InferwatchError, match=said):
        build_app("models")([*arguments, "--database", url], prog_name="inferwatch")


def test_lists_of_numbers_are_curves_and_a_training_of_one_epoch_is_a_figure() -> None:
    found = measured(
        {"curves": {"a_loss": [1.0, 0.5], "b_loss": [2]}, "why": "x", "bad": [1, None], "n": {"m": 3}}
    )
    assert found.curves == [("a loss", [1.0, 0.5])]
    assert found.figures == [("b loss", 2.0), ("n, m", 3), ("why", "x")]
    assert measured(None).figures == []
