"""A cache of keys and values, compressed to few landmarks for the queries that come next.

All functions take one head of keys: key (S, E), value (S, D), log_mass (S,), and query (m, E), the
latest queries of all heads that share these keys. A key of log mass b counts as e^b keys; a token
has 0, and minus infinity stands for no key at all. The output of a query is

    sum_s e^{<q,k_s> + b_s} v_s / sum_s e^{<q,k_s> + b_s}.

The latest tokens are kept as they are. Of the others, the first ones are kept, and those that the
latest queries attend to most. Every other key joins the kept key that is nearest to it. Then a
ridge regression fits values and masses of the kept keys, so that the sums over all keys come out,
which the latest queries need. Keys stay where they are: positions are rotations of keys, and the
mean of keys of several positions is no key of any position.
"""

from typing import NamedTuple

import numpy as np

SINKS = 4  # first tokens, which are kept: attention that has nowhere to go ends there
RECENT = 32  # latest tokens, which are kept
QUERIES = 96  # latest queries of a head that the fit is made for
JOINED = 0.3  # share of the keys that joined a kept one in the sums that the fit starts from
NUGGET = 0.1  # times the mean of the diagonal that it is added to
LEAST = 0.02  # least fitted mass, as a share of the mass that the fit starts from
STIFF = 1e-3  # variance of a kept key that no other joined; others have the mass of those


class Cached(NamedTuple):
    """Keys (n, E), values (n, D), log masses (n,), and the positions (n,) that they had."""

    key: np.ndarray
    value: np.ndarray
    log_mass: np.ndarray
    positions: np.ndarray


def weights_of(query, key, log_mass, scale):
    """The attention weights (m, S) of the queries."""
    logits = scale * query @ key.T + log_mass
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def choose(weights, log_mass, size, recent):
    """Positions (size,) of the keys that are kept, increasing.

    Kept are the latest tokens, the first ones, and the keys of the largest sums of squared weights.
    A square counts a key that one query needs above one that many hardly attend to.
    """
    there = log_mass > -np.inf
    score = np.where(there, np.sum(weights**2, axis=0), -1)
    score[there & (SINKS >= np.cumsum(there))] = np.inf
    score[len(score) - recent :] = np.inf
    # of equal scores the later key
    return np.sort(np.argsort(score, kind="stable")[len(score) - size :])


def nearest(key, kept):
    """The number of the kept key that is nearest to each key (S, E), of kept positions (n,)."""
    squares = np.sum(key[kept] ** 2, axis=1)
    number = np.argmin(squares - 2 * key @ key[kept].T, axis=1)
    number[kept] = np.arange(len(kept))
    return number


def fit(weights, value, mass, kept, number):
    """Values (n, D) and relative masses (n,) of the kept keys, by ridge regression.

    weights : (m, S), the weights P of the queries on the keys that the kept ones stand for
    value, mass : (S, D) and (S,), the values and masses of these keys
    kept, number : the positions (n,) of the kept keys, and which of them each key joins (S,)

    The queries need the sums T = P (V, 1). The kept keys give A Z, where A has their columns of P,
    and Z their values and masses, relative to the masses that they have. The fit starts from Z_0,
    in which a kept key also stands for the share JOINED of the keys that joined it. It minimises

        |A Z - T|^2 + nu sum_s |Z_s - Z_0,s|^2 / C_s,

    with C_s the relative mass of the keys that joined. So a key that no other joined hardly
    changes. The minimum is at Z_0 + C A^T (A C A^T + nu)^-1 (T - A Z_0). The number nu is NUGGET
    times the mean of the diagonal of A C A^T. A mass stays above the share LEAST of that in Z_0, so
    it has a logarithm.
    """
    A, V1 = weights[:, kept], np.concatenate([value, np.ones((len(value), 1))], axis=1)
    own = np.where(mass[kept] > 0, mass[kept], 1)
    joined = np.zeros((len(kept), V1.shape[1]))
    np.add.at(joined, number, (mass / own[number])[:, None] * V1)
    joined -= (mass[kept] > 0)[:, None] * V1[kept]
    Z = V1[kept] + JOINED * joined
    least, C = LEAST * Z[:, -1:], np.maximum(joined[:, -1], STIFF)
    G, r = (A * C) @ A.T, weights @ V1 - A @ Z
    unit = np.trace(G) / len(G)
    if not unit > 0:  # the queries attend to none of these keys
        return value[kept], np.ones(len(kept))
    solution = np.linalg.solve(G / unit + NUGGET * np.eye(len(G)), r) / unit
    Z = Z + (A * C).T @ solution
    masses = np.maximum(Z[:, -1:], least)
    return Z[:, :-1] / masses, masses[:, 0]


def compress_cache(query, key, value, log_mass, scale, size, recent=RECENT):
    """The cache of at most `size` keys that the latest queries, and so the next ones, need."""
    S = len(key)
    if S <= size:
        return Cached(key, value, log_mass, np.arange(S))
    weights = weights_of(query, key, log_mass, scale)
    kept = choose(weights, log_mass, size, recent)
    early, n = kept[: size - recent], S - recent
    number = nearest(key[:n], early)
    values, masses = fit(weights[:, :n], value[:n], np.exp(log_mass[:n]), early, number)
    fitted, of_kept = value[kept].copy(), log_mass[kept].copy()
    fitted[: size - recent] = values
    of_kept[: size - recent] += np.log(masses)
    return Cached(key[kept], fitted, of_kept, kept)
