"""``nestling bench``: how fast training and decoding are, beside the peers' and by themselves."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from nestling.bench.household import setting_words
from nestling.bench.setting import Material, prepare
from nestling.cli.common import choose_hardware, find_version, hardware_options, workspace_option
from nestling.errors import BenchError, ConfigError
from nestling.workspace import Workspace

PEERS = Path(".bench/venv/bin/python")


@click.group()
def bench() -> None:
    """Time our steps beside the peers', as they grow, or against plain products."""


def shared_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--base, --out and the options every command has."""
    command = click.option("--base", default="smollm2-135m-instruct", show_default=True, help="The weights.")(
        command
    )
    command = click.option(
        "--out", type=click.Path(path_type=Path), default=Path("docs/results"), show_default=True,
        help="Folder of the report.",
    )(command)  # fmt: skip
    return workspace_option(hardware_options(command))


def _their_python(_context: click.Context, _option: click.Parameter, python: Path) -> Path:
    if not python.exists():
        raise ConfigError("the peers are not installed.", where=str(python), remedy="Run `make bench-peers`.")
    return python


python_option = click.option(
    "--python", type=click.Path(path_type=Path), default=PEERS, show_default=True, callback=_their_python,
    help="The peers' Python.",
)  # fmt: skip


def _material(root: str | None, base: str, dtype: str, threads: int) -> Material:
    return prepare(Workspace(root), base, choose_hardware(dtype, threads))


@bench.command()
@python_option
@click.option(
    "--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns of each in a duel."
)
@click.option("--only", metavar="TEXT", help="Only duels whose name contains this.")
@shared_options
def peers(python: Path, rounds: int, only: str | None, base: str, out: Path, dtype: str, threads: int,
          root: str | None) -> None:  # fmt: skip
    """Duels with TRL, transformers and llama.cpp, in turns; writes speed.md."""
    from nestling.bench.duel import fight
    from nestling.bench.matches import Matches, roofline
    from nestling.bench.report import Report
    from nestling.bench.roofline import measure_peaks

    material = _material(root, base, dtype, threads)
    peaks = measure_peaks(material.hardware)
    chosen = [duel for duel in Matches(material, python).all() if not only or only in duel.name]
    command = f"nestling bench peers --rounds {rounds}" + (f" --only '{only}'" if only else "")
    outcomes, missing = [], {}
    for duel in chosen:  # the page grows with every duel: nothing is lost when one breaks off
        try:
            outcomes.append(fight(duel, rounds, material.folder / "logs", click.echo))
        except BenchError as error:
            missing[duel.name] = str(error)
            click.echo(f"{duel.name}: {error}", err=True)
        report = Report(
            material.hardware, peaks, command, outcomes, missing, roofline(material, outcomes, peaks)
        )
        click.echo(f"Written: {report.write(out)}")
    if missing:
        raise BenchError(
            f"{len(missing)} of {len(chosen)} duels could not be fought.", where=", ".join(missing)
        )


@bench.command()
@python_option
@click.option("--policy", required=True, metavar="VERSION", help="Whose weights both start from.")
@click.option("--reward-model", required=True, metavar="VERSION", help="What both learn from.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Pairs of runs.")
@click.option(
    "--iterations", type=click.IntRange(5), default=40, show_default=True, help="Of each run of a pair."
)
@click.option(
    "--trials",
    type=click.IntRange(5),
    default=20,
    show_default=True,
    help="Iterations to find each side's best setting.",
)
@click.option("--our-setting", metavar="TEXT", help="Ours that starts with this is taken as tried before.")
@click.option("--trl-setting", metavar="TEXT", help="TRL's that starts with this is taken as tried before.")
@shared_options
def race(python: Path, policy: str, reward_model: str, seeds: int, iterations: int, trials: int,
         our_setting: str | None, trl_setting: str | None, base: str, out: Path, dtype: str, threads: int,
         root: str | None) -> None:  # fmt: skip
    """Minutes to the same held-out reward, beside TRL at its best settings; writes race.md."""
    from nestling.bench.race import OURS, TRL, Judge, Runner, Start, run, write_race

    material, versions = _material(root, base, dtype, threads), Workspace(root).versions
    start = Start(material, versions.get(policy), versions.get(reward_model))
    judge = Judge(start.reward.folder, material.tokenizer, material.hardware)
    first = judge(start.policy.folder)
    tried: list[Runner] = []

    def best(settings: Mapping[str, Any], given: str | None, runner: Callable[[str], Runner]) -> str:
        if given:
            return _named(settings, given)
        found = {setting: runner(setting) for setting in settings}
        for trial in found.values():
            run([trial], trials, judge, first, click.echo)
        tried.extend(found.values())
        return max(found, key=lambda setting: found[setting].last)

    their_best = best(TRL, trl_setting, lambda setting: start.trl(0, setting, python))
    our_best = best(OURS, our_setting, lambda setting: start.ours(0, setting))
    pairs = []
    for seed in range(seeds):
        pairs.append((start.ours(seed, our_best), start.trl(seed, their_best, python)))
        run(pairs[-1], iterations, judge, first, click.echo)
    command = f"nestling bench race --policy {policy} --reward-model {reward_model} --seeds {seeds}"
    command += f" --iterations {iterations}"
    for option, given in (("--our-setting", our_setting), ("--trl-setting", trl_setting)):
        command += f" {option} '{given}'" if given else ""
    click.echo(f"Written: {write_race(out, material, tried, pairs, command)}")


def _named(settings: Mapping[str, Any], start: str) -> str:
    """The one setting whose name starts so.

    Raises:
        ConfigError: none does, or several do.
    """
    found = [name for name in settings if name.startswith(start)]
    if len(found) != 1:
        raise ConfigError(
            f"{len(found)} settings start with {start!r}.", remedy="There are: " + "; ".join(settings)
        )
    return found[0]


@bench.command()
@click.option("--policy", required=True, metavar="VERSION", help="Whose weights all start from.")
@click.option("--reward-model", required=True, metavar="VERSION", help="What all learn from.")
@click.option("--seeds", type=click.IntRange(2), default=3, show_default=True, help="Runs of each setting.")
@click.option("--iterations", type=click.IntRange(5), default=20, show_default=True, help="Of each run.")
@shared_options
def learning(policy: str, reward_model: str, seeds: int, iterations: int, base: str, out: Path, dtype: str,
             threads: int, root: str | None) -> None:  # fmt: skip
    """The held-out reward with and without each choice that saves time; writes learning.md."""
    from nestling.bench.learning import variants, write_learning
    from nestling.bench.race import Judge, Start, run

    material, versions = _material(root, base, dtype, threads), Workspace(root).versions
    start = Start(material, versions.get(policy), versions.get(reward_model))
    judge = Judge(start.reward.folder, material.tokenizer, material.hardware)
    first = judge(start.policy.folder)
    found = {
        name: [start.runner(name, seed, "ours", {"kind": "race"} | variant.more) for seed in range(seeds)]
        for name, variant in variants().items()
    }
    for same_seed in zip(*found.values(), strict=True):
        for runner in same_seed:
            run([runner], iterations, judge, first, click.echo)
    command = f"nestling bench learning --policy {policy} --reward-model {reward_model} --seeds {seeds}"
    page = write_learning(out, material.hardware, first, found, f"{command} --iterations {iterations}")
    click.echo(f"Written: {page}")


@bench.command()
@click.option("--turns", type=click.IntRange(1), default=3, show_default=True, help="Turns at each point.")
@shared_options
def growth(turns: int, base: str, out: Path, dtype: str, threads: int, root: str | None) -> None:
    """How time and memory grow with batch, length, model size and K; writes growth.md."""
    from nestling.bench.growth import measure, series, write_growth

    material = _material(root, base, dtype, threads)
    results = [(found, *measure(material, found, turns, click.echo)) for found in series(material)]
    click.echo(f"Written: {write_growth(out, material, results)}")


@bench.command()
@click.option("--save", is_flag=True, help="Make these figures the baseline of this kind of machine.")
@shared_options
def quick(save: bool, base: str, out: Path, dtype: str, threads: int, root: str | None) -> None:
    """Each step against plain products timed beside it; fails when one got more than 10 % slower."""
    from nestling.bench import quick as watched

    material = _material(root, base, dtype, threads)
    file = out / "bench-quick.json"
    found = watched.measure(material, watched.baseline(material, file), click.echo)
    table = Table("step", "TFLOP of products", "baseline", "slower", title=watched.key(material))
    for y in found:
        known = f"{y.before:.2f}" if y.before else "none"
        table.add_row(y.name, f"{y.units:.2f}", known, f"{y.slower:+.0%}" if y.before else "")
    Console().print(table)
    if save:
        watched.save(material, file, found)
    elif any(y.lost for y in found):
        sys.exit(1)


@bench.command()
@click.option("--streams", type=click.IntRange(1, 256), default=32, show_default=True, help="People at once.")
@click.option(
    "--minutes",
    type=click.FloatRange(0.1, 600),
    default=5.0,
    show_default=True,
    help="For how long the crowd chats.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("docs/results"), show_default=True,
    help="Folder of the report.",
)  # fmt: skip
@workspace_option
def chat(streams: int, minutes: float, out: Path, root: str | None) -> None:
    """What people get who chat with the served version, alone, beside a training and in a crowd; writes chat.md."""
    from nestling.bench.chat import measure, write_chat

    workspace, hardware = Workspace(root), choose_hardware("auto", 0)
    version = find_version(workspace, None)
    found = measure(workspace, streams, minutes, click.echo)
    command = f"nestling bench chat --streams {streams} --minutes {minutes:g}"
    click.echo(f"Written: {write_chat(out, hardware, version.name, found, command)}")
    failed = sum(len(happened.errors) for happened in (found.alone, found.beside, found.crowd))
    if failed:
        raise BenchError(f"{failed} answers failed.", remedy="See the report.")


def as_typed(verb: str, options: Mapping[str, Any], settings: Sequence[str]) -> str:
    """A command by which the same can be measured again."""
    words = [
        word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))
    ]
    return shlex.join(["nestling", "bench", verb, *words, *setting_words(settings)])


def crowd_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of what the simulated people do and how it is learnt from."""
    for option in (
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the people."),
        click.option("--held-out", type=click.IntRange(1), default=450, show_default=True,
                     help="Requests that satisfaction is measured on."),
        click.option("--answer-tokens", type=click.IntRange(1), default=64, show_default=True,
                     help="Longest answer that people ask for."),
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
                     help="Change a setting of `nestling learn`; may be given often."),
        click.option("--out", type=click.Path(path_type=Path), default=Path("docs/results"), show_default=True,
                     help="Folder of the report."),
    ):  # fmt: skip
        command = option(command)
    return workspace_option(command)


