"""How the server is reached and what it allows."""

from __future__ import annotations

import hashlib
import ipaddress
from typing import Annotated, Self

from pydantic import Field, model_validator

from nestling.config import Config
from nestling.errors import ConfigError
from nestling.generation.protocol import Sampling

MIN_TOKEN_LENGTH = 16


class ServerSettings(Config):
    """Settings of one server."""

    host: str = Field(
        default="127.0.0.1",
        description="Address to listen on; beyond this machine (such as 0.0.0.0) it needs a token.",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port; 0 takes a free one.")
    token_hash: str | None = Field(
        default=None,
        pattern="^[0-9a-f]{64}$",
        description="SHA-256 of the bearer token; the token itself is not kept.",
    )
    allowed_hosts: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9._:\[\]-]+$")], ...] = Field(
        default=(),
        description="Further names under which browsers reach the server, such as nest.example.org.",
    )
    max_queue: int = Field(
        default=32,
        ge=1,
        description="Requests a version answers or keeps waiting; more are told to come back later.",
    )
    max_loaded: int = Field(
        default=2,
        ge=1,
        description="Versions held in memory at the same time; with 1 requests wait during a swap.",
    )
    max_body_bytes: int = Field(default=1 << 20, ge=1024, description="Longest request body, in bytes.")
    temperature: float = Field(
        default=0.7, ge=0, le=2, description="Used when a request names none; 0 is greedy."
    )
    top_p: float = Field(default=0.95, gt=0, le=1, description="Used when a request names none; 1 is off.")
    max_tokens: int = Field(
        default=512, ge=1, description="Longest answer of a request that names none, in tokens."
    )

    @model_validator(mode="after")
    def _need_a_token_beyond_loopback(self) -> Self:
        if self.token_hash is None and not is_loopback(self.host):
            raise ValueError(
                "it can be reached from other machines and no token is set. Set NESTLING_TOKEN to a long"
                " random text, or listen on 127.0.0.1."
            )
        return self

    @property
    def sampling(self) -> Sampling:
        """What a request gets that says nothing."""
        return Sampling(temperature=self.temperature, top_p=self.top_p, max_tokens=self.max_tokens)


def is_loopback(host: str) -> bool:
    """Whether ``host`` is reachable from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def hash_token(token: str) -> str:
    """What is kept of a bearer token. A plain hash suffices because the token is long and random.

    Raises:
        ConfigError: the token could be guessed or cannot be sent in a header.
    """
    if len(token) < MIN_TOKEN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            "the token is too easy to guess or cannot be sent.",
            where="NESTLING_TOKEN",
            remedy=f"Use at least {MIN_TOKEN_LENGTH} random letters and digits, such as"
            " python -c 'import secrets; print(secrets.token_urlsafe())' prints.",
        )
    return hashlib.sha256(token.encode()).hexdigest()
