"""Every page in a browser: what it shows, that it can be used by everybody, and that nothing from the data runs."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import msgspec
import pytest
import telling
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, Page, Route, expect

from afterwrite.postgres import connect
from afterwrite.record import Activity
from afterwrite.serve import pages
from afterwrite.serve.keys import make_key
from conftest import Site, apart

_ROW = "#rows .row"


def newest(site: Site, query: str) -> dict[str, Any]:
    """The newest activity that fits."""
    return httpx.get(f"{site.url}/search/rows", params={"q": query}).json()["items"][0]


def recorded(count: int, **more: Any) -> list[Activity]:
    """Events of now, as an application records them."""
    teller = telling.Teller(int(time.time_ns()), datetime.now(UTC))
    made: list[Activity] = []
    for number in range(count):
        teller.at += timedelta(microseconds=1)
        made.append(teller.event("parcel.sent", "logistics", summary=f"Parcel {number} sent", **more))
    return made


def until(holds: Callable[[], object], seconds: float = 8.0) -> None:
    """Wait until it holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.03)


# --- everybody --------------------------------------------------------------------------------------------------------


def paths(site: Site) -> dict[str, str]:
    change = newest(site, "entity:projects operation:update")
    event = newest(site, "action:redemption.approved")
    return {
        "live": "/?q=action:import.finished+after:2d",
        "search": "/search?q=action:invoice.send+outcome:failure",
        "wrong query": "/search?q=outcome:broken",
        "nothing found": "/search?q=action:never.happened",
        "a change": f"/activity/{change['id']}",
        "an event": f"/activity/{event['id']}",
        "entity": f"/entity/projects/{change['entity_id']}",
        "overview": "/overview?span=week",
        "migration": "/migration",
        "health": "/health",
        "login": "/login",
        "nothing there": "/activity/00000000-0000-7000-8000-000000000000",
    }


def test_no_page_has_an_accessibility_violation_in_light_and_dark_wide_and_narrow(page: Page, site: Site) -> None:
    axe = Axe()
    found: list[str] = []
    for name, path in paths(site).items():
        both = name in ("live", "entity", "overview", "migration")
        for width, schemes in ((1280, ("light", "dark")), (360, ("dark", "light"))):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=schemes[0], reduced_motion="reduce")
            page.goto(path)
            for scheme in schemes if both else schemes[:1]:
                page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
                # The other scheme changes colours, and nothing else; a narrow page also sizes and what scrolls.
                rules = _RULES if width == 1280 and scheme == schemes[0] else _LOOKS
                answer = axe.run(page, options=rules)
                found += [
                    f"{name}, {scheme}, {width}: {rule['id']} {node['target']} {node['failureSummary'][:200]}"
                    for rule in answer.response["violations"]
                    for node in rule["nodes"][:3]
                ]
            wide = page.evaluate("document.documentElement.scrollWidth")
            if wide > width:
                found.append(f"{name} is {wide} pixels wide in {width}")
    assert not found, "\n".join(found)


_LOOKS = {
    "runOnly": {"type": "rule", "values": ["color-contrast", "target-size", "scrollable-region-focusable"]},
    "resultTypes": ["violations"],
}
_RULES = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    "resultTypes": ["violations"],
}


def test_what_came_from_the_lake_and_what_was_not_looked_at_is_told_in_the_long_list(page: Page, site: Site) -> None:
    def from_lake(route: Route) -> None:
        response = route.fetch()
        told = response.json()
        told["items"] = [each | {"from_lake": True} for each in told["items"]]
        told |= {
            "older": "",
            "gap": "Not all was looked at here: it is away.",
            "where": "This is all that the store has.",
        }
        route.fulfill(response=response, json=told)

    page.route("**/search/rows*", from_lake)
    page.goto("/search?q=outcome:success")
    page.mouse.wheel(0, 20_000)
    expect(page.locator(".gap")).to_have_text("Not all was looked at here: it is away.")
    expect(page.locator(".loading")).to_have_text("This is all that the store has.")
    assert page.locator(".row .from-lake").count() == 100
    for scheme, width in (("light", 1280), ("dark", 360)):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
        assert Axe().run(page, options=_LOOKS).response["violations"] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_page_can_be_used_by_keyboard_alone(page: Page, site: Site) -> None:
    page.goto("/search?q=outcome:failure")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("/")
    expect(page.locator("#q")).to_be_focused()
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("j")
    expect(page.locator(_ROW).nth(1).locator(".title")).to_be_focused()
    page.keyboard.press("k")
    expect(page.locator(_ROW).nth(0).locator(".title")).to_be_focused()
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()
    title = page.locator(_ROW).nth(0).locator(".title").inner_text()
    page.locator(_ROW).nth(0).locator(".title").focus()
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text(title)
    page.keyboard.press("g")
    page.keyboard.press("h")
    expect(page.locator("h1")).to_have_text("Health")


