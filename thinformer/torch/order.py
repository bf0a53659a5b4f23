"""`ThinnedOrder`: the order of training examples, from their gradients in the epoch before."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Mapping, Sized
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from thinformer.halving.draws import head_keys, unit_numbers
from thinformer.support import checks
from thinformer.torch.walk import COMPUTED_IN, Gradients, Walk, check, length, rows_of


class ThinnedOrder(Sampler[int]):
    """The order of training examples by kernel halving of their gradients ("LKH-SGD").

    The first epoch is a random permutation. Each later one is made from the gradients of the epoch
    before: of each two consecutive examples one goes to the front and one to the back, such that
    all prefixes of the next epoch have nearly the mean gradient. An epoch has every example once.

    Parameters
    ----------
    dataset : sized object or int
        The dataset, or its number of examples.
    epochs : int
        How many epochs will be run; `delta` is divided among them.
    seed : int, default: 0
        In [0, 2^64). All random numbers are functions of the seed, the rank, the epoch and the
        pair; torch's generators are not used.
    delta : float, default: 0.5
        Failure probability of the bound on the walk in all epochs, in (0, 1].
    num_replicas, rank : int, default: 1 and 0
        With several processes, their number and the number of this one. Each orders its own shard.
        Shards are drawn once, from `seed`, which must be the same in all processes. All are of
        equal length: if the number of examples is no multiple, a few are in two shards.

    Attributes
    ----------
    epoch : int
        How many epochs are complete: all examples were given, and all their gradients.

    Raises
    ------
    ValueError, TypeError
        An argument is out of its range, or `dataset` has no length.

    Notes
    -----
    `step` takes the gradients in the order of the examples, and may come later than the examples
    are given out, so a `torch.utils.data.DataLoader` may have workers that fetch ahead. A new epoch
    begins with ``iter(order)``, and every example needs its gradient before that: otherwise it
    raises RuntimeError. ``drop_last=True`` is possible only if the batch size divides
    ``len(order)``.

    Low-Rank Thinning (arXiv 2502.12063), thinned stochastic gradient descent. With m examples of p
    parameters an epoch costs O(m p) time. The memory between steps is O(m + p): the orders, the
    walk, the first gradient of an unfinished pair. While `step` runs, differences of up to 8 pairs
    come on top. If m is odd, the last example goes to the middle of the next epoch.

    Examples
    --------
    >>> import torch
    >>> from thinformer.torch import ThinnedOrder
    >>> gradients = torch.tensor([[1.0], [2.0], [3.0], [-6.0]])
    >>> order = ThinnedOrder(4, epochs=2, seed=1)
    >>> for epoch in range(2):
    ...     for batch in torch.utils.data.DataLoader(range(4), batch_size=2, sampler=order):
    ...         print(epoch, batch.tolist())
    ...         order.step(gradients[batch])
    0 [0, 1]
    0 [2, 3]
    1 [1, 2]
    1 [3, 0]
    """

    def __init__(
        self,
        dataset: Sized | int,
        *,
        epochs: int,
        seed: int = 0,
        delta: float = 0.5,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        self._count = _count(dataset)
        self.epochs = checks.integer("epochs", epochs, 1)
        self.seed = _seed(seed)
        self.delta = checks.failure_probability(delta)
        self.num_replicas = checks.integer("num_replicas", num_replicas, 1)
        self.rank = checks.integer("rank", rank, 0)
        if self.rank >= self.num_replicas:
            raise ValueError(f"rank must be below num_replicas = {self.num_replicas}; got {rank}")
        self._iterated: bool  # whether this epoch was given out
        self._walk: Walk | None
        self._begin(0, self._shard())

    def __len__(self) -> int:
        """Return the number of examples in an epoch, of this rank."""
        return len(self._order)

    def __iter__(self) -> Iterator[int]:
        """Give out the examples of the next epoch, or the rest of the epoch of a loaded state.

        Raises
        ------
        RuntimeError
            Gradients of the epoch before are missing, or `epochs` epochs are complete.
        """
        if self._iterated:
            raise RuntimeError(
                f"ThinnedOrder.step got the gradients of {self._given} of {len(self)} examples of "
                f"epoch {self.epoch}; the next epoch needs all of them (a DataLoader with "
                "drop_last=True leaves examples out). To give out again those that lack one, call "
                "order.load_state_dict(order.state_dict())"
            )
        if self.epoch >= self.epochs:
            raise RuntimeError(
                f"all epochs={self.epochs} of this ThinnedOrder are complete; make one with more "
                "epochs, and load this one's state_dict()"
            )
        self._iterated = True
        return self._examples(self._order, self._given)

    def step(self, gradients: Gradients) -> None:
        """Take the gradients of the next examples, in the order in which they were given out.

        Parameters
        ----------
        gradients : (b, ...) float tensor, or a dict, tuple or list of such tensors
            The gradient of each example, as `example_gradients` or ``torch.func`` give them. The
            walk is in float32, or in float64 for float64, on the gradients' device. Another number
            of examples at a time gives the same order, up to rounding.

        Raises
        ------
        ValueError
            There are more gradients than examples that lack one; an entry is NaN or infinite; a
            gradient's norm is above a millionth of the root of the largest number; its length is
            not that of the gradients before. Nothing has changed then.
        TypeError
            A tensor is not float, or not of the dtype of the gradients before.
        """
        rows = rows_of(gradients)
        lacking = self._drawn - self._given
        if len(rows[0]) > lacking:
            raise ValueError(
                f"gradients must be of the {lacking} examples that were given out and lack one; "
                f"got {len(rows[0])}"
            )
        check(rows, self._walk)
        if self._walk is None:
            psi = rows[0].new_zeros(length(rows), dtype=COMPUTED_IN[rows[0].dtype])
            self._walk = Walk(psi, 0.0, None)
        pair = self._given // 2
        self._place(pair, self._walk.take(rows, self._uniforms[pair:], self._logs[pair:]))
        self._given += len(rows[0])
        if self._given == len(self):
            if len(self) % 2:
                self._next[len(self) // 2] = self._order[-1]
            self._begin(self.epoch + 1, self._next)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next orders depend on, besides the arguments `epochs` and `delta`.

        Returns
        -------
        dict
            Numbers and tensors, copies, as ``torch.save`` takes them. `given` is the number of
            examples of the epoch whose gradients were taken.
        """
        walk = self._walk
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "given": self._given,
            "order": torch.tensor(self._order),
            "next": torch.tensor(self._next),
            "variance": None if walk is None else walk.variance,
            "walk": None if walk is None else walk.psi.clone(),
            "half": None if walk is None or walk.half is None else walk.half.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, at the first example whose gradient was not taken.

        Parameters
        ----------
        state : dict
            Of `state_dict`. With the same `epochs` and `delta`, and batches of the same sizes, all
            that follows is the same bit for bit.

        Raises
        ------
        ValueError
            The state has other keys, or is that of another number of examples, of replicas, or of
            another rank. Nothing has changed then.
        """
        if not isinstance(state, Mapping) or set(state) != set(self.state_dict()):
            raise ValueError(
                f"state must be a dict with the keys {', '.join(self.state_dict())}; got "
                f"{sorted(state) if isinstance(state, Mapping) else state!r}"
            )
        order, seed = state["order"].cpu().numpy().copy(), self.seed
        self.seed = _seed(state["seed"])
        if not np.array_equal(np.sort(order), np.sort(self._shard())):
            self.seed = seed
            raise ValueError(
                f"state must be that of {self._count} examples, num_replicas={self.num_replicas} "
                f"and rank={self.rank}; it has {len(order)} other ones"
            )
        self._begin(int(state["epoch"]), order)
        self._given = self._drawn = int(state["given"])
        self._next = state["next"].cpu().numpy().copy()
        if state["walk"] is not None:
            half = None if state["half"] is None else state["half"].clone()
            self._walk = Walk(state["walk"].clone(), float(state["variance"]), half)

    def _shard(self) -> NDArray[np.int64]:
        """The examples of this rank, in the order of its first epoch."""
        permutation = np.argsort(unit_numbers(head_keys(self.seed, 1), 0, self._count)[0])
        places = self.rank + self.num_replicas * np.arange(-(-self._count // self.num_replicas))
        return permutation[places % self._count]

    def _begin(self, epoch: int, order: NDArray[np.int64]) -> None:
        """Stand before an epoch, `epoch` others being complete."""
        self.epoch = epoch
        self._order, self._next = order, np.zeros_like(order)
        self._given = self._drawn = 0  # gradients taken, examples given out
        self._iterated, self._walk = False, None
        pairs = len(order) // 2
        key = head_keys(self.seed, self.rank + 1)[-1:]
        self._uniforms = 2 * unit_numbers(key, epoch + 1, pairs)[0] - 1
        # log(2 / delta_ki), where the delta_ki of all epochs k and pairs i sum to at most delta / 2
        shares = (math.log(self.epochs) + 1) * (math.log(max(pairs, 1)) + 1)
        self._logs = np.log(4 / self.delta * shares * np.arange(1, pairs + 1) * (epoch + 1))

    def _examples(self, order: NDArray[np.int64], start: int) -> Iterator[int]:
        for place in range(start, len(order)):
            self._drawn = place + 1
            yield int(order[place])

    def _place(self, pair: int, kept: NDArray[np.bool_]) -> None:
        """Put one of a pair to the front, one to the back: the first one to the front if kept."""
        pairs = np.arange(pair, pair + len(kept))
        first, second = self._order[2 * pairs], self._order[2 * pairs + 1]
        self._next[pairs] = np.where(kept, first, second)
        self._next[len(self) - 1 - pairs] = np.where(kept, second, first)


def _count(dataset: Sized | int) -> int:
    if not isinstance(dataset, (numbers.Number, Sized)):
        raise TypeError(
            f"dataset must have a length, or be a number of examples; got {type(dataset).__name__}"
        )
    count = len(dataset) if isinstance(dataset, Sized) else dataset
    return checks.integer("dataset", count, 1)


def _seed(seed: Any) -> int:
    if checks.integer("seed", seed, 0) >= 2**64:
        raise ValueError(f"seed must be below 2^64; got {seed}")
    return int(seed)
