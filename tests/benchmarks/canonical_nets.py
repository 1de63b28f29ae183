"""The pretrained ResNet-20, and the networks of scores that choose the poses in which it sees pictures."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from equirl import Grid, cyclic
from equirl.canonicalizers import Scores
from equirl.convolutions import Collapse, LiftConv, RegularConv

TURN = Grid(cyclic(4))
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as the pretrained weights expect
# (channels, kernel, stride, padding) of each convolution; no stride leaves a row over
TURNING = ((16, 4, 2, 1), (16, 3, 1, 1), (32, 4, 2, 1), (32, 3, 1, 1), (64, 4, 2, 1))


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut that takes every second pixel and adds channels of zeros (option A)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        self.stride, self.more = stride, (c_out - c_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        beside = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, self.more))
        return functional.relu(y + beside)


class ResNet20(nn.Module):
    """ResNet-20 for CIFAR-10 (He et al. 2016, arXiv 1512.03385), from pictures in 0..1 to 10 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3: nn.Module = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.high(self.low(x))

    def low(self, x: Tensor) -> Tensor:
        """Return what the first two thirds say of pictures: 32 channels of 16x16."""
        mean, deviation = (x.new_tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
        x = functional.relu(self.bn1(self.conv1((x - mean) / deviation)))
        return cast("Tensor", self.layer2(self.layer1(x)))

    def high(self, x: Tensor) -> Tensor:
        """Return what the last third makes of it."""
        return cast("Tensor", self.linear(self.layer3(x).mean((2, 3))))


def pretrained(data: Path) -> ResNet20:
    """Return ResNet-20 with the given weights, frozen."""
    stored = torch.load(data / "pretrained" / "resnet20-cifar10.th", map_location="cpu", weights_only=True)
    net = ResNet20()
    net.load_state_dict({key.removeprefix("module."): value for key, value in stored["state_dict"].items()})
    return net.requires_grad_(False).eval()


class FieldNorm(nn.Module):
    """Batch normalisation of regular pictures: one mean and one deviation a channel, the same for all elements."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return pictures of the same shape, (B, C * G, H, W)."""
        return cast("Tensor", self.norm(x.reshape(len(x), self.norm.num_features, -1, x.shape[-1])).view(x.shape))


class TurningScores(Scores):
    """Scores by a group-convolution network on 32x32 pictures that is deeper than that of `GridScores`."""

    def __init__(self) -> None:
        super().__init__(TURN)
        layers: list[nn.Module] = []
        shape: tuple[int, ...] = (3, 32, 32)
        for channels, *places in TURNING:
            convolution = (RegularConv if layers else LiftConv)(TURN, shape, channels, *places)
            layers += [convolution, FieldNorm(channels), nn.ReLU()]
            shape = convolution.out_shape
        self.net = nn.Sequential(*layers, Collapse(TURN, shape, 1))

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.net((x - 0.5) / 0.25).T)


class Beside(nn.Module):
    """Two networks that read the same pictures, and the channels of both."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.other(x)], 1)


class Tuned(nn.Module):
    """A copy of the pretrained network with other outputs, of which the last layers learn.

    In evaluation mode a picture and its mirror image are judged together: upright pictures are upright in mirrors, and
    of outputs that are one an element, in the mirror that of a turn is that of the turn the other way.

    Args:
        base: the network that is copied.
        outputs: how many numbers it returns.
        fresh: channels of two more blocks, which start from nothing, beside the last third.
        learning: the names of the layers that learn, beside those blocks and the outputs.
    """

    stored: Tensor | None = None
    """What `low` says of the poses g^-1 x of a batch, shape (4, B, 32, 16, 16): known, training does not compute it."""

    def __init__(self, base: ResNet20, outputs: int, fresh: int = 0, learning: tuple[str, ...] = ("layer3",)) -> None:
        super().__init__()
        self.net = ResNet20()
        self.net.load_state_dict(base.state_dict())
        if fresh:
            blocks = nn.Sequential(Block(32, fresh, 2), Block(fresh, fresh, 1))
            self.net.layer3 = Beside(self.net.layer3, blocks)
        self.net.linear = nn.Linear(64 + fresh, outputs)
        self.learning = (*learning, "linear")
        for name, part in self.net.named_children():
            part.requires_grad_(name in self.learning)
        self.in_mirrors = TURN.group.inverses.tolist() if outputs == len(TURN.group) else slice(None)

    @property
    def low_learns(self) -> bool:
        """Whether any of what `low` computes changes in training."""
        return not {"layer3", "linear"}.issuperset(self.learning)

    def train(self, mode: bool = True) -> Tuned:
        """Set the mode of what learns; the rest keeps its statistics."""
        super().train(mode)
        for name, part in self.net.named_children():
            part.train(mode and name in self.learning)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs of pictures, in training those of the first len(x) stored ones if there are any."""
        if not self.training:
            return (self.net(x) + self.net(x.flip(3))[:, self.in_mirrors]) / 2
        if self.stored is None:
            return cast("Tensor", self.net(x))
        return self.net.high(self.stored[:, : len(x) // len(self.stored)].flatten(0, 1))