def test_times_are_the_viewers_with_utc_on_hover_and_light_or_dark_is_remembered(page: Page, site: Site) -> None:
    it = newest(site, "outcome:failure")
    at = datetime.fromisoformat(it["occurred_at"])
    page.goto("/search?q=outcome:failure")
    stamp = page.locator(_ROW).first.locator("time")
    berlin = page.evaluate("at => new Date(at).toLocaleTimeString('en-GB')", it["occurred_at"])
    expect(stamp).to_have_text(berlin)
    assert stamp.get_attribute("title") == f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03} UTC"
    page.keyboard.press("t")
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 18, 22)"


# --- live -------------------------------------------------------------------------------------------------------------


def test_live_shows_what_happens_holds_while_somebody_reads_and_stays_small(page: Page, site: Site) -> None:
    page.goto("/?q=action:parcel.sent")
    expect(page.locator("#nothing")).to_be_visible()
    expect(page.locator("#state")).to_have_attribute("data-state", "live")
    site.store(*recorded(2))
    expect(page.locator(_ROW)).to_have_count(2)
    expect(page.locator(_ROW).first.locator(".title")).to_have_text("Parcel 1 sent")
    expect(page.locator("#nothing")).to_be_hidden()
    page.locator(_ROW).first.hover()
    expect(page.locator("#state")).to_have_text("paused while you look")
    site.store(*recorded(3))
    expect(page.locator("#fresh")).to_have_text("3 new")
    expect(page.locator(_ROW)).to_have_count(2)
    page.mouse.move(2, 2)
    expect(page.locator(_ROW)).to_have_count(5)
    page.get_by_role("button", name="Pause").click()
    site.store(*recorded(400))
    expect(page.locator("#fresh")).to_have_text("400 new")
    page.locator("#fresh").click()
    expect(page.locator(_ROW).first.locator(".title")).to_have_text("Parcel 399 sent")
    assert page.locator(_ROW).count() == 200
    assert "405 in this minute" in page.locator("#rate-now").inner_text() or page.locator("#rate .bar").count() == 60


def test_back_keeps_the_filter_of_live_and_what_is_not_asked_for_stays_away(page: Page, site: Site) -> None:
    page.goto("/")
    page.fill("#q", "outcome:failure")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"/\?q=outcome%3Afailure"))
    signs = page.locator(f"{_ROW} .sign.failure").count()
    assert signs == page.locator(_ROW).count() > 10
    page.locator(f"{_ROW} .title").first.click()
    expect(page).to_have_url(re.compile("/activity/"))
    page.go_back()
    expect(page.locator("#q")).to_have_value("outcome:failure")
    expect(page.locator("#state")).to_have_attribute("data-state", re.compile("live|paused"))
    page.get_by_role("link", name="Remove outcome:failure").click()
    expect(page.locator("#q")).to_have_value("")


# --- search -----------------------------------------------------------------------------------------------------------


def test_what_is_wrong_with_a_query_is_shown_under_its_place(page: Page) -> None:
    page.goto("/search?" + urlencode({"q": "actor:anna outcome:broken"}))
    expect(page.locator("#q")).to_have_attribute("aria-invalid", "true")
    line, mark = page.locator("#wrong pre").inner_text().split("\n")
    assert line == "actor:anna outcome:broken"
    assert line[mark.index("^") : mark.rindex("^") + 1] in ("outcome:broken", "broken")
    expect(page.locator("#wrong p")).to_contain_text("success, failure")


