"""The page in a real browser: what it shows, what it says, who can use it."""

import json
import re
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from browser import Browser, find_chromium
from page_images import LARGEST, SHOWN, take
from serving_runs import Process, write_run

from blossomrec import EventLog
from blossomrec.serving import Client

TOKEN = "a-secret-of-the-tests"
HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script>'
STATUS = "document.querySelector('#status').innerText"
CHECKS = Path(__file__).with_name("page_checks.js").read_text()
EVENTS = "document.querySelectorAll('#timeline [role=option]').length"
WHOSE = "document.querySelector('#user').value"
needs_browser = pytest.mark.skipif(find_chromium() is None, reason="there is no chromium")


@pytest.fixture(scope="module")
def page_run(tiny_log, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    options = {"layers": 2, "heads": 4, "kv_heads": 2, "max_len": 2_400, "top_n": 2}
    return write_run(folder / "run", tiny_log, **options)


@pytest.fixture(scope="module")
def url(page_run, item_ids):
    """A server with titles, one of them hostile, and users; one has 2,000 events."""
    folder = page_run.parent
    rows = "".join(f'{item},"Title {number}"\n' for number, item in enumerate(item_ids[1:], 1))
    hostile = HOSTILE.replace('"', '""')
    table = folder / "titles.csv"
    table.write_text(f'item_id,title\n{item_ids[0]},"{hostile}"\n{rows}')
    with Process(page_run, folder / "events.sqlite", "--titles", table) as process:
        with Client(process.url) as client:
            client.append("anna", item_ids[:30])
            client.append(HOSTILE, item_ids[:3])
            for _ in range(25):
                client.append("long", item_ids[:60] + item_ids[:20])
            for number in range(20):
                client.append(f"visitor {number}", item_ids[number : number + 4])
        yield process.url


@pytest.fixture(scope="module")
def chromium():
    with Browser(find_chromium()) as browser:
        yield browser


@pytest.fixture
def browser(chromium):
    """The browser, in the size of a desktop; it must have had nothing to complain about."""
    chromium.size(1280, 900)
    chromium.prefer(prefers_color_scheme="light", prefers_reduced_motion="no-preference")
    chromium.complaints.clear()
    yield chromium
    # What has been said meanwhile arrives with an answer.
    chromium.evaluate("0")
    assert chromium.complaints == []


def test_everything_comes_from_the_server_under_a_strict_policy(server):
    answer = server.client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in policy
    page = files("blossomrec.serving").joinpath("page")
    for file in page.iterdir():
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"https?:|innerHTML|insertAdjacent|eval\(", text), file.name
        path = "/" if file.name == "index.html" else f"/{file.name}"
        answer = server.client.get(path)
        assert answer.status_code == 200 and answer.text == text
        assert answer.headers["content-type"].endswith("charset=utf-8")
    html = page.joinpath("index.html").read_text()
    assert not re.search(r"<style|<script>|\sstyle=|\son\w+=", html)
    for name in re.findall(r'(?:src|href)="([\w.]+)"', html):
        assert server.client.get(f"/{name}").status_code == 200
    assert "/page.js" not in server.client.get("/openapi.json").json()["paths"]


@needs_browser
def test_a_user_the_reasons_and_one_more_event(browser, url, item_ids):
    browser.open(url + "/")
    browser.until("document.querySelector('#model').innerText.includes('80 items')")
    browser.fill("#user", "anna")
    browser.key("Enter")
    # An event for each in the timeline.
    browser.until(f"{EVENTS} === 30")
    with Client(url) as client:
        best = client.recommend("anna")
        explanation = client.explain("anna", best[0]["item"])
    titles = [f"Title {item_ids.index(one['item'])}" for one in best]
    shown = browser.texts("#items .choose > span:nth-child(2)")
    assert [text.rsplit(" ", 1)[0] for text in shown] == titles
    assert re.fullmatch(r"10 recommendations in [\d.]+ ms\.", browser.evaluate(STATUS))
    assert browser.texts("#why-heading") == [f"Why {titles[0]}"]
    # Lit where the explanation says so.
    lit = "[...document.querySelectorAll('.block')].map(one => one.classList.contains('lit'))"
    selected = {
        block["events"][0]["position"] // 4
        for layer in explanation["layers"]
        for block in layer["long"]["blocks"]
        if not block["own"]
    }
    assert {place for place, on in enumerate(browser.evaluate(lit)) if on} == selected
    assert browser.texts("#reasons .shares li")[0].startswith(
        f"Title {item_ids.index(explanation['events'][0]['item'])}"
    )
    browser.click("#items li:nth-child(4) .choose")
    browser.until(f"document.querySelector('#why-heading').innerText === 'Why {titles[3]}'")
    assert (
        browser.evaluate(
            "[...document.querySelectorAll('.choose')].map(one => one.ariaPressed).indexOf('true')"
        )
        == 3
    )
    assert browser.texts("#last li") == [f"Title {number}" for number in range(29, 23, -1)]
    browser.fill("#event", str(item_ids[60]))
    browser.key("Enter")
    browser.until(f"{STATUS}.startsWith('Title 60 was added. 10 recommendations in')")
    browser.until(f"{EVENTS} === 31")
    assert browser.evaluate("document.querySelectorAll('.moved').length") > 0
    assert browser.texts("#last li")[:2] == ["Title 60", "Title 29"]
    with Client(url) as client:
        user = client.user("anna", 1)
        assert (user["length"], user["events"][0]["item"]) == (31, item_ids[60])
        best = [str(one["item"]) for one in client.recommend("anna")]
    assert browser.texts("#items .id") == best


