"""Running the server on a socket of its own."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import cast

import uvicorn
from fastapi import FastAPI

from nestling.serving.address import listen
from nestling.serving.settings import ServerSettings
from nestling.serving.state import ServerState

_CLOSE_SECONDS = 5


class Server(uvicorn.Server):
    """A server that listens from the moment it is made.

    Args:
        app: from ``create_app`` with the same settings.

    Attributes:
        url: where it is reached; port 0 has become a real one.
        should_exit: set True from another thread to stop it.

    Raises:
        ConfigError: the address is taken or not this machine's.
    """

    def __init__(self, app: FastAPI, settings: ServerSettings) -> None:
        self._listener = listen(settings)
        host, port = self._listener.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws="none",
                lifespan="on",
                timeout_graceful_shutdown=_CLOSE_SECONDS,
            )
        )

    def answer(self) -> None:
        """Answer requests until SIGINT, SIGTERM or ``should_exit``."""
        self.run(sockets=[self._listener])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Before uvicorn waits for open connections: status streams and long answers would keep it waiting.
        app = cast(FastAPI, self.config.app)
        await cast(ServerState, app.state.server).stop()
        await super().shutdown(sockets)


def serve(
    app: FastAPI, settings: ServerSettings, on_listening: Callable[[str], None] = lambda url: None
) -> None:
    """Serve until SIGINT or SIGTERM.

    ``on_listening`` is called with the URL once connections queue up there; a version may still be loading.

    Raises:
        ConfigError: see ``Server``.
    """
    server = Server(app, settings)
    on_listening(server.url)
    server.answer()
