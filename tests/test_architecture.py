"""The direction of imports, the size of files and the top of the repository stay as CONTRIBUTING.md says."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"equirl": "equirl", "agents": "equirl.agents", "envs": "equirl.envs"}

# Each layer of the core may import itself and those before it.
CHAIN = ("errors", "groups", "representations", "symmetry", "symmetrizers", "networks")
MAY_IMPORT = {layer: set(CHAIN[: place + 1]) for place, layer in enumerate(CHAIN)}
MAY_IMPORT["checks"] = {*MAY_IMPORT["symmetrizers"], "checks"}
MAY_IMPORT["verification"] = {*MAY_IMPORT["symmetry"], "verification"}
for place, layer_on_networks in enumerate(LATER := ("canonicalizers", "multigroup", "methods")):
    MAY_IMPORT[layer_on_networks] = {*CHAIN, *LATER[: place + 1]}
CORE = set(MAY_IMPORT)
MAY_IMPORT["envs"] = {*MAY_IMPORT["verification"], "envs"}
MAY_IMPORT["agents"] = {*CORE, "agents"}
# Files that share a layer. A file of no layer is on top: it may import all, and no layer may import it.
LAYER_OF_FILE = dict.fromkeys(("_representation", "grids", "permutations", "products"), "representations")
LAYER_OF_FILE |= dict.fromkeys(("_maps", "_spaces"), "symmetry")
LAYER_OF_FILE["soft"] = "symmetrizers"
LAYER_OF_FILE |= dict.fromkeys(("_chains", "_expanded", "convolutions", "layers"), "networks") | {
    "scores": "canonicalizers"
}

NOT_IN_THE_CORE = {"stable_baselines3", "sb3_contrib", "typer", "rich"}
TOP_LEVEL = {"equirl", "agents", "envs", "tests", "configs", "docs", ".ci", ".gitignore", "constraints.txt"}
TOP_LEVEL |= {"pyproject.toml", "README.md", "Makefile", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"}
MOST_LINES = 350


def layer(module: str) -> str | None:
    """Return the layer of a module of equirl, None for those on top."""
    name = [*module.split("."), ""][1]
    name = LAYER_OF_FILE.get(name, name)
    return name if name in MAY_IMPORT else None


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and module of every import in the source, also of those in functions and of import_module("...")."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            # In `from equirl import x`, x is a module or one of the names that equirl lists.
            names = [alias.name for alias in node.names] if start == "equirl" else [""]
            yield from ((node.lineno, f"{start}.{name}" if layer(f"{start}.{name}") else start) for name in names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            yield from ((node.lineno, str(arg.value)) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def violations(module: str, source: str) -> list[str]:
    """Return a sentence for each import that the module may not make."""
    own = layer(module) if module.startswith("equirl") else None
    found = []
    for line, target in imported(source):
        top = target.split(".")[0]
        if top in {"agents", "envs"}:
            found.append(f"{module}:{line} imports {target}: write equirl.{target}")
        elif top == "":
            found.append(f"{module}:{line} imports {target}: write the whole name")
        elif own in CORE and top in NOT_IN_THE_CORE:
            found.append(f"{module}:{line} imports {target}: the core makes sense without it")
        elif own and top == "equirl" and layer(target) not in MAY_IMPORT[own]:
            found.append(f"{module}:{line} imports {target}: {own} may import {', '.join(sorted(MAY_IMPORT[own]))}")
    return found


def sources() -> Iterator[tuple[str, Path]]:
    """Yield name and path of every module of the packages."""
    for folder, package in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join([package, *(part for part in parts if part != "__init__")]), path


def test_imports_point_one_way():
    tests = [(path.stem, path) for path in (ROOT / "tests").rglob("*.py")]
    found = [sentence for module, path in [*sources(), *tests] for sentence in violations(module, path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("equirl.groups", "from equirl.representations import Grid"),
        ("equirl.groups", "from equirl import symmetry"),
        ("equirl.groups", "import equirl"),
        ("equirl.grids", "from equirl.symmetry import Symmetry"),
        ("equirl.symmetry", "def late():\n    import equirl.agents.dqn"),
        ("equirl.symmetry", "import_module('equirl.envs')"),
        ("equirl.symmetry", "import importlib\nimportlib.import_module('stable_baselines3')"),
        ("equirl.networks", "from stable_baselines3.common import policies"),
        ("equirl.checks", "from equirl.networks import LambdaNet"),
        ("equirl.checks", "import rich.table"),
        ("equirl.canonicalizers", "from equirl.multigroup import Product"),
        ("equirl.scores", "from equirl.methods import METHODS"),
        ("equirl.envs.gridworld", "from equirl.agents import dqn"),
        ("equirl.envs.gridworld", "from equirl.symmetrizers import Equitune"),
        ("equirl.agents.dqn", "import equirl.envs"),
        ("equirl.agents.dqn", "from equirl.training import train"),
        ("equirl.agents", "from .dqn import MlpPolicy"),
        ("equirl.cli", "import agents.dqn"),
        ("test_dqn", "from envs import gridworld"),
    ],
)
def test_a_wrong_import_is_found(module, source):
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("equirl.networks", "from equirl.symmetrizers import Equitune\nimport torch"),
        ("equirl.grids", "from equirl._representation import Index"),
        ("equirl.envs.gridworld", "from equirl import symmetry\nfrom equirl.errors import UserError"),
        ("equirl.agents.sac", "import stable_baselines3\nfrom equirl.agents.actor_critic import Policy"),
        ("equirl.cli", "import equirl, rich, typer\nimport equirl.agents.dqn, equirl.envs"),
        ("test_dqn", "from equirl.agents.dqn import MlpPolicy"),
    ],
)
def test_a_right_import_is_let_through(module, source):
    assert violations(module, source) == []


def test_the_core_loads_without_sb3():
    core = [module for module, _ in sources() if layer(module) in CORE]
    code = f"import sys, {', '.join(core)}; print(*sorted({NOT_IN_THE_CORE!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_files_fit_in_a_head():
    lines = {module: len(path.read_text().splitlines()) for module, path in sources()}
    assert {module: count for module, count in lines.items() if count > MOST_LINES} == {}


def test_top_of_the_repository_holds_only_what_belongs_there():
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git clone")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {path.split("/")[0] for path in listed.splitlines()} <= TOP_LEVEL
