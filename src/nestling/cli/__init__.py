"""The ``nestling`` command. Commands are loaded when they are called, so that ``--help`` is quick."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from nestling import __version__
from nestling.compute.process import is_out_of_memory, keep_memory, settle_libraries
from nestling.errors import ConfigError, NestlingError

COMMANDS = {
    "up": ("run:up", "Get a base model, serve it, and raise it meanwhile."),
    "run": ("run:run", "Raise by a recipe, headless, and end with a report."),
    "fetch": ("stages:fetch", "Get a base model and make it the first version."),
    "sft": ("stages:sft", "Fine-tune a version on conversations."),
    "rank": ("stages:rank", "Sample answers to prompts and rank them by the checks."),
    "reward-model": ("stages:reward_model", "Train a reward model on rankings."),
    "ppo": ("stages:ppo", "Align a version by PPO."),
    "learn": ("learn:learn", "Learn from what people said: the next version, if it is better."),
    "desk": ("desk:desk", "Lay answers on the desk for people to judge, and see what has become of them."),
    "people": ("people:people", "Accounts of people who judge, and what they want forgotten."),
    "evaluate": ("evaluate:evaluate", "Measure a version, or any OpenAI-compatible server."),
    "compare": ("evaluate:compare", "Compare two versions on the same prompts."),
    "chat": ("talk:chat", "Chat in the terminal."),
    "serve": ("talk:serve", "Serve the API and the web page."),
    "versions": ("versions:versions", "List, show, promote, roll back and remove versions."),
    "workspace": ("workspace:workspace", "Show what a workspace takes, and clean it."),
    "export": ("versions:export", "Write a version as a Hugging Face folder or a GGUF file."),
    "data": ("data:data", "Starter data, a file's problems, what is trained, people's judgments."),
    "bench": ("bench:bench", "Time our steps beside the peers', as they grow, or against plain products."),
    "doctor": ("versions:doctor", "Say what this machine can do and what is missing."),
}


COMPUTING = {"run", "sft", "rank", "reward-model", "ppo", "learn", "evaluate", "compare", "bench"}
"""Commands that compute for minutes on end."""

OUT_OF_MEMORY = (
    "there is not enough memory. Close other programs and run the same command again: it goes on from here. Or train "
    "less at once: shorter rows (row_tokens), frozen_blocks, or adapters (lora); `--dry-run` says what is needed."
)

# `up` computes nothing but chooses for the `run` that it starts, under the same conditions.
settle_libraries(computing=bool((COMPUTING | {"up"}) & set(sys.argv[1:2])))


class LazyGroup(click.Group):
    """A group whose commands are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(f"nestling.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nestling")
def cli() -> None:
    """Nestling: raise your own ChatGPT, serve it, and keep improving it."""


def main() -> None:
    """Run the command line; a user's mistake is one readable line and a non-zero exit."""
    if COMPUTING & set(sys.argv[1:2]):
        keep_memory()
    try:
        cli.main(prog_name="nestling", standalone_mode=False)
    except NestlingError as error:
        click.secho(f"Error: {error}", fg="red", err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)  # 2: trying again is no use
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("Stopped. Nothing is lost: the same command goes on from here.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone, as in `nestling versions list | head -1`
        sys.exit(1)
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        click.secho(f"Error: {OUT_OF_MEMORY}", fg="red", err=True)
        sys.exit(1)
