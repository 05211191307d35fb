"""Grafana and Datasette: every statement they are given runs on a real database and answers what it says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from storage.views import VIEWS
from tests.services import plain_url
from tests.stored import CALM, HOSTILE, populate

ROOT = Path(__file__).parent.parent
GRAFANA = ROOT / "deploy/grafana"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted(GRAFANA.glob("dashboards/*.json"))}
RANGE = ("1969-12-31T23:00:00Z", "1970-01-01T01:00:00Z")  # where tests.stored puts its windows
UNITS_S = {"s": 1, "m": 60, "h": 3_600}


def statements(dashboard: Any) -> Iterator[tuple[str, str, str]]:
    """(name, format, SQL) of everything a dashboard asks."""
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield f"{panel['id']} {panel['title']}", target["format"], target["rawSql"]
    for annotation in dashboard["annotations"]["list"]:
        yield f"annotation {annotation['name']}", "annotation", annotation["target"]["rawSql"]
    for variable in dashboard["templating"]["list"]:
        yield f"variable {variable['name']}", "variable", variable["query"]


STATEMENTS = [
    (board, name, form, sql) for board, found in DASHBOARDS.items() for name, form, sql in statements(found)
]


def expand(sql: str, series: str) -> str:
    """What Grafana's PostgreSQL data source makes of its macros and variables."""

    def group(match: re.Match[str]) -> str:
        length = re.fullmatch(r"'?(\d+)([smh])'?", match[2].strip())
        assert length is not None, match[0]
        seconds = int(length[1]) * UNITS_S[length[2]]
        return f'floor(extract(epoch from {match[1]})/{seconds})*{seconds} AS "time"'

    quoted = "'" + series.replace("'", "''") + "'"
    sql = sql.replace("$__interval", "'1m'").replace("${series:sqlstring}", quoted)
    sql = re.sub(r"\$__timeFilter\(([^)]+)\)", rf"\1 BETWEEN '{RANGE[0]}' AND '{RANGE[1]}'", sql)
    sql = re.sub(r"\$__timeGroupAlias\(([^,]+),([^)]+)\)", group, sql)
    assert "$" not in sql, f"a macro the test does not know: {sql}"
    return sql


