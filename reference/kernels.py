"""Reproducing kernels k(x, y), each written as its formula.

Every function takes points x (n, d) and y (m, d) and returns the Gram matrix (n, m).
"""

import numpy as np


def squared_distance(x, y):
    """|x_i - y_j|^2, computed from the difference, without expanding the square."""
    return np.sum((x[:, None, :] - y[None, :, :]) ** 2, axis=-1)


def linear(x, y, constant=0.0):
    """<x, y> + constant."""
    return x @ y.T + constant


def polynomial(x, y, degree=3, constant=1.0, bandwidth=1.0):
    """(<x, y> / bandwidth^2 + constant)^degree."""
    return (x @ y.T / bandwidth**2 + constant) ** degree


def exponential(x, y, bandwidth=1.0):
    """exp(<x, y> / bandwidth^2)."""
    return np.exp(x @ y.T / bandwidth**2)


def gaussian(x, y, bandwidth=1.0):
    """exp(-|x - y|^2 / (2 bandwidth^2))."""
    return np.exp(-squared_distance(x, y) / (2 * bandwidth**2))


def laplace(x, y, bandwidth=1.0):
    """exp(-|x - y| / bandwidth), with the Euclidean distance."""
    return np.exp(-np.sqrt(squared_distance(x, y)) / bandwidth)


def inverse_multiquadric(x, y, bandwidth=1.0):
    """1 / sqrt(1 + |x - y|^2 / bandwidth^2)."""
    return 1 / np.sqrt(1 + squared_distance(x, y) / bandwidth**2)


def matern(x, y, bandwidth=1.0, nu=1.5):
    """The Matern kernel of smoothness 1/2, 3/2 or 5/2, a polynomial in r times exp(-r)."""
    r = np.sqrt(2 * nu) * np.sqrt(squared_distance(x, y)) / bandwidth
    polynomial_in_r = {0.5: 1, 1.5: 1 + r, 2.5: 1 + r + r**2 / 3}[nu]
    return polynomial_in_r * np.exp(-r)


def rational_quadratic(x, y, bandwidth=1.0, alpha=1.0):
    """(1 + |x - y|^2 / (2 alpha bandwidth^2))^-alpha."""
    return (1 + squared_distance(x, y) / (2 * alpha * bandwidth**2)) ** -alpha


def energy(x, y, bandwidth=1.0):
    """-|x - y| / bandwidth: the kernel of the energy distance."""
    return -np.sqrt(squared_distance(x, y)) / bandwidth


def sobolev(x, y, smoothness=1):
    """Periodic Sobolev: prod_j (1 + (-1)^(s-1) (2 pi)^(2s) / (2s)! B_2s(|x_j - y_j|)) - 1."""
    t = np.abs(x[:, None, :] - y[None, :, :])
    bernoulli, factorial = {
        1: (t**2 - t + 1 / 6, 2),
        2: (t**4 - 2 * t**3 + t**2 - 1 / 30, 24),
        3: (t**6 - 3 * t**5 + 5 / 2 * t**4 - 1 / 2 * t**2 + 1 / 42, 720),
    }[smoothness]
    sign = (-1) ** (smoothness - 1)
    factors = 1 + sign * (2 * np.pi) ** (2 * smoothness) / factorial * bernoulli
    return np.prod(factors, axis=-1) - 1


def stein(x, y, score_x, score_y, bandwidth=1.0):
    """The Langevin Stein kernel of the inverse multiquadric k(x, y) = q^(-1/2).

    It is div_x div_y k + <grad_x k, s_y> + <grad_y k, s_x> + k <s_x, s_y>, for scores s. The
    bandwidth is a number, or one for each of the d columns.
    """
    inverse = np.broadcast_to(1 / np.asarray(bandwidth) ** 2, x.shape[1])
    difference = x[:, None, :] - y[None, :, :]
    q = 1 + np.sum(difference**2 * inverse, axis=-1)
    k = q**-0.5
    grad_x = -difference * inverse * (q**-1.5)[:, :, None]
    grad_y = -grad_x
    fourth = np.sum((difference * inverse) ** 2, axis=-1)
    divergence = np.sum(inverse) * q**-1.5 - 3 * fourth * q**-2.5
    cross = np.sum(grad_x * score_y[None, :, :] + grad_y * score_x[:, None, :], axis=-1)
    return divergence + cross + k * (score_x @ score_y.T)


def with_labels(K, labels_x, labels_y, constant=1.0, squared=0.0):
    """The product K (squared K + constant + <a, b>), for labels a (n, e), b (m, e) and K (n, m)."""
    return K * (squared * K + constant + labels_x @ labels_y.T)


def gradient_free_stein(x, y, score_x, score_y, log_ratio_x, log_ratio_y, bandwidth=1.0):
    """r(x) r(y) k_q(x, y): k_q is the Stein kernel of a density q, log_ratio is log r = log q/p."""
    ratios = np.exp(log_ratio_x[:, None] + log_ratio_y[None, :])
    return ratios * stein(x, y, score_x, score_y, bandwidth)
