"""Every layer is equivariant, equals a slow and obvious reference, reaches all it claims, and keeps nothing stale."""

import contextlib
import copy
import itertools
import pickle
import re
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.torch_layers import NatureCNN, create_mlp
from stable_baselines3.common.utils import polyak_update
from torch import nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from equirl import (
    Grid,
    Matrix,
    PerKey,
    Permutation,
    SignedPermutation,
    Tokens,
    Trivial,
    UserError,
    cyclic,
    dihedral,
    equivariance_error,
    group_named,
    trivial,
)
from equirl._expanded import real_characters
from equirl.agents.extractors import SmallCNN
from equirl.convolutions import Collapse, LiftConv, RegularConv, regular_grid
from equirl.layers import FOURIER_WIDTH, Lift, Project, RegularLinear, channels_for, regular
from equirl.networks import NativeCNN, NativeMLP, acting

GROUPS = {name: group_named(name) for name in ("C1", "C2", "C4", "D4", "C2xC2", "C3", "S3")}
ODD = {
    "C1": (),
    "C2": (1,),
    "C4": (1, 3),
    "D4": (4, 5, 6, 7),
    "C2xC2": (1, 2),
    "C3": (),
    "S3": (1, 2, 5),
}  # a character
ABELIAN = [group_named(name) for name in ("C1", "C2", "C4", "C2xC2", "C3", "C6", "C2xC4", "C2xC2xC2")]
QUARTERS = ("identity", "rot90", "rot180", "rot270")
RUNS = ((torch.float32, 1e-5), (torch.float64, 1e-12))


def signed(group):
    """Return the group on itself with the signs of its permutations, and of a coordinate that counts downwards."""
    parity = [
        (-1) ** sum(row[i] > row[j] for i, j in itertools.combinations(range(len(row)), 2)) for row in group.table
    ]
    gauge = np.where(np.arange(len(group)) == 2, -1, 1)
    signs = [sign * gauge * gauge[row] for sign, row in zip(parity, group.table, strict=True)]
    return SignedPermutation(group, group.table, signs)


def about(group):
    """Return signs about a centre that no data type holds exactly, on two entries."""
    signs = np.where(np.isin(np.arange(len(group)), ODD[group.name]), -1, 1)
    return SignedPermutation(group, [[0, 1]] * len(group), np.stack([signs, np.ones_like(signs)], 1), centre=[0.1, 0.7])


def matrix(group):
    """Return the group on itself in a skew basis."""
    basis = np.eye(len(group)) + 0.3 * np.random.default_rng(0).random((len(group), len(group)))
    return Matrix(group, [basis @ np.eye(len(group))[:, row] @ np.linalg.inv(basis) for row in group.table])


def padded(group):
    """Return the group on itself and one thing more, which stays."""
    return np.concatenate([group.table, np.full((len(group), 1), len(group))], axis=1)


def vectors(group):
    """Return name -> (representation, size)."""
    n = len(group)
    return {
        "permutation": (Permutation(group, padded(group)), n + 1),
        "signed": (signed(group), n),
        "about a centre": (about(group), 2),
        "stacked": (signed(group).stacked(2), 2 * n),
        "matrix": (matrix(group), n),
        "trivial": (Trivial(group), 3),
    }


def pictures():
    """Return name -> (representation, channels)."""
    found = {f"C2 {name}": (Grid(cyclic(2), ["identity", name]), 2) for name in ("flip_x", "flip_y", "rot180")}
    found["C2 transpose"] = (Grid(cyclic(2), ["identity", "transpose"]), 2)
    found |= {"C1": (Grid(trivial()), 2), "C4": (Grid(cyclic(4)), 2), "D4": (Grid(dihedral(4)), 2)}
    found["C2xC2"] = (Grid(group_named("C2xC2"), ["identity", "flip_y", "flip_x", "rot180"]), 1)
    found["D2"] = (Grid(dihedral(2), ["identity", "rot180", "flip_x", "flip_y"]), 1)
    found["C4 and its channels"] = (Grid(cyclic(4), channels=padded(cyclic(4))), 5)
    swap = [[0, 1, 2]] * 4 + [[1, 0, 2]] * 4
    found["C2xC4, colours and turns"] = (Grid(group_named("C2xC4"), QUARTERS * 2, swap), 3)
    found["S3 on channels"] = (Grid(group_named("S3"), ["identity"] * 6, GROUPS["S3"].table), 6)
    found["gauge"] = (Grid(cyclic(4), fixed=[1]), 3)
    found["gauges that change places"] = (Grid(cyclic(2), ["identity", "flip_x"], [[0, 1, 2], [2, 1, 0]], [0, 2]), 3)
    return found