@bench.command()
@click.option("--base", default="smollm2-135m-instruct", show_default=True, help="As `nestling up` takes it.")
@click.option(
    "--version", "name", help="What the town begins with.  [default: the served version, or the base]"
)
@click.option("--raters", type=click.IntRange(10), default=300, show_default=True, help="People.")
@click.option("--generations", type=click.IntRange(1), default=5, show_default=True, help="Learnings.")
@click.option("--visits", type=click.IntRange(1), default=2, show_default=True,
              help="Of everybody in a generation.")  # fmt: skip
@click.option("--liars", type=click.IntRange(10), default=200, show_default=True,
              help="Made-up people of the crowd at the end.")  # fmt: skip
@click.option("--method", type=click.Choice(["dpo", "kto", "ppo", "best-of-n"]), default="dpo", show_default=True,
              help="How to learn.")  # fmt: skip
@crowd_options
def town(
    base: str, name: str | None, raters: int, generations: int, visits: int, liars: int, method: str, seed: int,
    held_out: int, answer_tokens: int, settings: tuple[str, ...], out: Path, root: str | None,
) -> None:  # fmt: skip
    """A simulated town talks to the server and versions learn from it; processes are killed; writes town.md.

    It goes on where it was stopped. Exit code 1 when a property that is asked for does not hold.
    """
    from nestling.bench.generations import Plan, Town
    from nestling.bench.town_report import demands, write_town
    from nestling.workflow.raising import stop_on_signals

    stop_on_signals()  # the town's own processes must not outlive it
    workspace = Workspace(root)
    plan = Plan(base, raters, generations, seed, method, settings, visits, held_out, answer_tokens, liars)
    living = Town(workspace, plan, click.echo)
    if name and not living.state["steps"]:
        workspace.versions.promote(name, "where the town begins")
    state = living.live()
    options = {
        "base": base, "version": name, "raters": raters, "generations": generations, "visits": visits, "liars": liars,
        "method": method, "seed": seed, "held-out": held_out, "answer-tokens": answer_tokens,
    }  # fmt: skip
    command = as_typed("town", options, settings)
    page = write_town(out, choose_hardware("auto", 0), state, living.exam, command)
    click.echo(f"Written: {page}")
    failed = [demand for demand in demands(state, living.exam) if not demand.holds]
    for demand in failed:
        click.echo(f"Does not hold: {demand.asked} ({demand.found})", err=True)
    sys.exit(1 if failed else 0)


