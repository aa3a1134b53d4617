"""Who judges: accounts with a token, browsers with an identity that this server signed, and names anybody may give."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from typing import Literal

from nestling.errors import ConfigError, DataError
from nestling.workspace import Workspace, atomic
from nestling.workspace.versions import check_name

Kind = Literal["account", "browser", "claimed", "imported"]

CLAIMED = "(anybody)"
IMPORTED = "imported:"
_LONGEST_FOREIGN = 55  # with what stands before it 64 characters
_ID_BYTES, _MAC_CHARS = 12, 43
_LONGEST_NAME = 50  # an id of a person has 64 characters, "account:" among them


@dataclass(frozen=True)
class Person:
    """Who says something. ``id`` tells the kinds apart, so that no name anybody may give is an account's."""

    id: str
    kind: Kind

    @classmethod
    def account(cls, name: str) -> Person:
        return cls(f"account:{name}", "account")

    @classmethod
    def claimed(cls, name: str) -> Person:
        """A name that a client gives: it is told from the others' ids, and long ones are cut."""
        taken = name.startswith(("account:", "browser:", IMPORTED))
        return cls(f"claimed:{name}"[:64] if taken else name[:64], "claimed")

    @classmethod
    def imported(cls, name: str) -> Person:
        """Somebody whom a file names: nobody here, whatever the name. One that came from a file stays the same."""
        return cls(foreign(name), "imported")


def foreign(name: str) -> str:
    """A name from a file, of a person or a version, as it is written down here: no name of ours looks like it."""
    name = name.removeprefix(IMPORTED)
    if len(name) > _LONGEST_FOREIGN:  # two long ones may begin alike
        name = f"{name[: _LONGEST_FOREIGN - 9]}~{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return IMPORTED + name


def is_foreign(name: str) -> bool:
    """Whether a person or a version stands in a file only."""
    return name.startswith(IMPORTED)


def counts_as(person: str | None, kind: str | None) -> str:
    """Who it is where people are counted: all who only gave a name, or none, are one, as anybody can give many."""
    return CLAIMED if person is None or kind in (None, "claimed") else person


class Identities:
    """Signs identities for browsers and knows its own signature again.

    An identity is a random number with a keyed hash (HMAC-SHA256): nobody can make one up, or take another's without
    having seen it. The key lies in the workspace; whoever may read the judgments may read it too.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def of(cls, workspace: Workspace) -> Identities:
        """Those of a workspace, whose key is made the first time."""
        path = workspace.root / "identity.key"
        if not path.exists():
            atomic.write_private(path, secrets.token_hex(32))
        return cls(bytes.fromhex(path.read_text("utf-8").strip()))

    def issue(self) -> tuple[Person, str]:
        """A new person and the text by which it is known again."""
        number = secrets.token_urlsafe(_ID_BYTES)
        return Person(f"browser:{number}", "browser"), f"{number}.{self._sign(number)}"

    def person(self, shown: str) -> Person | None:
        """Whose identity this is; None where we did not sign it."""
        number, dot, mac = shown.partition(".")
        if not dot or not hmac.compare_digest(self._sign(number).encode(), mac.encode()):
            return None
        return Person(f"browser:{number}", "browser")

    def _sign(self, number: str) -> str:
        digest = hmac.new(self._key, number.encode(), hashlib.sha256).hexdigest()
        return digest[:_MAC_CHARS]


class Accounts:
    """Names with the hash of a token, in ``people.json`` of the workspace; the tokens themselves are kept nowhere."""

    def __init__(self, workspace: Workspace) -> None:
        self._path = workspace.root / "people.json"
        self._lock = lambda: workspace.lock("people", "the list of accounts", timeout=10)
        self._read_at: tuple[int, int] | None = None
        self._names: dict[str, str] = {}

    def add(self, name: str) -> str:
        """Make an account and return its token, which is shown this once.

        Raises:
            ConfigError: there is one of that name.
            WorkspaceError: the name cannot be used.
        """
        check_name(name)
        if len(name) > _LONGEST_NAME:
            raise ConfigError(f"{name!r} is too long.", remedy=f"Use at most {_LONGEST_NAME} characters.")
        token = secrets.token_urlsafe(24)
        with self._lock():
            known = self._hashes()
            if name in known.values():
                raise ConfigError(
                    f"there is an account {name!r}.", remedy="Choose another name, or remove it first."
                )
            self._write(known | {_hash(token): name})
        return token

    def remove(self, name: str) -> None:
        """Take the account's token away; what was said by it stays.

        Raises:
            DataError: there is no such account.
        """
        with self._lock():
            known = self._hashes()
            if name not in known.values():
                there = ", ".join(known.values()) or "none"
                raise DataError(f"there is no account {name!r}.", remedy=f"Accounts: {there}.")
            self._write({key: value for key, value in known.items() if value != name})

    def names(self) -> list[str]:
        """All names, in alphabetical order."""
        return sorted(self._hashes().values())

    def person(self, token: str) -> Person | None:
        """Whose token this is; None if it is nobody's."""
        name = self._hashes().get(_hash(token))
        return Person.account(name) if name is not None else None

    def _hashes(self) -> dict[str, str]:
        """Names by hash, read again when the file has changed."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return {}
        now = status.st_mtime_ns, status.st_ino
        if now != self._read_at:
            self._names, self._read_at = json.loads(self._path.read_text("utf-8")), now
        return self._names

    def _write(self, names: dict[str, str]) -> None:
        atomic.write_private(self._path, json.dumps(names, ensure_ascii=False, indent=2) + "\n")


def _hash(token: str) -> str:
    """A plain hash suffices because the token is long and random."""
    return hashlib.sha256(token.encode()).hexdigest()