@pytest.fixture(scope="module")
def reader(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection as the role that reader.sql makes; the tables came into its database later."""
    from tests import services

    url = services.create_database(postgres_url)
    role = f"grafana_{uuid.uuid4().hex[:8]}"
    sql = re.sub(r"\bgrafana\b", role, (GRAFANA / "reader.sql").read_text())
    with psycopg.connect(plain_url(url), autocommit=True) as owner:
        owner.execute(sql.encode())
    populate(url)
    with psycopg.connect(plain_url(url), user=role, password="grafana", autocommit=True) as connection:
        yield connection
    services.drop_database(postgres_url, url)
    with psycopg.connect(plain_url(postgres_url), autocommit=True) as owner:
        owner.execute(f"DROP ROLE {role}".encode())


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("board", "name", "form", "sql"), STATEMENTS, ids=[f"{board}: {name}" for board, name, _, _ in STATEMENTS]
)
def test_every_statement_of_a_dashboard_answers(
    reader: psycopg.Connection[Any], board: str, name: str, form: str, sql: str
) -> None:
    for series in (HOSTILE, CALM, "it's/not there"):
        cursor = reader.execute(expand(sql, series).encode())
        columns, rows = [c.name for c in cursor.description or ()], cursor.fetchall()
        if form == "time_series":
            assert columns[0] == "time" and all(row[0] is not None for row in rows)
            if "metric" not in columns:
                assert len(rows) == (0 if series == "it's/not there" else 3)
        elif form == "annotation":
            assert columns == ["time", "timeend", "text", "tags"]
        elif form == "variable":
            assert [row[0] for row in rows] == sorted([CALM, HOSTILE, "rank/search"])


@pytest.mark.postgres
def test_panels_say_what_is_in_the_database(reader: psycopg.Connection[Any]) -> None:
    def ask(board: str, panel_id: int, series: str = HOSTILE) -> list[Any]:
        panel = next(p for p in DASHBOARDS[board]["panels"] if p["id"] == panel_id)
        return reader.execute(expand(panel["targets"][0]["rawSql"], series).encode()).fetchall()

    assert ask("incidents", 1) == [(1,)] and ask("incidents", 2) == [(1,)]
    ((severity, status, title, *_),) = ask("incidents", 5)
    assert (severity, status) == ("major", "open") and "evil" in title
    assert sum(row[2] for row in ask("incidents", 6)) == 2
    assert ask("incidents", 7) == [("latency_p99_ms", 2, 0.9)]
    assert len(ask("incidents", 10)) == 3
    assert len(ask("series", 10)) == 1 and ask("series", 10, CALM) == []
    annotations = DASHBOARDS["incidents"]["annotations"]["list"][0]["target"]["rawSql"]
    assert len(reader.execute(expand(annotations, "").encode()).fetchall()) == 2


@pytest.mark.postgres
def test_the_reader_cannot_write(reader: psycopg.Connection[Any]) -> None:
    for sql in ("DELETE FROM incidents", "SET default_transaction_read_only = off; DELETE FROM incidents"):
        with pytest.raises((psycopg.errors.ReadOnlySqlTransaction, psycopg.errors.InsufficientPrivilege)):
            reader.execute(sql.encode())
        reader.execute(b"SET default_transaction_read_only = on")


def test_dashboards_data_source_and_compose_belong_together() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/inferwatch.yaml").read_text())[
        "datasources"
    ]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/inferwatch.yaml").read_text())[
        "providers"
    ]
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    assert services["grafana"]["profiles"] == ["grafana"]
    password = source["secureJsonData"]["password"].removeprefix("$")
    assert services["grafana"]["environment"][password] == "grafana"
    assert (source["user"], source["url"]) == ("grafana", "postgres:5432")
    reader = next(v for v in services["postgres"]["volumes"] if "reader.sql" in v)
    assert reader.startswith("./deploy/grafana/reader.sql:/docker-entrypoint-initdb.d/")
    for board in DASHBOARDS.values():
        used = set(re.findall(r'"uid": "(inferwatch)"', json.dumps(board)))
        assert used == {source["uid"]}
        assert {p["datasource"]["type"] for p in board["panels"]} == {source["type"]}
        ids = [p["id"] for p in board["panels"]]
        assert len(set(ids)) == len(ids)
    assert len({board["uid"] for board in DASHBOARDS.values()}) == len(DASHBOARDS)
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).stem in DASHBOARDS


def test_dashboards_ask_the_stable_views_only() -> None:
    for _, name, _, sql in STATEMENTS:
        without_lengths = re.sub(r"extract\(epoch FROM [^)]*\)", "", sql)
        for source in re.findall(r"\b(?:FROM|JOIN) (\w+)", without_lengths):
            assert source in VIEWS, f"{name}: {source}"


# ------------------------------------------------------------------- Datasette

METADATA = ROOT / "deploy/datasette/metadata.yaml"
QUERIES: dict[str, Any] = yaml.safe_load(METADATA.read_text())["databases"]["inferwatch"]["queries"]
PARAMETERS = {"series": HOSTILE, "moment": "1970-01-01T00:01:00Z", "incident": ""}
EXPECTED = {
    "broken_now": 1,
    "why": 4,
    "told": 3,
    "happened_before": 1,
    "around": 3,
    "noisiest": 2,
    "silent": 0,
    "not_delivered": 3,
    "rejected": 1,
}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("datasette") / "inferwatch.db"
    populate(f"sqlite:///{file}")
    return file


def datasette(file: Path, path: str) -> Any:
    command = [sys.executable, "-m", "datasette", str(file), "--metadata", str(METADATA), "--get", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_every_prepared_query_answers_in_sqlite(database: Path) -> None:
    import sqlite3

    assert set(QUERIES) == set(EXPECTED)
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    for name, query in QUERIES.items():
        rows = connection.execute(query["sql"], PARAMETERS).fetchall()
        assert len(rows) == EXPECTED[name], name
        assert query["title"]
    connection.close()


def test_datasette_itself_reads_the_metadata_and_answers(database: Path) -> None:
    page = datasette(database, "/inferwatch.json")
    assert {query["name"] for query in page["queries"]} == set(QUERIES)
    described = yaml.safe_load(METADATA.read_text())["databases"]["inferwatch"]["tables"]
    assert (
        set(described)
        == set(VIEWS)
        == set(
            page["views"] if isinstance(page["views"][0], str) else [view["name"] for view in page["views"]]
        )
    )
    found = datasette(database, "/inferwatch/broken_now.json?_shape=array")
    assert [row["severity"] for row in found] == ["major"]