PICTURES = pictures()
VECTORS = {f"{name} {kind}": value for name, group in GROUPS.items() for kind, value in vectors(group).items()}


def fixed_points(rep, x):
    """Return samples that all elements leave as they are, and some that only a few do."""
    found = [rep.orbit(x[:1]).mean(0), torch.zeros_like(x[:1]), torch.ones_like(x[:1])]
    for g in range(1, len(rep.group)):
        powers = itertools.accumulate([g] * rep.group.element_order(g), rep.group.product)
        found.append(torch.stack([rep(power, x[:1]) for power in powers]).mean(0))
    return torch.cat(found)


def assert_equivariant(layer, rep_in, rep_out, shape):
    """Check a layer in both data types, the second one reached from the first, and leave it in float64."""
    for dtype, tolerance in RUNS:
        layer = layer.to(dtype)
        x = torch.randn(3, *shape, dtype=dtype)
        x = torch.cat([x, fixed_points(rep_in, x)])
        assert equivariance_error(layer, rep_in, rep_out, x) < tolerance
        assert layer(x).dtype == dtype


def assert_reaches_all(layer, rep_in, shape, rep_out, size):
    """Check that the expanded weights are as many dimensions as equivariant linear maps: the projector's trace."""
    entries, out = torch.eye(int(np.prod(shape)), dtype=torch.float64), torch.eye(size, dtype=torch.float64)

    def matrices(rep, units, shape):
        origin = rep.orbit(units.new_zeros(1, *shape)).flatten(2)
        return (rep.orbit(units.view(-1, *shape)).flatten(2) - origin).mT  # the linear part

    moved, done = matrices(rep_in, entries, shape), matrices(rep_out, out, (size,))
    inverses = rep_in.group.inverses.tolist()
    traces = moved[inverses].diagonal(dim1=1, dim2=2).sum(1) * done.diagonal(dim1=1, dim2=2).sum(1)
    assert float(traces.mean()) == pytest.approx(layer.weight.numel())
    units = torch.eye(layer.weight.numel(), dtype=torch.float64)
    images = []
    for unit in units:
        with torch.no_grad():
            layer.weight.copy_(unit.view_as(layer.weight))
        images.append(layer.expanded()[0].detach().flatten())
    assert torch.linalg.matrix_rank(torch.stack(images)) == layer.weight.numel()


@pytest.mark.parametrize("name", VECTORS)
def test_lifted_vectors(name):
    rep, size = VECTORS[name]
    layer, out = Lift(rep, size, channels=3), regular(rep.group, 3)
    assert_equivariant(layer, rep, out, (size,))
    x = torch.randn(4, size, dtype=torch.float64)
    weight, bias = layer.weight, layer.bias
    centre = torch.as_tensor(rep.centre) if getattr(rep, "centre", None) is not None else torch.zeros(size)
    rows = [(rep(rep.group.inverse(g), x) - centre) @ weight.T + bias for g in range(len(rep.group))]
    torch.testing.assert_close(layer(x), torch.stack(rows, 2).flatten(1))
    assert_reaches_all(layer, rep, (size,), out, 3 * len(rep.group))