def test_the_box_suggests_keys_and_then_their_values(page: Page) -> None:
    page.goto("/search")
    page.locator("#q").press_sequentially("outc")
    option = page.get_by_role("option", name=re.compile("outcome:"))
    expect(option.first).to_be_visible()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.input_value("#q").startswith("outcome:")
    expect(page.get_by_role("option", name=re.compile("failure")).first).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#choices")).to_be_hidden()


def test_a_row_is_the_same_whether_the_server_or_the_browser_draws_it(page: Page, site: Site) -> None:
    page.goto("/search")
    script = next(
        src for src in page.locator("script").evaluate_all("all => all.map(each => each.src)") if "app" in src
    )
    for query in ("", "kind:change -source:billing", "kind:change", "outcome:failure", "-entity:*"):
        address = "/search?" + urlencode({"q": query})
        page.goto(address)
        different = page.evaluate(
            """async ([row, query]) => {
              const { makeRow } = await import(row);
              const answer = await fetch(`/search/rows?${new URLSearchParams({ q: query })}`);
              const made = new Map((await answer.json()).items.map((each) => [each.id, makeRow(each).outerHTML]));
              const drawn = [...document.querySelectorAll("#rows .row")].filter((each) => made.has(each.dataset.id));
              const plain = (html) => html.replace(/\\s+/g, " ").replace(/> </g, "><").replace(/"ago">[^<]*/, "");
              const pairs = drawn.map((each) => [plain(each.outerHTML), plain(made.get(each.dataset.id))]);
              return pairs.length < 10 ? [["too few", pairs.length]] : pairs.filter(([one, other]) => one !== other);
            }""",
            [script.replace("app.js", "row.js"), query],
        )
        assert different[:1] == []


def test_ten_thousand_rows_are_browsed_in_the_memory_of_a_few_hundred(page: Page, site: Site) -> None:
    page.goto("/search")
    session = page.context.new_cdp_session(page)

    def heap() -> float:
        session.send("HeapProfiler.collectGarbage")
        return session.send("Runtime.getHeapUsage")["usedSize"]

    seen: set[str] = set()

    def browse(rows: int) -> None:
        for _ in range(600):
            ids = page.evaluate(
                """() => {
                  scrollTo(0, document.documentElement.scrollHeight);
                  return [...document.querySelectorAll("#found .row")].map((each) => each.dataset.id);
                }"""
            )
            seen.update(ids)
            assert len(ids) < 800
            if len(seen) >= rows or page.locator(".loading").inner_text() == "This is all of it.":
                return
            page.wait_for_timeout(25)

    browse(1_500)
    early = heap()
    browse(10_000)
    assert len(seen) >= 10_000
    until(lambda: page.locator("#found .row").count() < 800)
    assert heap() < early * 1.6 + 2_000_000
    middle = page.evaluate("document.documentElement.scrollHeight / 2")
    page.evaluate("at => scrollTo(0, at)", middle)
    expect(page.locator("#found .row").first).to_be_visible()
    page.evaluate("scrollTo(0, 0)")
    first = newest(site, "")["id"]
    expect(page.locator(f'#found .row[data-id="{first}"]')).to_be_visible()


