"""Python code in processes of their own, without the seconds that importing torch takes each of them.

They are forked from one that has imported libraries and nothing of ours.
"""

import os
import runpy
import sys
import tempfile
import traceback
import warnings
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

FORKED = get_context("forkserver")
FORKED.set_forkserver_preload(["torch", "stable_baselines3", "sb3_contrib"])
MODULE = "import runpy; runpy.run_module({!r}, run_name='__main__', alter_sys=True)"


class Done(NamedTuple):
    """What a process left."""

    returncode: int
    stdout: str
    stderr: str


def run_code(code: str, *arguments: str | Path, cwd: Path | None = None, strict: bool = True) -> Done:
    """Run code as `python -c code arguments` does; where it is strict, a warning for users is an error."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        given = (code, [*map(str, arguments)], cwd or Path.cwd(), out, err, strict)
        process = FORKED.Process(target=runpy.run_path, args=(__file__, {"GIVEN": given}, "elsewhere"))
        process.start()
        process.join(300)
        if process.exitcode is None:
            process.kill()
            process.join()
        assert process.exitcode is not None
        return Done(process.exitcode, *(file.read_text() if file.exists() else "" for file in (out, err)))


def run_module(name: str, *arguments: str | Path, cwd: Path) -> Done:
    """Run a module as `python -m name arguments` does."""
    return run_code(MODULE.format(name), *arguments, cwd=cwd, strict=False)


def _run(code: str, arguments: list[str], cwd: Path, out: Path, err: Path, strict: bool) -> None:
    for stream, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
    os.chdir(cwd)
    sys.argv = ["-c", *arguments]
    if strict:
        warnings.simplefilter("error", UserWarning)
    import torch

    torch.set_num_threads(1)
    loaded = [name for name in sys.modules if name.partition(".")[0] == "equirl"]
    assert not loaded, loaded
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.exit(1)


if __name__ == "elsewhere":
    _run(*GIVEN)  # type: ignore[name-defined]  # noqa: F821