@pytest.mark.parametrize("name", VECTORS)
def test_projected_features(name):
    rep, size = VECTORS[name]
    group = rep.group
    layer, features = Project(rep, size, channels=3), regular(group, 3)
    assert_equivariant(layer, features, rep, (3 * len(group),))
    f = torch.randn(4, 3, len(group), dtype=torch.float64)
    linear, u, b = linear_part(rep), layer.weight, layer.bias
    terms = [linear(g, f[..., g] @ u.T) + linear(g, b) / len(group) for g in range(len(group))]
    centre = torch.as_tensor(rep.centre) if getattr(rep, "centre", None) is not None else 0
    torch.testing.assert_close(layer(f.flatten(1)), sum(terms) + centre)
    assert_reaches_all(layer, features, (3 * len(group),), rep, size)


def linear_part(rep):
    """Return the linear part of a representation of vectors."""
    return SignedPermutation(rep.group, rep.indices, rep.signs) if isinstance(rep, SignedPermutation) else rep


@pytest.mark.parametrize("group", GROUPS.values(), ids=str)
def test_between_regular_features(group):
    layer = RegularLinear(group, 2, 3)
    moves, done = regular(group, 2), regular(group, 3)
    assert_equivariant(layer, moves, done, (2 * len(group),))
    f = torch.randn(4, 2, len(group), dtype=torch.float64)
    kernel = layer.weight.view(3, 2, len(group))
    expected = layer.bias[None, :, None].repeat(4, 1, len(group))
    for g, h in itertools.product(range(len(group)), repeat=2):
        expected[..., g] = expected[..., g] + f[..., h] @ kernel[..., group.product(group.inverse(g), h)].T
    torch.testing.assert_close(layer(f.flatten(1)), expected.flatten(1))
    assert_reaches_all(layer, moves, (2 * len(group),), done, 3 * len(group))


@pytest.mark.parametrize("group", ABELIAN, ids=str)
def test_characters_compute_the_same(group):
    direct, waves = RegularLinear(group, 2, 3, fourier=False), RegularLinear(group, 2, 3, fourier=True)
    waves.load_state_dict(direct.state_dict())
    assert waves.fourier
    assert not direct.fourier
    for dtype, tolerance in RUNS:
        f = torch.randn(5, 2 * len(group), dtype=dtype)
        torch.testing.assert_close(waves.to(dtype)(f), direct.to(dtype)(f), rtol=tolerance, atol=tolerance)
    direct(f).square().sum().backward()
    waves(f).square().sum().backward()
    torch.testing.assert_close(waves.weight.grad, direct.weight.grad)
    multiplied = sum(part.numel() for part in waves.expanded()[:2])
    rows, real = real_characters(group)
    np.testing.assert_allclose(rows @ rows.T, np.eye(len(group)), atol=1e-12)
    assert multiplied == 2 * 3 * (real + 2 * (len(group) - real))
    assert_equivariant(waves, regular(group, 2), regular(group, 3), (2 * len(group),))


def test_wide_layers_use_characters_by_default():
    wide = FOURIER_WIDTH // 4
    assert RegularLinear(cyclic(4), wide, wide).fourier
    assert not RegularLinear(cyclic(4), wide, wide - 1).fourier
    assert not RegularLinear(dihedral(2) * dihedral(3), wide, wide).fourier


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", PICTURES)
def test_convolutions(name, stride):
    rep, channels = PICTURES[name]
    group = rep.group
    square = any(name in {"rot90", "transpose"} for name in rep.maps)
    shape = (channels, 5, 5 if square else 7)
    plain = Grid(group, rep.maps)
    lift = LiftConv(rep, shape, 2, kernel=3, stride=stride, padding=1)
    moves = regular_grid(rep, 2)
    assert_equivariant(lift, rep, moves, shape)
    x = torch.randn(2, *shape, dtype=torch.float64)
    assert lift(x).shape[1:] == lift.out_shape
    still, moving = list(rep.fixed), [c for c in range(channels) if c not in rep.fixed]
    rows = []
    for g in range(len(group)):
        back = rep(group.inverse(g), x)
        y = plain(g, functional.conv2d(back[:, moving], lift.weight, lift.bias, stride, 1))
        if still:
            y = y + functional.linear(back[:, still].flatten(1), lift.beside.weight, lift.beside.bias)[..., None, None]
        rows.append(y)
    torch.testing.assert_close(lift(x), torch.stack(rows, 2).flatten(1, 2))

    layer = RegularConv(rep, lift.out_shape, 3, kernel=3, padding=1)
    done = regular_grid(rep, 3)
    assert_equivariant(layer, moves, done, lift.out_shape)
    f = torch.randn(2, *lift.out_shape, dtype=torch.float64)
    rows = [
        plain(g, functional.conv2d(moves(group.inverse(g), f), layer.weight, layer.bias, padding=1))
        for g in range(len(group))
    ]
    torch.testing.assert_close(layer(f), torch.stack(rows, 2).flatten(1, 2))
    if stride == 1:
        few = RegularConv(rep, (len(group), 5, 5), 1, kernel=3 if len(group) < 8 else 2).double()
        kernels = (len(group), *few.weight.shape[2:])
        assert_reaches_all(few, regular_grid(rep, 1), kernels, regular(group, 1), len(group))


