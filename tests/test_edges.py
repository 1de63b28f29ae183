"""Traced, exported, cast, masked, empty or wrong: what is computed at the edges is exact, or refused in one line."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from equirl import (
    Equitune,
    Equizero,
    Grid,
    Matrix,
    PerKey,
    Permutation,
    SignedPermutation,
    Tokens,
    Trivial,
    UserError,
    cyclic,
    equivariance_error,
    make_symmetrizer,
    symmetrize,
)
from equirl._chains import Chain
from equirl.canonicalizers import Canonicalize, CentroidScores, OrbitScores, ReferenceScores
from equirl.checks import greedy_disagreement
from equirl.layers import RegularLinear
from equirl.methods import METHODS, scores_for
from equirl.networks import LiftConv, NativeCNN, NativeMLP

C2 = cyclic(2)
SWAP = Permutation(C2, [[0, 1], [1, 0]])
SIGNS = SignedPermutation(C2, [[0, 1]] * 2, [[1, 1], [-1, -1]])
CENTRED = SignedPermutation(C2, [[0, 1]] * 2, [[1, 1], [-1, -1]], centre=[4, 4])
HALF_TURN = Matrix(C2, [[[1, 0], [0, 1]], [[-1, 0], [0, -1]]])
TRACED = ("identity", "equitune", "equizero", "lambda", "soft", "native")
"""Those whose number of forwards does not depend on numbers."""


class AsNumbers(nn.Module):
    """A network that reads whole numbers."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, x):
        return self.net(x.float())


@pytest.fixture(autouse=True)
def same_weights():
    torch.manual_seed(0)


@pytest.mark.parametrize("scores", [OrbitScores, ReferenceScores])
@pytest.mark.parametrize("kind", [torch.int64, torch.int16, torch.float64])
def test_canonical_whole_numbers_about_a_centre(scores, kind):
    chosen = scores(CENTRED, nn.Linear(2, 1)) if scores is OrbitScores else scores(CENTRED, nn.Linear(2, 8), 8)
    net: Any = symmetrize(AsNumbers(), method="canonical", input=CENTRED, output=SWAP, scores=chosen).eval()
    x = torch.randint(0, 9, (64, 2)).to(kind)
    assert equivariance_error(net, CENTRED, SWAP, x) <= 1e-5
    found = net.symmetrizer.scores(x)
    torch.testing.assert_close(found, net.symmetrizer.scores(x.float()))
    assert (found[0] - found[1]).abs().max() > 0.1


def test_canonical_bytes_are_numbers_from_0_to_1():
    turn = Grid(cyclic(4))
    scores, x = scores_for(turn, (3, 5, 5), "network"), torch.randint(256, (7, 3, 5, 5), dtype=torch.uint8)
    torch.testing.assert_close(scores(x), scores(x.float() / 255))


def test_canonical_tokens():
    rename = Tokens(C2, [[1, 0, 2], [0, 1, 2]][::-1])
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    scores, x = OrbitScores(rename, net), torch.tensor([[0, 1, 2, 0], [1, 2, 2, 2]])
    torch.testing.assert_close(scores(rename(1, x)), scores(x).flip(0))


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_canonical_of_another_data_type_than_its_scores(kind):
    net = symmetrize(nn.Linear(2, 2).to(kind), method="canonical", input=SIGNS, output=SWAP, shape=(2,)).eval()
    x = torch.randn(9, 2).to(kind)
    assert net(x).dtype == kind
    assert equivariance_error(net, SIGNS, SWAP, x) == 0


@pytest.mark.parametrize("method", TRACED)
def test_exporting_leaves_nothing_behind(method):
    signs = copy.deepcopy(SIGNS)  # without tables yet
    net = made(method, signs)
    other, x = symmetrize(nn.Linear(2, 2), method="equitune", input=signs, output=SWAP), torch.randn(3, 2)
    exported = torch.export.export(net, (x,)).module()
    torch.testing.assert_close(exported(x), net(x))
    for each in (net, other):
        y = each(x)
        assert type(y) is torch.Tensor
        y.sum().backward()
        assert all(type(p.grad) in (torch.Tensor, type(None)) for p in each.parameters())
        assert equivariance_error(each, signs, SWAP, x) <= 1e-5 or method == "identity"


def given(method):
    """Return the numbers that a method is in need of."""
    chosen = METHODS[method]
    return {"features_dim": 2} if chosen.reads_features else {"shape": (2,)} if chosen.reads_scores else {}


