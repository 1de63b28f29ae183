"""CIFAR-10 for scores of poses: pictures, how they are varied, and what a frozen network says of all their poses."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional

from tests.benchmarks.canonical_nets import TURN, ResNet20

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCH = 250  # images a forward


def progress_bar() -> Progress:
    """Return a progress bar with the time left, on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def decoded(data: Path, logs: Path) -> dict[str, Tensor]:
    """Return pictures, uint8 of shape (N, 3, 32, 32), and labels of both parts; they are decoded once."""
    cached = logs / "cifar10.npz"
    if not cached.is_file():
        with zipfile.ZipFile(data / "cifar10" / "cifar10-jpeg.zip") as packed:
            found: dict[str, Any] = {}
            for part in ("train", "test"):
                names = sorted(name for name in packed.namelist() if name.startswith(part) and name.endswith(".jpg"))
                pictures = (Image.open(io.BytesIO(packed.read(name))).convert("RGB") for name in names)
                found[part] = np.stack([np.asarray(picture).transpose(2, 0, 1) for picture in pictures])
                found[f"{part} labels"] = np.array([CLASSES.index(name.split("/")[1]) for name in names])
        np.savez(cached, **found)
    with np.load(cached) as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored}


def poses(x: Tensor) -> Tensor:
    """Return g^-1 x of all g, shape (4, B, ...), as scores see them."""
    return TURN.orbit(x)[TURN.inverses(x.device)]


def shallow(base: ResNet20, pictures: Tensor, logs: Path) -> np.ndarray:
    """Return what `ResNet20.low` says of all poses of pictures and of their mirror images, on disk, computed once.

    Its shape is (2, 4, N, 16, 16, 32): mirrored or not, pose g^-1 x, picture, then rows, columns and channels.
    """
    cached, n = logs / "shallow.npy", len(pictures)
    if not cached.is_file():
        partial = logs / "shallow.partial.npy"
        found = np.lib.format.open_memmap(partial, "w+", np.float16, (2, 4, n, 16, 16, 32))
        with progress_bar() as progress, torch.inference_mode():
            for rows in progress.track(torch.arange(n).split(BATCH), description="features of all poses"):
                x = pictures[rows].float() / 255
                seen = torch.stack([poses(x), poses(x.flip(3))]).flatten(0, 2)
                features = base.low(seen.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
                found[:, :, rows.numpy()] = features.half().numpy().reshape(2, 4, len(rows), 16, 16, 32)
        found.flush()
        partial.rename(cached)
    return cast("np.ndarray", np.load(cached, mmap_mode="r"))


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return upright pictures, shifted by up to two pixels, one shift a batch, and half of them mirrored."""
    return _shifted(_mirrored(x, generator), 2, generator)


def augmented_features(features: np.ndarray, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Return what is stored of upright pictures in all poses, shape (4, B, 32, 16, 16), augmented likewise."""
    mirrored = torch.randint(0, 2, (len(rows),), generator=generator)
    chosen = np.stack([features[m, :, i] for m, i in zip(mirrored.tolist(), rows.tolist(), strict=True)], axis=1)
    x = torch.from_numpy(chosen).float().permute(0, 1, 4, 2, 3).flatten(0, 1)
    return _shifted(x, 1, generator).unflatten(0, chosen.shape[:2])


def varied(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return upright pictures, each shifted by up to three pixels, varied in light and contrast, half of them mirrored.

    Contrasts, and lights beside that of the picture, are from 0.7 to 1.3.
    """
    n, channels, height, width = x.shape
    x = _mirrored(x, generator)
    i, j = torch.randint(0, 7, (2, n, 1), generator=generator)
    rows, columns = (i + torch.arange(height))[:, None, :, None], (j + torch.arange(width))[:, None, None]
    of, channel = torch.arange(n)[:, None, None, None], torch.arange(channels)[:, None, None]
    x = functional.pad(x, (3,) * 4, mode="replicate")[of, channel, rows, columns]
    contrast, light = 0.7 + 0.6 * torch.rand(2, n, 1, 1, 1, generator=generator)
    middle = x.mean((1, 2, 3), keepdim=True)
    x = ((x - middle) * contrast + middle * light).clamp(0, 1)
    return x.contiguous(memory_format=torch.channels_last)


def _mirrored(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.where(torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5, x.flip(3), x)


def _shifted(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    i, j = torch.randint(0, 2 * most + 1, (2,), generator=generator).tolist()
    x = functional.pad(x, (most,) * 4, mode="replicate")[:, :, i : i + x.shape[2], j : j + x.shape[3]]
    return x.contiguous(memory_format=torch.channels_last)