@pytest.mark.parametrize("name", PICTURES)
def test_collapsed_pictures(name):
    rep, _ = PICTURES[name]
    group = rep.group
    layer, moves, done = Collapse(rep, (2 * len(group), 3, 3), 2), regular_grid(rep, 2), regular(group, 2)
    shape = (2 * len(group), 3, 3)
    assert_equivariant(layer, moves, done, shape)
    f = torch.randn(2, *shape, dtype=torch.float64)
    rows = [moves(group.inverse(g), f).flatten(1) @ layer.weight.T + layer.bias for g in range(len(group))]
    torch.testing.assert_close(layer(f), torch.stack(rows, 2).flatten(1))
    few = Collapse(rep, (len(group), 2, 2), 1).double()
    assert_reaches_all(few, regular_grid(rep, 1), (len(group), 2, 2), regular(group, 1), len(group))


def test_lifted_pictures_may_be_toroidal_and_channels_last():
    rep = Grid(cyclic(2), ["identity", "flip_x"], fixed=[1], shift=(0, 1), layout="HWC")
    assert_equivariant(Lift(rep, (3, 4, 2), 2), rep, regular(cyclic(2), 2), (3, 4, 2))


sizes = st.integers(1, 9)


@given(
    name=st.sampled_from(["C2 flip_x", "C2 transpose", "C4", "C2xC2", "gauge"]),
    side=sizes,
    kernel=st.integers(1, 5),
    stride=st.integers(1, 4),
    padding=st.integers(0, 2),
    channels=st.integers(1, 3),
)
def test_strides_commute_or_are_refused_with_sides_that_do(name, side, kernel, stride, padding, channels):
    rep, planes = PICTURES[name]
    options = {"kernel": kernel, "stride": stride, "padding": padding}
    try:
        layer = LiftConv(rep, (planes, side, side), channels, **options)
    except UserError as error:
        assert side + 2 * padding < kernel or (side + 2 * padding - kernel) % stride
        if "expected at most" not in str(error):
            for fitting in map(int, re.findall(r"\d+", str(error).split("expected ")[1])):
                LiftConv(rep, (planes, fitting, fitting), channels, **options)
        return
    x = torch.randn(2, planes, side, side)
    assert equivariance_error(layer, rep, regular_grid(rep, channels), x) < 1e-5


