"""What equivariance costs: times of equitune against the plain network and a loop over elements, as ratios in one run.

    make bench                                        # a table, and benchmarks.json beside it

Repetitions of the arms are interleaved, so that a machine that slows down slows all of them; a ratio is the median over
repetitions of arm / plain, with the smallest and largest beside it.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from rich.console import Console
from rich.progress import track
from rich.table import Table
from stable_baselines3.dqn.policies import CnnPolicy as PlainCnn
from stable_baselines3.dqn.policies import MlpPolicy as PlainMlp

from equirl import Grid, Permutation, SignedPermutation, Symmetry, cyclic
from equirl.agents.dqn import CnnPolicy, MlpPolicy
from equirl.agents.extractors import SmallCNN

TURN = Symmetry(Grid(cyclic(4)), Permutation.regular(cyclic(4)))
MIRROR = Symmetry(SignedPermutation(cyclic(2), [range(4)] * 2, [[1] * 4, [-1] * 4]), Permutation.regular(cyclic(2)))
SMALL = {"features_extractor_class": SmallCNN, "net_arch": []}
CASES: dict[str, tuple[spaces.Box, Symmetry, Any, Any, dict[str, Any]]] = {
    "MLP, C2": (spaces.Box(-1, 1, (4,), np.float32), MIRROR, PlainMlp, MlpPolicy, {"net_arch": [256, 256]}),
    "small CNN 9x9, C4": (spaces.Box(0, 255, (3, 9, 9), np.uint8), TURN, PlainCnn, CnnPolicy, SMALL),
    "NatureCNN 84x84, C4": (spaces.Box(0, 255, (4, 84, 84), np.uint8), TURN, PlainCnn, CnnPolicy, {}),
}


def looped(net: Any, x: torch.Tensor) -> torch.Tensor:
    """Equitune as published code writes it: a loop over elements."""
    symmetry = net.symmetry
    elements = range(len(symmetry.group))
    branches = [symmetry.action(symmetry.group.inverse(g), net.plain(symmetry.observation(g, x))) for g in elements]
    return torch.stack(branches).mean(0)


def update(forward: Callable[[torch.Tensor], torch.Tensor], net: Any, x: torch.Tensor) -> Callable[[], None]:
    """Return one step of learning: a forward without gradients, one with, and the optimizer."""
    optimizer = torch.optim.Adam(net.parameters(), fused=True)

    def step() -> None:
        with torch.no_grad():
            target = forward(x)
        loss = torch.nn.functional.smooth_l1_loss(forward(x), target + 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def acting(forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Callable[[], None]:
    """Return one forward without gradients."""

    def step() -> None:
        with torch.no_grad():
            forward(x)

    return step


def times(arms: dict[str, Callable[[], None]], repetitions: int, seconds: float) -> dict[str, list[float]]:
    """Return seconds a call of each arm, one figure a repetition, the arms taking turns."""
    calls = {}
    for name, arm in arms.items():
        arm()
        started = time.perf_counter()
        arm()
        calls[name] = max(1, int(seconds / (time.perf_counter() - started)))
    found: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repetitions):
        for name, arm in arms.items():
            started = time.perf_counter()
            for _ in range(calls[name]):
                arm()
            found[name].append((time.perf_counter() - started) / calls[name])
    return found


def measure(repetitions: int, seconds: float) -> list[dict[str, Any]]:
    """Return a row for each case, batch size and kind of work."""
    rows = []
    work = [(case, batch, kind) for case in CASES for batch, kind in ((1, "act"), (32, "update"), (128, "update"))]
    for case, batch, kind in track(work, console=Console(stderr=True), description="measuring"):
        space, symmetry, plain_class, ours_class, kwargs = CASES[case]
        actions = spaces.Discrete(len(symmetry.group))
        plain = plain_class(space, actions, lambda _: 1e-4, **kwargs).q_net
        ours = ours_class(space, actions, lambda _: 1e-4, symmetry=symmetry, method="equitune", **kwargs).q_net
        x = torch.as_tensor(np.stack([space.sample() for _ in range(batch)]))
        forwards = {"plain": plain, "equitune": ours, "loop": lambda x, net=ours: looped(net, x)}
        if kind == "act":
            arms = {name: acting(forward, x) for name, forward in forwards.items()}
        else:
            nets = {"plain": plain, "equitune": ours, "loop": ours}
            arms = {name: update(forward, nets[name], x) for name, forward in forwards.items()}
        found = times(arms, repetitions, seconds)
        ratios = {name: np.divide(found[name], found["plain"]) for name in ("equitune", "loop")}
        row: dict[str, Any] = {"case": case, "work": kind, "batch": batch, "order": len(symmetry.group)}
        row["plain_ms"] = 1000 * float(np.median(found["plain"]))
        for name, ratio in ratios.items():
            row[name] = {"median": float(np.median(ratio)), "min": float(ratio.min()), "max": float(ratio.max())}
        rows.append(row)
    return rows


def main() -> None:
    """Measure, print the table, write benchmarks.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.2, help="how long one repetition of one arm takes")
    parser.add_argument("--out", type=Path, default=Path("benchmarks.json"))
    options = parser.parse_args()
    rows = measure(options.repetitions, options.seconds)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    table = Table(title=f"time in units of the plain network ({machine})")
    for column in ("network", "work", "batch", "plain", "equitune", "loop", "forwards (bound)"):
        table.add_column(column, justify="left" if column in ("network", "work") else "right")
    for row in rows:
        ratios = ["{median:.2f} ({min:.2f}-{max:.2f})".format(**row[name]) for name in ("equitune", "loop")]
        table.add_row(
            row["case"], row["work"], str(row["batch"]), f"{row['plain_ms']:.2f} ms", *ratios, str(row["order"])
        )
    Console(width=120).print(table)
    options.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
