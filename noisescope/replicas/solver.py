"""Many weighted ridge-logistic fits of one dataset at once, in float32 matrix products.

All Q problems share the pairs and differ in their sample weights (folds, bootstraps):

    minimise over u_q:  sum_i S_iq log(1 + exp(-m_iq)) + |u_q|^2 / 2,   m = design.margins(U)

Every pair's label is "+1": its margin is oriented chosen minus rejected (Eq. 5, 7 of 2503.16921,
with pi(y|c) ~ exp(theta . phi(c, y)) the DPO margin beta * l is linear in theta).
Usage: `fit = solve(design, weights, start)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_array
from scipy.special import expit, log_expit

from noisescope.errors import EvidenceError

Float = NDArray[np.float32]
CURVATURE_FLOOR = np.float32(1e-12)
ROUNDING = 1e-6
HALVINGS = 12


@dataclass(frozen=True)
class Design:
    """The linear map from whitened coefficients U [P + E + I, Q] to margins [N, Q].

    margins = incidence @ (dense @ U[:P]) + pairs @ U[P:P + E] + identity @ U[P + E:]; an absent
    incidence means that `dense` already holds within-pair differences (K = N), absent pairs or
    identity that E or I is 0.
    """

    dense: Float  # [K, P], columns scaled by the prior's standard deviation
    incidence: csr_array | None  # [N, K], +1 at the chosen and -1 at the rejected response
    identity: csr_array | None  # [N, I], the same incidence on free abilities, scaled likewise
    pairs: Float | None = None  # [N, E], numbers of pairs, antisymmetric in the sides, scaled too

    @property
    def width(self) -> int:
        """P + E."""
        return int(self.dense.shape[1] + (0 if self.pairs is None else self.pairs.shape[1]))

    def margins(self, u: Float) -> Float:
        """U [P + E + I, Q] -> margins [N, Q]."""
        width = self.dense.shape[1]
        rows = self.dense @ u[:width]
        out: Float = rows if self.incidence is None else self.incidence @ rows
        if self.pairs is not None:
            out = out + self.pairs @ u[width : self.width]
        return out if self.identity is None else out + self.identity @ u[self.width :]

    def adjoint(self, slopes: Float) -> Float:
        """Slopes [N, Q] -> coefficients [P + E + I, Q]: the transpose of `margins`."""
        rows = slopes if self.incidence is None else self.incidence.T @ slopes
        parts: list[Float] = [self.dense.T @ rows]
        if self.pairs is not None:
            parts.append(self.pairs.T @ slopes)
        if self.identity is not None:
            parts.append(self.identity.T @ slopes)
        return parts[0] if len(parts) == 1 else np.vstack(parts)

    def hessian(self, curvature: Float) -> Float:
        """A' diag(curvature) A of the first P + E coefficients; `curvature` is [N]."""
        if self.incidence is None:
            weighted = self.dense * curvature[:, None]  # [N, P]
            out: Float = self.dense.T @ weighted
        else:
            scaled = self.incidence.multiply(curvature[:, None]).tocsr()
            laplacian = (self.incidence.T @ scaled).tocsr()  # [K, K]
            out = self.dense.T @ (laplacian @ self.dense)
        if self.pairs is None:
            return out
        weighted = self.pairs * curvature[:, None]  # [N, E]
        rows = weighted if self.incidence is None else self.incidence.T @ weighted
        cross = self.dense.T @ rows  # [P, E]
        return np.block([[out, cross], [cross.T, self.pairs.T @ weighted]])


@dataclass(frozen=True)
class Preconditioner:
    """Block inverse of the Hessian I + A' diag(curvature) A.

    Cholesky on the dense columns, Jacobi on the identity columns.
    """

    factor: tuple[Float, bool]
    diagonal: Float  # [I]

    @classmethod
    def of(cls, design: Design, curvature: Float) -> Preconditioner:
        """`curvature` [N] is a typical s p (1 - p) of each pair."""
        hessian = design.hessian(curvature)
        hessian[np.diag_indices_from(hessian)] += 1.0
        diagonal = np.ones(0, np.float32)
        if design.identity is not None:
            diagonal = 1 + design.identity.multiply(design.identity).T @ curvature
        return cls(cho_factor(hessian, lower=True, overwrite_a=True), diagonal.astype(np.float32))

    def __call__(self, gradient: Float) -> Float:
        """Approximate Newton direction for a gradient [P + E + I, Q]."""
        width = len(gradient) - len(self.diagonal)
        top = cho_solve(self.factor, gradient[:width], check_finite=False)
        return np.vstack([top, gradient[width:] / self.diagonal[:, None]]).astype(np.float32)