@given(st.sampled_from(list(GROUPS.values())), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_features_of_any_width(group, c_in, c_out, batch):
    layer = RegularLinear(group, c_in, c_out)
    f = torch.randn(batch, c_in * len(group))
    assert equivariance_error(layer, regular(group, c_in), regular(group, c_out), f) < 1e-5
    assert layer.weight.numel() * len(group) == layer.expanded()[0].numel()


def small_layers():
    """Return name -> (layer, shape of a sample), with everything that a layer can have."""
    c4, turn = cyclic(4), Grid(cyclic(4))
    swap = about(cyclic(2))
    return {
        "lift": (Lift(signed(c4), 4, 2), (4,)),
        "lift about a centre": (Lift(swap, 2, 2), (2,)),
        "lift by matrices": (Lift(matrix(c4), 4, 2), (4,)),
        "regular": (RegularLinear(c4, 2, 2), (8,)),
        "characters": (RegularLinear(c4, 2, 2, fourier=True), (8,)),
        "convolution": (LiftConv(Grid(c4, fixed=[1]), (2, 3, 3), 1, kernel=3, padding=1), (2, 3, 3)),
        "regular convolution": (RegularConv(turn, (4, 3, 3), 1, kernel=3), (4, 3, 3)),
        "collapse": (Collapse(turn, (4, 2, 2), 1), (4, 2, 2)),
        "project": (Project(swap, 2, 2), (4,)),
    }


LAYERS = list(small_layers())


@pytest.mark.parametrize("name", LAYERS)
def test_gradients(name):
    layer, shape = small_layers()[name]
    layer = layer.double()
    x = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
    names = [key for key, _ in layer.named_parameters()]

    def call(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *layer.parameters()))
    if name in ("lift", "regular convolution"):
        assert torch.autograd.gradgradcheck(call, (x, *layer.parameters()))


def optimiser(cls, **options):
    def change(layer, other):
        chosen = cls(layer.parameters(), lr=0.1, **options)
        with torch.enable_grad():
            layer(torch.ones(1, *layer.sample)).square().sum().backward()
        chosen.step()

    return change


def copied(layer, other):
    for ours, theirs in zip(layer.parameters(), other.parameters(), strict=True):
        ours.copy_(theirs)


def new_data(layer, other):
    for ours, theirs in zip(layer.parameters(), other.parameters(), strict=True):
        ours.data = theirs.data.clone()


def only_the_bias(layer, other):
    layer.bias.data.add_(1.0)


def small_step(layer, other):
    layer.weight.data.view(-1)[-1].mul_(1 + 2**-20)


CHANGES = {
    "Adam": optimiser(torch.optim.Adam),
    "fused Adam": optimiser(torch.optim.Adam, fused=True),
    "SGD": optimiser(torch.optim.SGD, foreach=True),
    "load_state_dict": lambda layer, other: layer.load_state_dict(other.state_dict()),
    "assign": lambda layer, other: layer.load_state_dict(copy.deepcopy(other.state_dict()), assign=True),
    "copy_": copied,
    "SB3's target update": lambda layer, other: polyak_update(other.parameters(), layer.parameters(), 0.005),
    "new data": new_data,
    "a vector": lambda layer, other: vector_to_parameters(
        parameters_to_vector(other.parameters()).detach(), layer.parameters()
    ),
    "the bias": only_the_bias,
    "one bit": small_step,
    "data type": lambda layer, other: layer.double(),
    "there and back": lambda layer, other: layer.double().float(),
    "reset": lambda layer, other: layer.reset_parameters(),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, acting])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", LAYERS)
def test_nothing_stale_is_used(name, change, mode):
    (layer, shape), (other, _) = small_layers()[name], small_layers()[name]
    layer.sample = shape
    with torch.no_grad(), mode():
        layer(torch.ones(1, *shape))
        assert layer.expanded()[0] is layer.expanded()[0]
    with torch.no_grad():
        CHANGES[change](layer, other)
        x = torch.randn(2, *shape, dtype=layer.weight.dtype)
        with mode():
            kept = layer(x)
    torch.testing.assert_close(kept, layer(x).detach(), rtol=0, atol=0)


def test_target_networks_are_never_stale():
    online, target = (RegularLinear(cyclic(4), 32, 32) for _ in range(2))
    x = torch.randn(1, 128)
    for mode in (contextlib.nullcontext, acting):
        with torch.no_grad(), mode():
            before = target(x)
            version = target.weight._version
            polyak_update(online.parameters(), target.parameters(), 0.005)
            assert target.weight._version == version  # which is why versions alone would not do
            assert not torch.equal(target(x), before)
    one = target.weight.data.view(-1)[77:78]
    with torch.no_grad():
        before = target(x)
        one.add_(1.0)
        assert not torch.equal(target(x), before)