def test_a_search_that_no_index_answers_says_how_far_it_looked_and_goes_on_when_asked(
    page: Page, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_LOOK_SECONDS", 0.0)  # two hundred rows, and the time is up
    site.store(*recorded(1, after=msgspec.Raw(b'{"colour": "teal"}')))
    page.goto("/search?q=after.colour:teal")
    expect(page.locator(_ROW)).to_have_count(1)
    note = page.locator(".loading")
    expect(note).to_contain_text("Looked back to")
    first = note.locator("time").get_attribute("datetime")
    further = note.get_by_role("link", name="Look further")
    beyond = further.get_attribute("href")
    further.click()
    expect(note.locator(f'time[datetime="{first}"]')).to_have_count(0)
    expect(note).to_contain_text("Looked back to")
    assert beyond is not None
    page.goto(beyond)
    expect(page.locator(".empty")).to_contain_text("No index answers this query")
    page.get_by_role("link", name="Look further").click()
    expect(page.locator(".empty")).to_contain_text("look further")
    monkeypatch.setattr(pages, "_LOOK_SECONDS", 20.0)
    page.get_by_role("link", name="Look further").click()
    expect(page.locator(".empty")).to_contain_text("Nothing further fits")


def test_without_scripts_found_rows_come_as_pages(site: Site, browser: Any) -> None:
    context = browser.new_context(base_url=site.url, java_script_enabled=False)
    page = context.new_page()
    page.goto("/search?q=kind:event")
    first = page.locator(f"{_ROW}").evaluate_all("all => all.map(each => each.dataset.id)")
    page.get_by_role("link", name="Older").click()
    second = page.locator(f"{_ROW}").evaluate_all("all => all.map(each => each.dataset.id)")
    assert len(first) == len(second) == 50
    assert not set(first) & set(second)
    expect(page.locator(f"{_ROW} time").first).to_contain_text("UTC")
    page.get_by_role("link", name="Newer").click()
    assert page.locator(f"{_ROW}").evaluate_all("all => all.map(each => each.dataset.id)") == first
    context.close()


def test_a_search_is_kept_as_a_view_and_forgotten_again(page: Page, site: Site) -> None:
    page.goto("/search?q=outcome:failure")
    page.get_by_text("Save view").click()
    page.get_by_label("Name of the view").fill("What <b>fails</b>")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.locator(".notice")).to_contain_text("What <b>fails</b>")
    page.goto("/overview")
    page.get_by_role("navigation", name="Saved views").get_by_role("link", name="What <b>fails</b>").click()
    expect(page.locator("#q")).to_have_value("outcome:failure")
    page.get_by_role("button", name="Delete this view").click()
    expect(page.get_by_role("navigation", name="Saved views")).to_have_count(0)


def test_what_is_shown_can_be_taken_along_as_a_file(site: Site) -> None:
    lines = httpx.get(f"{site.url}/search/export", params={"q": "outcome:failure", "format": "jsonl"}).text.splitlines()
    found = [json.loads(line) for line in lines]
    assert {each["outcome"] for each in found} == {"failure"}
    answer = httpx.get(f"{site.url}/search/export", params={"q": "outcome:failure", "format": "csv"})
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["id"] for row in rows] == [each["id"] for each in found]
    assert "attachment" in answer.headers["content-disposition"]
    assert httpx.get(f"{site.url}/search/export", params={"q": "outcome:nope"}).status_code == 400


def test_a_cell_that_a_spreadsheet_would_run_is_text(site: Site) -> None:
    [it] = recorded(1, actor_id="=cmd|' /c calc'!A1", entity_type="@sum", entity_id="+1")
    site.store(it)
    answer = httpx.get(f"{site.url}/search/export", params={"q": f"id:{it.id}", "format": "csv"})
    [row] = csv.DictReader(io.StringIO(answer.text))
    assert (row["actor_id"], row["entity_type"], row["entity_id"]) == ("'=cmd|' /c calc'!A1", "'@sum", "'+1")


# --- an activity and an entity ----------------------------------------------------------------------------------------


def test_an_activity_says_who_what_when_why_and_what_came_of_it(
    page: Page, site: Site, context: BrowserContext
) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    event = newest(site, "action:redemption.approved")
    page.goto(f"/activity/{event['id']}")
    expect(page.locator("h1")).to_have_text(event["summary"])
    expect(page.locator(".facts").first).to_contain_text("customer asked by phone")
    effects = page.get_by_role("region", name="What it led to")
    expect(effects.locator(".row")).to_have_count(3)
    page.get_by_role("button", name="Copy link").click()
    assert page.evaluate("navigator.clipboard.readText()") == page.url
    effects.get_by_role("link", name=re.compile("Changed tokens")).click()
    expect(page.get_by_role("region", name="What changed")).to_contain_text("held")
    expect(page.get_by_role("region", name="What changed")).to_contain_text("redeemed")
    expect(page.get_by_role("region", name="Because of").locator(".title")).to_have_text(event["summary"])
    expect(page.get_by_role("region", name="In the same transaction").locator(".row")).to_have_count(2)
    page.get_by_text("Everything, as JSON").click()
    assert json.loads(page.locator("#raw").inner_text())["caused_by"] == event["id"]
    change = page.url.rpartition("/")[2]
    page.get_by_role("link", name="a minute", exact=True).click()
    expect(page.locator(f'#found .row[data-id="{change}"]')).to_be_visible()