def made(method, signs) -> Any:
    """Return a network of this method, or one that is equivariant by construction."""
    if method == "native":
        return NativeMLP(signs, 2, [4], output=SWAP, size=2).eval()
    return symmetrize(nn.Linear(2, 2), method=method, input=signs, output=SWAP, **given(method)).eval()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("method", TRACED)
@pytest.mark.parametrize("gradients", [True, False])
def test_traced_modules_read_batches_of_any_size(method, gradients):
    net = made(method, SIGNS)
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(net, (torch.randn(3, 2),))
    for n in (1, 3, 14):
        x = torch.randn(n, 2)
        torch.testing.assert_close(traced(x), net(x))


def masked(x):
    """Return action values of which those at negative entries are forbidden."""
    return (x @ torch.tensor([[1.0, 0.3], [0.2, 0.7]]).T).masked_fill(x < 0, -math.inf)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("score", ["max", "max_probability", "entropy"])
def test_forbidden_actions_stay_forbidden(training, score):
    x = torch.tensor([[1.0, -2.0], [3.0, 1.0], [-1.0, 2.0]])
    zero = Equizero(SWAP, SWAP, score=score).train(training)
    y = zero(masked, x)
    assert torch.equal(y == -math.inf, x < 0)
    assert y[x >= 0].isfinite().all()
    torch.testing.assert_close(zero(masked, SWAP(1, x)), SWAP(1, y))


def test_forbidden_actions_teach_nothing():
    net = nn.Linear(2, 2, bias=False)
    x = torch.tensor([[1.0, -2.0], [3.0, 1.0]])
    canonical = Canonicalize(SWAP, SWAP, OrbitScores(SWAP, nn.Linear(2, 1))).train()
    for symmetrizer in (Equizero(SWAP, SWAP).train(), canonical):
        y = symmetrizer(lambda x: net(x).masked_fill(x < 0, -math.inf), x)
        assert torch.equal(y == -math.inf, x < 0)
        net.zero_grad()
        y[x >= 0].sum().backward()
        assert net.weight.grad.isfinite().all()
        assert net.weight.grad.abs().max() > 0
    assert all(parameter.grad.isfinite().all() for parameter in canonical.parameters())


def test_scores_that_are_no_numbers_leave_others_alone():
    scores = OrbitScores(SWAP, nn.Linear(2, 1))
    canonical, x = Canonicalize(SWAP, SWAP, scores).eval(), torch.tensor([[math.nan, 1.0], [2.0, 2.0], [1.0, 3.0]])
    f = nn.Linear(2, 2)
    y = canonical(f, x)
    assert y[0].isnan().all()
    for i in (1, 2):
        torch.testing.assert_close(y[i], canonical(f, x[i : i + 1])[0])


@pytest.mark.parametrize(
    "build",
    [
        lambda: NativeMLP(HALF_TURN, 2, [8], output=SWAP, size=2),
        lambda: nn.Sequential(NativeMLP(SWAP, 2, [8]), RegularLinear(C2, 4, 8, fourier=True)),
        lambda: NativeMLP(SIGNS, 2, [8], output=SWAP, size=2),
    ],
)
def test_weights_expanded_in_another_data_type_are_not_kept(build):
    net, x = build(), torch.randn(3, 2)
    expected = net(x).detach()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            net(x)
        torch.testing.assert_close(net(x), expected)
        net(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert net(x).dtype in (torch.bfloat16, torch.float32)
        assert torch.equal(net(x), net(x))
        assert net(x).dtype == torch.float32


def test_centroids_of_another_data_type_are_not_kept():
    scores, x = CentroidScores(Grid(cyclic(4)), (3, 9, 9)), torch.rand(5, 3, 9, 9)
    expected = scores(x).detach()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            scores(x)
        torch.testing.assert_close(scores(x), expected, rtol=0, atol=1e-7)


def test_an_ensemble_of_native_networks():
    nets, x = [NativeMLP(HALF_TURN, 2, [4], output=SWAP, size=2) for _ in range(3)], torch.randn(5, 2)
    weights, buffers = torch.func.stack_module_state(nets)
    with torch.no_grad():
        nets[0](x)  # so that something is kept
        together = torch.func.vmap(lambda p, b: torch.func.functional_call(nets[0], (p, b), (x,)), in_dims=(0, 0))(
            weights, buffers
        )
        torch.testing.assert_close(together, torch.stack([net(x) for net in nets]))


class Chained(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)).double()

    def forward(self, x):
        chain: Any = Chain.of([*self.layers])
        return chain(x)[0]


