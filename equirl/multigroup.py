"""Several groups at once: products of groups on one input, and several inputs with a group each (arXiv 2310.09675).

Averaging over a product of groups costs n_1 * ... * n_N forwards. Both designs here cost n_1 + ... + n_N or less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from equirl.canonicalizers import Choice, Posed, with_loss
from equirl.errors import UserError, unknown
from equirl.products import Factors
from equirl.representations import Representation, Trivial
from equirl.scores import Scores
from equirl.symmetrizers import Branches, Equitune, Function, tied, tree_map


class Product(Posed):
    """Equivariance for a product of groups G_1 x ... x G_N, at n_1 + ... + n_N forwards (Baltaji et al., 2310.09675).

        M(x) = 1/N sum_i prod_{j != i} Sym_j [ 1/n_i sum_{g in G_i} rho_Y(g)^-1 f(rho_X(g) c_i(x)) ]

    c_i(x) is the pose of x that scores choose among those of all other factors, so that it does not change under them;
    Sym_j averages an output over G_j. Each term is what the outputs of one factor can depend on; for one factor that is
    `Equitune`. With `canonicalize`, the mixed form: some factors choose the pose, the others average,

        M(x) = rho_Y(h) 1/n sum_{g in K} rho_Y(g)^-1 f(rho_X(g) rho_X(h)^-1 x),    h = argmax_{h in H} c_h(x),

    which can be any equivariant function, at as many forwards as K has elements.

    Args:
        input: how the group moves x.
        output: how the same group moves f(x).
        scores: of the whole group; those of a part are their means over the rest.
        factors: the elements of each factor, the identity first; by default those of a product of groups.
        canonicalize: the places of the factors that choose, in the mixed form.
        posed: `beta`, `prior`, `apart` and `tolerance`, as `Posed` says.

    Raises:
        UserError: what `Factors` refuses, a place that is none, or what `Posed` refuses.

    >>> from equirl import Grid, Trivial, cyclic
    >>> from equirl.methods import scores_for
    >>> flips = Grid(cyclic(2), ["identity", "flip_x"]) * Grid(cyclic(2), ["identity", "flip_y"])
    >>> design = Product(flips, flips, scores_for(flips, (3, 8, 8))).eval()
    >>> f, x = nn.Conv2d(3, 3, 3, padding=1), torch.rand(2, 3, 8, 8)
    >>> torch.allclose(design(f, flips(3, x)), flips(3, design(f, x)), atol=1e-6)
    True
    """

    method = "product"

    def __init__(
        self,
        input: Representation,
        output: Representation,
        scores: Scores,
        factors: Sequence[Sequence[int]] | None = None,
        canonicalize: Sequence[int] | None = None,
        beta: float = 1.0,
        prior: float = 0.0,
        apart: float = 0.0,
        tolerance: float | None = None,
    ) -> None:
        super().__init__(input, output, scores, beta, prior, apart, tolerance)
        self.factors = Factors(input.group, factors)
        places = range(len(self.factors.orders))
        self.canonicalize = canonicalize
        if canonicalize is None:
            chosen = [[i] for i in places]
        else:
            if not set(canonicalize) <= set(places) or len(set(canonicalize)) != len(canonicalize):
                raise UserError(f"canonicalize {canonicalize!r}: expected places of factors, from 0 to {places[-1]}")
            chosen = [[i for i in places if i not in canonicalize]]
        self._terms = [_Term(input, output, self.factors, averaged) for averaged in chosen]

    @property
    def forwards(self) -> int:
        """How many forwards of f an input costs, where no poses tie."""
        return sum(term.count for term in self._terms)

    def weights(self, branches: Branches) -> Tensor:
        """Return the share of each element's view among those that f sees, shape (G, B)."""
        scores = self.scored(tree_map(branches.views, lambda view: view[0]))
        return torch.stack([term.shares(scores, self.tolerance) for term in self._terms]).mean(0)

    def forward(self, f: Function, x: Any) -> Any:
        """Return M(x), of one call of f on the views of all terms."""
        scores = self.scored(x)
        choices = [Choice.of(term.scores(scores), self.tolerance, self.beta, self.learning) for term in self._terms]
        views = [term.views(x, choice) for term, choice in zip(self._terms, choices, strict=True)]
        y = f(tree_map(views[0], lambda *parts: torch.cat(parts), *views[1:]))
        y = y[0] if isinstance(y, tuple) else y
        sizes = [term.count * len(choice.rows) for term, choice in zip(self._terms, choices, strict=True)]
        ends = np.cumsum([0, *sizes]).tolist()
        found = []
        for i, (term, choice) in enumerate(zip(self._terms, choices, strict=True)):
            part = term.averaged(tree_map(y, lambda each, rows=slice(*ends[i : i + 2]): each[rows]))
            if self.canonicalize is None:
                found.append(term.symmetric(choice.averaged(part)))
            else:
                found.append(choice.averaged(choice.restored(term.output, part)))
        mean = tree_map(found[0], lambda *parts: torch.stack(parts).mean(0), *found[1:])
        return with_loss(mean, self.losses(x, scores)) if self.learning else mean


