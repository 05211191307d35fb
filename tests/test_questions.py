"""Eight questions of a person on call, put to a running daemon: at a terminal and in a browser, and both must
say what is true of the log.

The log is read from Kafka by `inferwatch run`, which scores it, notifies a receiver and serves the pages.
Twice requests of one tenant to one service fail and are slow, each time under a version that is new.
"""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from monitor.clock import rfc3339
from tests import services
from tests.daemons import Daemon, rows, totals, wait_for
from tests.dashboard_browser import Site, chromium
from tests.logs import MINUTE_MS, START_MS, records
from tests.receivers import Hook, hook
from tests.test_cli import run

pytestmark = pytest.mark.kafka
SERIES, TENANT = "m-small/svc-0", "acme"
EPISODES = {"v2": range(230, 242), "v3": range(330, 360)}  # version -> minutes of the log
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def story() -> Iterator[bytes]:
    """Six hours of three services; half the requests to the first one are of one tenant, and these break."""
    for record in records(minutes=360, fault_at=None):
        _, _, minute, number = str(record["request_id"]).split("-")
        if record["endpoint"] == "svc-0":
            record["tenant"] = TENANT if int(number) % 2 else "others"
            for version, minutes in EPISODES.items():
                if int(minute) in minutes and record["tenant"] == TENANT:
                    slow = float(str(record["latency_ms"])) * 8
                    record |= {"model_version": version, "latency_ms": slow, "status": 500}
                    record |= {"error_type": "internal", "output_tokens": 0}
        yield json.dumps({name: value for name, value in record.items() if value is not None}).encode()


