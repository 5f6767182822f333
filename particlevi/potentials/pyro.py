"""The posterior of a Pyro model."""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from particlevi._checks import check_function, check_positive_int
from particlevi._warning import warn
from particlevi.potentials._pyro_terms import (
    Sites,
    check_complete,
    check_size,
    num_rows,
    sort_terms,
    subsampling,
)
from particlevi.potentials._pyro_values import Rule, at_values, bijection, from_prior, uniform
from particlevi.potentials.layout import Layout
from particlevi.potentials.potential import Evaluation, ModelPotential
from particlevi.potentials.potential import Sites as ModelSites
from particlevi.potentials.random import draw_seeds, seeded
from particlevi.potentials.starts import Draw, Starts, jittered
from particlevi.potentials.vectorize import Vectorized
from particlevi.streams import ParticleStreams
from particlevi.typing import JSON, Batch, Streams

__all__ = ["from_pyro", "posterior_predictive"]

_LOCK = threading.RLock()
"""Pyro's handlers, validation flags and parameters are global to the process."""


def from_pyro(
    model: Callable[..., Any],
    num_data: int | None = None,
    example_batch: Any = None,
    *,
    chunk_size: int | None = None,
) -> ModelPotential:
    """The posterior of a Pyro model's continuous latent sites, whatever their supports.

    ``U(z) = -log p(T(z)) - log|det dT/dz| - (N/B) sum_b log p(x_b | T(z))``, in nats, where ``T``
    is ``biject_to(support)`` of each latent site. A particle holds the unconstrained ``z``, site
    after site in the model's order; ``constrain`` gives ``T(z)`` under the sites' names, and the
    ``pyro.deterministic`` sites that do not depend on the data.

    Data are given to ``sample`` as the model's arguments: a tuple becomes ``model(*batch)``, a
    dict ``model(**batch)``, a tensor ``model(batch)``, no data ``model()``. All are cut along
    their first dimension; bind other arguments with ``functools.partial``.

    Every log density enters once, in one of two parts:

    * Observed sites and factors with a dimension as long as the batch, in a plate or not, give one
      value per datum (their other dimensions are summed), rescaled by N/B. A plate that subsamples
      (``size=N`` with ``subsample_size`` or ``subsample``) rescales by N/B itself, which is taken
      back, and has the whole batch as its subsample. All other scales and masks stay.
    * All else is prior: latent sites, the Jacobian, and observed sites and factors that are the
      same for every batch. For that reason it is evaluated on one row of ``example_batch``, which
      is cheap, or on all of it if the model does not run on one.

    A model with latent variables that have one value per datum takes all the data at every step, in
    one order: ``example_batch`` must hold them all, and ``sample`` gets no ``batch_size``. The same
    goes, in any order, for a model that runs on all the data only, as with a plate whose size is a
    number, ``pyro.plate("data", 80)``, or whose terms depend on the data without a dimension for
    them, such as a Gaussian process observed as one vector; of a model with such terms there is
    no log-likelihood of single data.
    What is what is found out by running the model on variants of ``example_batch``, so that its
    values should be realistic.

    The model runs under ``vmap``, or in a loop over particles if it cannot; under a lock; without
    Pyro's validation; and not under ``torch.compile``. ``pyro.param`` and ``nn.Parameter`` without
    a prior keep their present values. A model that is a module is copied and put in evaluation
    mode; one that a function refers to is used as it is.

    Args:
        model: the Pyro model, a function or a ``PyroModule``.
        num_data: N, the number of data in the whole set; the length of ``example_batch`` if absent.
        example_batch: some or all data, as given to ``sample``. Absent for a model that is called
            without arguments: its whole density is then prior.
        chunk_size: at most so many particles are evaluated at once.

    Raises:
        ValueError: no latent sites, or one that is discrete or has no bijection from the real
            line; a batch of anything but tensors of one length; terms that no minibatch can
            estimate; a plate that subsamples otherwise; a ``poutine.scale`` that holds N/B
            already; observed values outside their support; sites that come and go.

    Examples:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     scale = pyro.sample("scale", dist.HalfNormal(1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(0.0, scale), obs=x)
        >>> potential = from_pyro(model, num_data=100, example_batch=torch.randn(10))
        >>> potential.constrain(torch.zeros(1, 1))
        {'scale': tensor([1.])}
        >>> potential(torch.zeros(1, 1), Batch(torch.ones(10)))
        tensor([142.62])
    """
    check_function("model", model, "the data, a Pyro program")
    if isinstance(model, ModelPotential):
        raise TypeError("model must be a Pyro program, got a potential: pass it to a sampler.")
    if isinstance(num_data, (Tensor, tuple, dict)):
        raise TypeError(
            "from_pyro takes the model's arguments as one: from_pyro(model, example_batch=(x, y)); "
            f"got a {type(num_data).__name__} in the place of num_data."
        )
    if num_data is not None:
        check_positive_int("num_data", num_data)
        if example_batch is None:
            raise ValueError("num_data needs an example_batch: some or all of the data.")
    if example_batch is None:
        _check_called_without(model)
    with _runtime(), seeded(0), torch.no_grad():
        adapter = _Adapter(model, num_data, example_batch)
    if adapter.params:
        warn(
            f"{list(adapter.params)} are parameters without a prior: they keep their present "
            "values and are not sampled. To sample them, use pyro.sample or PyroSample.",
        )
    functions = (adapter.log_prior, adapter.log_likelihood, adapter.export)
    lifted = [Vectorized(each, f"The Pyro model {adapter.name}") for each in functions]
    log_prior, log_likelihood, export = lifted

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def evaluate(function: Vectorized, particles: Tensor, batch: Batch | None = None) -> Tensor:
        function.looping |= any(each.looping for each in lifted)
        with _runtime(scoped=bool(adapter.params)):
            return function(particles, batch)

    def likelihood(particles: Tensor, batch: Batch) -> Tensor:
        if adapter.terms.local:
            check_complete(batch, adapter.prior_data, adapter.terms.local)
        if adapter.terms.fixed:
            check_size(batch, adapter.num_data)
        values: Tensor = evaluate(log_likelihood, particles, batch)
        return values

    def energy(particles: Tensor, batch: Batch | None) -> Tensor:
        if batch is None:
            raise ValueError(f"The model {adapter.name} needs its data.")
        prior: Tensor = evaluate(log_prior, particles)
        return -prior - likelihood(particles, batch).sum(1)

    joint = bool(adapter.terms.joint)

    def constrain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        particles = adapter.layout.ravel(tensors)
        parts = torch.split(particles, chunk_size or len(particles))
        return adapter.exports.unravel(torch.cat([evaluate(export, part) for part in parts]))

    return ModelPotential(
        layout=adapter.layout,
        num_data=adapter.num_data,
        log_prior_fn=lambda particles: evaluate(log_prior, particles),
        log_likelihood_fn=None if example_batch is None or joint else likelihood,
        energy_fn=energy if joint else None,
        starts=adapter.starts(),
        device=adapter.device,
        dtype=adapter.dtype,
        sites=ModelSites(constrain, adapter.predict),
        evaluation=Evaluation(
            compilable=False,
            chunk_size=chunk_size,
            takes_all_data=bool(adapter.terms.local) or adapter.terms.fixed,
        ),
        fingerprint=adapter.fingerprint,
    )


