"""The dashboard and the alerts: what they ask for is there, and alerts fire when they should."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from serving_runs import Server, write_run

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD, ALERTS = DEPLOY / "grafana/blossomrec.json", DEPLOY / "prometheus/alerts.yaml"
# Of the series that Prometheus itself adds, and of histograms.
LABELS_ADDED = {"job", "instance", "le"}
MODIFIERS = r"\b(?:by|without|on|ignoring|group_left|group_right) *\(([^)]*)\)"


def dashboard():
    return json.loads(DASHBOARD.read_text())


def panels():
    return [one for one in dashboard()["panels"] if one["type"] != "row"]


def rules():
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions():
    asked = [target["expr"] for panel in panels() for target in panel["targets"]]
    variables = [one["definition"] for one in dashboard()["templating"]["list"][1:]]
    return asked + variables + [rule["expr"] for rule in rules()]


def parsed(expression):
    """The names of series in an expression, each with the labels it is chosen by, and other labels
    that the expression names."""
    text = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)
    if variable := re.fullmatch(r"label_values\((.*), (\w+)\)", text):
        names, _ = parsed(variable[1])
        return names, {variable[2]}
    text = re.sub(r"\[[^]]*\]", "", text)
    others = {label for found in re.findall(MODIFIERS, text) for label in re.findall(r"\w+", found)}
    text = re.sub(MODIFIERS, "", text)
    found = re.findall(r"(?<![\w:.])([a-zA-Z_:][\w:]*)\b(?! *\()(?:\{([^}]*)\})?", text)
    inside = re.findall(r"\{[^}]*\}", text)
    labels = {label for one in inside for label in re.findall(r"(\w+) *(?:=|!)", one)}
    words = labels | {"and", "or", "unless", "offset", "bool"}
    return {
        name: set(re.findall(r"(\w+) *(?:=|!)", chosen))
        for name, chosen in found
        if name not in words
    }, others


def test_an_expression_is_taken_apart():
    text = 'sum by (a, le) (rate(one_total{b="x{y}",c!~"z"}[5m])) / on (d) two:sum > 0.5 and three'
    names, others = parsed(text)
    assert names == {"one_total": {"b", "c"}, "two:sum": set(), "three": set()}
    assert others == {"a", "le", "d"}
    assert parsed('label_values(one{b="$c"}, a)') == ({"one": {"b"}}, {"a"})


@pytest.fixture(scope="module")
def series(tiny_log, item_ids, tmp_path_factory):
    """The labels of every series of a server that has done a little of everything, by its name."""
    folder = tmp_path_factory.mktemp("series")
    runs = [write_run(folder / name, tiny_log, seed=seed) for seed, name in enumerate("ab")]
    current = folder / "current"
    current.symlink_to(runs[0])
    with Server(current, folder / "events.sqlite") as server:
        server.append("anna", item_ids[:5])
        server.recommend(user_id="anna")
        current.unlink()
        current.symlink_to(runs[1])
        server.reload()
        text = server.client.get("/metrics").text
    found = {"up": set()}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", text, re.MULTILINE):
        found[name] = found.get(name, set()) | set(re.findall(r'(\w+)="', labels))
    return found


def test_every_series_and_label_that_is_asked_for_is_there(series):
    recorded = {}
    for rule in rules():
        if "record" in rule:
            recorded[rule["record"]] = set(
                re.findall(r"\w+", re.search(MODIFIERS, rule["expr"])[1])
            )
    known = series | recorded
    for expression in expressions():
        names, others = parsed(expression)
        assert names, expression
        for name, labels in names.items():
            assert name in known, f"{name} in {expression}"
            assert labels <= known[name] | LABELS_ADDED, expression
        assert others <= set().union(*(known[name] for name in names)) | LABELS_ADDED, expression


def test_values_of_labels_that_are_asked_for_are_there(series, server, item_ids):
    server.append("anna", item_ids[:5])
    server.recommend(user_id="anna")
    text = server.client.get("/metrics").text
    for expression in expressions():
        for label, value in re.findall(r'(\w+)="([^"$]*)"', expression):
            assert label == "job" or f'{label}="{value}"' in text, expression


def test_the_dashboard_is_whole():
    board = dashboard()
    assert board["uid"] == board["title"] == "blossomrec" and board["schemaVersion"] >= 36
    numbers = [one["id"] for one in board["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken = set()
    for one in board["panels"]:
        place = one["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken, one["title"]
        taken |= cells
    for panel in panels():
        assert panel["title"] and panel["fieldConfig"]["defaults"]["unit"]
        letters = [target["refId"] for target in panel["targets"]]
        assert letters and len(set(letters)) == len(letters)
        for one in (panel, *panel["targets"]):
            assert one["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    names = {one["name"] for one in board["templating"]["list"]}
    used = {name for text in expressions() for name in re.findall(r"\$(\w+)", text)}
    assert used - {"__rate_interval"} <= names


def test_the_provider_of_dashboards():
    provided = yaml.safe_load((DEPLOY / "grafana/dashboards.yaml").read_text())
    (provider,) = provided["providers"]
    assert provided["apiVersion"] == 1 and provider["type"] == "file"
    assert provider["options"]["path"].startswith("/")


def test_every_alert_says_what_it_is():
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len({one["alert"] for one in alerts}) == len(alerts)
    for one in alerts:
        assert one["labels"]["severity"] in ("warning", "critical")
        assert one["annotations"]["summary"]


needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="there is no promtool")
WHERE = 'job="blossomrec",instance="a"'
# Over 200 minutes; all is well.
HEALTHY = {
    f"up{{{WHERE}}}": "1x200",
    f'blossomrec_requests_total{{{WHERE},status="200"}}': "0+600x200",
    f'blossomrec_requests_total{{{WHERE},status="503"}}': "0x200",
    f'blossomrec_request_seconds_bucket{{{WHERE},route="/v1/recommend",le="0.5"}}': "0+600x200",
    f'blossomrec_request_seconds_bucket{{{WHERE},route="/v1/recommend",le="+Inf"}}': "0+600x200",
    f'blossomrec_request_seconds_bucket{{{WHERE},route="/v1/recommend",le="1.0"}}': "0+600x200",
    f'blossomrec_queue_length{{{WHERE},queue="model"}}': "3x200",
    f"blossomrec_queue_limit{{{WHERE}}}": "256x200",
    f'blossomrec_reloads_total{{{WHERE},outcome="refused"}}': "0x200",
    f"blossomrec_model_age_seconds{{{WHERE}}}": "86400+60x200",
    f'blossomrec_model_info{{{WHERE},version="new"}}': "1x200",
    f'blossomrec_model_before_info{{{WHERE},version="old"}}': "1x200",
    f'blossomrec_followed_events_total{{{WHERE},version="new"}}': "0+100x200",
    f'blossomrec_followed_events_total{{{WHERE},version="old"}}': "0+100x200",
    f'blossomrec_hits_total{{{WHERE},version="new",within="10"}}': "0+10x200",
    f'blossomrec_hits_total{{{WHERE},version="old",within="10"}}': "0+10x200",
    f"blossomrec_popularity_distance{{{WHERE}}}": "0.05x200",
    f"blossomrec_popularity_events{{{WHERE}}}": "9000x200",
    f'blossomrec_unknown_items_total{{{WHERE},where="events"}}': "0+1x200",
    f"blossomrec_events_stored_total{{{WHERE}}}": "0+100x200",
}
NEW_HITS = f'blossomrec_hits_total{{{WHERE},version="new"'
# What is not well, by a part of the name of the series, and the alert that fires.
ILL = [
    ({"up{": "0x200"}, "BlossomrecNoAnswer"),
    ({"up{": "_x200"}, "BlossomrecNoAnswer"),
    ({'status="503"': "0+30x200"}, "BlossomrecErrors"),
    ({'le="0.5"': "0+500x200"}, "BlossomrecSlow"),
    ({"queue_length": "250x200"}, "BlossomrecQueueFull"),
    ({"reloads_total": "0x150 1x50"}, "BlossomrecReloadRefused"),
    ({"model_age": "700000+60x200"}, "BlossomrecModelOld"),
    (
        {NEW_HITS: "0+5x200"},
        "BlossomrecQualityFell",
    ),
    ({"popularity_distance": "0.6x200"}, "BlossomrecPopularityDrift"),
    ({"unknown_items": "0+20x200"}, "BlossomrecUnknownItems"),
    # Not enough events to tell.
    (
        {NEW_HITS: "0x200", "followed": "0+1x200"},
        None,
    ),
    ({"popularity_distance": "0.6x200", "popularity_events": "100x200"}, None),
    ({}, None),
]


def case(changes, alert):
    """One case for promtool: which alerts fire after three hours."""
    values = dict(HEALTHY)
    for part, value in changes.items():
        found = [name for name in values if part in name]
        assert found, part
        values |= dict.fromkeys(found, value)
    expected = [] if alert is None else [{"labels": f'{{alertname="{alert}"}}', "value": 1}]
    asked = {
        "expr": 'group by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": "180m",
        "exp_samples": expected,
    }
    series = [{"series": name, "values": value} for name, value in values.items()]
    return {"interval": "1m", "input_series": series, "promql_expr_test": [asked]}


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then(tmp_path):
    assert {alert for _, alert in ILL} - {None} == {
        one["alert"] for one in rules() if "alert" in one
    }
    tests = {"rule_files": [str(ALERTS)], "tests": [case(*one) for one in ILL]}
    path = tmp_path / "alerts_test.yaml"
    path.write_text(yaml.safe_dump(tests))
    promtool("check", "rules", str(ALERTS))
    promtool("test", "rules", str(path))


@needs_promtool
def test_prometheus_reads_what_the_dashboard_asks(tmp_path):
    asked = [target["expr"] for panel in panels() for target in panel["targets"]]
    read = [
        re.sub(r"\$(job|instance)", ".*", one).replace("$__rate_interval", "5m") for one in asked
    ]
    named = [{"record": f"panel_{number}", "expr": one} for number, one in enumerate(read)]
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": named}]}))
    promtool("check", "rules", str(path))


def promtool(*words):
    done = subprocess.run(["promtool", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
