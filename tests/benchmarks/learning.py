"""What methods are worth beside what they cost: DQN, arms x seeds, by the command line.

    python tests/benchmarks/learning.py                # trains what is missing in logs/learning, minutes a run
    python tests/benchmarks/learning.py --study windy  # another study: windy, asterix
    python tests/benchmarks/learning.py --tables       # from the committed table alone

writes tests/benchmarks/<study>.csv, one row a run, and <study>.md.
"""

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import bootstrap

HERE = Path(__file__).resolve().parent
EPISODES = 100
FIELDS = ("arm", "seed", "return", "area", "seconds")


class Study(NamedTuple):
    """Agents that are compared on one environment."""

    title: str
    env: str
    symmetry: str
    steps: int
    seeds: Sequence[int]
    arms: Mapping[str, Sequence[str]]
    failing: float  # the return of an agent that has learnt nothing
    said: Sequence[str]
    words: Sequence[str] = ()  # for training, in all arms


def options(**given: object) -> tuple[str, str]:
    """Return the words of the command line for options of a method."""
    return "-P", f"policy_kwargs:dict(symmetrizer_kwargs={given!r})"


CLOSING = (
    f"Mean return of {EPISODES} closing episodes, the inter-quartile mean over seeds with a 95% bootstrap interval,",
    "and the inter-quartile mean of the area under the evaluation curve (20 episodes, 20 times in training). Seconds",
    "are CPU time of training on one thread, evaluations included. Gained a minute: the return above that of an agent",
    "that has learnt nothing, divided by the minutes that it took.",
)
GRID = "DQN on equirl/GridWorld-v0 (9x9, 8 walls{}) under C4 for 40,000 steps, configs/dqn.yml."
OF_CANONICAL = (
    "The seconds of canonical are those of a machine half as fast, and the start of its scores was chosen after two",
    "results of seed 21 with others.",
)
CROWDED = "The seconds are those of up to three jobs on two cores, and inflated by that."
FIVE, TEN = range(21, 26), range(21, 31)  # nothing was chosen on these, but for what `OF_CANONICAL` says
STUDIES = {
    "learning": Study(
        "What faster methods cost in return",
        *("equirl/GridWorld-v0", "equirl/GridWorld-v0:C4", 40_000, TEN),
        {
            "identity": ("--method", "identity"),
            "equitune": ("--method", "equitune"),
            "orbit_samples=1": ("--method", "equitune", *options(orbit_samples=1)),
            "orbit_samples=2": ("--method", "equitune", *options(orbit_samples=2)),
            "canonical": ("--method", "canonical"),
            "native": ("--method", "native"),
            "native, width 2": ("--method", "native", *options(width=2)),
        },
        *(-0.5, (GRID.format(""), *CLOSING, *OF_CANONICAL)),
    ),
    "windy": Study(
        "Where a symmetry is broken in places",
        *("equirl/GridWorld-v0", "equirl/GridWorld-v0:C4", 40_000, FIVE),
        {name: ("--method", name) for name in ("identity", "equitune", "soft")},
        *(-0.5, (GRID.format(", an east wind on 15% of the cells"), *CLOSING, CROWDED)),
        ("-P", "env_kwargs:dict(wind=0.15)"),
    ),
    "asterix": Study(
        "Two mirrors of MinAtar's Asterix",
        *("MinAtar/Asterix-v1", "MinAtar/Asterix-v1", 20_000, (21, 22)),
        {name: ("--method", name) for name in ("identity", "equitune", "product", "canonical")},
        *(
            0.5,
            (
                "DQN on MinAtar/Asterix-v1 under C2xC2, the mirrors of rows and of columns, for 20,000 steps.",
                *CLOSING,
                CROWDED,
            ),
        ),
    ),
}