@bench.command()
@click.option("--version", "name", help="What all begin with.  [default: the served version]")
@click.option("--database", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="The judgments.  [default: the workspace's]")  # fmt: skip
@click.option(
    "--seeds", type=click.IntRange(1), default=3, show_default=True, help="Learnings by each method."
)
@crowd_options
def methods(name: str | None, database: Path | None, seeds: int, seed: int, held_out: int, answer_tokens: int,
            settings: tuple[str, ...], out: Path, root: str | None) -> None:  # fmt: skip
    """One generation from the same judgments by reward model and PPO, DPO, KTO and best of n; writes methods.md."""
    from nestling.bench.methods import measure, write_methods
    from nestling.bench.satisfaction import Exam
    from nestling.bench.satisfaction import held_out as requests

    workspace = Workspace(root)
    start, exam = find_version(workspace, name, answers=True), Exam(requests(held_out, seed))
    judgments = (database or workspace.database_path).resolve()
    before, found = measure(workspace, start, judgments, seeds, settings, exam, answer_tokens, click.echo)
    options = {
        "version": start.name, "database": f"{judgments.parent.name}/{judgments.name}", "seeds": seeds, "seed": seed,
        "held-out": held_out, "answer-tokens": answer_tokens,
    }  # fmt: skip
    command = as_typed("methods", options, settings)
    hardware = choose_hardware("auto", 0)
    click.echo(f"Written: {write_methods(out, hardware, start, before, found, exam, command)}")


@bench.command()
@click.option("--version", "name", help="What all runs begin with.  [default: the served version]")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("docs/results"), show_default=True,
    help="Folder of the report.",
)  # fmt: skip
@workspace_option
def gallery(name: str | None, out: Path, root: str | None) -> None:
    """Healthy and sick training runs, their curves side by side; writes gallery.md. It goes on where it was stopped."""
    from nestling.bench.gallery import Gallery, write_gallery
    from nestling.workflow.raising import stop_on_signals

    stop_on_signals()  # what it has started must not outlive it
    workspace = Workspace(root)
    start = find_version(workspace, name, answers=True)
    shown = Gallery(workspace, start, click.echo)
    found, command = shown.play_all(), as_typed("gallery", {"version": start.name}, ())
    click.echo(f"Written: {write_gallery(out, choose_hardware('auto', 0), start, shown, found, command)}")
