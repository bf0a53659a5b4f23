"""The order of training examples by kernel halving of their gradients, with a linear kernel.

Low-Rank Thinning (arXiv 2502.12063), thinned stochastic gradient descent ("LKH-SGD"); the walk and
its thresholds are those of KT-SPLIT (Dwivedi & Mackey, arXiv 2105.05842).

In an epoch the gradients come one after the other, two of them are a pair. The walk psi is the sum
of signed differences of pairs. A sign says which example of a pair goes to the front of the next
epoch, and which to its back. If the walk stays short, all prefixes of the next order have nearly
the mean gradient of the epoch.
"""

from typing import NamedTuple

import numpy as np


class Trace(NamedTuple):
    """The numbers behind the m // 2 decisions of an epoch; each array is (m // 2,).

    b2 : |f_i|^2, the squared length of the difference of a pair.
    a : the swapping threshold.
    alpha : <psi, f_i>, the inner product of the walk so far with f_i.
    v : 2 sigma^2 after the pair, twice the walk's sub-Gaussian variance.
    margin : |alpha - u a| over the sum of the magnitudes of the products in alpha and b2. If it is
        within rounding error, another order of summing may decide differently. It is infinite where
        all these products are 0.
    """

    b2: np.ndarray
    a: np.ndarray
    alpha: np.ndarray
    v: np.ndarray
    margin: np.ndarray


def next_order(gradients, uniform, epoch, epochs, delta=0.5):
    """Return the places that the examples of an epoch have in the next one.

    Parameters
    ----------
    gradients : (m, p) array
        In the order in which the epoch went through the examples. The computation is in float64.
    uniform : (m // 2,) array
        One draw from [-1, 1) for every pair.
    epoch : int
        The number k of this epoch, 1 to K.
    epochs : int
        Their number K.
    delta : float
        Failure probability of all epochs: with probability at least 1 - delta/2 no |alpha_i| of any
        epoch exceeds a_i.

    Returns
    -------
    order : (m,) int array
        A permutation: entry j of the next epoch is entry order[j] of this one.
    trace : Trace
    """
    gradients = np.asarray(gradients, dtype=float)
    m, p = gradients.shape
    N = m // 2
    b2, a, alpha, variance = np.zeros((4, N))
    margin = np.full(N, np.inf)
    psi, v, magnitude_of_psi = np.zeros(p), 0.0, np.zeros(p)
    front, back = [], []
    for i in range(N):
        first, second = 2 * i, 2 * i + 1
        f = gradients[second] - gradients[first]
        b2[i] = f @ f
        alpha[i] = psi @ f
        if b2[i] > 0:  # equal gradients: a = alpha = 0, and the variance stays
            L = np.log(4 / delta * (np.log(epochs) + 1) * (np.log(N) + 1) * (i + 1) * epoch)
            rho = np.sqrt(v * L / b2[i])
            if rho <= 1:
                a[i], v = b2[i], 2 * b2[i]
            else:
                a[i], v = rho * b2[i], v + 2 * b2[i] * max(0, L + 0.5 - rho) / L
        variance[i] = v
        # P(eta = +1) = (1 - alpha / a) / 2, clipped to [0, 1]
        eta = 1 if alpha[i] <= uniform[i] * a[i] else -1
        psi = psi + eta * f
        front.append(first if eta == 1 else second)
        back.append(second if eta == 1 else first)

        size = np.abs(gradients[second]) + np.abs(gradients[first])
        magnitude_of_psi += size
        magnitude = magnitude_of_psi @ size
        if magnitude > 0:
            margin[i] = np.abs(alpha[i] - uniform[i] * a[i]) / magnitude
    middle = [m - 1] if m % 2 else []
    order = np.array(front + middle + back[::-1], dtype=int)
    return order, Trace(b2, a, alpha, variance, margin)
