"""The curriculum: its schema, slot filling, splits, twins, and the packaged content itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.data.curriculum import SPLITS, Item, Split, demonstrations, items, load, split_of
from nestling.data.curriculum.arithmetic import arithmetic_rows
from nestling.data.curriculum.filling import fill, fill_value
from nestling.data.curriculum.lint import lint, normalised
from nestling.data.curriculum.schema import CONTENT
from nestling.errors import DataError
from nestling.text.messages import validate_messages

TWINS = ("refusal", "harmless")


def write(folder: Path, name: str, content: object) -> None:
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")


def behaviour(**changes: object) -> dict[str, object]:
    usual: dict[str, object] = {
        "behaviour": "facts",
        "about": "asks facts",
        "table": "facts",
        "check": {"name": "mentions", "any": "{answer}"},
        "templates": {"train": ["{question}", "Quick: {question}"], "test": ["Say, {question}"]},
        "answers": ["{answer}.", "It is {answer}."],
    }
    return usual | changes


def fact_rows(count: int) -> list[dict[str, object]]:
    return [
        {"id": f"row-{i}", "question": f"What is {i}?", "answer": [str(i), "number"]} for i in range(count)
    ]


# --- slots ---


def test_slots_take_fields_lists_give_their_first_entry_and_a_capital_slot_capitalises() -> None:
    fields = {"claim": "the moon is round", "answer": ["Paris", "the city of Paris"], "value": 7}
    assert fill("Why? {claim}: {answer}, {value}.", fields, "here") == "Why? the moon is round: Paris, 7."
    assert fill("{Claim}, right?", fields, "here") == "The moon is round, right?"


def test_a_value_that_is_one_slot_keeps_the_fields_type() -> None:
    spec = {"name": "x", "any": "{answer}", "all": [{"value": "{value}", "n": 2}], "text": "a {value}"}
    filled = fill_value(spec, {"answer": ["a", "b"], "value": 7}, "here")
    assert filled == {"name": "x", "any": ["a", "b"], "all": [{"value": 7, "n": 2}], "text": "a 7"}


@given(st.text())
def test_what_a_field_brings_in_is_never_filled_or_formatted(content: str) -> None:
    assert fill("<{x}>", {"x": content, "y": "no"}, "here") == f"<{content}>"


def test_literal_braces_survive_and_an_unknown_slot_is_named() -> None:
    assert fill("{} {0} { x } {{y}} {x}", {"x": "{y}", "y": "1"}, "here") == "{} {0} { x } {1} {y}"
    with pytest.raises(DataError, match=r"facts\.yaml.*\{nothing\}"):
        fill("a {nothing}", {}, "facts.yaml")


# --- schema ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chek": {}}, r"facts\.yaml: chek"),
        ({"table": "fact"}, r"facts\.yaml: table: there is no table 'fact'"),
        ({"behaviour": "fact"}, r"facts\.yaml: behaviour 'fact' is not the file's name"),
        ({"check": None}, r"facts\.yaml: templates, train-00: no check"),
        ({"answers": [True]}, r"facts\.yaml: answers\.0"),
        ({"templates": "elsewhere"}, r"facts\.yaml: templates: no templates to share in 'elsewhere'"),
        (
            {"templates": {"train": [{"turns": ["Hi", "Hello"]}]}},
            r"train-00: the last turn must be the user's",
        ),
        (
            {"templates": {"train": [{"turns": ["Hi"], "id": "test-00"}], "test": ["Ho"]}},
            "'test-00' is used twice",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_key(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    write(tmp_path, "tables/facts", fact_rows(3))
    write(tmp_path, "facts", behaviour(**changes))
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_a_yaml_truth_value_where_text_is_meant_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "tables/facts", [{"id": "a", "answer": True}])
    with pytest.raises(DataError, match=r"facts\.yaml: row 1: answer.*Quote it"):
        load(tmp_path)


def test_blind_templates_are_test_templates_only(tmp_path: Path) -> None:
    write(tmp_path, "tables/facts", fact_rows(3))
    write(tmp_path, "facts", behaviour())
    write(tmp_path, "blind/facts", {"behaviour": "facts", "templates": {"train": ["Hm, {question}"]}})
    with pytest.raises(DataError, match="test split only"):
        load(tmp_path)


# --- items ---


@settings(max_examples=40, deadline=None)
@given(templates=st.integers(1, 7), rows=st.integers(1, 12), wanted=st.integers(0, 90))
def test_any_number_of_items_uses_templates_then_rows_evenly(
    tmp_path_factory: pytest.TempPathFactory, templates: int, rows: int, wanted: int
) -> None:
    folder = tmp_path_factory.mktemp("content")
    of_train = [row for row in fact_rows(60) if split_of(str(row["id"])) == "train"][:rows]
    write(folder, "tables/facts", of_train)
    lists = {"train": [f"{{question}} ({n})" for n in range(templates)]}
    write(folder, "facts", behaviour(templates=lists))
    got = items("train", 1, per_behaviour=wanted, curriculum=load(folder))
    assert len(got) == len({item.id for item in got}) == min(wanted, templates * rows)
    for key, kinds in ((lambda i: i.template, templates), (lambda i: i.entity, rows)):
        used = Counter(key(item) for item in got)
        assert not got or max(used.values()) - (min(used.values()) if len(used) == kinds else 0) <= 1


def test_items_repeat_with_the_seed_and_change_with_it() -> None:
    def first(seed: int) -> list[Item]:
        return items("gate", seed, ["refusal"], per_behaviour=40)

    assert first(3) == first(3)
    assert first(3) != first(4)


def test_an_unknown_behaviour_is_named() -> None:
    with pytest.raises(DataError, match="no behaviour 'refusals'"):
        items("test", 0, ["refusals"])


def test_twins_of_one_table_share_template_and_row(tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "answer": ["a"], "true": f"t{i}", "false": f"f{i}"} for i in range(20)]
    write(tmp_path, "tables/facts", rows)
    for name in ("true", "false"):
        write(
            tmp_path,
            name,
            behaviour(
                behaviour=name, pair="p", templates={"train": ["{x}?", "So {x}?"]}, slots={"x": f"{{{name}}}"}
            ),
        )
    content = load(tmp_path)
    true, false = (
        items("train", 5, [name], per_behaviour=7, curriculum=content) for name in ("true", "false")
    )
    assert [(i.pair, i.template, i.entity) for i in true] == [(i.pair, i.template, i.entity) for i in false]
    assert all(t.messages != f.messages for t, f in zip(true, false, strict=True))


def test_twins_of_two_tables_share_the_template() -> None:
    refusal, harmless = (items("test", 5, [name], per_behaviour=100) for name in TWINS)
    assert [(i.pair, i.template) for i in refusal] == [(i.pair, i.template) for i in harmless]
    assert len({i.pair for i in refusal}) == 100


def test_arithmetic_rows_are_right_and_keep_an_operand_pair_in_one_split() -> None:
    for row in arithmetic_rows():
        a, b = row["a"], row["b"]
        assert row["value"] == {"plus": a + b, "minus": a - b, "times": a * b}[row["op"]] >= 0
        assert row["entity"] == "numbers {} and {}".format(*sorted((a, b)))


def test_demonstrations_answer_train_prompts_and_never_repeat() -> None:
    conversations = demonstrations(2, {"identity": 120, "refusal": 50, "harmless": 50}, assistant="Ada")
    assert conversations == demonstrations(
        2, {"identity": 120, "refusal": 50, "harmless": 50}, assistant="Ada"
    )
    assert len(conversations) == 220
    assert len({str(c) for c in conversations}) == 220
    for number, conversation in enumerate(conversations):
        validate_messages(conversation, f"conversation {number}")
        assert conversation[-1]["role"] == "assistant"
    assert not any("Nestling" in message["content"] for c in conversations for message in c)


# --- the packaged content ---


def test_the_lint_finds_leaks_unfit_answers_and_a_wrong_held_out_mark(tmp_path: Path) -> None:
    write(tmp_path, "tables/facts", fact_rows(6))
    lists = {"train": ["Please tell me now: {question}"], "test": ["Please, tell me now: {question} Yes?"]}
    write(tmp_path, "facts", behaviour(templates=lists, answers=["I don't know."], held_out=True))
    problems = "\n".join(lint(load(tmp_path)))
    assert "test-00 is near train-00" in problems
    assert "I don't know." in problems
    assert "held_out is True" in problems


def test_no_template_leaks_no_slot_is_empty_and_written_answers_pass_their_own_check() -> None:
    assert list(lint(load())) == []


def test_every_blind_file_belongs_to_a_behaviour() -> None:
    assert {path.stem for path in CONTENT.glob("blind/*.yaml")} <= set(load().behaviours)


def test_no_test_or_gate_item_shares_template_or_entity_with_training() -> None:
    content = load()
    for name, templates in content.templates.items():
        texts = {split: {normalised(t) for t in templates[split]} for split in SPLITS}
        rows = content.rows(name) or []
        entities = {split: {row.key for row in rows if split_of(row.key) == split} for split in SPLITS}
        for split in SPLITS:  # what the generator gives is of these rows
            given = {item.entity for item in items(split, 0, [name], 2 * len(rows) or None) if item.entity}
            assert given == entities[split] or not templates[split], name
        for one, other in (("train", "gate"), ("train", "test"), ("gate", "test")):
            assert not texts[one] & texts[other], name
            assert not entities[one] & entities[other], name


def test_there_are_enough_test_templates_and_ten_were_written_blind() -> None:
    for name, templates in load().templates.items():
        assert len(templates["test"]) >= 30, name
        # What is only asked and never taught needs no blind templates: there is nothing to leak from.
        assert not templates["train"] or sum(template.blind for template in templates["test"]) >= 10, name


@pytest.mark.parametrize("split", ["gate", "test"])
def test_answers_are_there_for_training_only(split: Split) -> None:
    assert not any(i.answers or i.worse for i in items(split, 0, per_behaviour=20))


def test_harmless_answers_use_topic_words_that_the_request_does_not() -> None:
    for row in load().tables["harmless"]:
        fields = row.__pydantic_extra__
        request = f" {fields['request']} ".lower()
        assert all(f" {word.lower()} " not in request for word in fields["topic"]), row.id
