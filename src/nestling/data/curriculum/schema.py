"""The shape of the curriculum's YAML files, and their loading.

``content/<behaviour>.yaml`` holds what a behaviour asks, ``content/tables/<table>.yaml`` the rows its
slots are filled from, ``content/blind/<behaviour>.yaml`` further test templates written without sight of
the others.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, StrictStr, ValidationError

from nestling.data.curriculum.arithmetic import arithmetic_rows
from nestling.errors import DataError

CONTENT = Path(__file__).parent / "content"
TEXTS = frozenset({"prose", "replay"})
"""Files of the content folder that are no behaviours: prose for perplexity, prompts for replay."""
Split = Literal["train", "gate", "test"]
SPLITS: tuple[Split, ...] = ("train", "gate", "test")
Text = Annotated[StrictStr, Field(min_length=1)]
# The C loader is ten times faster; not every build of PyYAML has it.
_SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Value = StrictStr | StrictInt | list[StrictStr]


class Strict(BaseModel):
    """Unknown keys are errors: a misspelt key must not be silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _turns_from_text(value: Any) -> Any:
    return {"turns": [value]} if isinstance(value, str) else value


class Template(Strict):
    """One prompt with slots: ``turns`` of user, assistant, ..., user. A plain string is one user turn."""

    turns: list[Text] = Field(min_length=1)
    id: str = ""
    system: Text | None = None
    check: dict[str, Any] | None = None
    answers: list[Text] = []
    worse: list[Text] = []
    blind: bool = Field(default=False, exclude=True)


Templates = list[Annotated[Template, BeforeValidator(_turns_from_text)]]


class TemplateLists(Strict):
    train: Templates = []
    gate: Templates = []
    test: Templates = []


def _test_from_list(value: Any) -> Any:
    return {"test": value} if isinstance(value, list) else value


class BlindFile(Strict):
    behaviour: str
    about: str = ""
    templates: Annotated[TemplateLists, BeforeValidator(_test_from_list)]


class Row(BaseModel):
    """One table row; every further key is a slot. ``entity`` decides the split and falls back to ``id``."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Value]

    id: Text
    entity: Text = ""
    answers: list[Text] = []
    worse: list[Text] = []

    @property
    def key(self) -> str:
        return (self.entity or self.id).strip().casefold()


class Behaviour(Strict):
    """One behaviour file. ``templates`` may name another behaviour whose templates it shares.

    ``leads`` are beginnings of which each good answer gets one, "" for none.
    """

    behaviour: str
    about: Text
    held_out: bool = False
    pair: str | None = None
    table: str | None = None
    check: dict[str, Any] | None = None
    templates: TemplateLists | str
    slots: dict[str, Text] = {}
    leads: list[str] = [""]
    answers: list[Text] = []
    worse: list[Text] = []


@dataclass(frozen=True)
class Curriculum:
    """Everything under one content folder; template ids assigned, shared and blind templates joined in."""

    behaviours: dict[str, Behaviour]
    templates: dict[str, dict[Split, list[Template]]]
    tables: dict[str, list[Row]]

    def rows(self, behaviour: str) -> list[Row] | None:
        """The rows of the behaviour's table, or None when it has no table."""
        table = self.behaviours[behaviour].table
        return None if table is None else self.tables[table]


@cache
def content_digest(folder: Path = CONTENT) -> str:
    """SHA-256 of all files under a content folder: what is taught, and what is asked to see what was learnt."""
    files = sorted(path for path in folder.rglob("*.yaml"))
    told = [[path.relative_to(folder).as_posix(), sha256(path.read_bytes()).hexdigest()] for path in files]
    return sha256(json.dumps(told).encode()).hexdigest()