def _check_called_without(model: Callable[..., Any]) -> None:
    """A model that is given no data takes no arguments.

    Raises:
        TypeError: a model with arguments that must be given.
    """
    try:
        inspect.signature(model).bind()
    except TypeError as error:
        raise TypeError(
            f"The model takes data ({error}), and got none: pass some or all of them, as "
            "from_pyro(model, example_batch=(x, y)), or fill them in by functools.partial."
        ) from None
    except ValueError:  # a callable that tells no signature
        return


def posterior_predictive(
    model: Callable[..., Any],
    samples: Mapping[str, Tensor],
    args: Any = None,
    seed: int = 0,
    fixed: Mapping[str, Tensor] | None = None,
    redraw: Collection[str] = (),
) -> dict[str, Tensor]:
    """Draws of all sites of a Pyro model that ``samples`` does not hold, given those it does.

    ``y_s ~ p(y | theta_s, args)`` for sites called with ``obs=None``, one draw per sample, and the
    values of ``pyro.deterministic`` sites. The model runs once per sample, as in
    ``pyro.infer.Predictive(parallel=False)``, whose results have further dimensions of length 1.

    Args:
        model: the Pyro model.
        samples: values ``[S, *shape]`` by site, such as ``potential.constrain(particles)``.
        args: the model's arguments without the observations, a tuple, dict or tensor.
        seed: of the draws; torch's global generators stay as they are.
        fixed: values of ``pyro.param`` sites; those of Pyro's parameter store if absent.
        redraw: observed sites to draw anew, though the arguments hold observations.

    Raises:
        ValueError: no samples, or samples of different lengths.

    Examples:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x, y=None):
        ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.Normal(slope * x, 0.1), obs=y)
        >>> posterior_predictive(model, {"slope": torch.ones(50)}, torch.zeros(3))["y"].shape
        torch.Size([50, 3])
    """
    lengths = {name: len(value) for name, value in samples.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"samples must be tensors [S, *shape] with one S >= 1, got {lengths}.")

    def one(given: dict[str, Tensor]) -> dict[str, Tensor]:
        sites = _run(model, args, lambda site: given.get(site["name"]), dict(fixed or {}), redraw)
        return {name: site["value"] for name, site in sites.items() if name not in given}

    with _runtime(), seeded(seed), torch.no_grad():
        length = next(iter(lengths.values()))
        draws = [one({name: value[i] for name, value in samples.items()}) for i in range(length)]
    return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}


