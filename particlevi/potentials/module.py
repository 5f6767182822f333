"""The posterior of an ``nn.Module``."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import UninitializedParameter
from torch.utils import _pytree as pytree

from particlevi._checks import check_choice, check_positive_int
from particlevi._tracing import is_compiling
from particlevi.potentials._module_modes import set_batch_norm, set_dropout, set_plain_paths
from particlevi.potentials._module_starts import module_starts
from particlevi.potentials._module_statistics import STATISTICS, absorbing_layers, carried_over
from particlevi.potentials.convolutions import one_by_one
from particlevi.potentials.layout import Layout
from particlevi.potentials.likelihoods import Likelihood, log_prob
from particlevi.potentials.potential import Evaluation, ModelPotential, Outputs, Sites
from particlevi.potentials.priors import PriorLike, check_prior, joint_prior
from particlevi.potentials.probing import Habits, probe
from particlevi.potentials.random import alone
from particlevi.potentials.shells import Shells, shell_of
from particlevi.potentials.vectorize import Vectorized
from particlevi.typing import JSON, Batch

__all__ = ["from_module"]


def from_module(
    module: nn.Module,
    likelihood: Likelihood,
    prior: PriorLike,
    num_data: int,
    *,
    sample: str | Sequence[str] | None = None,
    dropout: Literal["off", "sample"] | None = None,
    batch_norm: Literal["frozen", "batch"] = "frozen",
    chunk_size: int | None = None,
    autocast: torch.dtype | None = None,
) -> ModelPotential:
    """The posterior of a module's trainable parameters.

    ``U(theta) = -log prior(theta) - (N/B) sum_b log likelihood(y_b | module_theta(x_b))``, in nats.

    Data are given to ``sample`` as a tuple whose last element is the target and whose others are
    the module's inputs, ``(x, y)`` or ``(x1, x2, y)``; a first element that is a dict is passed as
    keyword arguments. The target may be a dict ``{"target": y, "weight": w, "mask": m}``: the
    log-likelihood of a datum is multiplied by its weight ``w [B]``, and values where the mask is
    False count nothing. The module is copied: later changes to it do not matter.

    On the first data that it sees, a copy of the module is run a few times, and what cannot be
    sampled is refused by name: buffers that change, random numbers beside dropout layers, a
    gradient that is not the derivative of the output, outputs that depend on the other data of a
    batch.

    Particles start from the module's present weights if it was trained, loaded or set by hand: the
    first exactly there, the others with 1 % of noise. If its weights look like a draw of its own
    initialisation, every particle gets a fresh one instead. ``sample(initial=...)`` says otherwise.

    Args:
        module: anything with plain parameters. Tied parameters appear once; parameters with
            ``requires_grad=False``, buffers and the padding rows of embeddings stay as they are.
        likelihood: the law of a target given the module's output.
        prior: one prior for all parameters, or one per name pattern.
        num_data: N, the number of data in the whole training set.
        sample: name patterns of the parameters that are sampled, such as ``"head.*"`` for the last
            layer of a trained net or ``"*lora_*"`` for adapters; all others stay as they are,
            whatever their ``requires_grad``. Those with ``requires_grad=True`` if absent.
        dropout: what to do with dropout layers; must be given if there are any. ``"off"`` samples
            the posterior of the net without dropout. ``"sample"`` keeps the masks, drawn from
            torch's global generator (which ``sample`` seeds) at every evaluation: the energy is
            then random, and its expectation over masks is what is sampled, by samplers that use
            gradients only.
        batch_norm: ``"frozen"`` normalises with the layers' running statistics, which stay fixed,
            so that a datum's likelihood does not depend on the others in its batch; the module
            must have seen data in training mode. ``"batch"`` normalises with the statistics of
            the current batch, also in prediction: the likelihood is then a function of whole
            batches and the posterior only approximate.
        chunk_size: at most so many particles are evaluated at once, to bound memory.
        autocast: ``torch.bfloat16`` runs the module under ``torch.autocast``; particles, outputs,
            prior and likelihood keep their dtype. Its rounding is part of the gradient:
            see "Mixed precision" in the page on memory for what that does to draws.

    Raises:
        ValueError: a pattern that matches no parameter, dropout without a choice, batch
            normalisation without running statistics, no trainable parameters, mixed dtypes, a
            prior that does not cover the parameters, or another ``autocast``; at the
            first evaluation, a module that cannot be sampled.

    Examples:
        >>> net = nn.Linear(3, 1)
        >>> from particlevi import Gaussian, Normal
        >>> potential = from_module(net, Gaussian(scale=0.5), Normal(scale=1.0), num_data=100)
        >>> potential.num_params
        4
        >>> potential.init(2).shape
        torch.Size([2, 4])
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {_kind(module)}.")
    if isinstance(likelihood, type) or not hasattr(likelihood, "distribution"):
        raise TypeError(
            f"likelihood must be one such as pvi.Gaussian(scale=0.5), got {_kind(likelihood)}."
        )
    check_prior(prior)
    check_positive_int("num_data", num_data)
    check_choice("batch_norm", batch_norm, ["frozen", "batch"])
    _check_autocast(autocast)
    lazy = [n for n, p in module.named_parameters() if isinstance(p, UninitializedParameter)]
    if lazy:
        raise ValueError(f"{lazy} have no shape yet: run the module on data once.")
    known = set(module.state_dict())
    module = copy.deepcopy(module).eval()
    if sample is not None:
        _freeze_all_but(module, sample)
    set_dropout(module, dropout)
    set_batch_norm(module, batch_norm)
    set_plain_paths(module)
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    like = _check_trainable(module, trainable)
    own = likelihood.parameters()
    shapes = {name: tuple(p.shape) for name, p in trainable.items()}
    others = {name: (math.prod(p.shape), p.prior) for name, p in own.items()}
    joint = joint_prior(prior, shapes, like, _fan_ins(module, shapes), others)
    own_shapes = {f"likelihood.{name}": parameter.shape for name, parameter in own.items()}
    layout = Layout({**shapes, **own_shapes, **joint.shapes})
    forward = _Forward(
        module, Layout(shapes), dropout == "sample", batch_norm == "batch", num_data, autocast
    )
    where = layout.slices()

    def log_likelihood(particles: Tensor, batch: Batch) -> Tensor:
        inputs, targets = split_targets(batch.data)
        outputs = forward(particles, Batch(inputs, batch.per_particle))
        values = {
            name: particles[:, where[f"likelihood.{name}"]].view(-1, *parameter.shape)
            for name, parameter in own.items()
        }
        return log_prob(likelihood, outputs, targets, values, batch.per_particle)

    def constrain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors = dict(tensors)
        for name, parameter in own.items():
            value = tensors.pop(f"likelihood.{name}")
            tensors[f"likelihood.{parameter.constrained_name}"] = parameter.constrain(value)
        for name, (shown, transform) in joint.constrained.items():
            tensors[shown] = transform(tensors.pop(name))
        return tensors

    draw_prior = joint.sample if joint.proper else None
    return ModelPotential(
        layout=layout,
        num_data=int(num_data),
        log_prior_fn=joint.log_prob,
        log_likelihood_fn=log_likelihood,
        starts=module_starts(module, layout, draw_prior, known),
        device=like.device,
        dtype=like.dtype,
        model=Outputs(likelihood, forward),
        sites=Sites(constrain),
        evaluation=Evaluation(
            chunk_size=chunk_size,
            random=dropout == "sample",
            factorised_prior=joint.factorised,
        ),
        fingerprint=_fingerprint(
            module, likelihood, prior, num_data, layout, dropout, batch_norm, autocast
        ),
    )