@needs_browser
def test_a_user_is_chosen_from_those_who_had_events_last(browser, url, item_ids):
    names = "#users .name"
    browser.open(url + "/")
    browser.until("document.querySelectorAll('#users button').length === 12")
    with Client(url) as client:
        listed = [one["user_id"] for one in client.users()]
    assert browser.texts(names) == [" ".join(name.split()) for name in listed[:12]]
    # The first of them is there at once.
    browser.until(f"{SHOWN} && {WHOSE} === {json.dumps(listed[0])}")
    # With the keyboard alone: from the field past its button into the list.
    browser.evaluate("document.querySelector('#user').focus()")
    for _ in range(4):
        browser.key("Tab")
    assert browser.evaluate("document.activeElement.dataset.user") == listed[2]
    browser.key("Enter")
    marked = "[...document.querySelectorAll('#users [aria-current=true]')].map(one => one.title)"
    browser.until(f"{marked}[0] === {json.dumps(listed[2])}")
    assert browser.evaluate(WHOSE) == listed[2]
    # More of them: the next ones have the focus, and the button ends with the list.
    browser.evaluate("document.querySelector('#more-users').focus()")
    browser.key("Enter")
    browser.until(f"document.querySelectorAll('#users button').length === {len(listed)}")
    assert browser.evaluate("document.activeElement.dataset.user") == listed[12]
    assert browser.evaluate("document.querySelector('#more-users').hidden") is True
    browser.key("Enter")
    browser.until(f"{marked.replace('.title', '.dataset.user')}[0] === {json.dumps(listed[12])}")
    # Whoever has a new event comes first. A title is as good as an id.
    known = "[...document.querySelectorAll('#known option')].map((one) => one.value)"
    title = browser.until(f"{known}.find((value) => value.startsWith('Title '))")
    # An event without a time is taken as now, in whole seconds: others were there in this one.
    with Client(url) as client:
        latest = next(client.users())["timestamp"]
    while int(time.time()) <= latest:
        time.sleep(0.05)
    browser.fill("#event", title.lower())
    browser.key("Enter")
    browser.until(f"document.querySelector('{names}').innerText === {json.dumps(listed[12])}")
    assert browser.evaluate(marked) == [listed[12]]
    with Client(url) as client:
        assert client.user(listed[12], 1)["events"][0]["item"] == item_ids[int(title.split()[1])]


@needs_browser
def test_layers_and_paths_are_told_in_plain_words(browser, url, item_ids):
    browser.open(url + "/?user=long")
    browser.until(SHOWN)
    assert browser.texts("#reasons h4") == ["First layer", "Second layer"]
    with Client(url) as client:
        explanation = client.explain("long", client.recommend("long")[0]["item"])
    for number, layer in enumerate(explanation["layers"]):
        long, short = (layer[path]["gate"] for path in ("long", "short"))
        lines = browser.texts(f".layer:nth-of-type({number + 1}) > .shares li")
        assert [line.split("\n")[0] for line in lines] == [
            "Long-term interest",
            "Short-term interest",
        ]
        shown = [float(re.findall(r"([\d.]+) %", line)[0]) for line in lines]
        wanted = [100 * path / (long + short) for path in (long, short)]
        assert shown == pytest.approx(wanted, abs=0.51)
    browser.key("End")
    words = browser.evaluate("document.querySelector('#results').innerText")
    assert not re.search(r"\b(gates?|path|pass(es)?|L1|kv|key/value)\b", words, re.IGNORECASE)
    last = browser.evaluate(f"{EVENTS} - 1")
    lit = browser.evaluate("document.querySelector('.lit:not(.own) [data-index]').dataset.index")
    browser.evaluate(f"document.querySelector('[data-index=\"{lit}\"]').click()")
    assert re.search(
        r", long-term interest of the (first|second) layer", browser.texts("#detail")[0]
    )
    browser.evaluate(f"document.querySelector('[data-index=\"{last}\"]').click()")
    assert browser.texts("#detail")[0].endswith(", short-term interest")


