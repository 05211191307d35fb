"""compose.yaml: valid, pinned, and true to the settings and the commands it uses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.main import get_command

from monitor.cli import build_app
from monitor.config import load

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return parsed


def test_is_valid_by_the_schema_of_the_compose_specification(compose: dict[str, Any]) -> None:
    schema = json.loads((ROOT / "tests/data/compose_spec.json").read_text())
    jsonschema.Draft201909Validator(schema).validate(compose)


def test_every_image_is_pinned_and_every_long_lived_service_has_a_health_check(
    compose: dict[str, Any],
) -> None:
    for name, service in compose["services"].items():
        tag = service["image"].partition(":")[2]
        assert tag.count(".") >= 1 and tag[0].isdigit(), f"{name}: {service['image']}"
        if "restart" in service:
            assert "healthcheck" in service, name
    assert compose["services"]["kafka"]["image"] == "apache/kafka:4.3.1"


def test_dependencies_exist_and_wait_for_what_they_need(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in services, f"{name} -> {needed}"
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[needed]


def test_ports_are_published_on_loopback_only(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)


def test_the_daemon_gets_settings_that_exist(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = compose["services"]["inferwatch"]["environment"]
    for name, value in environment.items():
        monkeypatch.setenv(name, value.replace("${POSTGRES_PASSWORD:-inferwatch}", "inferwatch"))
    settings = load()
    assert settings.database.url == "postgresql://inferwatch:inferwatch@postgres:5432/inferwatch"
    assert settings.source.bootstrap_servers == "kafka:29092"
    assert settings.http.host == "0.0.0.0"


@pytest.mark.parametrize("service", ["inferwatch", "simulate"])
def test_services_call_commands_and_options_that_exist(compose: dict[str, Any], service: str) -> None:
    name, *arguments = compose["services"][service]["command"]
    command: Any = get_command(build_app())
    command = command.commands[name]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {argument for argument in arguments if argument.startswith("--")} <= known


def test_the_image_is_built_from_files_that_exist() -> None:
    text = (ROOT / "deploy/Dockerfile").read_text()
    for line in text.splitlines():
        if line.startswith("COPY") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source
    assert "USER inferwatch" in text
