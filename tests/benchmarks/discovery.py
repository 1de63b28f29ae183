"""What discovery costs: seconds and memory against entries of the observation and actions, with a planted symmetry.

    python tests/benchmarks/discovery.py              # a table, and discovery.md beside this file

Each environment is random and has exactly one mirror, or none: f(s, a) = (h(s, a) + g h(g s, g a)) / 2 with
h(s, a) = tanh(W s + B_a + c), g exchanging some entries, negating others, and exchanging actions in pairs. Every case
runs in a process of its own, on one thread; memory is the growth of that process beyond its imports.
"""

import argparse
import multiprocessing
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from rich.console import Console
from rich.progress import track
from rich.table import Table

from equirl.envs import make_to_check
from equirl.verification.discovery import discover_symmetries, search
from equirl.verification.transitions import Transitions

STEPS = 20_000
ENVIRONMENTS = [
    *("CartPole-v1", "Acrobot-v1", "Pendulum-v1", "LunarLander-v3", "Reacher-v5", "equirl/GridWorld-v0"),
    *("MinAtar/Breakout-v1", "MinAtar/Asterix-v1", "MountainCar-v0", "HalfCheetah-v5"),
]


class Planted(gym.Env[Any, Any]):
    """A random environment with one mirror; `size` entries, `actions` Discrete ones, or so many numbers if negative."""

    def __init__(self, size: int, actions: int, mirrored: bool = True, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        count = abs(actions)
        self.permutation, self.signs = np.arange(size), np.ones(size, int)
        for i in range(0, size // 2 - 1, 2):
            self.permutation[[i, i + 1]] = [i + 1, i]
        self.signs[size // 2 :: 2] = -1
        self.images = np.arange(count)
        for a in range(0, count - 1, 2):
            self.images[[a, a + 1]] = [a + 1, a]
        self.mirrored, self.discrete, self.size = mirrored, actions > 0, size
        self.weights = rng.normal(size=(size + 1, size)) / np.sqrt(size)
        self.pushes = rng.normal(size=(count, size + 1))
        self.offset = rng.normal(size=size + 1)
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float64)
        self.action_space: gym.Space[Any] = (
            spaces.Discrete(count) if self.discrete else spaces.Box(-1, 1, (count,), np.float64)
        )

    def planted(self) -> tuple[list[int], list[int], Any]:
        """Return the mirror: where entries go, their signs, and where actions go."""
        images = self.images.tolist()
        signs = [1] * len(images)
        return self.permutation.tolist(), self.signs.tolist(), images if self.discrete else (images, signs)

    def move(self, state: Any) -> Any:
        """Return the image of a state or of a change."""
        moved = np.empty_like(state)
        moved[self.permutation] = state * self.signs
        return moved

    def _half(self, state: Any, push: Any) -> tuple[Any, float]:
        raised = np.tanh(self.weights @ state + push @ self.pushes + self.offset)
        return raised[:-1], float(raised[-1])

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps, self.state = 0, self.np_random.normal(size=self.size)
        return self.state.copy(), {}

    def step(self, action: Any) -> Any:
        push = np.eye(len(self.images))[action] if self.discrete else np.asarray(action)
        change, reward = self._half(self.state, push)
        if self.mirrored:
            image = np.empty_like(push)
            image[self.images] = push
            other, more = self._half(self.move(self.state), image)
            change, reward = (change + self.move(other)) / 2, (reward + more) / 2  # the mirror is its own inverse
        self.state = 0.9 * self.state + 0.3 * change
        self.steps += 1
        return self.state.copy(), reward, False, self.steps == 25, {}


def measure(case: tuple[int, int, bool]) -> dict[str, Any]:
    """Return a row of the table; runs in a process of its own."""
    torch.set_num_threads(1)
    size, actions, mirrored = case
    env = Planted(size, actions, mirrored)
    logged = Transitions.record(env, STEPS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    found = search(logged)
    seconds = time.process_time() - started
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    permutation, signs, images = env.planted()
    seen = [
        (c.observation_map.get("permutation", list(range(size))), c.observation_map["signs"]) for c in found.accepted
    ]
    done = [
        c.action_map if env.discrete else (c.action_map["permutation"], c.action_map["signs"]) for c in found.accepted
    ]
    planted = [(permutation, signs)] if mirrored else []
    exact = seen == planted and (not mirrored or done == [images])
    scores = (max((c.score for c in found.accepted), default=None), found.next_best)
    return {
        "entries": str(size),
        "actions": str(actions) if actions > 0 else f"{-actions} numbers",
        "planted": "C2" if mirrored else "none",
        "found": "none" if not found.accepted else str(found.symmetry().group),
        "as planted": "yes" if exact else "NO",
        "score": "" if scores[0] is None else f"{scores[0]:.2f}",
        "next best": "" if scores[1] is None else f"{scores[1]:.2f}",
        "maps scored": str(found.examined),
        "seconds": f"{seconds:.1f}",
        "MiB": f"{grown / (1024 if sys.platform != 'darwin' else 2**20):.0f}",
    }


def search_environment(name: str) -> dict[str, Any]:
    """Return what a whole discovery, recording and confirming included, finds and costs; in a process of its own."""
    torch.set_num_threads(1)
    env = make_to_check(name)
    started = time.perf_counter()
    found = discover_symmetries(env, interactions=STEPS)
    seconds = time.perf_counter() - started
    return {
        "environment": name,
        "found": "none" if found.symmetry is None else str(found.symmetry.group),
        "confirmed": "" if found.report is None else found.report.verdict,
        "score": "" if found.score is None else f"{found.score:.2f}",
        "next best": "" if found.next_best is None else f"{found.next_best:.2f}",
        "interactions": f"{found.interactions:,}",
        "seconds": f"{seconds:.1f}",
    }


def show(title: str, rows: list[dict[str, Any]]) -> list[str]:
    """Print rows as a table, and return them as Markdown."""
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row.values())
    Console(width=130).print(table)
    lines = [f"| {' | '.join(rows[0])} |", f"|{'---|' * len(rows[0])}"]
    return lines + [f"| {' | '.join(row.values())} |" for row in rows]


def main() -> None:
    """Measure, print the tables, write them as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    cases = [(size, 4, True) for size in (4, 8, 16, 32)]
    cases += [(8, actions, True) for actions in (2, 8, 16, 32)]
    cases += [(8, -2, True), (16, -8, True), (8, 4, False), (32, 4, False)]
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that measure
    spawn = multiprocessing.get_context("spawn")
    jobs = [(measure, case) for case in cases] + [(search_environment, name) for name in ENVIRONMENTS]
    rows = []
    for job, argument in track(jobs, console=Console(stderr=True), description="measuring"):
        with spawn.Pool(1) as pool:
            rows.append(pool.apply(job, (argument,)))
    lines = [
        f"Discovery from {STEPS:,} transitions, on one core. `python tests/benchmarks/discovery.py`.",
        "",
        "Random environments with one planted mirror, or none. Seconds are without recording, memory is what is added.",
        "",
        *show(f"planted mirrors, {STEPS:,} transitions, one core", rows[: len(cases)]),
        "",
        "Whole discoveries, recording and confirming included.",
        "",
        *show("environments", rows[len(cases) :]),
    ]
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
