"""Requests made from the server's own description: whatever comes, there is an answer."""

import hypothesis
import pytest

schemathesis = pytest.importorskip("schemathesis", reason="it makes the requests")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")
HOST = {"host": "127.0.0.1"}


@pytest.mark.filterwarnings("ignore")
def test_no_request_is_a_fault(server, item_ids):
    server.append("anna", item_ids[:9])
    schema = schemathesis.openapi.from_asgi("/openapi.json", server.app, headers=HOST)
    failures, tried = [], 0
    settings = hypothesis.settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    for result in schema.get_all_operations():
        operation = result.ok()

        @hypothesis.given(case=operation.as_strategy())
        @settings
        def attempt(case):
            nonlocal tried
            tried += 1
            answer = case.call(headers=HOST)
            if answer.status_code >= 500:
                failures.append((case.as_curl_command(), answer.text))
            # Ids of the right form may still be unknown.
            case.validate_response(answer, excluded_checks=[checks.positive_data_acceptance])

        attempt()
    assert not failures
    assert tried > 100
