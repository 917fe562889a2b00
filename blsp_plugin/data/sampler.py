"""Batches of similar length, filled by a budget on their padded size.

Authors
 * The blsp_plugin team 2026
"""

from typing import NamedTuple

import numpy as np
from speechbrain.utils.logger import get_logger
from torch.utils.data import Sampler

from blsp_plugin.errors import BadInput

__all__ = ["TokenBudgetSampler"]

logger = get_logger(__name__)


class _Plan(NamedTuple):
    """One epoch: batch ``b`` is ``order[cuts[b]:cuts[b + 1]]``."""

    order: np.ndarray  # rows, longest first
    cuts: np.ndarray  # where batches start, and the end
    turns: np.ndarray  # batches in the order in which they are trained on


def _fill(lengths, budget, max_rows):
    """Cut rows, in the order given, into batches that the budget holds."""
    cuts, start = [0], 0
    while start < len(lengths):
        # As many as would fit if the first row were the longest, at most.
        most = min(max(budget // int(lengths[start]), 1), max_rows)
        longest = np.maximum.accumulate(lengths[start : start + most])
        padded = longest * np.arange(1, len(longest) + 1)
        start += max(int(np.searchsorted(padded, budget, side="right")), 1)
        cuts.append(start)
    return np.array(cuts)


def _make_divisible(cuts, multiple):
    """Split or join batches until ``multiple`` divides their number."""
    rows, spare = cuts[-1], len(cuts) - 1
    missing = -spare % multiple
    if missing <= rows - spare:
        for _ in range(missing):
            size = np.diff(cuts)
            largest = int(size.argmax())
            middle = cuts[largest] + (size[largest] + 1) // 2
            cuts = np.insert(cuts, largest + 1, middle)
        return cuts
    # Almost every batch is one row already: join the shortest in pairs.
    return np.delete(cuts, [-2 - 2 * i for i in range(spare % multiple)])


class TokenBudgetSampler(Sampler):
    """Batch sampler with a budget on rows times the longest row.

    Rows are sorted by length, with a little noise so that batches differ
    from epoch to epoch, cut into batches that the budget holds, and the
    batches are shuffled. Every rank plans the whole epoch, the same for all,
    from (seed, epoch) alone and takes its turns of it: the ranks get the same
    number of batches, and each row comes once an epoch, on one rank.

    A row that is longer than the budget makes a batch of its own. Where the
    number of batches has to be divisible, the largest are split in two. If
    nearly all have one row, the shortest are joined in pairs, over the budget.

    Give it to a loader as ``batch_sampler`` and to a Brain as
    ``brain.train_sampler``, so that ``set_epoch`` is called. It deals to the
    ranks itself: a Brain under DDP must not wrap it in a
    ``DistributedSamplerWrapper``, as it does if it makes the loader.

    Arguments
    ---------
    lengths : sequence of int
        What each row counts for, at least 1: its tokens, frames, ...
    budget : int
        Most that a batch may have, padding included, in the same unit.
    max_rows : int, optional
        Most rows of a batch.
    shuffle : bool
        False: no noise, longest batch first, the same every epoch.
    seed : int
        With the epoch it decides everything random.
    rank : int
        This process.
    world_size : int
        Number of processes.
    batches_per_step : int, optional
        Batches of one optimizer step over all ranks: ranks times gradient
        accumulation. It divides the number of batches of an epoch, so no
        step is left half done, and the same steps come out however they are
        dealt to ranks. Default: world_size.
    jitter : float
        The noise: a row may be sorted as this fraction shorter than it is.

    Raises
    ------
    BadInput
        Too few rows, a length below 1, numbers that do not go together.

    Example
    -------
    >>> sampler = TokenBudgetSampler([5, 9, 1, 5, 2], 10, shuffle=False)
    >>> list(sampler)
    [[1], [0, 3], [4, 2]]
    >>> len(sampler), round(sampler.padding_ratio, 3)
    (3, 0.043)
    """

    def __init__(
        self,
        lengths,
        budget,
        max_rows=None,
        shuffle=True,
        seed=0,
        rank=0,
        world_size=1,
        batches_per_step=None,
        jitter=0.05,
    ):
        # 32 bits hold a length and a row: ten million rows stay in 120 MB.
        self.lengths = np.asarray(lengths, dtype=np.int32)
        self.budget = int(budget)
        self.max_rows = len(self.lengths) if max_rows is None else int(max_rows)
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.batches_per_step = batches_per_step or world_size
        self.jitter = jitter
        self.epoch = 0
        self._plan = None
        self._check()

    def _check(self):
        rows = len(self.lengths)
        if rows < self.batches_per_step:
            raise BadInput(
                f"{rows} rows are too few for a step of "
                f"{self.batches_per_step} batches; use fewer ranks, less "
                "gradient accumulation, or more data"
            )
        if self.batches_per_step % self.world_size:
            raise BadInput(
                f"batches_per_step {self.batches_per_step} is not a multiple "
                f"of world_size {self.world_size}; make it one"
            )
        if not 0 <= self.rank < self.world_size:
            raise BadInput(
                f"rank {self.rank} is not one of {self.world_size}; correct it"
            )
        if self.budget < 1 or self.max_rows < 1:
            raise BadInput(
                f"a batch of at most {self.budget} in {self.max_rows} rows "
                "holds nothing; raise the budget or max_rows"
            )
        shortest = int(self.lengths.argmin())
        if self.lengths[shortest] < 1:
            raise BadInput(
                f"row {shortest} has length {self.lengths[shortest]}; drop it"
            )
        over = int((self.lengths > self.budget).sum())
        if over:
            logger.warning(
                "%d of %d rows are longer than the budget of %d; each makes a "
                "batch of its own",
                over,
                rows,
                self.budget,
            )

    def set_epoch(self, epoch):
        """Go to an epoch; the Brain calls this at the start of each.

        Arguments
        ---------
        epoch : int
            Not negative.
        """
        if epoch != self.epoch:
            self.epoch = epoch
            self._plan = None

    def _make_plan(self):
        if self._plan is None:
            rng = np.random.default_rng(
                np.random.SeedSequence([self.seed, self.epoch])
            )
            rank_by = -self.lengths.astype(np.float32)
            if self.shuffle:
                noise = rng.random(len(rank_by), dtype=np.float32)
                rank_by *= 1 - self.jitter * noise
            # Stable, so that every machine breaks ties in the same way.
            order = np.argsort(rank_by, kind="stable").astype(np.int32)
            cuts = _fill(self.lengths[order], self.budget, self.max_rows)
            cuts = _make_divisible(cuts, self.batches_per_step)
            batches = len(cuts) - 1
            turns = np.arange(batches)
            if self.shuffle:
                turns = rng.permutation(batches)
            self._plan = _Plan(order, cuts, turns)
        return self._plan

    def __iter__(self):
        order, cuts, turns = self._make_plan()
        for batch in turns[self.rank :: self.world_size]:
            yield order[cuts[batch] : cuts[batch + 1]].tolist()

    def __len__(self):
        """Batches of this rank in this epoch."""
        return len(self._make_plan().turns) // self.world_size

    @property
    def padding_ratio(self):
        """Padded positions over all positions, over all ranks this epoch."""
        order, cuts, _ = self._make_plan()
        longest = np.maximum.reduceat(self.lengths[order], cuts[:-1])
        return 1 - float(self.lengths.sum() / (longest * np.diff(cuts)).sum())
