"""No web page and no stranger may chat or vote behind the owner's back."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch
from fastapi.testclient import TestClient

from nestling.config import parse
from nestling.errors import ConfigError
from nestling.serving import ServerSettings, create_app, hash_token, serve
from nestling.workspace import Workspace
from serving_support import ask, load_engine, publish

TOKEN = "correct-horse-battery-staple"
CHAT: dict[str, Any] = {"model": "nestling", "messages": ask()}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    torch.set_num_threads(1)
    workspace = Workspace(tmp_path_factory.mktemp("nest"))
    workspace.versions.promote(publish(workspace, ["Hi"]).name, "first")
    return workspace


def opened(workspace: Workspace, base_url: str = "http://127.0.0.1:8000", **settings: Any) -> TestClient:
    return TestClient(create_app(workspace, load_engine, ServerSettings(**settings)), base_url=base_url)


@pytest.fixture(scope="module")
def local(workspace: Workspace) -> Iterator[TestClient]:
    with opened(workspace) as client:
        yield client


@pytest.fixture(scope="module")
def public(workspace: Workspace) -> Iterator[TestClient]:
    settings = {"host": "0.0.0.0", "token_hash": hash_token(TOKEN), "allowed_hosts": ("nest.example.org",)}
    with opened(workspace, "http://192.0.2.7:8000", **settings) as client:
        yield client


def chat(client: TestClient, **headers: str) -> httpx.Response:
    return client.post("/v1/chat/completions", json=CHAT, headers=headers)


class TestLocal:
    @pytest.mark.parametrize(
        "host", ["127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000", "127.0.0.1"]
    )
    def test_our_own_names(self, local: TestClient, host: str) -> None:
        assert chat(local, Host=host, Origin=f"http://{host}").status_code == 200

    @pytest.mark.parametrize(
        "host",
        [
            "evil.example",
            "evil.example:8000",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "192.0.2.7:8000",
            "0.0.0.0",
            "user@localhost",
            "localhost/evil",
            "localhost#",
            "[::1",
            "",
        ],
    )
    def test_foreign_hosts(self, local: TestClient, host: str) -> None:
        for reply in (chat(local, Host=host), local.get("/", headers={"Host": host})):
            assert reply.status_code == 403 and reply.json()["error"]["code"] == "foreign_host"

    @pytest.mark.parametrize(
        "origin",
        [
            "https://evil.example",
            "http://localhost:3000",
            "http://127.0.0.1:8001",
            "null",
            "",
            "http://evil.example@127.0.0.1:8000",
        ],
    )
    def test_foreign_origins(self, local: TestClient, origin: str) -> None:
        thumb = {"kind": "thumb", "generation_id": "x", "value": "up"}
        for reply in (
            chat(local, Origin=origin),
            local.post("/api/judgments", json=thumb, headers={"Origin": origin}),
            local.get("/api/versions", headers={"Origin": origin}),
            local.options("/v1/chat/completions", headers={"Origin": origin}),
        ):
            assert reply.status_code == 403 and reply.json()["error"]["code"] == "foreign_origin"
            assert not any(name.startswith("access-control") for name in reply.headers)

    @pytest.mark.parametrize("site", ["cross-site", "same-site"])
    def test_what_browsers_say_about_other_sites(self, local: TestClient, site: str) -> None:
        assert local.get("/api/versions", headers={"Sec-Fetch-Site": site}).status_code == 403
        assert (
            local.get("/", headers={"Sec-Fetch-Site": site}).status_code == 200
        )  # a link to the page is fine
        assert local.get("/api/versions", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200

    def test_every_reply_carries_the_headers(self, local: TestClient) -> None:
        for path in ("/", "/page/app.js", "/v1/models", "/nothing", "/healthz"):
            headers = local.get(path).headers
            policy = headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert "frame-ancestors 'none'" in policy and headers["Referrer-Policy"] == "no-referrer"
            assert "server" not in headers

    def test_bodies_are_bounded(self, local: TestClient) -> None:
        huge = {"model": "nestling", "messages": ask("x" * (1 << 20))}
        assert local.post("/v1/chat/completions", json=huge).status_code == 413

        def pieces() -> Iterator[bytes]:
            for _ in range(40):
                yield b"x" * 50_000

        reply = local.post(
            "/v1/chat/completions", content=pieces(), headers={"Content-Type": "application/json"}
        )
        assert reply.status_code == 413 and "longer than" in reply.json()["error"]["message"]
        for length in ("-1", "many"):
            reply = local.post("/v1/chat/completions", content=b"{}", headers={"Content-Length": length})
            assert reply.status_code == 413


class TestBeyondThisMachine:
    def test_a_token_is_required(self, public: TestClient) -> None:
        for headers in (
            {},
            {"Authorization": TOKEN},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": "Bearer "},
        ):
            reply = chat(public, **headers)
            assert reply.status_code == 401 and reply.headers["WWW-Authenticate"] == "Bearer"
            assert reply.json()["error"]["type"] == "authentication_error"
        assert chat(public, Authorization=f"Bearer {TOKEN}").status_code == 200
        assert chat(public, Host="localhost").status_code == 401  # a proxy makes everybody look local

    def test_the_page_itself_holds_no_secret(self, public: TestClient) -> None:
        assert public.get("/").status_code == 200 and public.get("/healthz").status_code == 200
        for path in ("/api/status", "/api/events", "/api/versions", "/v1/models"):
            assert public.get(path).status_code == 401

    def test_names(self, public: TestClient) -> None:
        authorized = {"Authorization": f"Bearer {TOKEN}"}
        assert chat(public, Host="nest.example.org", **authorized).status_code == 200
        assert chat(public, Host="192.0.2.8:8000", **authorized).status_code == 403
        assert chat(public, Host="evil.example", **authorized).status_code == 403

    def test_no_token_no_server(self) -> None:
        with pytest.raises(ConfigError, match=r"other machines.*NESTLING_TOKEN"):
            parse(ServerSettings, {"host": "0.0.0.0"}, "serve")
        for host in ("127.0.0.1", "::1", "localhost", "127.1.2.3"):
            assert ServerSettings(host=host).token_hash is None

    @pytest.mark.parametrize("token", ["", "short", "has a space in it ok", "äöüäöüäöüäöüäöüäöü", "x" * 15])
    def test_weak_tokens(self, token: str) -> None:
        with pytest.raises(ConfigError, match="too easy to guess"):
            hash_token(token)

    @pytest.mark.parametrize("host", ["*", "", "nest.example.org/chat", "a b"])
    def test_further_names_are_plain_ones(self, host: str) -> None:
        with pytest.raises(ConfigError, match="allowed_hosts"):
            parse(ServerSettings, {"allowed_hosts": (host,)}, "server")

    def test_the_token_is_kept_nowhere(self) -> None:
        settings = ServerSettings(host="0.0.0.0", token_hash=hash_token(TOKEN))
        assert TOKEN not in repr(settings) and len(settings.token_hash or "") == 64


def test_a_taken_port_is_named(workspace: Workspace) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = ServerSettings(port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match=rf"port {settings.port}.*choose another"):
            serve(create_app(workspace, load_engine, settings), settings)
