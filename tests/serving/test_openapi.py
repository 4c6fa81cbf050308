"""The schema that is printed without a server is the one that a server gives."""

from __future__ import annotations

import json
import sys

import pytest

from command_line import refuse

pytestmark = pytest.mark.usefixtures("wide_terminal")


def test_the_printed_schema_is_that_of_a_server(cli, server):
    printed = json.loads(cli("openapi"))
    assert printed == server.client.get("/openapi.json").json()


def test_every_operation_has_a_name_and_says_what_it_answers(cli):
    paths = json.loads(cli("openapi"))["paths"]
    operations = [each for methods in paths.values() for each in methods.values()]
    names = [each["operationId"] for each in operations]
    assert len(set(names)) == len(names) and "recommend" in names and "append_events" in names
    for each in operations:
        content = each["responses"]["200"].get("content", {})
        assert each["operationId"] == "metrics" or content["application/json"]["schema"]
        assert {"401", "503"} <= set(each["responses"])


def test_a_missing_extra_is_named(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "blossomrec.serving.http.application", raising=False)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    refuse(capsys, "openapi", words=["pip install 'blossomrec[serve]'"])
