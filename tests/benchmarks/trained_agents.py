"""What the methods make of agents that others trained: RL Zoo's DQN agents, weights only, on the same episodes.

    EQUIRL_DATA=... python tests/benchmarks/trained_agents.py [EPISODES]

writes tests/benchmarks/trained_agents.md, unless another number of episodes is given.
"""

import os
import platform
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import stable_baselines3
import torch
from rich.console import Console
from rich.table import Table

from equirl.evaluation import compare_methods, methods_for
from equirl.loading import find_agent

HERE = Path(__file__).resolve().parent
EPISODES = 100
DESCRIPTION = (
    f"Mean +- standard error over {EPISODES} deterministic episodes, the same ones for every method; the weights are",
    "those that RL Zoo published, without any training. Greedy disagreement: how often the greedy action of the image",
    "of an observation is not the image of its greedy action. The group C1 is the trivial one: no symmetry is known.",
)
COLUMNS = ("agent", "method", "mean return", "95% interval", "greedy disagreement", "recommended")


def rows_of(folder: Path, episodes: int) -> list[dict[str, str]]:
    """Return an agent's rows, one a method."""
    found = find_agent(folder)
    result = compare_methods(found, methods_for("all", found.settings.method), episodes)
    return [dict(zip(COLUMNS, _cells(result, row), strict=True)) for row in result["methods"]]


def _cells(result: dict[str, Any], row: dict[str, Any]) -> tuple[str, ...]:
    low, high = row["interval"]
    return (
        f"{result['environment']}, {result['group']}",
        row["method"],
        f"{row['mean_return']:.2f} +- {(high - low) / 2 / 1.96:.2f}",
        f"{low:.2f} .. {high:.2f}",
        f"{row['greedy_disagreement']:.1%}",
        "yes" if row["method"] == result["recommended"] else "",
    )


def main() -> None:
    """Evaluate every agent and write what was found."""
    if not os.environ.get("EQUIRL_DATA"):
        sys.exit("EQUIRL_DATA, the folder of real data, is not set")
    torch.set_num_threads(1)
    episodes = int(sys.argv[1]) if len(sys.argv) > 1 else EPISODES
    rows = []
    for folder in sorted((Path(os.environ["EQUIRL_DATA"]) / "agents" / "dqn").iterdir()):
        print(folder.name, file=sys.stderr)
        rows += rows_of(folder, episodes)
    table = Table(title=f"{episodes} episodes")
    for column in COLUMNS:
        table.add_column(column)
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)
    if episodes != EPISODES:
        return
    versions = f"Gymnasium {gym.__version__}, SB3 {stable_baselines3.__version__}, Python {platform.python_version()}."
    lines = ["# RL Zoo's trained DQN agents under each method", "", *DESCRIPTION, "", versions]
    lines += ["", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(row.values()) + " |" for row in rows]
    (HERE / "trained_agents.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