@needs_browser
def test_without_titles_there_is_a_hint_and_without_a_path_nothing_of_it(
    browser, url, tiny_log, tmp_path, item_ids
):
    hint = "document.querySelector('#titles-hint').hidden"
    browser.open(url + "/?user=anna")
    browser.until(SHOWN)
    assert browser.evaluate(hint) is True
    options = {"layers": 1, "heads": 4, "kv_heads": 2, "paths": "long", "top_n": 2}
    run = write_run(tmp_path / "run", tiny_log, **options)
    with Process(run, tmp_path / "events.sqlite") as process:
        with Client(process.url) as client:
            client.append("anna", item_ids[:20])
        browser.open(process.url + "/")
        browser.until(SHOWN)
        assert browser.evaluate(hint) is False
        assert "--titles FILE" in browser.texts("#titles-hint")[0]
        assert browser.texts("#last li")[0] == str(item_ids[19])
        names = [line.split("\n")[0] for line in browser.texts(".layer > .shares li")]
        assert names == ["Long-term interest"]
        assert browser.evaluate("document.querySelectorAll('#timeline .recent').length") == 0
        assert browser.evaluate("document.querySelectorAll('#timeline .lit').length") > 0


@needs_browser
def test_times_of_last_events_in_every_unit(browser, url):
    second = 1_046_476_800  # 2003-03-01 00:00 UTC
    shown = {
        second - 1: "2003-02-28",
        second * 1_000 - 1: "2003-02-28",
        second * 1_000_000: "2003-03-01",
        second * 1_000_000_000 + 86_400 * 10**9: "2003-03-02",
        37: "time 37",
    }
    browser.open(url + "/")
    for timestamp, words in shown.items():
        script = f"import('/elements.js').then((page) => page.moment({timestamp}))"
        assert browser.evaluate(script) == words
    browser.until("document.querySelectorAll('#users .id').length > 0")
    assert re.fullmatch(r"[\d,]+ events, (just now|\d+ min ago)", browser.texts("#users .id")[0])


@needs_browser
def test_where_nobody_is_there_is_said(browser, page_run, tmp_path):
    with Process(page_run, tmp_path / "events.sqlite") as process:
        browser.open(process.url + "/")
        browser.until(
            "document.querySelector('#users-note').innerText.startsWith('No user has events yet.')"
        )
        assert browser.evaluate("document.querySelector('#results').hidden") is True
        assert browser.evaluate("document.querySelector('#more-users').hidden") is True


@needs_browser
def test_a_pasted_history_grows_without_being_stored(browser, url, item_ids):
    browser.open(url + "/")
    browser.click("#paste summary")
    browser.fill("#history", f" {item_ids[3]},{item_ids[4]}\n{item_ids[5]} ")
    browser.click("#by-history button")
    browser.until(f"{EVENTS} === 3")
    browser.click("#items li:nth-child(2) .more")
    browser.until(f"{EVENTS} === 4")
    with Client(url) as client:
        second = client.recommend_history(item_ids[3:6])[1]["item"]
        wanted = client.recommend_history([*item_ids[3:6], second])
    assert browser.texts("#items .id") == [str(one["item"]) for one in wanted]


@needs_browser
def test_what_a_server_sends_is_text(browser, url):
    browser.open(url + "/")
    browser.fill("#user", HOSTILE)
    browser.key("Enter")
    browser.until(f"{EVENTS} === 3")
    browser.evaluate("document.querySelector('#timeline [data-index=\"0\"]').click()")
    assert HOSTILE in browser.texts("#detail")[0]
    browser.fill("#user", "<b>nobody</b>")
    browser.key("Enter")
    browser.until("document.querySelector('#error').innerText.includes('<b>nobody</b>')")
    assert browser.evaluate("document.querySelectorAll('img, b, body script').length") == 0
    assert browser.evaluate("document.title").startswith("Recommendations")
    # The answer that is no success is in the console, too.
    assert [one for one in browser.complaints if "404" not in one] == []
    browser.complaints.clear()


