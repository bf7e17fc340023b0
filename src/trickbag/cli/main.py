"""``trickbag``: every command, and how errors become messages and exit codes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from trickbag.cli import catalogue, quickstart, study, train

INTERRUPTED = 130

app = typer.Typer(
    name="trickbag",
    help="The bag of tricks for training image models, and the proof of what each trick buys you.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("quickstart")(quickstart.quickstart)
app.command("train")(train.train)
app.command("evaluate")(train.evaluate)
app.command("predict")(train.predict)
app.add_typer(study.app, name="study")
app.command("tricks")(catalogue.tricks)
app.command("recipes")(catalogue.recipes)
app.command("diff")(catalogue.diff)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """The bag of tricks for training image models, and the proof of what each trick buys you."""
    if show:
        from importlib.metadata import version as installed

        print(installed("trickbag"))
        raise typer.Exit


def main() -> None:
    """Run the command line; a user's mistake gives one message and its own exit code."""
    from trickbag.errors import TrickbagError

    try:
        app()
    except TrickbagError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)


if __name__ == "__main__":
    main()
