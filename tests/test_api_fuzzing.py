"""Requests made from the API's own description, most of them nonsense, never break the server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.schemas import APIOperation

from nestling.workspace import Workspace
from serving_support import LiveServer, publish, running

ENDLESS = "/api/events"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    workspace = Workspace(tmp_path_factory.mktemp("fuzzed") / "nest")
    version = publish(workspace, ["Hello", " there"])
    workspace.versions.promote(version.name, "something to ask")
    with running(workspace) as live:
        yield live.wait()


@pytest.mark.slow
def test_no_request_breaks_the_server(server: LiveServer) -> None:
    described = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [found.ok() for found in described.get_all_operations()]
    paths = {operation.path for operation in operations}
    assert {"/v1/chat/completions", "/api/judgments", "/api/compare", "/api/desk"} <= paths
    for operation in operations:
        if operation.path != ENDLESS:
            ask_nonsense(operation)
    status = server.status()
    assert status["error"] is None and status["open_requests"] == 0


def ask_nonsense(operation: APIOperation) -> None:
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=operation.as_strategy())
    def ask(case: schemathesis.Case) -> None:
        response = case.call(timeout=30)
        assert response.status_code < 500, (operation.label, response.text)
        if response.status_code >= 400:  # every refusal says what was wrong, in the same shape
            assert response.json()["error"]["message"]

    ask()
