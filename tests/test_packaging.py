"""The wheel holds what it should, and works from where nothing of the source tree is in reach."""

import configparser
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import equirl

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"equirl": "equirl", "agents": "equirl/agents", "envs": "equirl/envs", "configs": "equirl/configs"}


def run(*command: str | Path, cwd: Path) -> str:
    """Return what the command prints; where it fails, fail with all that it printed."""
    env = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} left with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, so that no build folder appears in the tree or leaks into the wheel."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, tree, cwd=tree)
    (path,) = folder.glob("equirl-*.whl")
    return path


def test_wheel_holds_every_source_file_once_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    expected = set()
    for folder, package in FOLDERS.items():
        files = {path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*") if path.is_file()}
        assert files, f"{folder}/ is empty"
        expected |= {f"{package}/{file.as_posix()}" for file in files if file.parent.name != "__pycache__"}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert "equirl/py.typed" in names
    assert len(names) == len(set(names))


def test_wheel_declares_its_version_and_entry_points(wheel):
    assert wheel.name.split("-")[1] == equirl.__version__
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        text = archive.read(name).decode()
    points = configparser.ConfigParser()
    points.read_string(text)
    assert dict(points["console_scripts"]) == {"equirl": "equirl.cli:main"}
    assert dict(points["equirl.symmetries"]) == {"equirl": "equirl.envs.catalogue"}


IMPORTED = """
import json, sys
from importlib.metadata import entry_points
from importlib.resources import files
import equirl.envs
from equirl.agents import actor_critic, dqn, qrdqn, sac, td3
(symmetries,) = entry_points(group="equirl.symmetries", name="equirl")
symmetries.load()
print(json.dumps({
    "files": [getattr(m, "__file__", None) for name, m in sys.modules.items() if name.split(".")[0] == "equirl"],
    "top": [name for name in sys.modules if name.split(".")[0] in ("agents", "envs")],
    "configs": [str(file) for file in (files("equirl") / "configs").iterdir()],
}))
"""


def test_installed_wheel_trains_away_from_the_tree(wheel, tmp_path):
    # A new environment that finds this one's packages by their folder: a folder named in a .pth file is searched, but
    # the .pth files in it are not run, and so an editable install of the tree stays out of reach.
    run(sys.executable, "-m", "venv", "--without-pip", "venv", cwd=tmp_path)
    (packages,) = tmp_path.glob("venv/lib/python*/site-packages")
    (packages / "outer.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    python = tmp_path / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", wheel, cwd=tmp_path)
    assert not (packages / "agents").exists()
    assert not (packages / "envs").exists()

    seen = json.loads(run(python, "-c", IMPORTED, cwd=tmp_path))
    assert seen["top"] == []
    assert len(seen["files"]) > 3
    for file in [*filter(None, seen["files"]), *seen["configs"]]:
        assert Path(file).is_relative_to(packages), f"{file} is not from the wheel"
    assert any(file.endswith("dqn.yml") for file in seen["configs"])

    run(python.parent / "equirl", "train", "--env", "CartPole-v1", "-n", "500", "-f", tmp_path / "logs", cwd=tmp_path)
    assert (tmp_path / "logs" / "dqn" / "CartPole-v1_1" / "CartPole-v1.zip").is_file()
