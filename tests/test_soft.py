"""Soft symmetry starts as the exact average, lets go where that pays, and is used by those alone who ask for it."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from equirl import (
    METHODS,
    Equitune,
    Grid,
    Identity,
    PerKey,
    Permutation,
    SoftEquitune,
    Trivial,
    UserError,
    cyclic,
    equivariance_error,
)
from equirl.methods import EXACT

SWAP = Permutation.regular(cyclic(2))
TURN = Grid(cyclic(4))


def net(x):
    return x * torch.tensor([1.0, 3.0], dtype=x.dtype)


def of_gate(bias: float) -> SoftEquitune:
    soft = SoftEquitune(SWAP, SWAP, 2)
    last: Any = soft.score[-1]
    nn.init.constant_(last.bias, bias)
    return soft


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_it_starts_as_the_average_and_exactly_so(dtype, bound):
    torch.manual_seed(0)
    f, x = nn.Conv2d(2, 2, 3, padding=1).to(dtype), torch.rand(3, 2, 5, 5, dtype=dtype)
    soft = SoftEquitune(TURN, TURN, 50).to(dtype)
    assert torch.allclose(soft(f, x), Equitune(TURN, TURN)(f, x), atol=bound)
    assert equivariance_error(partial(soft, f), TURN, TURN, torch.cat([x, TURN.orbit(x).mean(0)])) <= bound
    assert soft.gate(soft.branches(f, x)).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("bias", "gate"), [(-1.0, 0.0), (0.0, 0.0), (0.25, 0.25), (1.0, 1.0), (7.0, 1.0)])
def test_the_gate_mixes_the_average_and_the_plain_output(bias, gate):
    soft, x = of_gate(bias), torch.randn(5, 2)
    expected = (1 - gate) * Equitune(SWAP, SWAP)(net, x) + gate * Identity(SWAP, SWAP)(net, x)
    assert torch.allclose(soft(net, x), expected, atol=1e-6)
    assert torch.allclose(soft.gate(soft.branches(net, x)), torch.full((5,), gate))
    weights = soft.weights(soft.branches(net, x))
    assert torch.allclose(weights.sum(0), torch.ones(5))


def test_the_gate_reads_each_input_by_itself():
    soft, x = SoftEquitune(SWAP, SWAP, 2), torch.randn(6, 2)
    for parameter in soft.parameters():
        nn.init.normal_(parameter, std=0.3)
    alone = torch.cat([soft(net, one[None]) for one in x])
    assert torch.allclose(soft(net, x), alone, atol=1e-6)
    read = SoftEquitune(SWAP, SWAP, 3)
    for parameter in read.parameters():
        nn.init.normal_(parameter, std=0.3)
    features = torch.randn(2, 3)
    branches = read.branches(lambda views: (net(views), features.repeat_interleave(3, 0)), torch.randn(3, 2))
    assert torch.allclose(read.gate(branches), read.score(features[0]).clamp(0, 1).expand(3))  # of g = e alone


@pytest.mark.parametrize(("at", "slope", "passes"), [(0, 1, False), (0, -1, True), (1, 1, True), (1, -1, False)])
def test_a_gate_at_its_end_learns_inwards_alone(at, slope, passes):
    soft = of_gate(float(at))
    gate = soft.gate(soft.branches(net, torch.randn(4, 2)))
    (slope * gate.sum()).backward()
    last: Any = soft.score[-1]
    assert bool(last.bias.grad.abs() > 0) == passes


def test_it_lets_go_where_that_pays_and_nowhere_else():
    """f knows where the two entries differ in meaning: where the first feature is 1, no swap is true."""
    torch.manual_seed(0)
    x = torch.rand(256, 2)
    broken = (x[:, :1] > 0.5).float()

    def f(views):
        return net(views), (views[:, :1] > 0.5).float()

    aim = torch.where(broken.bool(), net(x), Equitune(SWAP, SWAP)(net, x))
    soft = SoftEquitune(SWAP, SWAP, 1)
    learner = torch.optim.Adam(soft.parameters(), 1e-2)
    for _ in range(300):
        learner.zero_grad()
        (soft(f, x) - aim).square().mean().backward()
        learner.step()
    gate = soft.gate(soft.branches(f, x)).detach()
    assert float(gate[broken[:, 0] > 0].mean()) > 0.9
    assert float(gate[broken[:, 0] == 0].mean()) < 0.1


def test_no_other_method_is_soft():
    assert [name for name, method in METHODS.items() if not method.exact] == ["identity", "soft"]
    assert "soft" not in EXACT


def test_mistakes_are_refused():
    with pytest.raises(UserError, match="features_dim is 5: expected 2"):
        SoftEquitune(SWAP, SWAP, 5)(net, torch.rand(1, 2))
    with pytest.raises(UserError, match="soft symmetry on a dictionary"):
        SoftEquitune(PerKey(SWAP.group, {"a": SWAP}), SWAP, 2)(lambda x: x["a"], {"a": torch.rand(1, 2)})
    with pytest.raises(UserError, match="expected one group"):
        SoftEquitune(SWAP, Trivial(cyclic(4)), 2)
