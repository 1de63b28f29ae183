"""What every test shares: no screen, equal seeds, few threads, and the folder of real data."""

import os
import random
import sys
from functools import partial
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("SDL_AUDIODRIVER", "dummy")

import numpy as np
import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(1)  # the networks under test are small; threads would only wait for one another

# A deadline would fail on a busy machine; random examples in continuous integration would fail for others.
settings.register_profile("equirl", deadline=None, max_examples=50, derandomize=bool(os.environ.get("CI")))
settings.load_profile("equirl")


def import_torchvision_beside_cpu_torch() -> None:
    """Declare the two operators that torchvision expects from its own library, where that is built for another torch.

    Such a torchvision cannot load its compiled part, and its import fails for want of their schemas alone.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for operator in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", schema)


if find_spec("torchvision"):
    import_torchvision_beside_cpu_torch()


def pytest_configure(config: pytest.Config) -> None:
    """Keep `pytest .` from reading agents/ and envs/ a second time beside their links in equirl/."""
    links = [str(ROOT / "agents"), str(ROOT / "envs")]
    config.option.ignore = [*(config.option.ignore or []), *links]


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Make each test independent of those that ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def data_dir() -> Path:
    """Return the folder of real data, or skip the test."""
    folder = os.environ.get("EQUIRL_DATA")
    if not folder:
        pytest.skip("EQUIRL_DATA, the folder of real data, is not set")
    if not Path(folder).is_dir():
        pytest.fail(f"EQUIRL_DATA is {folder!r}, which is no folder")
    return Path(folder)


@pytest.fixture(scope="session")
def malformed() -> ModuleType:
    """Return tests/_malformed.py: `corpus(folder, content)` writes zips that every command must refuse in one line."""
    spec = spec_from_file_location("_malformed", ROOT / "tests" / "_malformed.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace what torch.compile is given, gradients too, and run it without building it in C++: that takes seconds."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


class Said(NamedTuple):
    """What a command of the command line left."""

    code: int
    out: str
    err: str


@pytest.fixture
def equirl(monkeypatch, capsys):
    """Run the command line here, and return its exit code and what it printed."""
    from equirl import cli

    def _run(*args: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["equirl", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        return Said(int(left.value.code or 0), *capsys.readouterr())

    return _run
