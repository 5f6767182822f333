"""The stationary law of SGD on a diagonal linear net, and where it collapses.

A net with ``D + 1`` factors per path, ``v = sum_i prod_k w_ik``, loss ``(v x - y)^2`` and d active
equal paths. With ``b1 = E x^2``, ``b2 = E x y``, ``a1 = Var x^2``, ``a2 = Cov(x^2, x y)``,
``a3 = Var x y``, ``q(v) = a1 v^2 - 2 a2 v + a3`` and ``T = eta/S``, on ``v > 0``::

    D = 0:  log p = -(1 + b1/(2 T a1)) log q - (a2 b1 - a1 b2)/(T a1 r) arctan((a1 v - a2)/r)
    D > 0:  log p = -3 (1 - 1/(D+1)) log v - log q
                    - (1/T) int dv d^(1 - 2/(D+1)) (b1 v - b2) / ((D+1) v^(2D/(D+1)) q)

with ``r = sqrt(a1 a3 - a2^2)``. Above ``T_c = b2/a3`` a net of depth 1 collapses to ``v = 0``.

Reference: Ziyin, Li and Ueda, "Law of balance and stationary distribution of stochastic gradient
descent", 2023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from particlevi._checks import check_positive, check_positive_int, check_real, is_integer
from particlevi._shown import Shown
from particlevi.noise.samples import Array

__all__ = ["DiagonalNet"]

_GRID = 40_001


@dataclass(frozen=True, repr=False)
class DiagonalNet(Shown):
    """The moments of the data, and the shape of the net.

    Attributes:
        a1, a2, a3: ``Var x^2``, ``Cov(x^2, x y)``, ``Var x y``.
        b1, b2: ``E x^2``, ``E x y``.
        depth: D; 0 is linear regression.
        num_paths: d, active paths; memory of the start decides it.

    Raises:
        ValueError: moments that no data have, or data that a net fits exactly
            (``a1 a3 = a2^2``), where the noise vanishes.

    Examples:
        >>> net = DiagonalNet.of_gaussian_data(slope=1.0, noise=1.0)
        >>> round(net.critical_temperature, 4), round(net.mode(0.05), 5)
        (0.3333, 0.88641)
    """

    a1: float
    a2: float
    a3: float
    b1: float
    b2: float
    depth: int = 1
    num_paths: int = 1

    def __post_init__(self) -> None:
        for name in ("a1", "a3", "b1", "b2"):
            check_positive(name, getattr(self, name))
        check_real("a2", self.a2)
        check_positive_int("num_paths", self.num_paths)
        if not is_integer(self.depth) or self.depth < 0:
            raise ValueError(f"depth must be an integer of at least 0, got {self.depth!r}.")
        square = float(self.a2) * float(self.a2)
        if self.a1 * self.a3 <= square:
            raise ValueError(
                f"a1 a3 must be above a2^2, got {self.a1 * self.a3:.3g} and {square:.3g}: "
                "data that can be fitted exactly have a point without noise."
            )

    @classmethod
    def of_gaussian_data(
        cls, slope: float, noise: float, depth: int = 1, num_paths: int = 1
    ) -> DiagonalNet:
        """For ``x ~ N(0, 1)`` and ``y = slope x + e``, ``e ~ N(0, noise^2)``."""
        check_positive("slope", slope)
        check_positive("noise", noise)
        k, s2 = slope, noise**2
        return cls(2.0, 2 * k, 2 * k**2 + s2, 1.0, k, depth, num_paths)

    def _q(self, v: Array) -> Array:
        return self.a1 * v**2 - 2 * self.a2 * v + self.a3

    @property
    def critical_temperature(self) -> float:
        """``T_c = b2/a3``, above which a net of depth 1 collapses to 0.

        That is of the continuous-time limit: with steps of finite size it is seen only where
        ``T_c`` is far below 1.
        """
        return self.b2 / self.a3

    def mode(self, temperature: float) -> float:
        """The most probable v of a net of depth 1.

        Raises:
            ValueError: another depth, a collapsed net, or a density that falls from 0 on.
        """
        check_positive("temperature", temperature)
        if self.depth != 1:
            raise ValueError(f"The mode is known for depth 1, this net has depth {self.depth}.")
        self._check_alive(temperature)
        t = temperature
        half = self.b1 - 10 * self.a2 * t
        inside = half**2 + 28 * self.a1 * t * (self.b2 - 3 * self.a3 * t)
        found = (-half + math.sqrt(inside)) / (14 * self.a1 * t) if inside >= 0 else -1.0
        if found <= 0:
            raise ValueError(
                f"At T={t:.3g} the density falls from v = 0 on and has no mode of its own; one "
                f"exists below T_c/3 = {self.critical_temperature / 3:.3g}."
            )
        return found

    def _check_alive(self, temperature: float) -> None:
        if self.depth == 1 and temperature >= self.critical_temperature:
            raise ValueError(
                f"T={temperature:.3g} is above T_c={self.critical_temperature:.3g}: the net has "
                "collapsed to v = 0, and there is no density."
            )

    def log_density(self, v: Array, temperature: float) -> Array:
        """The logarithm of the stationary density, up to a constant, ``[n]``.

        By its closed form at depth 0 and 1, else by an integral on the grid of the points.

        Args:
            v: points; above 0 and increasing for a depth of 1 or more.
            temperature: ``T = eta/S``.

        Raises:
            ValueError: points that are not positive, or a collapsed net.
        """
        check_positive("temperature", temperature)
        self._check_alive(temperature)
        t, r = temperature, math.sqrt(self.a1 * self.a3 - self.a2**2)
        angle = np.arctan((self.a1 * v - self.a2) / r)
        log_q = np.log(self._q(v))
        if self.depth == 0:
            drift = (self.a2 * self.b1 - self.a1 * self.b2) / (t * self.a1 * r)
            found: Array = -(1 + self.b1 / (2 * t * self.a1)) * log_q - drift * angle
            return found
        if not (v > 0).all():
            raise ValueError("v must be above 0: below, the law is a point at 0.")
        if self.depth == 1:
            power = self.b2 / (2 * self.a3 * t)
            drift = (self.a3 * self.b1 - self.a2 * self.b2) / (2 * t * self.a3 * r)
            closed: Array = (power - 1.5) * np.log(v) - (1 + power / 2) * log_q - drift * angle
            return closed
        return self._integrated(v, t)

    def _integrated(self, v: Array, temperature: float) -> Array:
        """The density of any depth of 1 or more, by the trapezoidal rule in ``log v``."""
        order = self.depth + 1
        slope = (self.b1 * v - self.b2) / (order * v ** (2 * self.depth / order) * self._q(v))
        slope = slope * v * self.num_paths ** (1 - 2 / order)
        steps = np.diff(np.log(v)) * (slope[1:] + slope[:-1]) / 2
        inside = np.concatenate([[0.0], np.cumsum(steps)])
        found: Array = -3 * (1 - 1 / order) * np.log(v) - np.log(self._q(v)) - inside / temperature
        return found

    def quantiles(self, probabilities: Array, temperature: float) -> Array:
        """Quantiles of the stationary law, by quadrature.

        Args:
            probabilities: in (0, 1).
            temperature: ``T = eta/S``.
        """
        wide = max(abs(self.b2 / self.b1), 1.0)
        if self.depth == 0:
            v = wide * np.sinh(np.linspace(-12, 12, _GRID))
            jacobian = np.sqrt(v**2 + wide**2)
        else:
            v = wide * np.exp(np.linspace(-30, 12, _GRID))
            jacobian = v
        log_weight = self.log_density(v, temperature) + np.log(jacobian)
        weight = np.exp(log_weight - log_weight.max())
        total = np.concatenate([[0.0], np.cumsum((weight[1:] + weight[:-1]) / 2)])
        found: Array = np.interp(probabilities, total / total[-1], v)
        return found