def test_weights_made_while_inferring():
    with torch.inference_mode():
        layer, x = Lift(Permutation.regular(cyclic(4)), 4, 2), torch.randn(1, 4)
        before = layer(x)
        layer.weight.mul_(2)
        assert not torch.equal(layer(x), before)  # such tensors have no version


@pytest.mark.parametrize("name", LAYERS)
def test_training_neither_uses_nor_keeps(name):
    layer, shape = small_layers()[name]
    x = torch.randn(2, *shape)
    layer(x)
    assert layer._kept is None
    with torch.inference_mode():
        acting = layer(x)
    first = layer._kept
    training = layer(x)
    training.sum().backward()
    assert layer._kept is first
    assert torch.equal(acting, training)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_only_small_weights_are_saved(name):
    layer, shape = small_layers()[name]
    keys = ["weight", "bias", *(["beside.weight", "beside.bias"] if name == "convolution" else [])]
    assert list(layer.state_dict()) == keys
    x = torch.randn(2, *shape)
    with torch.no_grad():
        expected = layer(x)
    for clone in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert clone._kept is None
        assert torch.equal(clone(x), expected)
        with torch.no_grad():
            clone.weight.zero_()
            assert not torch.equal(clone(x), layer(x))
        assert torch.equal(layer(x), expected)


@pytest.mark.parametrize(
    "build", [lambda: RegularLinear(cyclic(4), 32, 32), lambda: RegularLinear(dihedral(4), 16, 16)]
)
def test_variance_is_that_of_torch(build):
    ours, theirs = build(), nn.Linear(128, 128)
    assert ours.weight.abs().max() <= 128**-0.5
    x = torch.randn(512, 128)
    assert float((ours(x).std() / theirs(x).std()).detach()) == pytest.approx(1, abs=0.1)
    head, plain = Project(Trivial(cyclic(4)), 64, 32), nn.Linear(128, 64)
    assert float((head(x).std() / plain(x).std()).detach()) == pytest.approx(1, abs=0.15)


def same_as(build, plain, x):
    torch.manual_seed(3)
    ours = build()
    torch.manual_seed(3)
    theirs = plain()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a.flatten(), b.flatten())
    assert torch.equal(ours(x), theirs(x))
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def test_without_symmetry_it_is_torch():
    one = trivial()
    grid, x = Grid(one), torch.randn(3, 4)
    same_as(lambda: Lift(Trivial(one), 4, 5), lambda: nn.Linear(4, 5), x)
    same_as(lambda: RegularLinear(one, 4, 5), lambda: nn.Linear(4, 5), x)
    same_as(lambda: Project(Trivial(one), 5, 4), lambda: nn.Linear(4, 5), x)
    x = torch.randn(2, 3, 8, 9)
    same_as(lambda: LiftConv(grid, (3, 8, 9), 4, 3, 2, 1), lambda: nn.Conv2d(3, 4, 3, 2, 1), x)
    same_as(lambda: RegularConv(grid, (3, 8, 9), 4, 3, 2, 1), lambda: nn.Conv2d(3, 4, 3, 2, 1), x)
    same_as(lambda: Collapse(grid, (3, 8, 9), 4), lambda: nn.Sequential(nn.Flatten(), nn.Linear(216, 4)), x)


def test_without_symmetry_networks_are_those_of_sb3():
    one = trivial()
    same_as(
        lambda: NativeMLP(Trivial(one), 4, [16, 8], nn.Tanh, Trivial(one), 3),
        lambda: nn.Sequential(*create_mlp(4, 3, [16, 8], nn.Tanh)),
        torch.randn(5, 4),
    )
    space = gym.spaces.Box(0, 255, (3, 9, 9), np.uint8)
    same_as(lambda: NativeCNN(Grid(one), (3, 9, 9), 128), lambda: SmallCNN(space), torch.rand(2, 3, 9, 9))
    space = gym.spaces.Box(0, 255, (4, 36, 44), np.uint8)
    same_as(
        lambda: NativeCNN(Grid(one), (4, 36, 44), 32, "nature"), lambda: NatureCNN(space, 32), torch.rand(2, 4, 36, 44)
    )


