"""What faster methods cost in return: DQN on the grid world under C4, arms x seeds, by the command line.

    python tests/benchmarks/learning.py               # trains what is missing in logs/learning, a few minutes a run
    python tests/benchmarks/learning.py --tables      # from the committed learning.csv alone

writes tests/benchmarks/learning.csv, one row a run, and learning.md.
"""

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import bootstrap

HERE = Path(__file__).resolve().parent
ENV, SYMMETRY, STEPS, EPISODES = "equirl/GridWorld-v0", "equirl/GridWorld-v0:C4", 40_000, 100
SEEDS = tuple(range(21, 31))  # no hyper-parameter was chosen on these
ARMS: dict[str, Sequence[str]] = {
    "identity": ("--method", "identity"),
    "equitune": ("--method", "equitune"),
    "orbit_samples=1": ("--method", "equitune", "-P", "policy_kwargs:dict(symmetrizer_kwargs=dict(orbit_samples=1))"),
    "orbit_samples=2": ("--method", "equitune", "-P", "policy_kwargs:dict(symmetrizer_kwargs=dict(orbit_samples=2))"),
    "native": ("--method", "native"),
    "native, width 2": ("--method", "native", "-P", "policy_kwargs:dict(symmetrizer_kwargs=dict(width=2))"),
}
FIELDS = ("arm", "seed", "return", "area", "seconds")
DESCRIPTION = (
    f"DQN on {ENV} (9x9, 8 walls) under C4 for {STEPS:,} steps, configs/dqn.yml: mean return of {EPISODES} closing",
    "episodes, their inter-quartile mean over seeds with a 95% bootstrap interval, and the inter-quartile mean of the",
    "area under the evaluation curve (20 episodes every 2,000 steps). Seconds are CPU time of training on one thread,",
    "evaluations included. Gained a minute: the return above that of never reaching a goal, -0.5, divided by the",
    "minutes that it took.",
)


def equirl(*words: str) -> dict[str, Any]:
    """Run the command line on one thread and return its JSON."""
    command = [sys.executable, "-m", "equirl", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return json.loads(done.stdout)


def trained(job: tuple[str, int, Path]) -> dict[str, object]:
    """Train one agent, unless its result is there, and return its row."""
    arm, seed, logs = job
    target = logs / f"{arm.replace(' ', '-')}-{seed}"
    stored = target / "result.json"
    if not stored.is_file():
        target.mkdir(parents=True, exist_ok=True)
        words = ["--env", ENV, "--symmetry", SYMMETRY, "-n", str(STEPS), "--seed", str(seed), "-f", str(target)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        run = equirl("train", *words, *ARMS[arm], "--eval-freq", "2000", "--eval-episodes", "20")
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


def cells(arm: str, rows: Sequence[dict[str, str]]) -> tuple[str, ...]:
    """Return what the table says of an arm."""
    own = [row for row in rows if row["arm"] == arm]
    returns, areas, seconds = (np.array([float(row[key]) for row in own]) for key in ("return", "area", "seconds"))
    found = bootstrap((returns,), middle, rng=np.random.default_rng(0), method="percentile").confidence_interval
    minutes = np.median(seconds) / 60
    each = ", ".join(f"{value:.2f}" for value in returns)
    said = f"{middle(returns):.2f}", f"{found.low:.2f} .. {found.high:.2f}", f"{middle(areas):.2f}"
    return (arm, *said, f"{np.median(seconds):.0f}", f"{(middle(returns) + 0.5) / minutes:.2f}", each)


COLUMNS = ("arm", "return", "95% interval", "area", "seconds", "gained a minute", "each seed")


def main() -> None:
    """Train what is missing and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="train nothing, read the committed learning.csv")
    parser.add_argument("--arm", action="append", choices=list(ARMS), help="train only this arm; may be repeated")
    parser.add_argument("--seed", action="append", type=int, choices=SEEDS, help="likewise only this seed")
    parser.add_argument("--logs", type=Path, default=Path("logs/learning"), help="where the runs go")
    parser.add_argument("--workers", type=int, default=1, help="runs side by side")
    chosen = parser.parse_args()
    table = HERE / "learning.csv"
    if not chosen.tables:
        jobs = [(arm, seed, chosen.logs) for seed in chosen.seed or SEEDS for arm in chosen.arm or ARMS]
        with ProcessPoolExecutor(chosen.workers) as pool:
            done = pool.map(trained, jobs)
            for _ in track(done, "training", len(jobs), console=Console(stderr=True)):
                pass
        found = sorted(chosen.logs.glob("*/result.json"))
        rows = [json.loads(each.read_text(encoding="utf-8")) for each in found]
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(rows, key=lambda row: (list(ARMS).index(row["arm"]), row["seed"])))
    with table.open(encoding="utf-8") as file:
        stored = list(csv.DictReader(file))
    lines = [cells(arm, stored) for arm in ARMS if any(row["arm"] == arm for row in stored)]
    shown = Table(*COLUMNS)
    for line in lines:
        shown.add_row(*line)
    Console().print(shown)
    page = ["# What faster methods cost in return", "", *DESCRIPTION, "", f"| {' | '.join(COLUMNS)} |"]
    page += ["|" + "---|" * len(COLUMNS), *(f"| {' | '.join(line)} |" for line in lines)]
    (HERE / "learning.md").write_text("\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