class _Adapter:
    """A Pyro model as functions of one particle ``[D]``, and what runs on an example say of it."""

    def __init__(self, model: Callable[..., Any], num_data: int | None, example: Any):
        self.model = copy.deepcopy(model).eval() if isinstance(model, nn.Module) else model
        function = model.func if isinstance(model, functools.partial) else model
        self.name: str = getattr(function, "__name__", type(function).__name__)
        rows = 0 if example is None else num_rows(example)
        self.num_data = num_data or rows or None
        if self.num_data and (rows > self.num_data or rows == 1 < self.num_data):
            raise ValueError(
                f"example_batch must hold 2 to {self.num_data} (num_data) data, got {rows}."
            )
        self.params: dict[str, Tensor] = {}
        points: dict[str, Tensor] = {}
        sites = self.run(example, functools.partial(uniform, points))
        if not points:
            raise ValueError(f"The model {self.name} has no latent sites: nothing to sample.")
        kinds = {name: (z.dtype, z.device) for name, z in points.items()}
        if len(set(kinds.values())) > 1:
            raise ValueError(f"All latent sites must have one dtype and device, got {kinds}.")
        self.dtype, self.device = next(iter(kinds.values()))
        self.layout = Layout({name: tuple(z.shape) for name, z in points.items()})
        self.fingerprint: dict[str, JSON] = {
            "kind": "pyro",
            "model": self.name,
            "shapes": {name: list(shape) for name, shape in self.layout.shapes.items()},
            "supports": {name: repr(sites[name]["fn"].support) for name in points},
            "fixed": list(self.params),
            "num_data": self.num_data,
        }
        self.prior_data = example
        self.names = set(sites)
        look = functools.partial(self.look, particle=self.layout.ravel(points))
        complete = rows == self.num_data
        self.terms = sort_terms(self.name, list(points), example, rows, look, complete)
        self.prior_data = self.terms.prior_data
        self.fingerprint["observed"] = self.terms.observed
        shown = self.terms.shown.items()
        self.exports = Layout({n: tuple(v.shape) for n, v in shown if v.dtype == self.dtype})

    def run(self, data: Any, latent: Callable[[Any], Tensor | None]) -> Sites:
        """One run of the model."""
        return _run(self.model, data, latent, self.params)

    def evaluate(self, particle: Tensor, data: Any) -> tuple[Sites, Tensor]:
        """The sites of a run at a particle, and ``log|det dT/dz|``."""
        parts = torch.split(particle, list(self.layout.sizes))
        shapes = self.layout.shapes.items()
        points = {name: z.view(shape) for (name, shape), z in zip(shapes, parts, strict=True)}
        volume = particle.new_zeros(())

        def latent(site: Any) -> Tensor | None:
            nonlocal volume
            z = points.get(site["name"])
            if z is None:
                return None
            transform = bijection(site)
            value: Tensor = transform(z)
            volume = volume + transform.log_abs_det_jacobian(z, value).sum()
            return value

        sites = self.run(data, latent)
        if self.names.symmetric_difference(sites):
            raise ValueError(
                f"The sites {sorted(self.names.symmetric_difference(sites))} are there in some "
                f"runs of the model {self.name} but not in others: which sites there are must not "
                "depend on the data or on latent values."
            )
        return sites, volume

    def log_prior(self, particle: Tensor) -> Tensor:
        """All that is there once, a scalar."""
        sites, total = self.evaluate(particle, self.prior_data)
        for name in self.terms.prior:
            total = total + self.log_prob(sites[name], None).sum()
        return total

    def log_likelihood(self, particle: Tensor, data: Any) -> Tensor:
        """One value per datum, ``[B]``; terms of all data together are shared out among them."""
        rows = num_rows(data)
        total = particle.new_zeros(rows)
        sites, _ = self.evaluate(particle, data)
        for name in self.terms.joint:
            total = total + self.log_prob(sites[name], rows).sum() / rows
        for name, dim in self.terms.data_dims.items():
            values = self.log_prob(sites[name], rows)
            if values.ndim < -dim or values.shape[dim] != rows:
                raise ValueError(
                    f"The log density of site {name!r} has shape {list(values.shape)}; its "
                    f"dimension {dim} must be as long as the batch, {rows}."
                )
            total = total + values.movedim(dim, 0).reshape(rows, -1).sum(1)
        return total

    def log_prob(self, site: Any, rows: int | None) -> Tensor:
        """The site's log density, scaled and masked."""
        from pyro.distributions.util import scale_and_mask

        values = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
        result: Tensor = scale_and_mask(values, self.scale(site, rows), site["mask"])
        return result

    def scale(self, site: Any, rows: int | None) -> Any:
        """The site's scale without the N/B of a plate that subsamples."""
        scale = site["scale"]
        for frame in subsampling(site):
            if (frame.full_size, frame.size) != (self.num_data, rows):
                raise ValueError(
                    f"The plate {frame.name!r} takes {frame.size} of {frame.full_size}, but the "
                    f"batch has {rows or 'no data'} of num_data={self.num_data}. Minibatches are "
                    "made by sample(batch_size=...): write pyro.plate(name, len(batch)), or give "
                    "the plate size=num_data and subsample_size=len(batch)."
                )
            scale = scale / (frame.full_size / frame.size)
        return scale

    def export(self, particle: Tensor) -> Tensor:
        """The values that ``constrain`` gives, flattened, ``[K]``."""
        sites, _ = self.evaluate(particle, self.prior_data)
        return torch.cat([sites[name]["value"].reshape(-1) for name in self.exports.shapes])

    def predict(self, samples: dict[str, Tensor], args: Any, seed: int) -> dict[str, Tensor]:
        """Draws of the observed sites, whether or not the arguments hold observations."""
        observed = self.terms.observed
        found = posterior_predictive(self.model, samples, args, seed, self.params, observed)
        return {name: found[name] for name in observed if name in found}

    def starts(self) -> Starts:
        """Ways to choose starting points; from the prior only if every site has draws."""
        uniformly = functools.partial(self._draw, uniform)
        prior = functools.partial(self._draw, from_prior)
        methods: dict[str, Draw] = {"prior": prior, "uniform": uniformly}
        try:
            prior(1, ParticleStreams(0))
        except Exception:
            del methods["prior"]
        return Starts(methods, named=self._at_values)

    def _draw(self, rule: Rule, num_particles: int, streams: Streams) -> Tensor:
        draws = []
        for seed in draw_seeds(streams, num_particles):
            with _runtime(), seeded(seed), torch.no_grad():
                points: dict[str, Tensor] = {}
                self.run(self.prior_data, functools.partial(rule, points))
                draws.append(self.layout.ravel(points))
        return torch.stack(draws)

    def _at_values(
        self, values: Mapping[str, Tensor], num_particles: int, streams: Streams
    ) -> Tensor:
        """Every particle but the first near, and the first at, values of the sites."""
        names = list(self.layout.shapes)
        missing = [name for name in names if name not in values]
        if missing or len(values) > len(names):
            unknown = [name for name in values if name not in names]
            raise ValueError(
                f"initial holds values of the sites {names}: missing {missing}, unknown {unknown}."
            )
        given = {name: torch.as_tensor(v).to(self.device, self.dtype) for name, v in values.items()}
        rule = functools.partial(at_values, given)
        point = self._draw(rule, 1, streams)
        return jittered(point, self.layout.sizes, num_particles, streams)

    def look(self, data: Any, rows: int | None, particle: Tensor | None) -> Sites:
        """The sites of a run, at any point if no particle is given, with their log densities."""
        free = functools.partial(uniform, {})
        sites = self.run(data, free) if particle is None else self.evaluate(particle, data)[0]
        for site in sites.values():
            site["log_prob"] = self.log_prob(site, rows)
            site["scale"] = self.scale(site, rows)
        return sites