@dataclass(frozen=True)
class _Run:
    """How a copy of the module is evaluated.

    Attributes:
        held: rows of weights that stay as they are: number and values, by the tensor's name.
        autocast: the dtype inside the module, if it is another one.
    """

    held: Mapping[str, tuple[int, Tensor]]
    autocast: torch.dtype | None

    def __call__(self, module: nn.Module, weights: dict[str, Tensor], inputs: Any) -> Tensor:
        """A copy of the module with these weights on these inputs."""
        for name, (row, value) in self.held.items():
            weight = weights[name]
            held = torch.zeros(len(weight), 1, dtype=torch.bool, device=weight.device)
            held[row] = True
            weights = {**weights, name: torch.where(held, value.to(weight), weight)}
        kwargs = dict(inputs[0]) if len(inputs) == 1 and isinstance(inputs[0], Mapping) else None
        args = () if kwargs is not None else inputs
        outputs: Tensor
        if self.autocast is None:
            outputs = torch.func.functional_call(module, weights, args, kwargs)
            return outputs
        like = next(iter(weights.values()))
        with torch.autocast(like.device.type, self.autocast, cache_enabled=False):
            outputs = torch.func.functional_call(module, weights, args, kwargs)
        return outputs.to(like.dtype) if isinstance(outputs, Tensor) else outputs


