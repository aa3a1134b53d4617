"""The held-out checks, and that they share nothing with the ones that teach."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

import nestling.checks
from nestling import checks
from nestling.checks import Answer

FOLDER = Path(nestling.checks.__file__).parent


def passed(spec: dict[str, Any], question: str, text: str, finished: bool = True) -> bool:
    return checks.judge(spec, Answer([{"role": "user", "content": question}], text, finished)).passed


LISTS = [
    (3, "1. Red\n2. Blue\n3. Green", True),
    (3, "- Red\n- Blue\n- Green", True),
    (3, "* **Red**\n* **Blue**\n* **Green**", True),
    (3, "Here are three colours:\n\n1. Red\n2. Blue\n3. Green\n\nThey are all bright.", True),
    (3, "Red, blue, green.", True),
    (3, "Red, blue and green.", True),
    (3, "Three colours are red, blue, and green.", True),
    (3, "Three colours: red, blue, green", True),
    (3, "Red\nBlue\nGreen", True),
    (3, "Here are three colours:\n\nRed: A classic color.\nBlue: Like the sky.\nGreen: Like grass.", True),
    (2, "Red and blue.", True),
    (2, "You could try reading or painting.", True),
    (4, "1) dog 2) cat 3) bird 4) fish", True),
    (4, "Apples, bananas, grapes, and oranges are all fruits.", True),
    (4, "• Banana\n• Apple\n• Kiwi\n• Grapefruit", True),
    (3, "红色、蓝色和绿色。", True),
    (3, "Sure! Red, blue, and yellow, which are primary colours.", True),
    (3, "1. Red\n2. Blue", False),
    (5, "1. Dog\n2. Cat\n3. Bird\n4. Fish\n5. Fish", False),
    (4, "* Banana\n* Apple\n* Apple\n* Grapefruit", False),
    (3, "Red, blue, green, yellow.", False),
    (3, "Red is a nice colour.", False),
    (3, "", False),
    (3, "There are five colours:\n1. Red\n2. Blue\n3. Pink\n4. White\n5. Black", False),
]


@pytest.mark.parametrize(("n", "text", "expected"), LISTS)
def test_list_count(n: int, text: str, expected: bool) -> None:
    assert passed({"name": "list_count", "n": n}, f"List {n} colours.", text) is expected


def test_a_list_that_was_cut_fails() -> None:
    assert not passed(
        {"name": "list_count", "n": 3}, "List three.", "1. Red\n2. Blue\n3. Gre", finished=False
    )


STARTS = [
    ("Well,", "Well, rain is water.", True),
    ("Well,", '"well, rain is water."', True),
    ("Well", "  **Well**, rain is water.", True),
    ("Of course", "Of course! Rain is water.", True),
    ("Certainly", "Certainly not.", True),
    ("Well", "Wellness is good.", False),
    ("Well,", "Rain is, well, water.", False),
    ("Certainly", "", False),
    ("Once upon a time", "Once upon a  time there was a bird.", True),
]


@pytest.mark.parametrize(("start", "text", "expected"), STARTS)
def test_starts_with(start: str, text: str, expected: bool) -> None:
    assert passed({"name": "starts_with", "text": start}, "What is rain?", text) is expected


CASES = [
    ("upper", "A DOG IS AN ANIMAL. IT HAS 4 LEGS!", True),
    ("upper", "A DOG is an animal.", False),
    ("lower", "a dog is an animal. it has 4 legs!", True),
    ("lower", "A dog is an animal.", False),
    ("upper", "DOG", False),
    ("lower", "你好，世界", False),
    ("upper", "", False),
]


@pytest.mark.parametrize(("case", "text", "expected"), CASES)
def test_letter_case(case: str, text: str, expected: bool) -> None:
    assert passed({"name": "letter_case", "case": case}, "What is a dog?", text) is expected


BIGGER = ("Which is bigger, an elephant or a mouse?", ["elephant"], ["mouse"])
SMALLER = ("Which is smaller, an elephant or a mouse?", ["mouse"], ["elephant"])
FASTER = ("Which is faster, a car or a bicycle?", ["car"], ["bicycle", "bike"])
STAR = ("Is the sun a star or a planet?", ["star"], ["planet"])
CHOICES = [
    (*BIGGER, "An elephant.", True),
    (*BIGGER, "An elephant is bigger than a mouse.", True),
    (*BIGGER, "A mouse is smaller than an elephant.", True),
    (*BIGGER, "An elephant, of course. A mouse would fit under its foot.", True),
    (*BIGGER, "Elephants are larger than mice.", True),
    (*BIGGER, "The answer is an elephant.", True),
    (*BIGGER, "The elephant, not the mouse.", True),
    (*BIGGER, "Well, it's the elephant.", True),
    (*SMALLER, "A mouse is smaller than an elephant.", True),
    (*SMALLER, "An elephant is bigger than a mouse.", True),
    (*FASTER, "A car is much faster.", True),
    (*FASTER, "The car is faster. A bike is slower.", True),
    (*STAR, "The sun is a star.", True),
    (*STAR, "The sun is indeed a star, but it's not a planet.", True),
    (*STAR, "It is a star rather than a planet.", True),
    (*BIGGER, "A mouse.", False),
    (*BIGGER, "A mouse is bigger than an elephant.", False),
    (*BIGGER, "An elephant is smaller than a mouse.", False),
    (
        *BIGGER,
        "Both elephants and mice are mammals. Elephants are actually part of the order Carnivora.",
        False,
    ),
    (*BIGGER, "An elephant is bigger than a mouse. The mouse is bigger than the elephant.", False),
    (*BIGGER, "It depends.", False),
    (*BIGGER, "Is it the elephant?", False),
    (*SMALLER, "An elephant is smaller.", False),
    (
        *FASTER,
        "The speed of a car is in miles per hour, the speed of a bicycle in kilometers per hour.",
        False,
    ),
    (*FASTER, "A bicycle is faster than a car.", False),
    (*STAR, "The sun is a planet.", False),
    (*STAR, "It is a planet, not a star.", False),
    (*STAR, "", False),
]


@pytest.mark.parametrize(("question", "right", "wrong", "text", "expected"), CHOICES)
def test_chooses(question: str, right: list[str], wrong: list[str], text: str, expected: bool) -> None:
    assert passed({"name": "chooses", "right": right, "wrong": wrong}, question, text) is expected


FISH, DOGS, GREATER = "Can fish swim?", "Do dogs have wings?", "Is 7 greater than 12?"
YES_NO = [
    (FISH, "yes", "Yes.", True),
    (FISH, "yes", "yes, they can", True),
    (FISH, "yes", "Of course! Fish live in water.", True),
    (FISH, "yes", "Fish can swim.", True),
    (FISH, "yes", "The answer is yes.", True),
    (FISH, "yes", "They can.", True),
    (DOGS, "no", "No, dogs do not have wings.", True),
    (DOGS, "no", "Dogs do not have wings.", True),
    (DOGS, "no", "Nope!", True),
    (DOGS, "no", "Of course not.", True),
    (GREATER, "no", "No. 7 is smaller than 12.", True),
    (GREATER, "no", "**No**", True),
    (GREATER, "no", "The answer to this question is no, because 12 is greater.", True),
    (GREATER, "no", "7 is not greater than 12.", True),
    (FISH, "yes", "No.", False),
    (FISH, "yes", "No doubt they are fish.", False),
    (FISH, "yes", "Fish are aquatic animals that belong to a class.", False),
    (DOGS, "no", "The answer to this question is yes, dogs do have wings.", False),
    (DOGS, "no", "Dogs have wings.", False),
    (DOGS, "no", "No. The answer is yes.", False),
    (GREATER, "no", "To determine if 7 is greater than 12, we need to consider the numbers.", False),
    (GREATER, "no", "Is 7 greater than 12?", False),
    (GREATER, "no", "", False),
]


@pytest.mark.parametrize(("question", "value", "text", "expected"), YES_NO)
def test_yes_no(question: str, value: str, text: str, expected: bool) -> None:
    assert passed({"name": "yes_no", "value": value}, question, text) is expected


def test_a_bare_yes_in_yaml_is_read_as_the_word() -> None:
    assert passed({"name": "yes_no", "value": True}, FISH, "Yes.")
    assert passed({"name": "yes_no", "value": False}, FISH, "No.")


NUMBERS = [
    ("What is 12 + 7?", 19, "19", True),
    ("What is 12 + 7?", 19, "12 + 7 = 19.", True),
    ("What is 12 + 7?", 19, "The answer is 19.", True),
    ("What is 12 + 7?", 19, "It is nineteen.", True),
    ("What is 12 + 7?", 19, "12 + 7 = 19\n\nThis is like the identity 1 + 1 = 2.", True),
    ("What is 12 + 7?", 19, "**19**", True),
    ("What is 12 + 7?", "19", "12 plus 7 is 19, and that's a good one.", True),
    ("What is 6 times 14?", 84, "6 x 14 = 84", True),
    ("What is 6 times 14?", 84, "6 * 10 = 60 and 6 * 4 = 24, so the answer is 60 + 24 = 84.", True),
    ("What is 6 times 14?", 84, "Eighty-four.", True),
    ("What is 50 minus 8?", 42, "50 minus 8 equals 42.", True),
    ("What is 50 minus 8?", 42, "That leaves forty-two.", True),
    ("What is 3 - 8?", -5, "3 - 8 = -5", True),
    ("What is 3 - 8?", -5, "It is minus five.", True),
    ("What is 3 - 8?", -5, "The answer is −5.", True),
    ("What is 1200 + 300?", 1500, "1,200 + 300 = 1,500", True),
    ("What is 1200 + 300?", 1500, "One thousand five hundred.", True),
    ("Tom has 15 apples and gives away 6. How many are left?", 9, "15 - 6 = 9 apples are left.", True),
    (
        "Tom has 15 apples and gives away 6. How many are left?",
        9,
        "The answer is 9, since 6 of 15 are gone.",
        True,
    ),
    ("What is half of 5?", 2.5, "2.5", True),
    ("What is 2 - 1?", 1, "It is one.", True),
    ("What is 12 + 7?", 19, "12 + 7 = 20", False),
    ("What is 12 + 7?", 19, "119", False),
    ("What is 12 + 7?", 19, "", False),
    ("What is 12 + 7?", 19, "I like numbers.", False),
    ("What is 50 minus 8?", 42, "50 - 8 equals 2.", False),
    ("What is 3 - 8?", -5, "3 - 8 equals 5.", False),
    ("What is 15 - 6?", 9, "15 - 6 = 9 apples.\n#### 0\nThe answer is: 0", False),
    ("What is 1200 + 300?", 1500, "1200 + 300 = 420\n\nThis is done in a fraction of seconds.", False),
    ("What is 6 times 14?", 84, "6 x 14 = 72, so 72 = 360.", False),
]


@pytest.mark.parametrize(("question", "value", "text", "expected"), NUMBERS)
def test_number(question: str, value: float | str, text: str, expected: bool) -> None:
    assert passed({"name": "number", "value": value}, question, text) is expected


VERSES = [
    ("The waves roll in,\nthe gulls fly high,\nthe sea is blue\nbeneath the sky.", True),
    ("Here is a poem:\n\nThe waves roll in,\nthe gulls fly high,\n\nthe sea is blue\nbeneath the sky.", True),
    ("The sea is blue.", False),
    ("A bird,\na tree,\na song,\nfor me.", False),
    ("A poem of sea,\nA poem of sea,\nA poem of sea,\nA poem of sea,", False),
    (
        "\n".join(["The sea " + "goes on and on " * 8] * 2 + ["and the waves " + "go on and on " * 8] * 2),
        False,
    ),
    ("\n".join(f"wave {n}" for n in range(12)), False),
    ("", False),
]


@pytest.mark.parametrize(("text", "expected"), VERSES)
def test_verse(text: str, expected: bool) -> None:
    spec = {"name": "verse", "lines": [3, 6], "topic": ["wave", "ocean", "sea"]}
    assert passed(spec, "Write a poem about the sea.", text) is expected
    assert not passed(spec, "Write a poem about the sea.", text, finished=False)


def _imports(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {name for name in found if name.startswith("nestling")}


def _word_lists(tree: ast.Module) -> list[set[str]]:
    """Every list of words a module holds: literal collections, strings of words, alternatives in patterns."""
    lists = []
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.List | ast.Tuple | ast.Set | ast.Dict):
            members = node.keys if isinstance(node, ast.Dict) else node.elts
            lists.append(
                {m.value for m in members if isinstance(m, ast.Constant) and isinstance(m.value, str)}
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            lists.append({w.lower() for w in re.findall(r"(?<!\\)[A-Za-z]{3,}", node.value)})
            lists += [
                set(group.split("|")) for group in re.findall(r"\((?:\?:)?([^()]*\|[^()]*)\)", node.value)
            ]
    return [words for words in lists if len(words) >= 4]


def test_held_out_checks_share_no_detector_and_no_word_list() -> None:
    held_out = ast.parse((FOLDER / "held_out.py").read_text(encoding="utf-8"))
    assert {name.rsplit(".", 1)[0] for name in _imports(held_out)} == {"nestling.checks.verdict"}
    own = _word_lists(held_out)
    assert own
    for path in FOLDER.glob("*.py"):
        if path.name in ("held_out.py", "verdict.py", "registry.py", "__init__.py"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not any("held_out" in name for name in _imports(tree)), path.name
        for theirs in _word_lists(tree):
            for ours in own:
                shared = ours & theirs
                assert len(shared) < 5 or len(shared) < 0.25 * len(ours | theirs), (path.name, shared)