@cache
def load(folder: Path = CONTENT) -> Curriculum:
    """Read and validate a content folder.

    Raises:
        DataError: naming the file and the key that is wrong.
    """
    tables = {"arithmetic": [Row.model_validate(row) for row in arithmetic_rows()]}
    for path in sorted((folder / "tables").glob("*.yaml")):
        tables[path.stem] = _load_table(path)
    behaviours = {}
    for path in sorted(folder.glob("*.yaml")):
        if path.stem in TEXTS:
            continue
        behaviours[path.stem] = behaviour = _parse(Behaviour, _read_yaml(path), path)
        if behaviour.behaviour != path.stem:
            raise DataError(f"behaviour {behaviour.behaviour!r} is not the file's name.", where=path.name)
        if behaviour.table is not None and behaviour.table not in tables:
            raise DataError(
                f"there is no table {behaviour.table!r}.",
                where=f"{path.name}: table",
                remedy=f"Write tables/{behaviour.table}.yaml or use one of {', '.join(tables)}.",
            )
    blind = {path.stem: _load_blind(path) for path in sorted(folder.glob("blind/*.yaml"))}
    templates = {name: _templates_of(name, behaviours, blind) for name in behaviours}
    return Curriculum(behaviours, templates, tables)


Parsed = TypeVar("Parsed", bound=BaseModel)


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_SAFE_LOADER)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"not valid YAML: {error}", where=path.name) from error


def _parse(kind: type[Parsed], value: Any, path: Path, prefix: str = "") -> Parsed:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        problem = error.errors()[0]
        key = prefix + ".".join(str(part) for part in problem["loc"])
        shown = repr(problem["input"])
        raise DataError(
            f"{problem['msg']} (found {shown[:120]}).",
            where=f"{path.name}: {key}",
            remedy="Quote it if it is meant as text.",
        ) from error


def _load_table(path: Path) -> list[Row]:
    value = _read_yaml(path)
    if not isinstance(value, list):
        raise DataError("a table must be a list of rows.", where=path.name)
    rows = [_parse(Row, row, path, prefix=f"row {number}: ") for number, row in enumerate(value, 1)]
    _refuse_repeats([row.id for row in rows], path.name)
    return rows


def _load_blind(path: Path) -> BlindFile:
    blind = _parse(BlindFile, _read_yaml(path), path)
    if blind.behaviour != path.stem:
        raise DataError(f"behaviour {blind.behaviour!r} is not the file's name.", where=f"blind/{path.name}")
    if blind.templates.train or blind.templates.gate:
        raise DataError("blind templates are for the test split only.", where=f"blind/{path.name}: templates")
    return blind


def _templates_of(
    name: str, behaviours: dict[str, Behaviour], blind: dict[str, BlindFile]
) -> dict[Split, list[Template]]:
    behaviour, owner = behaviours[name], name
    lists = behaviour.templates
    if isinstance(lists, str):
        owner = lists
        shared = behaviours[owner].templates if owner in behaviours else None
        if not isinstance(shared, TemplateLists):
            raise DataError(f"no templates to share in {owner!r}.", where=f"{name}.yaml: templates")
        lists = shared
    extra = blind.get(name) or blind.get(owner)
    written: dict[Split, list[Template]] = {split: getattr(lists, split) for split in SPLITS}
    result: dict[Split, list[Template]] = {
        split: [_with_id(t, f"{split}-{i:02d}", blind=False) for i, t in enumerate(written[split])]
        for split in SPLITS
    }
    if extra:
        result["test"] += [
            _with_id(t, f"blind-{i:02d}", blind=True) for i, t in enumerate(extra.templates.test)
        ]
    everything = [template for split in SPLITS for template in result[split]]
    _refuse_repeats([template.id for template in everything], f"{name}.yaml: templates")
    for template in everything:
        place = f"{name}.yaml: templates, {template.id}"
        if len(template.turns) % 2 == 0:
            raise DataError("the last turn must be the user's.", where=place)
        if template.check is None and behaviour.check is None:
            raise DataError("no check, here or for the behaviour.", where=place)
    return result


def _with_id(template: Template, position: str, *, blind: bool) -> Template:
    return template.model_copy(update={"id": template.id or position, "blind": blind})


def _refuse_repeats(ids: list[str], where: str) -> None:
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        raise DataError(f"the id {repeated[0]!r} is used twice.", where=where, remedy="Ids must be unique.")
