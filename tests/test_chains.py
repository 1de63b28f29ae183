"""Chains compute what their layers compute, gradients included, and give way to the layers where these differ."""

from typing import Any

import pytest
import torch
from torch import nn

from equirl import _chains
from equirl._chains import Chain

LAYERS: dict[str, Any] = {
    "mlp": (
        lambda: [nn.Flatten(), nn.Linear(6, 300), nn.ReLU(), nn.Linear(300, 64), nn.ReLU(), nn.Linear(64, 3)],
        (2, 3),
    ),
    "wide first": (lambda: [nn.Linear(40, 9), nn.ReLU(), nn.Linear(9, 3)], (40,)),
    "no rectifiers": (lambda: [nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)], (6,)),
    "no biases": (lambda: [nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)], (6,)),
    "one layer": (lambda: [nn.Flatten(), nn.Linear(6, 3)], (2, 3)),
    "cnn": (
        lambda: [
            *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, bias=False), nn.ReLU()),
            *(nn.Conv2d(8, 4, (2, 1), groups=2, dilation=2), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(32, 200), nn.ReLU(), nn.Linear(200, 3)),
        ],
        (3, 9, 9),
    ),
    "conv without rectifiers": (lambda: [nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(196, 3)], (3, 9, 9)),
    "flattened twice": (lambda: [nn.Flatten(), nn.Flatten(), nn.Linear(6, 4), nn.Flatten(), nn.Linear(4, 3)], (2, 3)),
}
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}


def made(name: str, dtype=torch.float32, batch=33):
    torch.manual_seed(0)
    layers, shape = LAYERS[name]
    net = nn.Sequential(*layers()).to(dtype)
    return net, Chain.of([*net]), torch.randn(batch, *shape, dtype=dtype)


def by_layers(net, x):
    features = net[:-1](x)
    return net[-1](features), features


def loss(y, features):
    return (y**2).sum() + features.sin().sum()


def close(ours, theirs):
    if ours is None or theirs is None:
        return ours is theirs
    scale = max(1.0, theirs.abs().max().item()) if theirs.numel() else 1.0
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=0, atol=TOLERANCE[theirs.dtype] * scale)


@pytest.fixture(params=[False, True], ids=["MKL", "oneDNN"])
def _kernels(request, monkeypatch):
    """Let either library multiply all matrices, whatever their sizes."""
    monkeypatch.setattr(_chains, "LARGE_PRODUCT", 0 if request.param else 2**60)


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize("few", [0, 100], ids=["channels last", "channels first"])
@pytest.mark.parametrize("batch", [1, 4, 130])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients_are_those_of_the_layers(name, dtype, batch, few, monkeypatch):
    monkeypatch.setattr(_chains, "FEW_PICTURES", few)
    net, chain, x = made(name, dtype, batch)
    before = x.clone()
    x.requires_grad_()
    learned = [x, *net.parameters()]
    ours, theirs = chain(x), by_layers(net, x)
    assert type(ours[0].grad_fn).__name__ == "_ChainedBackward"
    assert all(map(close, ours, theirs))
    assert all(map(close, torch.autograd.grad(loss(*ours), learned), torch.autograd.grad(loss(*theirs), learned)))
    assert torch.equal(x, before)
    with torch.no_grad():
        assert all(map(close, chain(x), theirs))


