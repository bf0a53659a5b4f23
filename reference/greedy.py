"""Greedy choice: each point in turn is the one that makes the MMD of the points so far least.

With the mean embedding of a sample this is kernel herding (Chen, Welling & Smola, 2010) of the true
MMD; with a Stein kernel, whose mean embedding is zero, it is Stein thinning (Riabiz et al., 2022).
"""

import numpy as np


def greedy(K, mean, size, unique=True):
    """Choose points one by one; of equally good ones the first.

    Parameters
    ----------
    K : (n, n) array
        Gram matrix of the candidates.
    mean : (n,) array
        The target's mean embedding sum_j w_j k(x_j, .) at the candidates; 0 for the zero measure.
    size : int
        The number of points.
    unique : bool
        Whether a candidate may be chosen only once.

    Returns
    -------
    chosen : (size,) int array
        In the order of the choice.
    margin : float
        The difference of the squared MMDs of the best and the second best choice, the smallest over
        all choices.
    """

    def squared_mmd(points):  # without the term of the target alone
        return K[np.ix_(points, points)].mean() - 2 * mean[points].mean()

    chosen, margin = [], np.inf
    for _ in range(size):
        free = [y for y in range(len(K)) if not (unique and y in chosen)]
        errors = np.array([squared_mmd([*chosen, y]) for y in free])
        margin = min(margin, np.min(np.diff(np.sort(errors)[:2]), initial=np.inf))
        chosen.append(free[np.argmin(errors)])
    return np.array(chosen), margin


def debias(K, size):
    """Weights of points that bring them near the measure whose mean embedding is zero.

    The share of each point among `size` points of greedy choice that may repeat.
    """
    chosen, margin = greedy(K, np.zeros(len(K)), size, unique=False)
    return np.bincount(chosen, minlength=len(K)) / size, margin
