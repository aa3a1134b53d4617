"""The socket a server listens on."""

from __future__ import annotations

import socket

from nestling.errors import ConfigError
from nestling.serving.settings import ServerSettings


def listen(settings: ServerSettings) -> socket.socket:
    """A socket on the address of ``settings``; connections queue up there until they are answered.

    Raises:
        ConfigError: the address is taken or not this machine's.
    """
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