@dataclass(frozen=True)
class Watch:
    """The daemon, as a person reaches it."""

    config: Path
    site: str
    hook: Hook
    now: str  # id of the incident that goes on
    before: str  # id of the one that is over

    def ask(self, *words: str) -> str:
        """What the command prints in a terminal of this person."""
        done = run(*words, "--config", str(self.config))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.ask(*words, "--json"))

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.site + path, timeout=60) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def watch(kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    folder = tmp_path_factory.mktemp("questions")
    config, database = folder / "inferwatch.toml", f"sqlite:///{folder / 'w.db'}"
    topic, messages = services.create_topic(kafka_bootstrap), list(story())
    services.produce(kafka_bootstrap, topic, messages)
    (port,) = services.free_ports(1)
    with hook() as received:
        config.write_text(
            f'[source]\nbootstrap_servers = "{kafka_bootstrap}"\ntopics = ["{topic}"]\n'
            f'group_id = "{topic}"\n[database]\nurl = "{database}"\n'
            f"[http]\nport = {port}\n[training]\nenabled = false\n"
            f'[channels.oncall]\nurl = "{received.url}"\nsecret = "{SECRET}"\nallow_private = true\n'
        )
        daemon = Daemon(config, folder / "log")
        with daemon:
            wait_for("the end of the log and the last news", lambda: told(database, messages), 240, daemon)
            found = rows(database, "select incident_id, status from incident_history order by started_at")
            assert [row["status"] for row in found] == ["resolved", "open"], found
            site = f"http://127.0.0.1:{port}"
            yield Watch(config, site, received, found[1]["incident_id"], found[0]["incident_id"])
            assert daemon.stop() == 0


def told(database: str, messages: Sequence[bytes]) -> bool:
    """Everything is read, and everybody has been told."""
    waiting = "select count(*) as n from delivery_history where status <> 'delivered'"
    try:
        return totals(database)["position"] == len(messages) and not rows(database, waiting)[0]["n"]
    except Exception:  # the daemon is still making the database
        return False


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def site(browser: Browser, watch: Watch) -> Iterator[Site]:
    opened = Site(browser, watch.site)
    yield opened
    assert opened.problems == []


def minute_of(version: str) -> str:
    """When an episode began, as it is printed."""
    return rfc3339(START_MS + EPISODES[version].start * MINUTE_MS)


def fact(page: Page, name: str) -> str:
    return page.locator(".facts div", has=page.locator("dt", has_text=re.compile(f"^{name}$"))).inner_text()


def test_what_is_broken_now(watch: Watch, site: Site) -> None:
    (broken,) = watch.json("incidents", "list", "--status", "open")
    assert (broken["incident_id"], broken["series"]) == (watch.now, [SERIES])
    assert SERIES in broken["title"]
    assert broken["title"] in watch.ask("top", "--once")
    with site.page("/") as page:
        expect(page.locator("h1")).to_have_text("1 incident going on")
        assert page.locator(".card h3").all_inner_texts()[0] == broken["title"]


def test_since_when(watch: Watch, site: Site) -> None:
    (broken,) = watch.json("incidents", "list", "--status", "open")
    assert broken["started_at"] == minute_of("v3")
    assert minute_of("v3") in watch.ask("top", "--once")
    with site.page(f"/incidents/{watch.now}") as page:
        expect(page.locator(".facts time").first).to_have_attribute("datetime", minute_of("v3"))
        days = (time.time() * 1000 - START_MS - EPISODES["v3"].start * MINUTE_MS) / 86_400_000
        said = re.search(r"going on for (\d+) d", fact(page, "Since"))
        assert said and abs(int(said[1]) - days) <= 1, "by the clock: the daemon still reads"


def test_how_sure_are_we_and_why(watch: Watch, site: Site) -> None:
    shown = watch.ask("incidents", "show", watch.now)
    (alert,) = watch.json("incidents", "show", watch.now)["alerts"]
    assert alert["rarity"] in shown and re.fullmatch(r"once in .+ for this series|.+", alert["rarity"])
    worst = alert["top_features"][0]
    assert worst["observed"] > worst["high"] >= worst["expected"]
    assert re.search(rf"^{re.escape(worst['feature'])}.*shaded.*anomalous$", shown, re.MULTILINE)
    with site.page(f"/incidents/{watch.now}") as page:
        assert alert["rarity"] in fact(page, "How sure")
        expect(page.locator("details.alert tbody tr").first).to_contain_text(worst["feature"])
        expect(page.locator(".plot canvas").first).to_be_visible()


def test_which_version_or_tenant(watch: Watch, site: Site) -> None:
    shown = watch.ask("incidents", "show", watch.now)
    assert f"concentrated in tenant {TENANT}" in shown and re.search(r"versions seen: .*v3", shown)
    assert "v2" not in re.findall(r"versions seen: (.*)", shown)[0], "that was the time before"
    with site.page(f"/incidents/{watch.now}") as page:
        guilty = page.locator(".slices").inner_text()
        assert f"tenant {TENANT}" in guilty
        assert "v3" in fact(page, "Where")


def test_did_anyone_see_it(watch: Watch, site: Site) -> None:
    with site.page(f"/incidents/{watch.now}") as page:
        assert "nobody yet" in fact(page, "Seen by")
        watch.ask("incidents", "ack", watch.now, "--by", "mira", "--comment", "on it")
        expect(page.locator("#head")).to_contain_text("mira: on it")
    with site.page("/?state=open") as page:
        expect(page.get_by_text("Nothing matches")).to_be_visible()
    shown = watch.ask("incidents", "show", watch.now)
    assert re.search(r"^acknowledged by +mira$", shown, re.MULTILINE)


def test_was_the_webhook_delivered(watch: Watch, site: Site) -> None:
    sent = watch.json("deliveries", "list")
    assert sent and {row["status"] for row in sent} == {"delivered"}
    assert {row["delivery_id"] for row in sent} == set(watch.hook.ids), "what is said to be told arrived"
    shown = watch.ask("incidents", "show", watch.now)
    assert re.search(r"^incident.opened\toncall\tdelivered\t1\t", shown, re.MULTILINE)
    with site.page(f"/incidents/{watch.now}") as page:
        expect(page.locator("#deliveries li").first).to_contain_text("oncall")
        assert "failed" not in fact(page, "Told")


def test_has_it_happened_before(watch: Watch, site: Site) -> None:
    watch.ask(
        *("incidents", "label", watch.before, "true_positive", "--by", "jo"),
        *("--comment", "rolled v2 back"),
    )
    (before,) = watch.json("incidents", "show", watch.now)["earlier"]
    assert before["incident"]["incident_id"] == watch.before
    assert before["incident"]["started_at"] == minute_of("v2")
    assert f"tenant {TENANT}" in before["shared"] and f"series {SERIES}" in before["shared"]
    assert f"{watch.before[:8]}\t" in watch.ask("incidents", "show", watch.now)
    with site.page(f"/incidents/{watch.now}") as page:
        similar = page.locator("#similar li")
        expect(similar).to_have_count(1)
        expect(similar).to_contain_text("rolled v2 back")
        similar.locator("a").click()
        expect(page).to_have_url(re.compile(watch.before))


def test_what_would_have_fired_last_week_with_another_budget(watch: Watch, site: Site) -> None:
    found = watch.json("evaluate", "--what-if", "50", "--since", "7d")
    assert found == watch.get("/api/v1/what-if?budget=50&since=7d")
    now, many = found["budgets"]
    assert (now["budget"], many["budget"]) == (1.0, 50.0)
    fired = [episode["start"] for episode in now["episodes"] if episode["series"] == SERIES]
    assert fired == [minute_of("v2"), minute_of("v3")], "as it was"
    assert many["windows"] >= now["windows"] and many["threshold_score"] < now["threshold_score"]
    with site.page("/budget?other=50&reach=7d") as page:
        told = [
            [cell.strip() for cell in row.split("\t")] for row in page.locator("tbody tr").all_inner_texts()
        ]
        assert told == [
            ["1 (configured)", str(now["alerts"]), str(now["windows"])],
            ["50", str(many["alerts"]), str(many["windows"])],
        ]
