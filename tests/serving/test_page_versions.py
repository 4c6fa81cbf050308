"""The versions of the model on the page, in a real browser."""

import signal
from pathlib import Path

import pytest
from browser import Browser, find_chromium
from serving_runs import Process, write_run

from blossomrec.serving import Client

CHECKS = Path(__file__).with_name("page_checks.js").read_text()
pytestmark = pytest.mark.skipif(find_chromium() is None, reason="there is no chromium")


@pytest.fixture(scope="module")
def url(tiny_log, item_ids, tmp_path_factory):
    """A server that has taken a second model and refused a third."""
    folder = tmp_path_factory.mktemp("versions")
    runs = [write_run(folder / name, tiny_log, seed=seed) for seed, name in enumerate(("a", "b"))]
    current = folder / "current"
    current.symlink_to(runs[0])
    with Process(current, folder / "events.sqlite") as process, Client(process.url) as client:
        client.append("anna", item_ids[:5])
        client.append("anna", [client.recommend("anna")[3]["item"], item_ids[0]])
        for run, told in ((runs[1], "versions"), (folder / "none", "refused")):
            before = len(client.versions()[told])
            current.unlink()
            current.symlink_to(run)
            process.signal(signal.SIGHUP)
            while len(client.versions()[told]) == before:
                pass
        client.recommend("anna")
        yield process.url


@pytest.fixture(scope="module")
def browser():
    with Browser(find_chromium()) as browser:
        yield browser


def opened(browser, url):
    browser.open(url + "/")
    browser.until("document.body.innerText.includes(' recommendations in ')")
    # Without the mouse: what is drawn above may move it between a look and a click.
    browser.evaluate("document.querySelector('#versions').open = true")
    browser.until("document.querySelectorAll('#versions-list > li').length === 2")


def test_versions_are_shown_with_what_came_of_their_lists(browser, url):
    browser.size(1280, 900)
    opened(browser, url)
    new, old = browser.texts("#versions-list h3")
    with Client(url) as client:
        told = client.versions()["versions"]
    assert new.startswith(f"{told[0]['model']} b, since just now, in use")
    assert old.startswith(f"{told[1]['model']} a, since just now, until just now")
    facts = browser.texts("#versions-list > li:nth-child(2) .facts div")
    lines = dict(fact.split("\n") for fact in facts)
    assert (lines["Lists"], lines["Events that followed"]) == ("1", "2")
    assert (lines["Hit rate, first 1"], lines["Hit rate, first 5"]) == ("0.0 %", "50 %")
    assert lines["Mean of 1 / rank"] == "0.125"
    facts = browser.texts("#versions-list > li:nth-child(1) .facts div")
    assert "Hit rate, first 5\n\u2013" in facts
    (refused,) = browser.texts("#refused li")
    assert "none" in refused and browser.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_versions_can_be_read(browser, url, scheme, width):
    browser.size(width, 900, phone=width < 500)
    browser.prefer(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    opened(browser, url)
    assert browser.evaluate(CHECKS) == []