class _Forward:
    """The module as a function of particles ``[P, D]`` and inputs, probed at its first run."""

    def __init__(
        self,
        module: nn.Module,
        layout: Layout,
        random: bool,
        whole_batches: bool,
        num_data: int,
        autocast: torch.dtype | None,
    ):
        self.module = module
        self.layout = layout
        self.random = random
        self.whole_batches = whole_batches
        self.num_data = num_data
        self.autocast = autocast
        self.run = _Run(_padding_rows(module, layout), autocast)
        self.shells = Shells(module)
        self.traced = shell_of(module)
        self.habits: Habits | None = None
        self.absorbing = absorbing_layers(module, layout.shapes)
        name = f"The module {type(module).__name__}"
        self.lifted = Vectorized(self.one, name, "different" if random else "error")

    def __call__(self, particles: Tensor, batch: Batch) -> Tensor:
        """Outputs ``[P, B, ...]``."""
        if self.habits is None and not is_compiling() and _is_plain(particles):
            self.habits = self._probed(particles, batch)
            if self.habits is not None and self.habits.convolved and self.autocast is not None:
                # vmap hides convolutions from autocast.
                self.lifted.looping = True
        if self.habits is not None and self.habits.attends:
            with sdpa_kernel(SDPBackend.MATH):
                return self._lifted(particles, batch)
        return self._lifted(particles, batch)

    def _lifted(self, particles: Tensor, batch: Batch) -> Tensor:
        loop = self._loops(particles, batch)
        if self.random and not is_compiling():
            with alone():
                return self.lifted(particles, batch, loop)
        return self.lifted(particles, batch, loop)

    def _loops(self, particles: Tensor, batch: Batch) -> bool:
        if self.habits is None or not self.habits.convolved:
            return False
        rows = pytree.tree_leaves(batch.data)[0].shape[1 if batch.per_particle else 0]
        numbers = self.habits.convolved * rows * len(particles)
        return one_by_one(numbers * particles.element_size(), particles.device)

    def one(self, particle: Tensor, inputs: Any) -> Tensor:
        """Outputs ``[B, ...]`` of one particle ``[D]``."""
        weights = self.layout.unravel(particle[: self.layout.num_params])
        if self.habits is not None and self.habits.writes_inputs:
            inputs = pytree.tree_map(torch.clone, inputs)
        module = self.traced if is_compiling() else self.shells.here()
        return self.run(module, weights, inputs)

    def fresh_copy(self) -> nn.Module:
        """A copy of the module as it is evaluated, none of whose parameters is to be trained."""
        return copy.deepcopy(self.module).requires_grad_(False)

    def plain(self) -> tuple[nn.Module, Layout] | None:
        """A copy of the module, which runs as it is, and the layout of its weights.

        None where it is more than that: random, of whole batches, under autocast, with rows that
        are held, or writing into its inputs.
        """
        writes = self.habits is None or self.habits.writes_inputs
        altered = self.autocast is not None or bool(self.run.held)
        if self.random or self.whole_batches or altered or writes:
            return None
        return self.fresh_copy(), self.layout

    def carried_over(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A ``state_dict`` as weights under the module's running statistics: the same function."""
        return carried_over(self.absorbing, state)

    def passed_over(self, state: Mapping[str, Tensor]) -> list[str]:
        """Names of tensors in a ``state_dict`` that differ from the module's, which are used."""
        absorbed = {f"{prefix}{name}" for prefix in self.absorbing for name in STATISTICS}
        fixed = {
            **dict(self.module.named_buffers()),
            **{name: p for name, p in self.module.named_parameters() if not p.requires_grad},
        }
        return [
            name
            for name, tensor in fixed.items()
            if tensor.is_floating_point()
            and name in state
            and name not in absorbed
            and not _alike(state[name].detach(), tensor)
        ]

    def _probed(self, particles: Tensor, batch: Batch) -> Habits | None:
        weights = self.layout.unravel(particles[0, : self.layout.num_params].detach())
        inputs = batch.data
        if batch.per_particle:
            inputs = pytree.tree_map(lambda leaf: leaf[0], inputs)
        leaves = pytree.tree_leaves(inputs)
        rows = len(leaves[0]) if leaves and isinstance(leaves[0], Tensor) and leaves[0].ndim else 0
        if rows == 0 or not bool(torch.isfinite(particles[0]).all()):
            return None
        whole = self.whole_batches or rows == self.num_data
        return probe(
            self.module, weights, inputs, self.run, random=self.random, whole_batches=whole
        )


def _alike(given: Tensor, own: Tensor) -> bool:
    """Whether values agree as far as single precision tells."""
    return given.shape == own.shape and torch.allclose(given.to(own), own, rtol=1e-4, atol=1e-6)


def _padding_rows(module: nn.Module, layout: Layout) -> dict[str, tuple[int, Tensor]]:
    """The padding rows of embeddings, which have no gradient: number and present values."""
    return {
        f"{name}.weight".lstrip("."): (
            layer.padding_idx,
            layer.weight.detach()[layer.padding_idx].clone(),
        )
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Embedding)
        and layer.padding_idx is not None
        and f"{name}.weight".lstrip(".") in layout.shapes
    }


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has values and gradients to look at: none on the meta device."""
    if tensor.device.type == "meta" or torch.is_inference_mode_enabled():
        return False
    return torch._C._functorch.peek_interpreter_stack() is None


def _freeze_all_but(module: nn.Module, sample: str | Sequence[str]) -> None:
    """Parameters that match a pattern are trainable, and no others."""
    patterns = [sample] if isinstance(sample, str) else sample
    if not isinstance(patterns, (list, tuple)) or not all(isinstance(p, str) for p in patterns):
        raise TypeError(
            f'sample must be a name pattern such as "head.*", or a list of them, got {sample!r}.'
        )
    named = dict(module.named_parameters())
    idle = [p for p in patterns if not any(fnmatchcase(name, p) for name in named)]
    if idle or not patterns:
        raise ValueError(f"sample={sample!r}: {idle} match none of the parameters {list(named)}.")
    for name, parameter in named.items():
        parameter.requires_grad_(any(fnmatchcase(name, pattern) for pattern in patterns))


def _check_trainable(module: nn.Module, trainable: Mapping[str, Tensor]) -> Tensor:
    """There are trainable parameters, of one dtype and device; the first of them."""
    if not trainable:
        raise ValueError(
            f"{type(module).__name__} has no parameters with requires_grad=True, so there is "
            "nothing to sample."
        )
    dtypes = {p.dtype for p in trainable.values()}
    devices = {p.device for p in trainable.values()}
    if len(dtypes) > 1 or len(devices) > 1:
        raise ValueError(
            f"All trainable parameters must have one dtype and device, got {dtypes} on {devices}."
        )
    return next(iter(trainable.values())).detach()


def _fan_ins(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """How many weights of each tensor enter one unit, the most over the layers that share it."""
    names = {id(p): name for name, p in module.named_parameters()}
    found: dict[str, int] = {}
    for layer in module.modules():
        for _, parameter in layer.named_parameters(recurse=False):
            name, shape = names[id(parameter)], tuple(parameter.shape)
            if isinstance(layer, _ConvTransposeNd) and len(shape) > 2:
                number = shape[0] // layer.groups * math.prod(shape[2:])
            elif isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
                number = 1
            else:
                number = math.prod(shape[1:])
            found[name] = max(found.get(name, 1), number)
    return {name: found[name] for name in shapes}


def _check_autocast(autocast: Any) -> None:
    if autocast is not None and autocast is not torch.bfloat16:
        raise ValueError(
            f"autocast must be torch.bfloat16 or None, got {autocast!r}: float16 would need its "
            "gradients scaled, and other dtypes are no mixed precision."
        )


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def split_targets(data: Any) -> tuple[tuple[Any, ...], Any]:
    """Inputs and target of a batch ``(*inputs, target)``."""
    if not isinstance(data, (tuple, list)) or len(data) < 2:
        raise ValueError(
            "A module's data are a tuple (inputs, ..., target), got "
            f"{type(data).__name__}{f' of {len(data)}' if isinstance(data, (tuple, list)) else ''}."
        )
    return tuple(data[:-1]), data[-1]


def _fingerprint(
    module: nn.Module,
    likelihood: Likelihood,
    prior: PriorLike,
    num_data: int,
    layout: Layout,
    dropout: str | None,
    batch_norm: str,
    autocast: torch.dtype | None,
) -> dict[str, JSON]:
    digest = hashlib.sha256()
    fixed = {name: p for name, p in module.named_parameters() if not p.requires_grad}
    for name, tensor in [*fixed.items(), *module.named_buffers()]:
        digest.update(name.encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().tobytes())
    priors = prior if isinstance(prior, Mapping) else {"*": prior}
    return {
        "kind": "module",
        "module": str(module),
        "shapes": {name: list(shape) for name, shape in layout.shapes.items()},
        "likelihood": dict(likelihood.settings),
        "prior": {name: dict(each.settings) for name, each in priors.items()},
        "num_data": num_data,
        "dropout": dropout,
        "batch_norm": batch_norm,
        "autocast": None if autocast is None else str(autocast),
        "fixed_tensors": digest.hexdigest()[:16],
    }