def test_chains_differentiate_the_weights_that_they_are_called_with():
    net, x = Chained(), torch.randn(5, 4, dtype=torch.float64)
    weights = {name: (1.5 * p).detach().requires_grad_() for name, p in net.named_parameters()}

    def meta(module):
        y = torch.func.functional_call(module, weights, (x,)).pow(2).sum()
        slopes = torch.autograd.grad(y, [*weights.values()], create_graph=True)
        return torch.autograd.grad(torch.stack([s.pow(2).sum() for s in slopes]).sum(), [*weights.values()])

    class Plain(Chained):
        def forward(self, x):
            return self.layers(x)

    plain = Plain()
    for ours, theirs in zip(meta(net), meta(plain), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_chains_give_way_to_hooks_on_all_modules():
    net, x, seen = Chained(), torch.randn(5, 4, dtype=torch.float64), []
    hook = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: seen.append(type(module)))
    try:
        net(x)
    finally:
        hook.remove()
    assert seen == [nn.Linear, nn.ReLU, nn.Flatten, nn.Linear, Chained]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_empty_batches(method, training):
    if method == "product":
        group = C2 * C2
        rep = Permutation(C2, [[0, 1], [1, 0]]) * SIGNS
        symmetrizer = make_symmetrizer(method, rep, Trivial(group), shape=(2,))
    else:
        symmetrizer = make_symmetrizer(method, SWAP, SWAP, **given(method))
    assert symmetrizer.train(training)(nn.Linear(2, 2), torch.zeros(0, 2)).shape == (0, 2)


def test_empty_batches_of_layers_and_tokens():
    assert RegularLinear(cyclic(4), 2, 3, fourier=True)(torch.zeros(0, 8)).shape == (0, 12)
    rename = Tokens(C2, [[0, 1], [1, 0]])
    none = torch.zeros(0, 5, dtype=torch.int64)
    assert rename(torch.zeros(0, dtype=torch.int64), none).shape == (0, 5)
    sampled = Equitune(rename, Trivial(C2), orbit_samples=1).train()
    assert sampled(lambda x: x.float(), none).shape == (0, 5)
    for check in (equivariance_error, greedy_disagreement):
        with pytest.raises(UserError, match="at least one"):
            check(nn.Linear(2, 2), SWAP, SWAP, torch.zeros(0, 2))


TURN = Grid(cyclic(4))
WRONG: Any = {"padding": "same", "features_dim": "a", "input": "CartPole-v1", "shape": 2}
REFUSED = {
    "two sides": (lambda: NativeCNN(TURN, (9, 9), 32), "expected (channels, rows, columns)"),
    "four sides": (lambda: NativeCNN(TURN, (1, 3, 9, 9), 32), "expected (channels, rows, columns)"),
    "padding by name": (
        lambda: LiftConv(TURN, (3, 9, 9), 2, 3, padding=WRONG["padding"]),
        "padding 'same': expected a whole",
    ),
    "negative padding": (lambda: LiftConv(TURN, (3, 9, 9), 2, 3, padding=-1), "padding -1: expected a whole"),
    "unknown key": (lambda: scores_for(PerKey(C2, {"abc": SWAP}), {"abd": (2,)}), "'abd'"),
    "no features": (lambda: make_symmetrizer("lambda", SWAP, SWAP, features_dim=0), "features_dim 0: expected"),
    "features by name": (
        lambda: make_symmetrizer("soft", SWAP, SWAP, features_dim=WRONG["features_dim"]),
        "features_dim 'a': expected",
    ),
    "hidden": (lambda: make_symmetrizer("lambda", SWAP, SWAP, features_dim=2, hidden=-1), "hidden -1: expected"),
    "a name": (lambda: make_symmetrizer("equitune", WRONG["input"], SWAP), "input 'CartPole-v1': expected a repr"),
    "nested": (lambda: PerKey(C2, {"a": PerKey(C2, {"b": SWAP})}), "key 'a'"),
    "orbit of keys": (lambda: OrbitScores(PerKey(C2, {"a": SWAP}), nn.Linear(2, 1)), "expected KeyScores"),
    "reference of keys": (lambda: ReferenceScores(PerKey(C2, {"a": SWAP}), nn.Linear(2, 4), 4), "expected KeyScores"),
    "whole numbers": (lambda: Equizero(SWAP, SWAP)(lambda x: x, torch.ones(1, 2).long()), "torch.int64: expected"),
    "whole means": (lambda: Equitune(SWAP, SWAP)(lambda x: x, torch.ones(1, 2).long()), "torch.int64: expected"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    act, said = REFUSED[name]
    with pytest.raises(UserError) as caught:
        act()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_number_is_a_shape():
    assert scores_for(SWAP, WRONG["shape"])(torch.rand(3, 2)).shape == (2, 3)
