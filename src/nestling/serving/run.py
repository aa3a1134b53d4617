"""Running the server on a socket of its own."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import cast

import uvicorn
from fastapi import FastAPI

from nestling.errors import ConfigError
from nestling.serving.settings import ServerSettings
from nestling.serving.state import ServerState

_CLOSE_SECONDS = 5


def serve(
    app: FastAPI, settings: ServerSettings, on_listening: Callable[[str], None] = lambda url: None
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        app: from ``create_app`` with the same settings.
        on_listening: called with the URL once connections are accepted; a version may still be loading then.

    Raises:
        ConfigError: the address is taken or not this machine's.
    """
    listener = _listen(settings)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=_CLOSE_SECONDS,
    )
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    on_listening(f"http://{shown}:{port}")
    _Server(config).run(sockets=[listener])


class _Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Before uvicorn waits for open connections: status streams and long answers would keep it waiting.
        app = cast(FastAPI, self.config.app)
        await cast(ServerState, app.state.server).stop()
        await super().shutdown(sockets)


def _listen(settings: ServerSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host.strip("[]"), settings.port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror or error}.",
            where="port",
            remedy="Stop the program that uses it, or choose another with --port.",
        ) from error
    return listener
