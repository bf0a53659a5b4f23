"""Reproducing kernels k(x, y), each as the formula that defines it.

Every function takes points x (n, d) and y (m, d) and returns the Gram matrix (n, m).
"""

import numpy as np


def squared_distance(x, y):
    """|x_i - y_j|^2, by the definition rather than by expanding the square."""
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