@needs_browser
def test_someone_new_begins_with_the_first_event(browser, url, item_ids):
    browser.open(url + "/?user=visitor%2019")
    browser.until(SHOWN)
    marked = "document.querySelectorAll('#users [aria-current]').length"
    assert browser.evaluate(marked) == 1
    browser.fill("#user", "nova")
    browser.key("Enter")
    browser.until(
        "document.querySelector('#error').innerText.includes(\"No events of user 'nova'\")"
    )
    assert browser.evaluate(marked) == 0
    browser.fill("#event", "none")
    browser.key("Enter")
    browser.until("document.querySelector('#error').innerText.includes('knows no item of the')")
    # Nothing can be recommended, but the event is there.
    browser.until(f"{EVENTS} === 1")
    assert browser.texts("#last li") == ["none (not known to the model yet)"]
    browser.complaints.clear()
    browser.fill("#event", str(item_ids[2]))
    browser.key("Enter")
    browser.until(SHOWN)
    assert browser.evaluate("document.querySelector('#error').hidden") is True
    browser.fill("#event", "another")
    browser.key("Enter")
    browser.until(f"{STATUS}.startsWith('another was added, which the model does not know yet.')")
    browser.until(f"{EVENTS} === 3")
    assert browser.evaluate(CHECKS) == []
    others = " (not known to the model yet)"
    assert browser.texts("#last li") == [f"another{others}", "Title 2", f"none{others}"]
    assert browser.texts("#detail") == ["another: not known to the model yet, does not count"]
    note = "document.querySelector('#timeline-note').innerText"
    assert browser.evaluate(note).startswith(
        "1 event, oldest first. 2 more the model does not know yet."
    )
    assert browser.texts("#users .name")[0] == "nova" and browser.evaluate(marked) == 1
    # So it is in a history that is pasted.
    browser.click("#paste summary")
    browser.fill("#history", f"none, {item_ids[2]}, {item_ids[3]}")
    browser.evaluate("document.querySelector('#by-history').requestSubmit()")
    browser.until("document.querySelector('#last li').innerText === 'Title 3'")
    assert browser.texts("#last li") == ["Title 3", "Title 2", f"none{others}"]
    assert browser.evaluate(marked) == 0


@needs_browser
def test_a_token_is_asked_for(browser, page_run, tmp_path, item_ids):
    path = tmp_path / "events.sqlite"
    with Process(page_run, path, BLOSSOMREC_TOKEN=TOKEN) as process:
        with Client(process.url, token=TOKEN) as client:
            client.append("anna", item_ids[:5])
        browser.open(f"{process.url}/?user=anna")
        browser.until("document.activeElement.id === 'token'")
        assert "asks for a token" in browser.texts("#error")[0]
        browser.complaints.clear()
        browser.type(TOKEN)
        browser.key("Enter")
        browser.until(SHOWN)
        assert browser.evaluate(STATUS).startswith("10 recommendations")
        assert browser.texts("#users .name") == ["anna"]
    # The server is gone: what is then said is in words, too.
    browser.click("#items li:nth-child(2) .choose")
    browser.until("document.querySelector('#error').innerText.includes('does not answer')")
    browser.complaints.clear()


@needs_browser
def test_a_model_without_reasons_still_shows_the_history(browser, tiny_log, tmp_path, item_ids):
    run = write_run(tmp_path / "run", tiny_log, attention="full")
    with Process(run, tmp_path / "events.sqlite") as process:
        with Client(process.url) as client:
            client.append("anna", item_ids[:30])
        browser.open(f"{process.url}/?user=anna")
        browser.until(f"{EVENTS} === 30")
        assert "cannot be explained" in browser.texts("#reasons")[0]
    browser.complaints.clear()


