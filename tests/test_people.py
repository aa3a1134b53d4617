"""Who judges, how far they agree, which version they prefer, and whether they are content."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import choix
import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import friedmanchisquare

from feedback_support import answers, person, prompt, recorder
from nestling.errors import ConfigError, DataError
from nestling.feedback import Recorder, UnknownAnswer
from nestling.feedback.agreement import kendall_w, krippendorff_alpha, pair_units, raters
from nestling.feedback.arena import standings, strengths
from nestling.feedback.desk import Desk
from nestling.feedback.export import ranking_rows, scalar_rows, score_rows
from nestling.feedback.opinions import Opinion, opinions
from nestling.feedback.people import Accounts, Identities, Person
from nestling.feedback.satisfaction import ALPHA, Signal, evidence_below, satisfaction, signals
from nestling.feedback.snapshot import SnapshotRules, take
from nestling.storage import Withdrawal
from nestling.workspace import Workspace

__all__ = ["recorder"]


# Who --------------------------------------------------------------------------------------------------------------


def test_an_identity_is_known_again_and_cannot_be_made_up(tmp_path) -> None:
    ours, theirs = Identities.of(Workspace(tmp_path / "a")), Identities.of(Workspace(tmp_path / "b"))
    someone, shown = ours.issue()
    assert ours.person(shown) == someone and someone.kind == "browser"
    assert Identities.of(Workspace(tmp_path / "a")).person(shown) == someone  # after a restart too
    number, _, mac = shown.partition(".")
    for forged in (
        "",
        number,
        f"{number}.",
        f"x{number}.{mac}",
        f"{number}.{mac[:-1]}x",
        f"{number}.{mac}x",
        "ä.ö",
    ):
        assert ours.person(forged) is None
    assert theirs.person(shown) is None
    assert (tmp_path / "a" / "identity.key").stat().st_mode & 0o077 == 0


def test_an_account_is_known_by_its_token_which_is_kept_nowhere(tmp_path) -> None:
    accounts = Accounts(Workspace(tmp_path))
    token = accounts.add("mira")
    assert accounts.person(token) == Person.account("mira") and accounts.person(token + "x") is None
    assert Accounts(Workspace(tmp_path)).names() == ["mira"]
    kept = (tmp_path / "people.json").read_text()
    assert token not in kept and (tmp_path / "people.json").stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="there is an account 'mira'"):
        accounts.add("mira")
    accounts.remove("mira")
    assert accounts.person(token) is None
    with pytest.raises(DataError, match="no account 'mira'"):
        accounts.remove("mira")


def test_no_name_that_anybody_may_give_is_an_accounts_or_a_browsers() -> None:
    for name in ("account:mira", "browser:abc", "imported:x"):
        assert Person.claimed(name).id not in (name, Person.account("mira").id)


def test_what_is_taken_back_is_in_no_dataset(recorder: Recorder) -> None:
    a, b = answers(recorder, "Hi", ["A", "B"])
    kept = recorder.record_thumb(a, "up", client=person("mira"))
    gone = recorder.record_thumb(b, "up", client=person("mira"))
    recorder.record_comparison(a, b, "a", client=person("tom"))
    recorder.withdraw(gone, person("mira"))
    assert [row["judgment"] for row in scalar_rows(recorder.database)] == [kept]
    with pytest.raises(UnknownAnswer, match="of yours"):
        recorder.withdraw(kept, person("tom"))
    assert recorder.withdraw_person(person("tom")) == 1
    assert list(ranking_rows(recorder.database)) == []
    again = recorder.record_comparison(a, b, "b", client=person("tom"))  # whoever speaks again is heard again
    assert [row["judgment"] for row in ranking_rows(recorder.database)] == [again]
    assert recorder.withdraw_person(person("tom")) == 1 and recorder.withdraw_person(person("tom")) == 0
    assert list(ranking_rows(recorder.database)) == []


def test_whoever_took_back_all_they_said_is_heard_again_everywhere(
    recorder: Recorder, tmp_path: Path
) -> None:
    mira = person("mira")
    a, b = answers(recorder, "Hi", ["A", "B"], ["v1", "v2"])
    say = lambda: [
        recorder.record_comparison(a, b, "a", client=mira, blinded=True),
        recorder.record_thumb(a, "down", client=mira),
        recorder.record_rewrite(a, "C", client=mira),
    ]

    def heard() -> list[set[int]]:
        """Judgments, as every one who listens tells them."""
        database, given = recorder.database, list(opinions(recorder.database))
        assert len(signals(database)) == len(list(score_rows(database))) and len(raters(given)) <= 1
        assert bool(standings(given)) == bool(given)
        exported = {row["judgment"] for rows in (ranking_rows, scalar_rows) for row in rows(database)}
        return [
            exported,
            take(database, tmp_path, SnapshotRules(), "2026").manifest.new,
            {o.judgment for o in given},
        ]

    before = set(say())
    assert heard() == [before, before, {min(before)}]
    assert recorder.withdraw_person(mira) == 3
    assert heard() == [set(), set(), set()]
    after = set(say())
    assert heard() == [after, after, {min(after)}]


def test_a_withdrawal_of_an_earlier_release_ends_at_its_moment(recorder: Recorder) -> None:
    [a] = answers(recorder, "Hi", ["A"])
    recorder.record_thumb(a, "up", client=person("mira"))
    with recorder.database.write() as session:
        session.add(Withdrawal(session_id=person("mira").id))
    assert list(score_rows(recorder.database)) == []
    recorder.record_thumb(a, "down", client=person("mira"))
    assert [row["score"] for row in score_rows(recorder.database)] == [0.0]


def test_a_change_of_mind_says_what_it_replaces(recorder: Recorder) -> None:
    a, b = answers(recorder, "Hi", ["A", "B"])
    first = recorder.record_comparison(a, b, "a", client=person("mira"))
    second = recorder.record_comparison(b, a, "a", client=person("mira"))  # the other way round
    other = recorder.record_comparison(a, b, "a", client=person("tom"))
    with recorder.database.read() as session:
        from nestling.storage import Judgment

        replaced = {number: session.get(Judgment, number).supersedes for number in (first, second, other)}
    assert replaced == {first: None, second: first, other: None}


def test_scores_are_numbers_and_labels(recorder: Recorder) -> None:
    ids = answers(recorder, "Hi", ["A", "B", "C"])
    for generation_id, value in zip(ids, ("1", "3", "5"), strict=True):
        recorder.record_score(generation_id, value, client=person("mira"))  # type: ignore[arg-type]
    assert [row["score"] for row in score_rows(recorder.database)] == [0.0, 0.5, 1.0]
    assert [row["label"] for row in scalar_rows(recorder.database)] == [False, True]
    with pytest.raises(DataError, match="unknown judgment '6'"):
        recorder.record_score(ids[0], "6")  # type: ignore[arg-type]


# Agreement --------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.sampled_from([None, 1, 2, 3, 4]), min_size=4, max_size=4), min_size=3, max_size=12),
    st.booleans(),
)
def test_alpha_is_that_of_the_library(table: list[list[int | None]], ordinal: bool) -> None:
    units = [[float(value) for value in unit if value is not None] for unit in table]
    ours = krippendorff_alpha(units, ordinal)
    values = {value for unit in units if len(unit) > 1 for value in unit}
    if len(values) < 2:
        assert ours in (None, 1.0)
        return
    data = np.array([[np.nan if value is None else value for value in unit] for unit in table]).T
    level = "ordinal" if ordinal else "nominal"
    theirs = krippendorff.alpha(reliability_data=data, level_of_measurement=level)
    assert ours == pytest.approx(theirs, abs=1e-9)


def test_kendalls_w_is_friedmans_statistic() -> None:
    rankings = [[1, 2, 3, 4, 5], [2, 1, 3, 5, 4], [1, 3, 2, 4, 5], [1, 2, 2, 3, 4]]
    statistic = friedmanchisquare(*np.array([_midranks(r) for r in rankings]).T).statistic
    assert kendall_w(rankings) == pytest.approx(statistic / (len(rankings) * 4))
    assert kendall_w([[1, 2, 3]] * 3) == pytest.approx(1) and kendall_w([[1, 2, 3], [3, 2, 1]]) == 0
    assert kendall_w([[1, 2]]) is None and kendall_w([[1, 1], [1, 1]]) is None


def _midranks(ranking: list[int]) -> list[float]:
    return [sum(o < r for o in ranking) + (sum(o == r for o in ranking) + 1) / 2 for r in ranking]


def opinion(who: str, pair: int, verdict: int, gold: int | None = None, first_shown: bool = True) -> Opinion:
    names = (f"a{pair}", f"b{pair}")
    return Opinion(who, *names, ("v1", "v2"), verdict, first_shown, True, gold, pair)


def test_reliability_tells_careful_people_from_coins_and_adversaries() -> None:
    random.seed(3)
    said = []
    for pair in range(40):
        truth = random.choice((1, -1))
        said += [opinion(name, pair, truth) for name in ("mira", "tom", "lee")]
        said += [opinion("coin", pair, random.choice((1, -1))), opinion("foe", pair, -truth)]
    weights = {rater.person: rater.weight for rater in raters(said)}
    assert min(weights[name] for name in ("mira", "tom", "lee")) > 0.8
    assert weights["foe"] == 0 and weights["coin"] < 0.4


def test_gold_counts_more_than_a_crowd() -> None:
    said = [opinion(name, pair, -1) for pair in range(10) for name in ("crowd1", "crowd2", "crowd3")]
    said += [opinion("mira", pair, 1) for pair in range(10)]
    known = [opinion("mira", 100 + n, 1, gold=1) for n in range(10)] + [
        opinion(name, 100 + n, -1, gold=1) for n in range(10) for name in ("crowd1", "crowd2", "crowd3")
    ]
    weights = {rater.person: rater.weight for rater in raters(said + known)}
    assert weights["mira"] > weights["crowd1"]


def test_nobody_is_judged_by_nothing() -> None:
    assert [rater.weight for rater in raters([opinion("mira", 1, 1)])] == [0.5]
    assert pair_units([opinion("mira", 1, 1), opinion("mira", 1, -1)]) == [[-1]]


# Arena ------------------------------------------------------------------------------------------------------------


def test_strengths_are_those_of_the_library() -> None:
    generator = np.random.default_rng(0)
    wins = generator.integers(5, 60, size=(4, 4)).astype(float)
    np.fill_diagonal(wins, 0)
    data = [(i, j) for i, j in itertools.permutations(range(4), 2) for _ in range(int(wins[i, j]))]
    theirs = choix.ilsr_pairwise(4, data)
    assert strengths(wins) == pytest.approx(theirs, abs=0.02)  # ours has half a game more each


def test_the_better_version_stands_higher_and_intervals_hold_the_truth() -> None:
    generator = random.Random(1)
    said = [
        opinion(f"p{who}", 100 * who + n, 1 if generator.random() < 0.75 else -1)
        for who in range(20)
        for n in range(10)
    ]
    best, worst = standings(said, draws=200)
    assert (best.version, worst.version) == ("v1", "v2") and best.games == 200
    truth = 400 * np.log10(3) / 2  # three to one, around a mean of 0
    assert best.low < truth < best.high and best.low > 0


def test_open_comparisons_and_a_version_with_itself_say_nothing() -> None:
    seen = opinion("mira", 1, 1)
    open_one = Opinion(**{**vars(seen), "blinded": False})
    itself = Opinion(**{**vars(seen), "versions": ("v1", "v1")})
    assert standings([open_one, itself]) == []


def test_opinions_are_read_from_votes_and_rankings(recorder: Recorder) -> None:
    a, b, c = answers(recorder, "Hi", ["A", "B", "C"], ["v1", "v2", "v3"])
    recorder.record_ranking([c, a, b], [1, 2, 2], client=person("mira"), blinded=True)
    recorder.record_comparison(a, b, "tie", client=person("tom"))
    found = {(o.person, o.pair): o for o in opinions(recorder.database)}
    verdict = lambda x, y: found["account:mira", tuple(sorted((x, y)))].verdict * (1 if x < y else -1)
    assert verdict(c, a) == 1 and verdict(c, b) == 1 and verdict(a, b) == 0
    assert found["account:tom", tuple(sorted((a, b)))].verdict == 0
    assert all(o.blinded == (o.person == "account:mira") for o in found.values())
    assert found["account:mira", tuple(sorted((c, a)))].first_shown == (c < a)


# Satisfaction -----------------------------------------------------------------------------------------------------


def test_looking_all_the_time_seldom_calls_an_equal_version_worse() -> None:
    generator = np.random.default_rng(5)
    alarms = sum(evidence_below(generator.random(400) < 0.8, 0.8) >= 1 / ALPHA for _ in range(400))
    assert alarms / 400 <= ALPHA + 0.02


def test_a_clearly_worse_version_is_soon_called_worse() -> None:
    generator = np.random.default_rng(6)
    found = [
        next(n for n in range(1, 300) if evidence_below(row[:n], 0.8) >= 20)
        for row in generator.random((20, 300)) < 0.4
    ]
    assert sorted(found)[10] < 60


def told(version: str, share: float, count: int, each: int = 1) -> list[Signal]:
    return [Signal(f"p{n // each}", version, int((n * 7919 % 100) / 100 < share)) for n in range(count)]


def test_a_dud_is_worse_and_nobody_can_bring_a_version_down_alone() -> None:
    good = told("v1", 0.9, 100)
    assert satisfaction([*good, *told("v2", 0.3, 80)], "v2", "v1").is_worse
    assert not satisfaction([*good, *told("v2", 0.9, 80)], "v2", "v1").is_worse
    alone = [Signal("foe", "v2", 0)] * 500
    found = satisfaction([*good, *alone], "v2", "v1")
    assert not found.is_worse and found.people == 1
    assert not satisfaction(
        [*told("v1", 0.9, 9), *told("v2", 0.1, 80)], "v2", "v1"
    ).is_worse  # too little before


def test_people_who_say_the_same_again_and_again_are_no_evidence() -> None:
    """Everybody is content with all answers or with none: four in five are, with either version."""
    generator = np.random.default_rng(7)

    def said(version: str, count: int) -> list[Signal]:
        return [
            Signal(f"{version} {who}", version, content)
            for who, content in enumerate((generator.random(count) < 0.8).astype(int)) for _ in range(5)
        ]  # fmt: skip

    alarms = sum(satisfaction([*said("v1", 40), *said("v2", 60)], "v2", "v1").is_worse for _ in range(200))
    assert alarms / 200 <= ALPHA


def test_what_is_said_at_the_desk_brings_no_version_down(recorder: Recorder) -> None:
    ids = answers(recorder, "Hi", ["A", "B"], ["v1", "v2"])
    Desk(recorder.database).add("one", [dict(m) for m in prompt("Hi")], ids)
    recorder.record_ranking(ids, [1, 2], all_bad=True, client=person("mira"), desk_item=1)
    assert signals(recorder.database) == []


def test_signals_are_thumbs_scores_and_what_is_called_bad(recorder: Recorder) -> None:
    a, b = answers(recorder, "Hi", ["A", "B"], ["v1", "v2"])
    recorder.record_thumb(a, "up", client=person("mira"))
    recorder.record_score(b, "2", client=person("mira"))
    recorder.record_score(a, "3", client=person("mira"))
    recorder.record_comparison(a, b, "a", client=person("mira"))
    recorder.record_comparison(a, b, "both_bad", client=person("tom"))
    assert [(s.version, s.content) for s in signals(recorder.database)] == [
        ("v1", 1),
        ("v2", 0),
        ("v1", 0),
        ("v2", 0),
    ]
    assert {s.person for s in signals(recorder.database)} == {"account:mira", "account:tom"}


def test_names_that_anybody_may_give_bring_no_version_down(recorder: Recorder) -> None:
    for version, value, who in (("v1", "up", person), ("v2", "down", Person.claimed)):
        for number in range(60):
            [answer] = answers(recorder, f"Hi {number}", ["A"], [version])
            recorder.record_thumb(answer, value, client=who(f"p{number}"))  # type: ignore[arg-type]
            if version == "v2":
                recorder.record_thumb(answer, "down")  # nor does nobody known
    found = satisfaction(signals(recorder.database), "v2", "v1")
    assert found.people == 1 and found.before is not None and not found.is_worse