@dataclass(frozen=True)
class Solution:
    """The optimum of Q problems, where u = A' slopes."""

    u: Float  # [P + E + I, Q]
    margins: Float  # [N, Q]
    slopes: Float  # [N, Q], S (1 - p)
    precondition: Preconditioner


def dots(a: Float, b: Float) -> Float:
    """Column-wise inner products: [P, Q], [P, Q] -> [Q]."""
    out: Float = np.einsum("pq,pq->q", a, b)
    return out


def objective(weights: Float, margins: Float, u: Float) -> NDArray[np.float64]:
    """Penalised loss of every problem, [Q]: sum_i S log(1 + exp(-m)) + |u|^2 / 2.

    Summed in float64: the rounding of a float32 sum over 10,000 pairs exceeds the gain of a last
    step, which `halved_steps` would refuse for ever.
    """
    loss = np.einsum("nq,nq->q", weights, log_expit(margins), dtype=np.float64)
    return np.asarray(np.einsum("pq,pq->q", u, u, dtype=np.float64) / 2 - loss)


@np.errstate(invalid="ignore")  # some BLAS kernels raise the flag on finite input
def solve(
    design: Design,
    weights: Float,
    start: Float | None = None,
    *,
    tolerance: float = 1e-4,
    limit: int = 25,
) -> Solution:
    """Newton's method with conjugate-gradient steps and step halving, all columns together.

    `weights` S [N, Q] >= 0; `start` margins [N, Q] to linearise at first (default 0): Newton's
    step needs no coefficients, so neighbouring priors and designs warm-start each other.
    Stops when every column's decrement g' H^-1 g (twice the distance of the objective to its
    optimum, nats) is under `tolerance`.
    """
    margins = np.zeros_like(weights) if start is None else start
    p = expit(margins)
    curvature = weights * p * (1 - p)
    precondition = Preconditioner.of(design, curvature.mean(axis=1))
    working = design.adjoint(curvature * margins + weights * (1 - p))
    u = solve_linear(design, curvature, working, precondition)
    margins = design.margins(u)
    for _ in range(limit):
        p = expit(margins)
        gradient = u - design.adjoint(weights * (1 - p))
        direction = -solve_linear(design, weights * p * (1 - p), gradient, precondition)
        if -float(dots(gradient, direction).min()) < tolerance:
            break
        change = design.margins(direction)
        step = halved_steps(weights, margins, change, u, direction)
        u, margins = u + step * direction, margins + step * change
    if not np.isfinite(margins).all():
        raise EvidenceError(
            "the fit of the replicas is not finite",
            hint="Check the features for extreme values: a model in --dtype float32 has fewer.",
        )
    return Solution(u, margins, weights * expit(-margins), precondition)


def halved_steps(
    weights: Float, margins: Float, change: Float, u: Float, direction: Float
) -> Float:
    """The largest step of 1, 1/2, 1/4 ... per column [Q] that does not raise the objective."""
    loss = objective(weights, margins, u)
    step = np.ones(u.shape[1], np.float32)
    for _ in range(HALVINGS):
        trial = objective(weights, margins + step * change, u + step * direction)
        worse = trial > loss * (1 + ROUNDING)
        if not worse.any():
            break
        step[worse] /= 2
    return step


def solve_linear(
    design: Design,
    curvature: Float,
    right: Float,
    precondition: Preconditioner,
    *,
    tolerance: float = 0.05,
    limit: int = 60,
) -> Float:
    """Solve (I + A' diag(curvature_q) A) x_q = right_q by preconditioned conjugate gradients.

    `curvature` [N, Q], `right` [P + E + I, Q] -> x [P + E + I, Q], to `tolerance` relative in the
    H^-1 norm.
    """
    x: Float = np.zeros_like(right)
    residual = right
    natural = precondition(residual)
    direction: Float = natural
    power: Float = dots(residual, natural)
    target = tolerance**2 * np.maximum(power, CURVATURE_FLOOR)
    for _ in range(limit):
        image = direction + design.adjoint(curvature * design.margins(direction))
        step = power / np.maximum(dots(direction, image), CURVATURE_FLOOR)
        x += step * direction
        residual = residual - step * image
        natural = precondition(residual)
        fresh = dots(residual, natural)
        if bool((fresh < target).all()):
            break
        ratio = fresh / np.maximum(power, CURVATURE_FLOOR)
        direction = (natural + ratio * direction).astype(np.float32, copy=False)
        power = fresh
    return x
