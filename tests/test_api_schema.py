"""Requests made from the API's own description: whatever is sent, no answer is a failure of the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from monitor.api.app import create_app
from monitor.api.server import serve_in_thread
from monitor.config import HttpSettings, Settings
from storage.actions import Actor
from storage.engine import connect
from storage.tokens import Tokens
from tests import services
from tests.stored import populate
from tests.test_api_changes import fill

RAW = create_app(connect("sqlite:///unused.db"), health=dict).openapi()
SCHEMA = schemathesis.openapi.from_dict(RAW)
STREAMS = {"/api/v1/events"}  # never ends
FITTING, OTHER = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
REQUESTS = [
    (method, path, mode)
    for path, methods in RAW["paths"].items()
    for method, described in methods.items()
    for mode in (FITTING, OTHER)
    if path not in STREAMS and (mode is FITTING or "parameters" in described or "requestBody" in described)
]
CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]
EXAMPLES = 5


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, dict[str, str]]]:
    """Address and the header of a token that may write."""
    if request.param == "sqlite":
        url, server = f"sqlite:///{tmp_path_factory.mktemp('schema') / 's.db'}", None
    else:
        server = request.getfixturevalue("postgres_url")
        url = services.create_database(server)
    populate(url)
    engine = connect(url)
    fill(engine)
    secret = Tokens(engine).create("schema", "write", Actor("schema", 1))
    http = HttpSettings(max_requests_per_minute=1_000_000)
    handle = serve_in_thread(create_app(engine, health=dict, settings=Settings(http=http)), "127.0.0.1", 0)
    yield handle.url, {"authorization": f"Bearer {secret}"}
    handle.stop()
    engine.dispose()
    if server is not None:
        services.drop_database(server, url)


@pytest.mark.parametrize(
    ("method", "path", "mode"), REQUESTS, ids=lambda part: getattr(part, "value", part).strip("/")
)
def test_no_request_is_a_failure_of_the_server(
    site: tuple[str, dict[str, str]], method: str, path: str, mode: GenerationMode
) -> None:
    url, headers = site
    operation = SCHEMA[path][method]
    strategy = operation.as_strategy(generation_mode=mode)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def send(case: Any) -> None:
        case.call_and_validate(base_url=url, headers=headers, checks=CHECKS, timeout=20)

    send()