@contextmanager
def _runtime(scoped: bool = True) -> Iterator[None]:
    """Pyro's runtime for us alone, without validation, its global state as before afterwards."""
    import pyro

    laws = torch.distributions.Distribution
    with ExitStack() as stack:
        stack.enter_context(_LOCK)
        stack.callback(laws.set_default_validate_args, laws._validate_args)
        stack.enter_context(pyro.validation_enabled(False))
        if scoped:
            store = pyro.get_param_store()
            stack.enter_context(store.scope(store.get_state()))
        yield


@functools.cache
def _recorder() -> Any:
    """The class of Pyro handler used here, made late because Pyro is imported late."""
    from pyro.poutine.messenger import Messenger

    class Recorder(Messenger):
        """Gives latent sites, subsamples and parameters their values; notes the sample sites."""

        def __init__(
            self,
            latent: Callable[[Any], Tensor | None],
            params: dict[str, Tensor],
            redraw: Collection[str],
        ):
            super().__init__()
            self.latent, self.params, self.redraw = latent, params, redraw
            self.sites: Sites = {}

        def _pyro_sample(self, site: Any) -> None:
            law = site["fn"]
            if site["name"] in self.redraw:
                site["value"], site["is_observed"] = None, False
            if isinstance(law, torch.distributions.Distribution):
                site["fn"] = _unvalidated(law)
            if site["value"] is None and hasattr(law, "subsample_size"):
                length = min(law.size, law.subsample_size or law.size)
                site["value"] = torch.arange(length, device=law.device)
            elif site["value"] is None and not site["is_observed"]:
                site["value"] = self.latent(site)

        def _pyro_post_sample(self, site: Any) -> None:
            if site["name"] in self.sites:
                raise ValueError(f"The model has two sample sites named {site['name']!r}.")
            if not hasattr(site["fn"], "subsample_size"):
                self.sites[site["name"]] = site

        def _pyro_param(self, site: Any) -> None:
            site["value"] = self.params.get(site["name"], site["value"])

        def _pyro_post_param(self, site: Any) -> None:
            value = site["value"]
            own = value if isinstance(value, nn.Parameter) else value.detach().clone()
            self.params.setdefault(site["name"], own)

    return Recorder


def _run(
    model: Callable[..., Any],
    data: Any,
    latent: Callable[[Any], Tensor | None],
    params: dict[str, Tensor],
    redraw: Collection[str] = (),
) -> Sites:
    """One run of a model."""
    with _recorder()(latent, params, redraw) as recorder:
        if isinstance(data, Mapping):
            model(**data)
        elif isinstance(data, (tuple, list)):
            model(*data)
        else:
            model(*([] if data is None else [data]))
    sites: Sites = recorder.sites
    return sites


def _unvalidated(law: Any) -> Any:
    """A copy of a distribution for which an impossible value is no exception."""
    law = copy.copy(law)
    law.__dict__["_validate_args"] = False  # an attribute of Independent would set it in its base
    for name, part in vars(law).items():
        if isinstance(part, torch.distributions.Distribution):
            law.__dict__[name] = _unvalidated(part)
    return law
