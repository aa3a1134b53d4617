"""The server: an OpenAI-compatible API, people's judgments, and a page to chat and vote on."""

from __future__ import annotations

from nestling.serving.app import create_app
from nestling.serving.run import Server, serve
from nestling.serving.settings import ServerSettings, hash_token

__all__ = ["Server", "ServerSettings", "create_app", "hash_token", "serve"]