def test_the_slider_shows_the_row_as_it_was(page: Page, site: Site) -> None:
    key = newest(site, "entity:projects operation:update")["entity_id"]
    page.goto(f"/entity/projects/{key}")
    history = page.locator("#steps > li")
    assert history.count() > 2
    now = page.locator("#row tbody").inner_text()
    page.locator("#moment").focus()
    page.keyboard.press("Home")
    until(lambda: page.locator("#row tbody").inner_text() != now)
    expect(history.last).to_have_class(re.compile("at"))
    expect(page.locator("#row tbody")).to_contain_text("draft")
    address = page.url
    assert "at=" in address
    page.reload()
    expect(page.locator("#row tbody")).to_contain_text("draft")
    assert page.input_value("#moment") == "0"


# --- boards -----------------------------------------------------------------------------------------------------------


def test_the_overview_counts_what_the_store_holds(page: Page, site: Site) -> None:
    page.goto("/overview?span=month")
    events = httpx.get(f"{site.url}/v1/analytics/actors", params={"limit": 1})
    assert events.status_code in (200, 404)
    total = int(page.locator(".card .figure").first.inner_text().replace(",", ""))
    assert total > 10_000
    page.get_by_role("region", name="Busiest actors").get_by_role("link").first.click()
    expect(page.locator(_ROW).nth(10)).to_be_attached()


def test_the_migration_page_tells_phases_gates_proof_and_what_is_next(page: Page) -> None:
    page.goto("/migration")
    expect(page.locator(".notice").first).to_contain_text("Next: let phase")
    first = page.locator(".phase").first
    expect(first).to_contain_text("silenced")
    expect(first).to_contain_text("by anna")
    first.get_by_text("All gates", exact=True).click()
    assert first.locator(".gates li").count() > 5
    expect(page.get_by_role("region", name="Checklist")).to_contain_text("afterwrite installed")
    expect(page.get_by_role("region", name="The proof")).to_contain_text("transactions were compared")
    expect(page.locator("svg.chart[aria-labelledby^=tables]")).to_contain_text("orders")


def test_an_admin_pauses_the_migration_and_resumes_it_and_that_is_activity(page: Page, site: Site) -> None:
    page.goto("/migration")
    page.get_by_text("Pause …").click()
    page.get_by_label("Why, for whoever finds it paused").fill("payday")
    page.get_by_role("button", name="Pause the migration").click()
    expect(page.locator("#next")).to_contain_text("paused by local")
    expect(page.locator("#next")).to_contain_text("payday")
    assert newest(site, "action:migration.paused")["metadata"] == {"reason": "payday"}
    page.get_by_text("Resume …").click()
    page.get_by_role("button", name="Resume the migration").click()
    expect(page.locator("#next")).to_contain_text("Next: let phase")
    assert newest(site, "action:migration.resumed")["actor_id"] == "local"


def test_who_may_only_read_and_whose_page_is_another_sites_pause_nothing(site: Site) -> None:
    async def make() -> list[str]:
        async with connect(site.dsn) as db:
            reader = await make_key(db, "only reads", ["read"])
            tenants = await make_key(db, "of a tenant", ["admin"], tenant="north")
            return [reader[1], tenants[1]]

    for key in apart(make):
        headers = {"authorization": f"Bearer {key}"}
        assert httpx.post(f"{site.url}/migration/pause", headers=headers).status_code == 403
        assert "/migration/pause" not in httpx.get(f"{site.url}/migration", headers=headers).text
    elsewhere = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
    assert httpx.post(f"{site.url}/migration/pause", headers=elsewhere).status_code in (401, 403)
    assert "paused by" not in httpx.get(f"{site.url}/migration").text


