"""The updates of DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095) as pure functions, one for each box of the paper.

A noisy sample is x_t = alpha_t x_0 + sigma_t epsilon with alpha_t^2 + sigma_t^2 = 1. The solver's time is
lambda_t = log(alpha_t / sigma_t), half the log-SNR, which grows from noise to data. The exact solution of the diffusion
ODE is (Proposition 4.1)

    x_t = sigma_t / sigma_s x_s + sigma_t * integral of e^lambda x_0(lambda) from lambda_s to lambda_t

where x_0(lambda) is the data prediction along the path. Every update replaces it by a polynomial through predictions
that are known: a `Node` is lambda and the data prediction there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

__all__ = [
    "Node",
    "alpha",
    "dpm_solver_update",
    "first_order",
    "second_order",
    "sigma",
    "third_order",
]

Node = tuple[float, Tensor]


def alpha(half_log_snr: float) -> float:
    """Scale of the signal at lambda."""
    return 1 / math.sqrt(1 + math.exp(-2 * half_log_snr))


def sigma(half_log_snr: float) -> float:
    """Scale of the noise at lambda."""
    return alpha(-half_log_snr)


def first_order(x_s: Tensor, at_s: Node, lambda_t: float) -> Tensor:
    """DPM-Solver++1, which is DDIM: Algorithm 2 before there is anything to remember. The prediction is constant.

    x_t = sigma_t / sigma_s x_s - alpha_t (e^-h - 1) x_0(s), h = lambda_t - lambda_s
    """
    lambda_s, original = at_s
    return sigma(lambda_t) / sigma(lambda_s) * x_s + alpha(lambda_t) * _phi_1(lambda_t - lambda_s) * original


def second_order(x_s: Tensor, at_s: Node, other: Node, lambda_t: float) -> Tensor:
    """A line through the predictions here and, DPM-Solver++(2M), a step of Algorithm 2, at the step before; or,
    DPM-Solver++(2S), a step of Algorithm 1, inside the step.

    D = (1 - 1 / 2r) x_0(s) + 1 / 2r x_0(other), r = (lambda_other - lambda_s) / h: negative for the step before
    x_t = sigma_t / sigma_s x_s - alpha_t (e^-h - 1) D
    """
    h = lambda_t - at_s[0]
    r = (other[0] - at_s[0]) / h
    slope = (other[1] - at_s[1]) / r
    return first_order(x_s, at_s, lambda_t) + alpha(lambda_t) * _phi_1(h) / 2 * slope


def third_order(x_s: Tensor, at_s: Node, others: Sequence[Node], lambda_t: float) -> Tensor:
    """A parabola through three predictions, behind s or inside the step, integrated as Proposition 4.1 has it.

    The authors' code and diffusers halve the second derivative in their multistep solver, which then converges as h^2
    and not as h^3.
    """
    h = lambda_t - at_s[0]
    r = [(node[0] - at_s[0]) / h for node in others]
    slopes = [(node[1] - at_s[1]) / position for node, position in zip(others, r, strict=True)]
    first = (r[1] * slopes[0] - r[0] * slopes[1]) / (r[1] - r[0])
    second = 2 * (slopes[1] - slopes[0]) / (r[1] - r[0])
    phi_2 = 1 - _phi_1(h) / h
    return first_order(x_s, at_s, lambda_t) + alpha(lambda_t) * (phi_2 * first + (0.5 - phi_2 / h) * second)


def dpm_solver_update(sample: Tensor, nodes: Sequence[Node], lambda_t: float) -> Tensor:
    """x_t from x_s: one step, whose order is the number of nodes.

    Args:
        sample: x_s, any shape.
        nodes: one to three, the first at s; the others behind it or inside the step.
        lambda_t: where to go, greater than lambda_s.

    Returns:
        x_t, of `sample`'s shape.
    """
    at_s, *others = nodes
    if not others:
        return first_order(sample, at_s, lambda_t)
    if len(others) == 2:
        return third_order(sample, at_s, others, lambda_t)
    return second_order(sample, at_s, others[0], lambda_t)


def _phi_1(h: float) -> float:
    """-(e^-h - 1)."""
    return -math.expm1(-h)