@pytest.fixture(scope="module")
def kinds_run(tmp_path_factory):
    """A model that sees kinds of events, and is told which one is wanted."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("kinds")
    events = {"user_id": np.repeat(np.arange(20), 20), "item_id": rng.integers(0, 40, 400)}
    kinds = [("click", "buy")[n] for n in rng.integers(0, 2, 400)]
    frame = pl.DataFrame(events | {"timestamp": np.arange(400), "event": kinds})
    log = EventLog.prepare(frame, folder / "log", kind="event")
    return write_run(folder / "run", log, event_kinds="on", request_kind="on", max_len=60)


@needs_browser
def test_kinds_of_events_are_shown_wanted_and_added(browser, kinds_run, tmp_path):
    def choose(name, kind):
        browser.evaluate(
            f"(one => {{ one.value = {json.dumps(kind)}; one.dispatchEvent(new Event('change')) }})"
            f"(document.querySelector('#{name}'))"
        )

    with Process(kinds_run, tmp_path / "events.sqlite") as process, Client(process.url) as client:
        client.append("anna", [{"item": n, "kind": "buy" if n % 2 else None} for n in range(8)])
        for width in (1280, 320):
            browser.size(width, 844, phone=width < 500)
            browser.open(process.url + "/?user=anna")
            browser.until(SHOWN)
            browser.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
            assert browser.evaluate(CHECKS) == []
        assert browser.texts("#last li") == ["7 buy", "6", "5 buy", "4", "3 buy", "2"]
        assert browser.texts("#detail")[0].startswith("Event 8, 7 (buy): ")
        assert browser.texts("#kind option")[:1] == ["any"]
        items = "document.querySelector('#items').innerText"
        for kind in ("buy", "click"):
            before = browser.evaluate(items)
            choose("kind", kind)
            browser.until(f"{items} !== {json.dumps(before)}")
            best = client.recommend("anna", kind=kind)
            assert browser.texts("#items .score") == [f"{one['score']:.2f}" for one in best]
        choose("event-kind", "click")
        browser.fill("#event", "30")
        browser.key("Enter")
        browser.until(f"{EVENTS} === 9")
        assert client.user("anna", 1)["events"][0]["kind"] == "click"
        assert browser.texts("#last li")[:2] == ["30 click", "7 buy"]
        # So is what comes after a pasted history; what it had was not told.
        browser.fill("#history", "3, 4, 5")
        browser.click("#by-history button")
        browser.until(f"{EVENTS} === 3")
        browser.click("#items li:nth-child(2) .more")
        browser.until(f"{EVENTS} === 4")
        second = client.recommend_history([3, 4, 5], kind="click")[1]["item"]
        assert browser.texts("#last li") == [f"{second} click", "5", "4", "3"]
        kinds = [None, None, None, "click"]
        wanted = client.recommend_history([3, 4, 5, second], kind="click", kinds=kinds)
        assert browser.texts("#items .score") == [f"{one['score']:.2f}" for one in wanted]


@needs_browser
def test_all_of_it_with_the_keyboard(browser, url):
    browser.open(url + "/?user=long")
    browser.until(SHOWN)
    browser.evaluate("document.querySelector('#timeline [tabindex=\"0\"]').focus()")
    place = "document.activeElement.dataset.index"
    for name, wanted in [
        ("Home", "0"),
        ("ArrowLeft", "0"),
        ("ArrowDown", "4"),
        ("ArrowRight", "5"),
        ("ArrowUp", "1"),
        ("End", "1999"),
    ]:
        browser.key(name)
        assert browser.evaluate(place) == wanted
    label = browser.evaluate("document.activeElement.ariaLabel")
    assert label.startswith("Event 2,000, Title 19: ") and label == browser.texts("#detail")[0]
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert browser.evaluate(outline) == "solid"
    # One stop for the whole history: the next ones are the field, its button and the list.
    stops = []
    for _ in range(4):
        browser.key("Tab")
        stops.append(
            browser.evaluate("document.activeElement.id || document.activeElement.className")
        )
    assert stops[0] == "event" and stops[2:] == ["choose", "more"]
    before = browser.evaluate("document.querySelector('#why-heading').innerText")
    browser.key("Tab")
    browser.key("Enter")
    browser.until(f"document.querySelector('#why-heading').innerText !== {json.dumps(before)}")


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390, 320])
def test_labels_contrast_and_sizes(browser, url, scheme, width):
    browser.size(width, 844, phone=width < 500)
    browser.prefer(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    browser.open(url + "/?user=long")
    browser.until(SHOWN)
    browser.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    browser.evaluate("document.querySelector('#access').hidden = false")
    assert browser.evaluate(CHECKS) == []
    browser.click("#items li:nth-child(1) .choose")
    assert browser.evaluate(CHECKS) == []
    fresh = "document.body.classList.add('fresh'), getComputedStyle(document.body).animationName"
    assert browser.evaluate(fresh) == "none"


@needs_browser
def test_pictures_are_small(browser, url, tmp_path):
    size = take(browser, url + "/?user=long", tmp_path / "page.png", width=390, phone=True)
    assert 5_000 < size < LARGEST
