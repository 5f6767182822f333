"""The result of a run: draws, and what they say about parameters and predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi._checks import (
    check_positive_int,
    check_seed,
    is_integer,
    is_number,
)
from particlevi.data.tensors import as_tensors
from particlevi.diagnostics.predictive import Prediction, predict_outputs, predict_sites
from particlevi.potentials.layout import Groups
from particlevi.potentials.potential import ModelPotential
from particlevi.storage import checkpoint as files
from particlevi.tuning.invariance import Invariance
from particlevi.typing import Batch

__all__ = ["Draws", "Prediction"]


@dataclass(frozen=True, eq=False)
class Draws:
    """Draws of a run.

    Attributes:
        particles: what was kept, ``[P, T, K]``; all parameters (K = D) unless ``keep`` said
            otherwise. Chains that diverged are left out.
        stats: statistics per draw, ``[P, T]`` or ``[T]``: ``potential`` (in nats, on the minibatch
            of the step that ended in the draw, where its gradient was evaluated), temperatures,
            ``step``, ``step_size`` and other scheduled scalars.
        warmup, warmup_stats: the same of the warm-up, if it was kept.
        chains: which of the chains started are in ``particles``.
        diverged: chains left out, with the step at which they diverged.
        interrupted: whether Ctrl-C ended the run.
        interacting: whether the particles saw each other, so that they are no chains.
        seconds: that the run took.
        num_steps: that were made.
        coordinates: the parameters kept, ``[K]``, if only some were.
        output_shape: ``[B, ...]`` of the outputs kept in place of parameters, if so.
        shapes: of the potential's tensors, by name.
        attrs: sampler, estimator, settings and seed.
        fingerprint: of the potential.
        potential: what was sampled; None for draws loaded without it. A pickle, as between
            processes, leaves it behind: ``dataclasses.replace(draws, potential=...)``.
    """

    particles: Tensor
    stats: dict[str, Tensor]
    warmup: Tensor | None = None
    warmup_stats: dict[str, Tensor] = field(default_factory=dict)
    chains: list[int] = field(default_factory=list)
    diverged: dict[int, int] = field(default_factory=dict)
    interrupted: bool = False
    interacting: bool = False
    seconds: float = math.nan
    num_steps: int = 0
    coordinates: Tensor | None = None
    output_shape: tuple[int, ...] | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)
    fingerprint: dict[str, Any] = field(default_factory=dict)
    potential: ModelPotential | None = None

    def __repr__(self) -> str:
        chains, draws, size = self.particles.shape
        kind = "particles" if self.interacting else "chains"
        notes = [f"{self.attrs.get('sampler', '?')}", f"{self.seconds:.1f} s"]
        notes += ["interrupted"] if self.interrupted else []
        notes += [f"{len(self.diverged)} diverged"] if self.diverged else []
        return f"Draws({chains} {kind} x {draws} draws x {size}; {', '.join(notes)})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "potential": None}

    def flat(self, thin: int = 1) -> Tensor:
        """The posterior sample ``[S, K]``: every ``thin``-th draw of every chain.

        Of interacting particles, only the last draw: the earlier ones are the way to it.
        """
        kept = self._kept(thin)
        return kept.reshape(-1, kept.shape[-1])

    def _kept(self, thin: int) -> Tensor:
        check_positive_int("thin", thin)
        if not self.particles[..., :1].numel():
            raise ValueError(
                f"There are no draws, particles are {list(self.particles.shape)}: the run ended "
                "before the first."
            )
        return self.particles[:, -1:] if self.interacting else self.particles[:, :: int(thin)]

    def constrained(self) -> dict[str, Tensor]:
        """The draws as the model's own quantities by name, ``[P, T, *shape]``."""
        model = self._model()
        chains, draws, size = self.particles.shape
        flat = self.particles.reshape(-1, size).to(model.dtype)
        values = model.constrain(flat)
        return {name: v.reshape(chains, draws, *v.shape[1:]) for name, v in values.items()}

    def outputs(self, inputs: Any, thin: int = 1, chunk_size: int = 64) -> Tensor:
        """The model's outputs at some inputs for every draw, ``[P, T, B, ...]``.

        Args:
            inputs: one tensor ``[B, ...]``, or a tuple of them for a module with several inputs.
            thin: use every ``thin``-th draw.
            chunk_size: draws evaluated at once.
        """
        kept = self._kept(thin)
        check_positive_int("chunk_size", chunk_size)
        if self.output_shape is not None:
            raise ValueError(
                "These draws are outputs already, at the inputs given to keep=outputs_at(...): "
                "they are in .particles; predictions elsewhere need the parameters."
            )
        flat = kept.reshape(-1, kept.shape[-1])
        batch = self._inputs(inputs)
        values = torch.cat([self._outputs(part, batch) for part in flat.split(int(chunk_size))])
        return values.reshape(*kept.shape[:2], *values.shape[1:])

    def predict(
        self,
        inputs: Any,
        *,
        quantiles: tuple[float, ...] = (),
        thin: int = 1,
        chunk_size: int = 64,
        batch_size: int = 1024,
        seed: int = 0,
    ) -> Prediction:
        """The posterior predictive at some inputs: mean, standard deviation, class probabilities.

        Of a Pyro model with one observed site, ``inputs`` are the model's arguments, with or
        without observations, and all is estimated from targets drawn from the predictive, one per
        draw and at least a thousand in all, by a run of the model each.

        Args:
            inputs: one tensor ``[B, ...]``, or a tuple of them for a module with several inputs;
                for a Pyro model also a dict, or None if it has no arguments.
            quantiles: of a new target; estimated from targets drawn from the predictive, one per
                draw and at least a thousand in all.
            thin: use every ``thin``-th draw.
            chunk_size: draws evaluated at once, of a module.
            batch_size: inputs evaluated at once, of a module.
            seed: of the targets drawn.

        Raises:
            ValueError: draws of a potential without outputs, or of a subset of its parameters; a
                Pyro model with several observed sites or one of class numbers.

        >>> import particlevi as pvi
        >>> net = torch.nn.Linear(1, 1)
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> potential = pvi.from_module(net, pvi.Gaussian(scale=0.1), pvi.Normal(1.0), num_data=20)
        >>> draws = pvi.sample(
        ...     pvi.sghmc(potential), data=(x, 2 * x), step_size=0.02, num_particles=4,
        ...     num_warmup=500, num_draws=100, thin=5, progress=False,
        ... )
        >>> mean, std = draws.predict(torch.tensor([[0.5]]))
        >>> bool((mean - 1).abs() < 0.1)
        True
        """
        model = self._model()
        check_positive_int("chunk_size", chunk_size)
        check_positive_int("batch_size", batch_size)
        check_seed("seed", seed)
        for each in quantiles:
            if not is_number(each) or not 0 <= each <= 1:
                raise ValueError(f"quantiles must be numbers in [0, 1], got {quantiles!r}.")
        flat = self._parameters(thin)
        if model.predictive_fn is not None:
            return predict_sites(model, flat, inputs, quantiles, int(seed))
        if model.likelihood is None:
            raise ValueError(
                "Predictions need a potential made from a module or a Pyro model; draws of a "
                "density are in .particles."
            )
        batch = self._inputs(inputs)
        return predict_outputs(
            model, flat, batch, quantiles, int(chunk_size), int(batch_size), int(seed)
        )

    def log_likelihood(
        self, data: Any, *, thin: int = 1, chunk_size: int = 64, batch_size: int = 1024
    ) -> Tensor:
        """Log-likelihoods of data under every draw, ``[P, T, N]``, in nats.

        Args:
            data: as given to ``sample``; other data of the same structure for held-out scores.
            thin: use every ``thin``-th draw.
            chunk_size: draws evaluated at once.
            batch_size: data evaluated at once.
        """
        model = self._model()
        check_positive_int("chunk_size", chunk_size)
        check_positive_int("batch_size", batch_size)
        flat = self._parameters(thin)
        data = as_tensors(data, model)
        first = pytree.tree_map(lambda leaf: leaf[:1].to(model.device), data)
        with torch.no_grad():
            one = flat[:1].to(model.device, model.dtype)
            model.target_check(one, Batch(first))(data)
        length = len(pytree.tree_leaves(data)[0])
        columns = []
        with torch.no_grad():
            for start in range(0, length, int(batch_size)):
                piece = pytree.tree_map(
                    lambda leaf, a=start: leaf[a : a + int(batch_size)].to(model.device), data
                )
                rows = [
                    model.log_likelihood(part.to(model.device, model.dtype), Batch(piece))
                    for part in flat.split(int(chunk_size))
                ]
                columns.append(torch.cat(rows))
        values = torch.cat(columns, dim=1)
        chains = len(self.particles)
        return values.reshape(chains, -1, length)

    def log_predictive_density(self, data: Any, **options: Any) -> Tensor:
        """``log (1/S) sum_s p(y_n | x_n, theta_s)`` per datum, ``[N]``, in nats.

        Its mean is the test log-likelihood, its negative mean the NLL.

        Args:
            data: held-out data of the structure given to ``sample``.
            options: as for ``log_likelihood``.
        """
        values = self.log_likelihood(data, **options).double().flatten(0, 1)
        return values.logsumexp(0) - math.log(len(values))

    def ess(
        self,
        of: str = "parameters",
        *,
        inputs: Any = None,
        method: str = "bulk",
        prob: float | None = None,
        num: int = 100,
        per: str | None = None,
    ) -> np.ndarray[Any, Any]:
        """Effective sample sizes, by ArviZ, in blocks of bounded memory.

        Args:
            of: ``"parameters"`` ``[K]``; ``"projections"``, ``num`` random directions ``[num]``;
                ``"predictions"``, the model's outputs at ``inputs``, ``[B, ...]`` (for classes
                logits less their mean); or ``"log_likelihood"`` of each datum, ``[N]``. The last
                two do not depend on which hidden unit is which.
            inputs: probe inputs for predictions; data ``(x, y)`` for the log-likelihood.
            method: of ArviZ: ``"bulk"``, ``"tail"``, ``"mean"``, ``"sd"``, ``"median"``,
                ``"quantile"``.
            prob: which quantile.
            num: how many projections.
            per: ``"second"``, or ``"gradient"`` (one of the potential, on one batch, for one
                particle), in place of the number itself: over all that the run took, its warm-up
                and chains that diverged included, full passes of an SVRG estimator not.

        Raises:
            ValueError: interacting particles, or fewer than 4 draws.
        """
        from particlevi.diagnostics import arviz, views

        values = views.series(self, of, inputs, num, "ESS")
        found: np.ndarray[Any, Any] = arviz.ess(values, method=method, prob=prob)
        return found if per is None else found / views.work(self, per)

    def mcse(
        self,
        of: str = "parameters",
        *,
        inputs: Any = None,
        method: str = "mean",
        prob: float | None = None,
        num: int = 100,
    ) -> np.ndarray[Any, Any]:
        """Monte-Carlo standard errors, by ArviZ; arguments as for ``ess``.

        ``method`` is the estimate: ``"mean"``, ``"sd"``, ``"median"`` or ``"quantile"``.
        """
        from particlevi.diagnostics import arviz, views

        values = views.series(self, of, inputs, num, "A Monte-Carlo error")
        found: np.ndarray[Any, Any] = arviz.mcse(values, method=method, prob=prob)
        return found

    def rhat(
        self,
        of: str = "parameters",
        *,
        inputs: Any = None,
        num: int = 100,
        superchains: int | None = None,
    ) -> np.ndarray[Any, Any]:
        """Rank-normalised split R-hat, by ArviZ; arguments as for ``ess``.

        With ``superchains=K`` it is the nested one, for many short chains: K groups of chains that
        follow each other, each group begun at a point of its own.
        """
        from particlevi.diagnostics import arviz, nested, views

        values = views.series(self, of, inputs, num, "R-hat")
        found: np.ndarray[Any, Any]
        if superchains is None:
            found = arviz.rhat(values)
        else:
            found = nested.nested_rhat(values.double().cpu(), superchains)
        return found

    def autocorrelation_time(
        self, of: str = "parameters", *, inputs: Any = None, num: int = 100
    ) -> np.ndarray[Any, Any]:
        """Integrated autocorrelation times in draws, ``P T / ESS`` of the mean; as for ``ess``."""
        from particlevi.diagnostics import arviz, views

        values = views.series(self, of, inputs, num, "An autocorrelation time")
        found: np.ndarray[Any, Any] = arviz.integrated_autocorrelation_time(values)
        return found

    def temperatures(self, data: Any = None, *, thin: int = 1) -> dict[str, Any]:
        """Kinetic and configurational temperatures, each with its Monte-Carlo standard error.

        For momentum methods ``"kinetic"``, and ``"kinetic[name]"`` of each tensor if there are
        several; ``"all"`` and ``name`` for the configurational temperatures. See
        ``particlevi.diagnostics.temperatures``.

        Args:
            data: as given to ``sample``.
            thin: for the configurational ones, use every ``thin``-th draw.
        """
        from particlevi.diagnostics import temperatures

        found = {}
        if "kinetic_temperature" in self.stats:
            found = temperatures.kinetic(self)
        return {**found, **temperatures.configurational(self, data, thin=thin)}

    def diagnose(
        self, data: Any = None, *, inputs: Any = None, thin: int = 1, verbose: bool = True
    ) -> Any:
        """Print a verdict on the run: what is wrong, by how much, and what to change.

        Args:
            data: as given to ``sample``; adds the configurational temperature, on all the data.
            inputs: probe inputs: convergence is then that of the outputs there.
            thin: for the configurational temperature, use every ``thin``-th draw.
            verbose: print it.

        Returns:
            The verdict, with ``.ok``, ``.findings`` and ``.facts``.
        """
        from particlevi.diagnostics.verdict import diagnose

        verdict = diagnose(self, data, inputs, thin)
        if verbose:
            print(verdict)
        return verdict

    def check_invariance(self, data: Any = None, **options: Any) -> Invariance:
        """Go on from the draws with an exact kernel, and test whether anything moves.

        R-hat is blind to chains that agree on a wrong law; this is not. It prints and returns a
        p-value and the size of the shift in posterior standard deviations.

        Args:
            data: as given to ``sample``.
            options: as for ``pvi.tuning.check_invariance``: ``num_starts`` of each chain,
                ``num_steps`` of the kernel, the ``tolerance``, ``inputs``, ``seed``.
        """
        from particlevi.tuning import check_invariance

        model, particles = self._model(), self.particles
        self._parameters(1)
        alone = particles[:, -1:] if self.interacting else particles
        found = check_invariance(alone, model, data, **options)
        print(found)
        return found

    def to_arviz(
        self,
        data: Any = None,
        *,
        log_likelihood: bool = False,
        posterior_predictive: bool = False,
        seed: int = 0,
    ) -> Any:
        """An ArviZ InferenceData (a DataTree on ArviZ 1.x).

        Groups: ``posterior`` with the model's quantities under their names, ``sample_stats``
        (``lp`` is minus the potential on the minibatch of the step that ended in the draw),
        the same of the warm-up if it was kept, and those asked for. Interacting particles become
        one chain whose draws are the particles, at the end of the run.

        Args:
            data: as given to ``sample``, for the groups that need it and ``observed_data``.
            log_likelihood: add the log-likelihood of each datum under each draw.
            posterior_predictive: add one target drawn per datum and draw (and observed site).
            seed: of those targets.
        """
        from particlevi.diagnostics.export import to_arviz

        return to_arviz(self, data, log_likelihood, posterior_predictive, seed)

    def save(self, path: str | Path) -> None:
        """Write the draws to one safetensors file; ``pvi.load`` reads it and runs no code."""
        tensors = {"particles": self.particles}
        tensors |= {f"stats.{name}": value for name, value in self.stats.items()}
        tensors |= {f"warmup_stats.{name}": value for name, value in self.warmup_stats.items()}
        if self.warmup is not None:
            tensors["warmup"] = self.warmup
        if self.coordinates is not None:
            tensors["coordinates"] = self.coordinates
        meta = {
            "chains": self.chains,
            "diverged": self.diverged,
            "interrupted": self.interrupted,
            "interacting": self.interacting,
            "seconds": self.seconds,
            "num_steps": self.num_steps,
            "output_shape": self.output_shape,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "attrs": self.attrs,
            "fingerprint": self.fingerprint,
        }
        files.write(Path(path), tensors, meta)

    def recombine(
        self,
        num: int,
        groups: Groups | None = None,
        *,
        pooled: bool | None = None,
        seed: int = 0,
    ) -> Draws:
        """Draws from the factorised law: each group of parameters from a draw of its own.

        ``structured`` samples a law in which groups are independent, one per chain. Its joint
        iterates follow that law over a run; recombined draws obey the independence exactly, and
        there are as many as are asked for. The result is one chain of ``num`` independent draws,
        for predictions.

        Args:
            num: how many.
            groups: a rule, or group numbers ``[D]``; those of the run's structured estimator if
                absent.
            pooled: take groups of one draw from different chains too, which mixes modes where
                chains are in different ones; by default only if the run's history was pooled.
            seed: of the draws that are picked.

        Raises:
            ValueError: no groups are known, or outputs were kept in place of parameters.
        """
        from particlevi.diagnostics.groups import recombine

        recombined: Draws = recombine(self, num, groups, pooled, seed)
        return recombined

    def select(self, chains: list[int] | slice) -> Draws:
        """The draws of some of the chains, by their place in ``particles``.

        Raises:
            ValueError: no chain of that number, or none at all.
        """
        num = len(self.particles)
        rows = list(range(num)[chains]) if isinstance(chains, slice) else chains
        if not rows or not all(is_integer(row) and -num <= row < num for row in rows):
            raise ValueError(f"chains must be some of 0 ... {num - 1}, got {chains!r}.")

        def cut(stats: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: v[rows] if v.ndim == 2 else v for name, v in stats.items()}

        return replace(
            self,
            particles=self.particles[rows],
            stats=cut(self.stats),
            warmup=None if self.warmup is None else self.warmup[rows],
            warmup_stats=cut(self.warmup_stats),
            chains=[self.chains[row] for row in rows] if self.chains else [],
        )

    def _model(self) -> ModelPotential:
        if self.potential is None:
            raise ValueError(
                "These draws were loaded without their potential: pvi.load(path, potential=...)."
            )
        return self.potential

    def _parameters(self, thin: int) -> Tensor:
        if self.coordinates is not None or self.output_shape is not None:
            raise ValueError(
                "Only a part of the parameters was kept (keep=...), so the model cannot be "
                "evaluated at these draws: keep all parameters."
            )
        return self.flat(thin)

    def _inputs(self, inputs: Any) -> Batch:
        model = self._model()
        parts = inputs if isinstance(inputs, tuple) else (inputs,)
        tensors = as_tensors(parts, model, "inputs")
        return Batch(pytree.tree_map(lambda leaf: leaf.to(model.device), tensors))

    def _outputs(self, flat: Tensor, batch: Batch) -> Tensor:
        model = self._model()
        if self.coordinates is not None:
            self._parameters(1)
        with torch.no_grad():
            return model.outputs(flat.to(model.device, model.dtype), batch)
