"""The result of a run: draws, and what they say about parameters and predictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from particlevi import _html
from particlevi._checks import as_path, check_flag
from particlevi.data import DataLike
from particlevi.diagnostics import convergence, export, outputs, predictive, temperatures
from particlevi.diagnostics.arviz import EssMethod, McseMethod
from particlevi.diagnostics.ensemble import Ensemble, to_module
from particlevi.diagnostics.groups import recombine
from particlevi.diagnostics.predictive import Prediction
from particlevi.diagnostics.summary import summary
from particlevi.diagnostics.temperatures import Temperature
from particlevi.diagnostics.verdict import Verdict, diagnose
from particlevi.diagnostics.views import View
from particlevi.drawset import DrawSet
from particlevi.drawset.data import Kind
from particlevi.potentials.layout import Groups
from particlevi.potentials.potential import ModelPotential
from particlevi.potentials.prior_predictive import PriorPredictive
from particlevi.report import write_draws
from particlevi.storage import drawfile
from particlevi.storage.weights import checkpoint_files, read_weights
from particlevi.tuning import invariance
from particlevi.tuning.alarm import add_alarm
from particlevi.tuning.invariance import Invariance

__all__ = ["Draws", "Prediction"]


@final
class Draws(DrawSet):
    """Draws of a run: data (see ``DrawSet``), with predictions and diagnostics at hand.

    ``draws[:, 100:]`` and ``draws[[0, 2]]`` are draws again, ``len(draws)`` counts chains, and
    iterating goes from chain to chain. Every method below is a function of
    ``particlevi.diagnostics`` under its name.

    Examples:
        >>> import torch, particlevi as pvi
        >>> draws = pvi.Draws(torch.randn(4, 100, 2))
        >>> draws[:2, 50:]
        Draws(2 chains x 50 draws x 2)
        >>> [len(chain) for chain in draws]
        [1, 1, 1, 1]
    """

    def constrained(self) -> dict[str, Tensor]:
        """The draws as the model's own quantities by name, ``[P, T, *shape]``."""
        return outputs.constrained(self)

    def outputs(self, inputs: Any, thin: int = 1, chunk_size: int = 64) -> Tensor:
        """The model's outputs at some inputs for every draw, ``[P, T, B, ...]``.

        Args:
            inputs: one tensor ``[B, ...]``, or a tuple of them for a module with several inputs.
            thin: use every ``thin``-th draw.
            chunk_size: draws evaluated at once.
        """
        return outputs.outputs(self, inputs, thin, chunk_size)

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
            inputs: one tensor ``[B, ...]``, or a tuple of them for a module with several inputs, or
                a ``DataLoader`` of data as given to ``sample``, whose targets are left out;
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

        Examples:
            >>> import torch, particlevi as pvi
            >>> net = torch.nn.Linear(1, 1)
            >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
            >>> likelihood, prior = pvi.Gaussian(scale=0.1), pvi.Normal(1.0)
            >>> potential = pvi.from_module(net, likelihood, prior, num_data=20)
            >>> draws = pvi.sample(
            ...     pvi.sghmc(potential), data=(x, 2 * x), step_size=0.02, num_particles=4,
            ...     num_warmup=500, num_draws=100, thin=5, progress=False,
            ... )
            >>> mean, std = draws.predict(torch.tensor([[0.5]]))
            >>> bool((mean - 1).abs() < 0.1)
            True
        """
        return predictive.predict(
            self,
            inputs,
            quantiles=quantiles,
            thin=thin,
            chunk_size=chunk_size,
            batch_size=batch_size,
            seed=seed,
        )

    def log_likelihood(
        self, data: DataLike, *, thin: int = 1, chunk_size: int = 64, batch_size: int = 1024
    ) -> Tensor:
        """Log-likelihoods of data under every draw, ``[P, T, N]``, in nats.

        Args:
            data: as given to ``sample``; other data of the same structure for held-out scores.
            thin: use every ``thin``-th draw.
            chunk_size: draws evaluated at once.
            batch_size: data evaluated at once.
        """
        return outputs.log_likelihood(
            self, data, thin=thin, chunk_size=chunk_size, batch_size=batch_size
        )

    def log_predictive_density(
        self, data: DataLike, *, thin: int = 1, chunk_size: int = 64, batch_size: int = 1024
    ) -> Tensor:
        """``log (1/S) sum_s p(y_n | x_n, theta_s)`` per datum, ``[N]``, in nats.

        Its mean is the test log-likelihood, its negative mean the NLL.

        Args:
            data: held-out data of the structure given to ``sample``.
            thin: use every ``thin``-th draw.
            chunk_size: draws evaluated at once.
            batch_size: data evaluated at once.
        """
        return outputs.log_predictive_density(
            self, data, thin=thin, chunk_size=chunk_size, batch_size=batch_size
        )

    def ess(
        self,
        of: View = "parameters",
        *,
        inputs: Any = None,
        method: EssMethod = "bulk",
        prob: float | None = None,
        num: int = 100,
        per: Literal["second", "gradient"] | None = None,
    ) -> npt.NDArray[np.float64]:
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
        return convergence.ess(self, of, inputs=inputs, method=method, prob=prob, num=num, per=per)

    def mcse(
        self,
        of: View = "parameters",
        *,
        inputs: Any = None,
        method: McseMethod = "mean",
        prob: float | None = None,
        num: int = 100,
    ) -> npt.NDArray[np.float64]:
        """Monte-Carlo standard errors, by ArviZ; arguments as for ``ess``.

        ``method`` is the estimate: ``"mean"``, ``"sd"``, ``"median"`` or ``"quantile"``.
        """
        return convergence.mcse(self, of, inputs=inputs, method=method, prob=prob, num=num)

    def rhat(
        self,
        of: View = "parameters",
        *,
        inputs: Any = None,
        num: int = 100,
        superchains: int | None = None,
    ) -> npt.NDArray[np.float64]:
        """Rank-normalised split R-hat, by ArviZ; arguments as for ``ess``.

        With ``superchains=K`` it is the nested one, for many short chains: K groups of chains that
        follow each other, each group begun at another point.
        """
        return convergence.rhat(self, of, inputs=inputs, num=num, superchains=superchains)

    def autocorrelation_time(
        self, of: View = "parameters", *, inputs: Any = None, num: int = 100
    ) -> npt.NDArray[np.float64]:
        """Integrated autocorrelation times in draws, ``P T / ESS`` of the mean; as for ``ess``."""
        return convergence.autocorrelation_time(self, of, inputs=inputs, num=num)

    def temperatures(self, data: DataLike = None, *, thin: int = 1) -> dict[str, Temperature]:
        """Kinetic and configurational temperatures, each with its Monte-Carlo standard error.

        For momentum methods ``"kinetic"``, and ``"kinetic[name]"`` of each tensor if there are
        several; ``"all"`` and ``name`` for the configurational temperatures. See
        ``particlevi.diagnostics.temperatures``.

        Args:
            data: as given to ``sample``.
            thin: for the configurational ones, use every ``thin``-th draw.
        """
        return temperatures.every(self, data, thin=thin)

    def diagnose(
        self,
        data: DataLike = None,
        *,
        inputs: Any = None,
        thin: int = 1,
        alarm: bool | None = None,
        verbose: bool = True,
    ) -> Verdict:
        """Print a verdict on the run: what is wrong, by how much, and what to change.

        Args:
            data: as given to ``sample``; adds the configurational temperature, on all the data.
            inputs: probe inputs: convergence is then that of the outputs there.
            thin: for the configurational temperature, use every ``thin``-th draw.
            alarm: go on from the draws with an exact kernel on all the data and test whether they
                move, as ``check_invariance`` does, by 4 x 150 gradients per chain; what it took is
                in the verdict. If absent, that is done where data are given, there are eight
                chains or more, and it takes no more than the run did.
            verbose: print it. A notebook shows the verdict where a cell ends in it, and nothing is
                printed there.

        Returns:
            The verdict, with ``.ok``, ``.findings`` and ``.facts``.
        """
        check_flag("verbose", verbose)
        if alarm is not None:
            check_flag("alarm", alarm)
        verdict = diagnose(self, data, inputs=inputs, thin=thin)
        add_alarm(self, data, inputs, alarm, verdict)
        if verbose and not _html.in_notebook():
            print(verdict)
        return verdict

    def summary(self) -> str:
        """A run in a few lines: what was chosen and why, ESS and R-hat, energy error, seconds."""
        return summary(self)

    def report(
        self,
        path: str | Path,
        data: DataLike = None,
        *,
        test_data: DataLike = None,
        inputs: Any = None,
        figures: Mapping[str, Any] | None = None,
        title: str = "Posterior draws",
        thin: int = 1,
    ) -> Path:
        """Write one HTML page about the draws that needs nothing else, to send to a colleague.

        Verdict first; what was sampled and how; convergence; temperatures; with ``test_data``
        predictions and calibration. It holds its style and its charts, works without a network,
        and reads on a phone and in print.

        Args:
            path: of the page.
            data: as given to ``sample``; for the verdict and the configurational temperature.
            test_data: held-out data of a module, ``(inputs, ..., targets)``.
            inputs: probe inputs: convergence is then that of the outputs there.
            figures: matplotlib figures or axes by title, such as those of ``pvi.plots`` of an
                effective potential or of gradient noise.
            title: of the page.
            thin: for temperatures and predictions, use every ``thin``-th draw.

        Returns:
            The path.

        Examples:
            >>> import tempfile, torch, particlevi as pvi
            >>> draws = pvi.Draws.from_tensor(torch.randn(4, 100, 2))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     page = draws.report(f"{folder}/report.html")
            ...     page.stat().st_size < 100_000
            True
        """
        return write_draws(
            self,
            path,
            data,
            test_data=test_data,
            inputs=inputs,
            figures=figures,
            title=title,
            thin=thin,
        )

    def check_invariance(self, data: DataLike = None, **options: Any) -> Invariance:
        """Go on from the draws with an exact kernel, and test whether anything moves.

        R-hat is blind to chains that agree on a wrong law; this is not. It prints and returns a
        p-value and the size of the shift in posterior standard deviations.

        Args:
            data: as given to ``sample``.
            options: as for ``pvi.tuning.check_invariance``: ``num_starts`` of each chain,
                ``num_steps`` of the kernel, the ``tolerance``, ``inputs``, ``seed``.
        """
        found = invariance.check_invariance(self, data, **options)
        if not _html.in_notebook():
            print(found)
        return found

    def to_arviz(
        self,
        data: DataLike = None,
        *,
        log_likelihood: bool = False,
        posterior_predictive: bool = False,
        prior: PriorPredictive | None = None,
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
            prior: from ``potential.prior_predictive(inputs)``; adds the groups ``prior`` and
                ``prior_predictive``.
            seed: of those targets.
        """
        return export.to_arviz(
            self,
            data,
            log_likelihood=log_likelihood,
            posterior_predictive=posterior_predictive,
            prior=prior,
            seed=seed,
        )

    def save(self, path: str | Path) -> None:
        """Write the draws to one safetensors file; ``pvi.load`` reads it and runs no code."""
        drawfile.write(self, as_path("path", path))

    def to_module(self, num: int | None = None, chunk_size: int | None = None) -> Ensemble:
        """The draws as one ``nn.Module`` that predicts, for code that knows nothing of them.

        Called on inputs it gives a dict with ``mean``, and for labels ``entropy`` and
        ``mutual_information``, else ``std`` and ``epistemic_std``; ``.members(inputs)`` are the
        outputs of every draw. ``torch.export`` takes it.

        Args:
            num: so many draws, evenly spaced over all chains; all of them if absent.
            chunk_size: draws evaluated at once.

        Raises:
            ValueError: draws of a potential that was not made by ``from_module``, or of a part of
                its parameters.

        Examples:
            >>> import torch, particlevi as pvi
            >>> net = torch.nn.Linear(2, 3)
            >>> model = pvi.from_module(net, pvi.Categorical(), pvi.Normal(1.0), num_data=10)
            >>> ensemble = pvi.Draws.from_tensor(torch.randn(4, 5, 9), model).to_module()
            >>> sorted((name, list(v.shape)) for name, v in ensemble(torch.ones(7, 2)).items())
            [('entropy', [7]), ('mean', [7, 3]), ('mutual_information', [7])]
        """
        return to_module(self, num, chunk_size)

    @classmethod
    def from_checkpoints(
        cls,
        potential: ModelPotential,
        source: str | Path | Iterable[str | Path],
        *,
        pattern: str = "*",
        prefix: str = "",
        kind: Kind = "chains",
        seconds: float = float("nan"),
    ) -> Draws:
        """Draws from checkpoints of the module that the potential was made from.

        Args:
            potential: from ``from_module``.
            source: a folder of ``.safetensors`` files or files by ``torch.save``, in the order of
                the numbers in their names; or a list of files. Several runs are
                ``Draws.concat([...], along="chains")``.
            pattern: of the files that count, such as ``"epoch*.pt"``.
            prefix: before the names of the module's tensors, such as ``"net."``.
            kind: as in ``from_tensor``; ``"independent"`` for an ensemble of trained nets.
            seconds: that they took.

        Raises:
            FileNotFoundError: no checkpoint there.
            ValueError: a file that holds more than tensors, or lacks some that are sampled.

        Examples:
            >>> import tempfile, torch, particlevi as pvi
            >>> net = torch.nn.Linear(2, 1)
            >>> model = pvi.from_module(net, pvi.Gaussian(0.1), pvi.Normal(1.0), num_data=10)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     for step in range(3):
            ...         torch.save(net.state_dict(), f"{folder}/step{step}.pt")
            ...     pvi.Draws.from_checkpoints(model, folder).particles.shape
            torch.Size([1, 3, 3])
        """
        paths = checkpoint_files(source, pattern)
        states = []
        for path in paths:
            state = read_weights(path, prefix)
            missing = [name for name in potential.layout.shapes if name not in state]
            if missing:
                raise ValueError(
                    f"{path} lacks {missing}, which are sampled; it has {list(state)[:20]}. Other "
                    "names take prefix=..., other files pattern=...."
                )
            states.append(state)
        return cls.from_state_dicts(potential, states, kind=kind, seconds=seconds)

    def recombine(
        self,
        num: int,
        groups: Groups | None = None,
        *,
        pooled: bool | None = None,
        seed: int = 0,
    ) -> Draws:
        """Draws from the factorised law: each group of parameters from another draw.

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
        return recombine(self, num, groups, pooled, seed)
