"""Who may talk to the server, and what browsers may do with what it says.

A local server is reachable from every web page its owner visits. Three things keep such pages out: the Host
header must be a name of ours (against DNS rebinding), a request that a browser sends for another site is
refused, and no CORS header is ever sent, so that no foreign page can read an answer.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nestling.feedback.people import Accounts
from nestling.serving.errors import ApiError
from nestling.serving.settings import ServerSettings, is_loopback

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_OPEN_PATHS = ("/", "/desk", "/healthz")
_PAGE = "/page/"

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Guard:
    """ASGI middleware: refuses foreign hosts, foreign origins, missing tokens and oversized bodies."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, accounts: Accounts) -> None:
        self.app, self.settings, self.accounts = app, settings, accounts
        self._hosts = {name.lower() for name in (*_LOOPBACK_NAMES, settings.host, *settings.allowed_hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # there are no websockets here

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal.response()(scope, receive, send_guarded)
        else:
            await self.app(scope, self._limited(receive), send_guarded)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_ours(host, scope):
            return ApiError(
                403,
                f"This server does not answer to the name {host!r}. To allow it, start it with --allowed-hosts NAME.",
                code="foreign_host",
            )
        origin = headers.get("origin")
        if origin is not None and _netloc(origin) != host.lower():
            return ApiError(403, f"Requests from {origin!r} are not allowed.", code="foreign_origin")
        path: str = scope["path"]
        is_page = path in _OPEN_PATHS or path.startswith(_PAGE)
        # Browsers send no Origin with a plain GET, but they do say that another site asked for it.
        if not is_page and headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return ApiError(403, "Requests from other sites are not allowed.", code="foreign_origin")
        if not is_page and not self._may_enter(headers.get("authorization", "")):
            return ApiError(401, "A valid bearer token is needed.", code="invalid_api_key")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.settings.max_body_bytes:
            return self._too_large()
        return None

    def _is_ours(self, host: str, scope: Scope) -> bool:
        try:
            parts = urlsplit(f"//{host}")
        except ValueError:
            return False
        name = (parts.hostname or "").rstrip(".")
        if parts.netloc != host or parts.username is not None:
            return False
        if name in self._hosts:
            return True
        # A numeric address cannot be rebound, so the one the request arrived at is as good as a name of ours.
        arrived_at = (scope.get("server") or ("",))[0]
        return not is_loopback(self.settings.host) and _same_address(name, arrived_at)

    def _may_enter(self, authorization: str) -> bool:
        expected = self.settings.token_hash
        if expected is None:
            return True
        token = bearer(authorization)
        given = hashlib.sha256(token.encode()).hexdigest()
        return bool(token) and (
            hmac.compare_digest(given, expected) or self.accounts.person(token) is not None
        )

    def _limited(self, receive: Receive) -> Receive:
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.settings.max_body_bytes:
                raise HTTPException(413, self._too_large().message)
            return message

        return limited

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"The body is longer than {self.settings.max_body_bytes} bytes.", code="too_large"
        )


def bearer(authorization: str) -> str:
    """The token of an Authorization header, "" without one."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _same_address(name: str, address: str) -> bool:
    try:
        return ipaddress.ip_address(name) == ipaddress.ip_address(address)
    except ValueError:
        return False


def _netloc(url: str) -> str | None:
    """Host and port of a URL in lower case; None when it is malformed."""
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return None