@pytest.mark.parametrize("group", GROUPS.values(), ids=str)
def test_networks_of_vectors(group):
    for (rep, size), (out, outputs) in zip(vectors(group).values(), reversed(vectors(group).values()), strict=True):
        for net_arch in ([24, 48], []):
            net = NativeMLP(rep, size, net_arch, nn.Tanh, out, outputs)
            assert_equivariant(net, rep, out, (size,))
        assert net.rep == out
        assert net.features_dim == outputs


def test_a_network_without_hidden_layers_reaches_every_linear_map():
    rep, out = signed(cyclic(4)), matrix(cyclic(4))
    net = NativeMLP(rep, 4, [], output=out, size=4).double()
    target = torch.randn(4, 4, dtype=torch.float64)  # made equivariant by averaging
    eye = torch.eye(4, dtype=torch.float64)
    target = torch.stack([out(g, (rep(cyclic(4).inverse(g), eye)) @ target.T) for g in range(4)]).mean(0)
    nothing = torch.zeros(4)
    net.load_state_dict({"0.weight": target.T, "0.bias": nothing, "1.weight": torch.eye(4) / 4, "1.bias": nothing})
    torch.testing.assert_close(net(eye), target)


def test_networks_of_features_continue_those_of_pictures():
    turn, actions = Grid(cyclic(4)), Permutation.regular(cyclic(4))
    cnn = NativeCNN(turn, (3, 9, 9), 32, width=0.25)
    head = NativeMLP(cnn.rep, cnn.features_dim, [16], output=actions, size=4)
    assert isinstance(head[0], RegularLinear)
    assert_equivariant(nn.Sequential(cnn, head), turn, actions, (3, 9, 9))
    assert isinstance(NativeMLP(cnn.rep, 32, [], output=actions, size=4)[0], Project)
    size: Any = np.int64(cnn.features_dim)
    value = NativeMLP(cnn.rep, size, [16], output=Trivial(cyclic(4)), size=1)
    assert_equivariant(nn.Sequential(cnn, value), turn, Trivial(cyclic(4)), (3, 9, 9))


@pytest.mark.parametrize("rep", [Grid(cyclic(4)), Grid(dihedral(4))], ids=str)
def test_the_strides_of_atari_commute(rep):
    net = NativeCNN(rep, (4, 84, 84), 32, "nature", width=0.25)
    x = torch.rand(1, 4, 84, 84)
    with torch.no_grad():
        assert equivariance_error(net, rep, net.rep, x) < 1e-5
    plain = [
        layer for layer in NatureCNN(gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)).cnn if hasattr(layer, "stride")
    ]
    ours = [layer for layer in net if hasattr(layer, "stride")]
    assert [(layer.stride, layer.stride) for layer in ours] == [layer.stride for layer in plain]


def test_equal_width_has_a_share_of_the_weights():
    plain = sum(p.numel() for p in SmallCNN(gym.spaces.Box(0, 255, (3, 9, 9), np.uint8)).parameters())
    ours = sum(p.numel() for p in NativeCNN(Grid(cyclic(4)), (3, 9, 9), 128).parameters())
    assert ours / plain == pytest.approx(1 / 4, rel=1e-3)
    wide = NativeCNN(Grid(cyclic(4)), (3, 9, 9), 128, width=2)
    assert wide[0].out_shape == (64, 9, 9)


