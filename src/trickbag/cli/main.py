"""``trickbag``: every command, and how errors become messages and exit codes."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

from trickbag.cli import catalogue, prepare, quickstart, show, study, train

FILES = 9
INTERRUPTED = 130

app = typer.Typer(
    name="trickbag",
    help="The bag of tricks for training image models, and the proof of what each trick buys you.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("quickstart")(quickstart.quickstart)
app.command("prepare")(prepare.prepare)
app.command("train")(train.train)
app.command("evaluate")(train.evaluate)
app.command("predict")(train.predict)
app.command("show")(show.show)
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

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
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
        # What is still in the buffer has no reader: flushing it at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno is None:
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"error: {where}{error.strerror}", file=sys.stderr)
        print("  to do: check the path, its permissions and the space left on the disk", file=sys.stderr)
        sys.exit(FILES)


if __name__ == "__main__":
    main()
