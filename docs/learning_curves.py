"""Make the picture of the README: train arms x seeds with the command line, collect their evaluations, draw them.

.venv/bin/python docs/learning_curves.py           # trains what is missing (about an hour on 2 cores), then draws
.venv/bin/python docs/learning_curves.py --draw    # draws from the committed docs/learning_curves.csv alone
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

HERE = Path(__file__).parent
C4, D4 = "equirl/GridWorld-v0:C4", "equirl/GridWorld-v0"
STUDIES = {
    "equirl/GridWorld-v0": {
        "title": "GridWorld 9x9, 8 walls, new ones each episode (C4, D4)",
        "steps": 40_000,
        "arms": {
            "identity": ("identity", C4),
            "equitune": ("equitune", C4),
            "equitune D4": ("equitune", D4),
            "lambda": ("lambda", C4),
            "equizero": ("equizero", C4),
        },
    },
    "CartPole-v1": {
        "title": "CartPole-v1 (C2)",
        "steps": 30_000,
        "arms": {"identity": ("identity", "auto"), "equitune": ("equitune", "auto")},
    },
}
SEEDS = (11, 12, 13)  # the hyper-parameters were chosen on 0, 1 and 2
EPISODES = 100  # of the closing evaluation
COLOURS = {
    "identity": "#8a8f98",
    "equitune": "#3b6fb6",
    "equitune D4": "#7a4fa3",
    "lambda": "#4a9b6e",
    "equizero": "#d9822b",
}
LABELS = {"identity": "plain DQN (identity)"}


def equirl(*words: str) -> str:
    """Run the command line on one thread and return its JSON."""
    command = [sys.executable, "-m", "equirl", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def train(job: tuple[str, str, int], logs: Path) -> list[dict[str, object]]:
    """Train one agent unless its result is there, and return its evaluations as rows."""
    env, arm, seed = job
    study, target = STUDIES[env], logs / f"{env.replace('/', '-')}-{arm.replace(' ', '-')}-{seed}"
    method, symmetry = study["arms"][arm]
    result = target / "result.json"
    if not result.is_file():
        target.mkdir(parents=True, exist_ok=True)
        command = ["train", "--env", env, "--method", method, "--seed", str(seed), "--symmetry", symmetry]
        command += ["-n", str(study["steps"]), "-f", str(target), "--eval-freq", "2000", "--eval-episodes", "20"]
        trained = json.loads(equirl(*command))
        final = json.loads(equirl("evaluate", trained["folder"], "--episodes", str(EPISODES)))
        trained["final"] = final["methods"][0]["mean_return"]
        result.write_text(json.dumps(trained), encoding="utf-8")
    summary = json.loads(result.read_text(encoding="utf-8"))
    with np.load(Path(summary["folder"]) / "evaluations.npz") as stored:
        pairs = list(zip(stored["timesteps"].tolist(), stored["results"].mean(axis=1).tolist(), strict=True))
    pairs.append(("final", summary["final"]))
    print(f"{env} {arm} seed {seed}: {summary['final']:.3f} in {summary['seconds']:.0f} s", flush=True)
    return [{"env": env, "arm": arm, "seed": seed, "step": step, "return": round(value, 4)} for step, value in pairs]


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """Draw mean and range over seeds of the evaluation return against environment steps."""
    figure = Figure(figsize=(9.6, 3.6), dpi=150, layout="constrained")
    for axes, (env, study) in zip(figure.subplots(1, len(STUDIES), squeeze=False)[0], STUDIES.items(), strict=True):
        for arm in study["arms"]:
            points = [row for row in rows if (row["env"], row["arm"]) == (env, arm) and row["step"] != "final"]
            steps = sorted({int(row["step"]) for row in points})
            values = np.array([[float(r["return"]) for r in points if int(r["step"]) == step] for step in steps])
            if not len(values):
                continue
            axes.plot(steps, values.mean(axis=1), color=COLOURS[arm], label=LABELS.get(arm, arm), linewidth=2)
            axes.fill_between(steps, values.min(axis=1), values.max(axis=1), color=COLOURS[arm], alpha=0.15, lw=0)
        axes.set_title(str(study["title"]), fontsize=10)
        axes.set_xlabel("environment steps", fontsize=9)
        axes.set_ylabel("evaluation return", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    FigureCanvasAgg(figure).print_png(path)


def main() -> None:
    """Train what is missing, write the table, draw the picture, print final returns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="train nothing, draw from the committed table")
    parser.add_argument("--logs", type=Path, default=Path("logs/curves"), help="where the runs go")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side")
    options = parser.parse_args()
    table = HERE / "learning_curves.csv"
    if not options.draw:
        jobs = [(env, arm, seed) for env, study in STUDIES.items() for seed in SEEDS for arm in study["arms"]]
        with ThreadPoolExecutor(options.workers) as pool:
            rows = [row for found in pool.map(lambda job: train(job, options.logs), jobs) for row in found]
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["env", "arm", "seed", "step", "return"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    with table.open(encoding="utf-8") as file:
        stored = list(csv.DictReader(file))
    draw(stored, HERE / "learning_curves.png")
    for env, study in STUDIES.items():
        for arm in study["arms"]:
            finals = [
                float(row["return"]) for row in stored if (row["env"], row["arm"], row["step"]) == (env, arm, "final")
            ]
            print(f"{env:22} {arm:12} {np.mean(finals):8.3f}  seeds {finals}")


if __name__ == "__main__":
    main()
