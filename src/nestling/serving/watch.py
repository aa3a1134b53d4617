"""Rolling a version back when people are less content with it than with the one before."""

from __future__ import annotations

import asyncio
import logging

from nestling.errors import NestlingError
from nestling.feedback.satisfaction import Satisfaction, satisfaction, signals
from nestling.storage import Database
from nestling.workspace import VersionStore

log = logging.getLogger(__name__)

ROLLED_BACK = "Rolled back:"
"""What the verdict of a version begins with with which people were less content."""
_SECONDS = 30.0


def served_before(versions: VersionStore) -> str | None:
    """The version that a roll-back would serve."""
    found = versions.served_before()
    return found.name if found else None


def roll_back_if_worse(versions: VersionStore, database: Database) -> Satisfaction | None:
    """Serve the version before again where people are shown to be less content; what was found then, else None.

    The version itself is marked as rejected, with the reason, so that it does not come back by itself.
    """
    pointer, before = versions.pointer(), served_before(versions)
    if pointer is None or before is None or versions.get(pointer.version).card.state == "rejected":
        return None  # somebody promoted it by force, knowing that
    found = satisfaction(signals(database), pointer.version, before)
    if not found.is_worse:
        return None
    reason = (
        f"{ROLLED_BACK} of {found.people} people {found.rate or 0:.0%} were content; "
        f"with {before} it was {found.before or 0:.0%} at least (evidence {found.evidence:.0f} to 1)."
    )
    versions.roll_back(reason, of=pointer.version)
    versions.mark(pointer.version, "rejected", reason)
    log.warning("%s: %s", pointer.version, reason)
    return found


async def watch_satisfaction(versions: VersionStore, database: Database) -> None:
    """Look every half minute."""
    while True:
        await asyncio.sleep(_SECONDS)
        try:
            await asyncio.to_thread(roll_back_if_worse, versions, database)
        except NestlingError as error:  # a locked database, say: the next look may fare better
            log.warning("satisfaction was not looked at: %s", error)
        except Exception:  # whatever it is, the watch must not end without a word
            log.exception("satisfaction was not looked at")