@pytest.mark.parametrize("name", LAYERS)
def test_an_empty_batch(name):
    net, chain, x = made(name, batch=0)
    y, features = chain(x)
    loss(y, features).backward()
    assert (y.shape, features.shape) == tuple(each.shape for each in by_layers(net, x))
    assert all(p.grad is not None and not p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("used", ["values", "features"])
@pytest.mark.parametrize("name", LAYERS)
def test_either_result_may_go_unused(name, used):
    net, chain, x = made(name)
    x.requires_grad_()
    learned = [x, *net.parameters()]

    def gradients(f):
        found = torch.autograd.grad(f(x)[used == "features"].square().sum(), learned, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(learned, found, strict=True)]

    assert all(map(close, gradients(chain), gradients(lambda x: by_layers(net, x))))


@pytest.mark.parametrize("of_input", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_frozen_weights_get_no_gradients(name, of_input):
    for frozen in range(len(list(made(name)[0].parameters()))):
        net, chain, x = made(name)
        for i, p in enumerate(net.parameters()):
            p.requires_grad_(i > frozen or (i + frozen) % 2 == 1)
        x.requires_grad_(of_input)
        learned = [p for p in (x, *net.parameters()) if p.requires_grad]
        if not learned:
            continue
        theirs = iter(torch.autograd.grad(loss(*by_layers(net, x)), learned, allow_unused=True))
        loss(*chain(x)).backward()
        assert all(close(p.grad, next(theirs) if p.requires_grad else None) for p in (x, *net.parameters()))


def test_gradients_have_the_strides_of_their_weights():
    """The optimizer's fused kernel would pair numbers of different entries otherwise."""
    net, chain, x = made("cnn", batch=16)
    weights = chain.weights()
    with torch.no_grad():
        y, inputs, shapes = _chains.forward(chain.steps, x, weights)
        needed = [False, *(each is not None for each in weights)]
        found = _chains.backward(chain.steps, shapes, inputs, weights, needed, torch.ones_like(y))
    assert inputs[1].is_contiguous(memory_format=torch.channels_last)
    assert [each.stride() for each in found if each is not None] == [p.stride() for p in net.parameters()]


def test_gradients_can_be_differentiated_again():
    net, chain, x = made("mlp", torch.float64)
    x.requires_grad_()

    def penalty(f):
        (g,) = torch.autograd.grad(f(x)[0].square().sum(), [x], create_graph=True)
        return torch.autograd.grad(g.square().sum(), [x, *net.parameters()], allow_unused=True)

    assert all(map(close, penalty(chain), penalty(lambda x: by_layers(net, x))))


# Giving way


def test_hooks_of_layers_are_called():
    net, chain, x = made("mlp")
    seen = []
    for register in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"):
        handle = getattr(net[3], register)(lambda *_: seen.append(1))
        chain(x.requires_grad_())[0].sum().backward()
        handle.remove()
    assert len(seen) == 3
    chain(x)
    assert len(seen) == 3


def test_chains_give_way_to_transforms_autocast_and_other_data_types():
    net, chain, x = made("mlp")
    assert chain.serves(x)
    assert not chain.serves(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert not chain.serves(x)
        assert chain(x)[0].dtype == torch.bfloat16
    weights = dict(net.named_parameters())

    def summed(x):
        return chain(x)[0].sum()

    assert torch.allclose(torch.func.grad(summed)(x), torch.autograd.grad(net(x.requires_grad_()).sum(), [x])[0])
    assert torch.allclose(torch.func.vmap(lambda row: chain(row[None])[0][0])(x.detach()), net(x), atol=1e-6)
    assert weights


def test_inputs_of_another_rank_go_to_the_layers():
    net, chain, x = made("wide first")
    assert not chain.serves(x[:, None])
    assert torch.equal(chain(x[:, None])[0], net(x[:, None]))


@pytest.mark.parametrize(
    "layers",
    [
        [],
        [nn.ReLU()],
        [nn.Flatten()],
        [nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)],
        [nn.Linear(2, 2), nn.ReLU()],
        [nn.ReLU(), nn.Linear(2, 2)],
        [nn.Linear(2, 2), nn.Flatten()],
        [nn.Flatten(2), nn.Linear(2, 2)],
        [nn.Conv2d(1, 1, 3, padding="same"), nn.Flatten(), nn.Linear(2, 2)],
        [nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), nn.Flatten(), nn.Linear(2, 2)],
        [nn.Flatten(), nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(2, 2)],
        [nn.Conv2d(1, 1, 3), nn.Flatten(), nn.ReLU(), nn.Linear(2, 2)],
        [nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2)],
        [nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.ReLU(), nn.Linear(2, 2)],
        [nn.Conv2d(1, 1, 3)],
    ],
)
def test_other_layers_make_no_chain(layers):
    assert Chain.of(layers) is None