def test_whole_networks_compile_to_one_graph():
    turn = Grid(cyclic(4))
    net = nn.Sequential(NativeCNN(turn, (1, 5, 5), 8, width=0.25), Project(Permutation.regular(cyclic(4)), 4, 2))
    x = torch.rand(2, 1, 5, 5)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), net(x))
    with torch.no_grad():
        compiled(x)
        vector_to_parameters(2 * parameters_to_vector(net.parameters()), net.parameters())
        torch.testing.assert_close(compiled(x), net(x))
    compiled(x).square().sum().backward()
    grads = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net(x).square().sum().backward()
    for ours, p in zip(grads, net.parameters(), strict=True):
        torch.testing.assert_close(ours, p.grad)


C2, C4 = cyclic(2), cyclic(4)
REFUSALS: dict[str, tuple[Callable[..., Any], str]] = {
    "no channels": (lambda: Lift(Trivial(C2), 3, 0), "channels 0: expected a whole number"),
    "half a channel": (lambda half=1.5: RegularLinear(C2, 2, half), "c_out 1.5: expected a whole number"),
    "size": (lambda: Lift(Permutation.regular(C2), 3, 1), "acts on 2 entries"),
    "size of outputs": (lambda: Project(Permutation.regular(C2), 3, 1), "acts on 2 entries"),
    "tokens": (lambda: Lift(Tokens(C2, [[0, 1], [1, 0]]), 3, 1), "expected vectors or pictures"),
    "keys": (lambda: Lift(PerKey(C2, {}), 3, 1), "expected a Dict space"),
    "not abelian": (lambda: RegularLinear(dihedral(3), 2, 2, fourier=True), "expected an abelian group"),
    "stride": (lambda: LiftConv(Grid(C4), (1, 85, 85), 1, 8, 4), "leave 1 over.*expected 84 or 88 rows"),
    "columns": (lambda: LiftConv(Grid(C2, ["identity", "flip_x"]), (1, 4, 5), 1, 2, 2), "expected 4 or 6 columns"),
    "kernel": (lambda: LiftConv(Grid(C4), (1, 3, 3), 1, 4), "kernel 4 on 3 rows with padding 0: expected at most 3"),
    "no kernel": (lambda: LiftConv(Grid(C4), (1, 3, 3), 1, 0), "kernel 0: expected a whole number"),
    "not square": (lambda: RegularConv(Grid(C4), (4, 3, 5), 1, 3), "needs a square picture"),
    "not regular": (lambda: RegularConv(Grid(C4), (6, 3, 3), 1, 3), "6 channels.*expected a multiple of 4"),
    "layout": (lambda: LiftConv(Grid(C4, layout="HWC"), (3, 3, 1), 1, 3), "expected a Grid of layout 'CHW'"),
    "shift": (lambda: LiftConv(Grid(C2, ["identity", "flip_x"], shift=(0, 1)), (1, 3, 3), 1, 3), "without a shift"),
    "vectors": (lambda kind=Trivial: LiftConv(kind(C2), (1, 3, 3), 1, 3), "expected a Grid"),
    "all fixed": (lambda: LiftConv(Grid(C4, fixed=[0]), (1, 3, 3), 1, 3), "all channels .* are fixed"),
    "two groups": (lambda: NativeMLP(Trivial(C2), 3, [8], output=Trivial(C4), size=1), "expected one group"),
    "half an output": (lambda: NativeMLP(Trivial(C2), 3, [8], output=Trivial(C2)), "expected both or neither"),
    "nothing": (lambda: NativeMLP(Trivial(C2), 3, []), "expected layers"),
    "kind": (lambda: NativeCNN(Grid(C4), (3, 9, 9), 8, "natur"), "did you mean 'nature'"),
    "nature": (lambda: NativeCNN(Grid(C4), (3, 64, 64), 8, "nature"), "'nature' fit 52, 60, 68 rows"),
    "too small": (lambda: NativeCNN(Grid(C4), (3, 9, 9), 8, "nature"), "'nature' fit 36, 44, 52 rows"),
    "width": (lambda: channels_for(0, C4), "width 0: expected a whole number"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    build, message = REFUSALS[name]
    with pytest.raises(UserError, match=message):
        build()