class _Term:
    """One part of a product: f is averaged over K, the group of some factors, in a pose that H, the others, chooses."""

    def __init__(
        self, input: Representation, output: Representation, factors: Factors, averaged: Sequence[int]
    ) -> None:
        self.table = factors.split(averaged)  # k h, shape (K, H)
        self.count = len(self.table)
        of_k, of_h = self.table[:, 0].tolist(), self.table[0].tolist()
        k, h = factors.group.subgroup(of_k), factors.group.subgroup(of_h)
        self.moves, self.undoes = input.along(k, of_k), output.along(k, of_k)
        self.input, self.output = input.along(h, of_h), output.along(h, of_h)

    def scores(self, whole: Tensor) -> Tensor:
        """Return scores of H from those of the whole group: (G, B) -> (H, B). They do not change under K."""
        return whole[torch.as_tensor(self.table, device=whole.device)].mean(0)

    def views(self, x: Any, choice: Choice) -> Any:
        """Return all of K's views of each pose, (K * rows, ...)."""
        return tree_map(self.moves.orbit(choice.poses(self.input, x)), lambda views: views.flatten(0, 1))

    def averaged(self, y: Any) -> Any:
        """Return for each pose the mean over K of what f makes of its views, moved back."""
        undone = self.undoes.undo(tree_map(y, lambda part: part.view(self.count, -1, *part.shape[1:])))
        return tree_map(undone, lambda part: part.mean(0))

    def symmetric(self, y: Any) -> Any:
        """Return the mean of y over H."""
        return tree_map(self.output.orbit(y), lambda part: part.mean(0))

    def shares(self, whole: Tensor, tolerance: float | None) -> Tensor:
        """Return the share of each element's view among those of this term, shape (G, B)."""
        ties = tied(self.scores(whole), tolerance)
        ties = ties / (self.count * ties.sum(0))
        shares = torch.zeros_like(whole)
        shares[torch.as_tensor(self.table[:, self.input.group.inverses])] = ties.expand(self.count, *ties.shape)
        return shares


class InvariantSymmetric(nn.Module):
    """A layer of several inputs, each with a group of its own that moves nothing else (Baltaji et al., 2310.09675).

        y_i = 1/|G_i| sum_{g in G_i} g^-1 f_i(g x_i) + Sym_i( sum_{j != i} 1/|G_j| sum_{g in G_j} f_ij(g x_j) )

    y_i moves with x_i alone: what it reads of the others does not change under their groups, and Sym_i, the mean over
    G_i, makes it one that may be added. It costs one forward of each network an element, |G_1| + ... + |G_N| views of
    inputs in all, where averaging over the product of the groups would cost |G_1| * ... * |G_N|.

    Args:
        inputs: how each input's group moves it.
        outputs: how the same group moves the output of the same name.
        networks: f_i, from (B, ...) to (B, ...), by name.
        fused: f_ij, from x_j to the shape of y_i, by i and then by j; those that are left out are none.

    Raises:
        UserError: names that are not the inputs', or an output of another group.

    >>> from equirl import Permutation, cyclic
    >>> reps = {"a": Permutation.regular(cyclic(2)), "b": Permutation.regular(cyclic(3))}
    >>> layer = InvariantSymmetric(
    ...     reps, reps, {"a": nn.Linear(2, 2), "b": nn.Linear(3, 3)}, {"a": {"b": nn.Linear(3, 2)}, "b": {}}
    ... )
    >>> x = {"a": torch.rand(5, 2), "b": torch.rand(5, 3)}
    >>> y, moved = layer(x), layer({"a": x["a"], "b": reps["b"](1, x["b"])})
    >>> torch.allclose(moved["a"], y["a"], atol=1e-6), torch.allclose(moved["b"], reps["b"](1, y["b"]), atol=1e-6)
    (True, True)
    """

    def __init__(
        self,
        inputs: Mapping[str, Representation],
        outputs: Mapping[str, Representation],
        networks: Mapping[str, nn.Module],
        fused: Mapping[str, Mapping[str, nn.Module]],
    ) -> None:
        super().__init__()
        for what, named in (("outputs", outputs), ("networks", networks), ("fused", fused)):
            if named.keys() != inputs.keys():
                raise UserError(f"{what} of {sorted(named)}: expected those of the inputs, {', '.join(inputs)}")
        for name, others in fused.items():
            for other in others:
                if other == name or other not in inputs:
                    raise unknown(f"input fused into {name}", other, [each for each in inputs if each != name])
        self.names = list(inputs)
        self.outputs = dict(outputs)
        self.fusions = {name: list(others) for name, others in fused.items()}
        self.own = nn.ModuleList(networks[name] for name in self.names)  # keys may hold dots, which names here may not
        self.others = nn.ModuleList(nn.ModuleList(fused[name].values()) for name in self.names)
        self.means = {name: Equitune(rep, outputs[name]) for name, rep in inputs.items()}
        self.invariant = {name: Equitune(rep, Trivial(rep.group)) for name, rep in inputs.items()}

    def forward(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return y_i, by name."""
        if x.keys() != set(self.names):
            raise UserError(f"inputs {sorted(x)}: expected {', '.join(self.names)}")
        return {name: self._output(i, name, x) for i, name in enumerate(self.names)}

    def _output(self, i: int, name: str, x: Mapping[str, Tensor]) -> Tensor:
        y: Tensor = self.means[name](self.own[i], x[name])
        networks = zip(self.fusions[name], cast("nn.ModuleList", self.others[i]), strict=True)
        read = [self.invariant[other](network, x[other]) for other, network in networks]
        if not read:
            return y
        symmetric: Tensor = self.outputs[name].orbit(torch.stack(read).sum(0)).mean(0)
        return y + symmetric
