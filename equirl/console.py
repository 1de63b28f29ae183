"""What every command of the command line shares: options, quiet libraries, JSON, tables and progress."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from equirl.errors import UserError

SECONDS_BETWEEN_LINES = 10
"""Of progress, where there is no terminal."""
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Packages = Annotated[
    list[str] | None, typer.Option("--gym-packages", help="Modules to import, which register environments; repeatable.")
]
Agent = Annotated[
    str, typer.Argument(help="A run folder such as logs/dqn/CartPole-v1_1, RL Zoo's too, a zip inside one, or any zip.")
]
OfEnv = Annotated[str | None, typer.Option("--env", help="The environment, where the agent's files do not say.")]
OfAlgo = Annotated[str | None, typer.Option("--algo", help="The algorithm, where the agent's files do not say.")]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Unpickle the agent's files and import what they name: this runs whatever their author put there.",
    ),
]


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep what libraries print out of the results, and ALE's greeting out of everything."""
    import ale_py

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    with redirect_stdout(sys.stderr):
        yield


def import_modules(modules: list[str] | None) -> None:
    """Import modules that the user names, for the environments they register."""
    for name in modules or []:
        try:
            import_module(name)
        except Exception as error:  # importing runs the module, which may raise anything
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"--gym-packages {name}: expected a module that can be imported: {reason}") from None


def one_line(text: str) -> str:
    r"""Return a text that may quote a file as one line that is safe to print: nothing in it can steer a terminal.

    >>> print(one_line("no key 'a\nb\x1b[2J'"))
    no key 'a b\x1b[2J'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


def print_notes(notes: Iterable[str]) -> None:
    """Print sentences about what was assumed, or left unread, on standard error."""
    for note in notes:
        print(f"note: {one_line(note)}", file=sys.stderr)


def shown(error: float | None) -> str:
    """Return an error in few digits."""
    return "not finite" if error is None else f"{error:.1e}"


def print_json(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2, allow_nan=False))


def print_table(title: str, rows: dict[str, str]) -> None:
    """Print pairs in two columns without a frame: one that is wider than the terminal would cut paths, or break."""
    width = max(map(len, rows))
    print(title)
    for name, value in rows.items():
        print(f"  {name:<{width}}  {value}")


def command_line(script: str, *words: str | Path) -> str:
    """Return a command line to paste: the script by its name where the shell finds it, else by its path."""
    if sys.executable and shutil.which(script) is None:
        own, here = Path(sys.executable).with_name(script), Path.cwd()
        if own.exists():
            script = os.path.relpath(own) if here in own.parents[1:] else str(own)
    return " ".join(map(quote, (script, *map(str, words))))


@contextmanager
def progress_bar(console: Console | None = None) -> Iterator[Callable[[str, float], None]]:
    """Show a bar while the block runs, or lines where there is no terminal, on standard error by default.

    What it yields is told what is being done, and which fraction of it is.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda what, fraction: bar.update(task, description=what, completed=fraction)


def _lines(console: Console) -> Callable[[str, float], None]:
    """Return what prints a line now and then, where no bar can be drawn; nothing of what is done soon."""
    started = said = time.monotonic()

    def tell(what: str, fraction: float) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= SECONDS_BETWEEN_LINES and 0 < fraction < 1:
            said = now
            left = (now - started) * (1 - fraction) / fraction
            console.print(f"{what}  {fraction:.0%}  {left:.0f} s left", highlight=False, markup=False, soft_wrap=True)

    return tell