def test_health_says_what_it_means_and_what_to_do(page: Page) -> None:
    page.goto("/health")
    capture = page.get_by_role("region", name="Capture", exact=True)
    expect(capture).to_contain_text("no worker")
    expect(capture.locator("code")).to_have_text("afterwrite capture")
    for name in ("WAL kept for us", "Batches", "Spool and outbox", "Deferred bodies", "Gaps", "Store"):
        assert page.get_by_role("region", name=name, exact=True).locator(".means").inner_text()


# --- strangers --------------------------------------------------------------------------------------------------------


def test_what_the_data_smuggles_in_is_text_everywhere(page: Page, site: Site) -> None:
    query = {"q": "kind:change -source:billing -source:main"}
    changes = httpx.get(f"{site.url}/search/rows", params=query).json()["items"]
    hostile = [*changes, *(httpx.get(f"{site.url}/v1/activities/{each['caused_by']}").json() for each in changes)]
    assert {each["entity_type"] for each in hostile} == set(telling.PAYLOADS)
    assert len(hostile) == 2 * len(telling.PAYLOADS)
    for path in ("/", "/search", "/overview?span=week", "/migration", "/health"):
        page.goto(path)
        page.wait_for_timeout(60)
        assert page.evaluate("window.__owned") is None, path
        assert page.locator("main script, main img, main [onload], main [onerror], main [onmouseover]").count() == 0
    for each in hostile:
        kind, key = quote(each["entity_type"], safe=""), quote(each["entity_id"], safe="")
        others = (f"/entity?type={kind}&id={key}", f"/search?q={kind}") if each["kind"] == "change" else ()
        for path in (*others, f"/activity/{each['id']}"):
            page.goto(path)
            assert page.evaluate("window.__owned") is None, path
            assert page.locator("main script, main img, main [onload], main [onerror], main [onmouseover]").count() == 0
        words = re.split(r"[\u202e\s]", each["entity_type"])[0]
        assert words in page.locator("main").inner_text()
        assert "\u202e" not in page.content()


def test_hostile_rows_arrive_in_the_stream_as_text(page: Page, site: Site) -> None:
    page.goto("/?q=-action:activity.looked")  # what other tests looked at is told seconds later
    expect(page.locator("#state")).to_have_attribute("data-state", "live")
    site.store(*[each for together in telling.hostile(datetime.now(UTC)) for each in together if each.source == "app"])
    expect(page.locator(_ROW).first).to_contain_text("onmouseover")
    page.locator(_ROW).first.locator(".title").hover()
    assert page.evaluate("window.__owned") is None


def test_another_sites_form_and_address_do_nothing(site: Site) -> None:
    form = {"name": "x", "query": "outcome:failure"}
    headers = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
    assert httpx.post(f"{site.url}/views", data=form, headers=headers).status_code == 403
    for there in ("https://evil.example", "//evil.example", "/\\evil.example", "/\t/evil.example", "javascript:1"):
        page = httpx.get(f"{site.url}/login", params={"next": there}).text
        assert 'name="next" value="/"' in page


@pytest.mark.parametrize("path", ["/", "/search", "/overview", "/migration", "/health", "/login", "/nothing"])
def test_every_answer_forbids_what_is_not_ours(site: Site, path: str) -> None:
    answer = httpx.get(f"{site.url}{path}", headers={"accept": "text/html"})
    if path == "/nothing":
        assert answer.status_code == 404
        return
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "'unsafe" not in policy
    elements = Elements()
    elements.feed(answer.text)
    for tag, attributes in elements.found:
        assert tag != "style"
        assert tag != "script" or attributes["src"]
        assert not [name for name in attributes if name == "style" or name.startswith("on")]
        for name in ("src", "href", "action"):
            assert (attributes.get(name) or "/").startswith(("/", "#"))


class Elements(HTMLParser):
    """The elements of a page, with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