def equirl(*words: str) -> dict[str, Any]:
    """Run the command line on one thread and return its JSON."""
    command = [sys.executable, "-m", "equirl", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return json.loads(done.stdout)


def trained(job: tuple[Study, str, int, Path]) -> dict[str, object]:
    """Train one agent, unless its result is there, and return its row."""
    study, arm, seed, logs = job
    target = logs / f"{arm.replace(' ', '-')}-{seed}"
    stored = target / "result.json"
    if not stored.is_file():
        target.mkdir(parents=True, exist_ok=True)
        words = ["--env", study.env, "--symmetry", study.symmetry, "-n", str(study.steps), "--seed", str(seed)]
        words += ["-f", str(target), "--eval-freq", str(study.steps // 20), "--eval-episodes", "20"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        run = equirl("train", *words, *study.words, *study.arms[arm])
        seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        closing = equirl("evaluate", str(run["folder"]), "--episodes", str(EPISODES))
        with np.load(Path(str(run["folder"])) / "evaluations.npz") as curve:
            area = float(curve["results"].mean())
        row = {"arm": arm, "seed": seed, "return": round(closing["methods"][0]["mean_return"], 4)}
        stored.write_text(json.dumps(row | {"area": round(area, 4), "seconds": round(seconds, 1)}), encoding="utf-8")
    return json.loads(stored.read_text(encoding="utf-8"))


def middle(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return the inter-quartile mean: of the middle half of the values, those at its ends in part.

    >>> float(middle(np.array([0.0, 1.0, 2.0, 9.0])))
    1.5
    """
    ordered = np.sort(np.moveaxis(np.asarray(values), axis, -1))
    n = ordered.shape[-1]
    ranks = np.arange(n)
    weights = np.clip(np.minimum(ranks + 1, 0.75 * n) - np.maximum(ranks, 0.25 * n), 0, None)
    return (ordered * weights).sum(-1) / weights.sum()


def cells(arm: str, rows: Sequence[dict[str, str]], failing: float) -> tuple[str, ...]:
    """Return what the table says of an arm."""
    own = [row for row in rows if row["arm"] == arm]
    returns, areas, seconds = (np.array([float(row[key]) for row in own]) for key in ("return", "area", "seconds"))
    interval = "-"
    if len(returns) > 1:
        found = bootstrap((returns,), middle, rng=np.random.default_rng(0), method="percentile").confidence_interval
        interval = f"{found.low:.2f} .. {found.high:.2f}"
    minutes = np.median(seconds) / 60
    each = ", ".join(f"{value:.2f}" for value in returns)
    said = f"{middle(returns):.2f}", interval, f"{middle(areas):.2f}"
    return (arm, *said, f"{np.median(seconds):.0f}", f"{(middle(returns) - failing) / minutes:.2f}", each)


COLUMNS = ("arm", "return", "95% interval", "area", "seconds", "gained a minute", "each seed")


def lines_of(study: Study, rows: Sequence[dict[str, str]]) -> list[tuple[str, ...]]:
    """Return a line of the table for each arm that was trained."""
    return [cells(arm, rows, study.failing) for arm in study.arms if any(row["arm"] == arm for row in rows)]


def page(study: Study, rows: Sequence[dict[str, str]]) -> str:
    """Return the page of Markdown that says what was found."""
    text = [f"# {study.title}", "", *study.said, "", f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    return "\n".join([*text, *(f"| {' | '.join(line)} |" for line in lines_of(study, rows))]) + "\n"


def stored_in(table: Path) -> list[dict[str, str]]:
    """Return the rows of a table, none where there is none."""
    if not table.is_file():
        return []
    with table.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def same_run(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two rows are of one run."""
    return (one["arm"], int(one["seed"])) == (other["arm"], int(other["seed"]))


def main() -> None:
    """Train what is missing and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=list(STUDIES), default="learning", help="what is compared")
    parser.add_argument("--tables", action="store_true", help="train nothing, read the committed table")
    parser.add_argument("--arm", action="append", help="train only this arm; may be repeated")
    parser.add_argument("--seed", action="append", type=int, help="likewise only this seed")
    parser.add_argument("--logs", type=Path, help="where the runs go, by default logs/<study>")
    parser.add_argument("--workers", type=int, default=1, help="runs side by side")
    chosen = parser.parse_args()
    study, table = STUDIES[chosen.study], HERE / f"{chosen.study}.csv"
    for arm in set(chosen.arm or ()) - set(study.arms):
        parser.error(f"arm {arm!r}: expected one of {', '.join(study.arms)}")
    if not chosen.tables:
        logs = chosen.logs or Path("logs") / chosen.study
        jobs = [(study, arm, seed, logs) for seed in chosen.seed or study.seeds for arm in chosen.arm or study.arms]
        with ProcessPoolExecutor(chosen.workers) as pool:
            done = pool.map(trained, jobs)
            for _ in track(done, "training", len(jobs), console=Console(stderr=True)):
                pass
        rows = [json.loads(each.read_text(encoding="utf-8")) for each in sorted(logs.glob("*/result.json"))]
        rows += [row for row in stored_in(table) if not any(same_run(row, each) for each in rows)]
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(rows, key=lambda row: (list(study.arms).index(row["arm"]), int(row["seed"]))))
    found = stored_in(table)
    shown = Table(*COLUMNS)
    for line in lines_of(study, found):
        shown.add_row(*line)
    Console().print(shown)
    (HERE / f"{chosen.study}.md").write_text(page(study, found), encoding="utf-8")


if __name__ == "__main__":
    main()
