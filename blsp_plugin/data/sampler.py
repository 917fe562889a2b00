"""Batches of rows of similar length, filled by budgets on their size.

Authors
 * The blsp_plugin team 2026
"""

from array import array
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


def _fill(rows, budgets, max_rows):
    """Cut rows into batches that the budgets hold.

    ``rows`` yields each row's length and frames, in the order wanted; a plain
    loop, since a batch can't begin before the one in front of it ends.
    """
    budget, max_frames = budgets
    cuts = array("q", [0])
    size = longest = heard = place = 0
    for place, (length, frames) in enumerate(rows):
        size += 1
        longest = length if length > longest else longest
        heard += frames
        if (
            longest * size > budget or heard > max_frames or size > max_rows
        ) and size > 1:
            cuts.append(place)
            size, longest, heard = 1, length, frames
    cuts.append(place + 1)
    return np.array(cuts)


def _pairs(first, second, order):
    """Elements of two arrays as Python numbers, a million at a time."""
    for start in range(0, len(order), 1 << 20):
        some = order[start : start + (1 << 20)]
        yield from zip(first[some].tolist(), second[some].tolist(), strict=True)


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
    """Batch sampler with budgets on rows times the longest row.

    Rows are sorted by length, with a little noise so that batches differ
    from epoch to epoch, cut into batches that the budget holds, and the
    batches are shuffled. Every rank plans the whole epoch, the same for all,
    from (seed, epoch) alone and takes its turns of it: the ranks get the same
    number of batches, and each row comes once an epoch, on one rank.

    With ``max_frames`` a batch holds a second budget, that of the encoder. It
    counts no padding, since the model encodes clips of similar length at once
    (`BLSP.embed_speech`): a short clip may have a long response.

    A row that is over a budget makes a batch of its own. Where the
    number of batches has to be divisible, the largest are split in two. If
    nearly all have one row, the last are joined in pairs, over the budget.

    A loader that goes on within an epoch (SpeechBrain's `SaveableDataLoader`)
    asks for the batches it skips, which is a slice of the plan each, and
    reads none of their rows.

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
    frames : sequence of int, optional
        Mel frames of each row, at least 1; needed with ``max_frames``.
    max_frames : int, optional
        Most frames that a batch may have.

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
        jitter=0.02,
        frames=None,
        max_frames=None,
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
        self.max_frames = self.frames = None
        if max_frames is not None:
            self.max_frames = int(max_frames)
            frames = () if frames is None else frames
            self.frames = np.asarray(frames, dtype=np.int32)
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
        self._check_rows("length", self.lengths, self.budget)
        if self.max_frames is None:
            return
        if self.max_frames < 1:
            raise BadInput(
                f"a batch of at most {self.max_frames} frames holds nothing; "
                "raise max_frames"
            )
        if self.frames.shape != self.lengths.shape:
            raise BadInput(
                f"{rows} lengths and {self.frames.size} frames do not go "
                "together; give both of every row"
            )
        self._check_rows("frames", self.frames, self.max_frames)

    def _check_rows(self, name, values, budget):
        """Refuse what is no length, tell of what is too long."""
        shortest = int(values.argmin())
        if values[shortest] < 1:
            raise BadInput(
                f"row {shortest} has {name} {values[shortest]}; drop it"
            )
        over = int((values > budget).sum())
        if over:
            logger.warning(
                "%d of %d rows are over the budget of %d (%s); each makes a "
                "batch of its own",
                over,
                len(values),
                budget,
                name,
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

    def _order(self, rng):
        """The rows, longest first, with noise."""
        rank_by = -self.lengths.astype(np.float32)
        if self.shuffle:
            # In place, which halves the memory that this takes.
            noise = rng.random(len(rank_by), dtype=np.float32)
            noise *= -self.jitter
            noise += 1
            rank_by *= noise
            del noise
        # Stable, so that every machine breaks ties in the same way.
        return np.argsort(rank_by, kind="stable").astype(np.int32)

    def _make_plan(self):
        if self._plan is None:
            rng = np.random.default_rng(
                np.random.SeedSequence([self.seed, self.epoch])
            )
            order = self._order(rng)
            second = self.lengths if self.frames is None else self.frames
            cuts = _fill(
                _pairs(self.lengths, second, order),
                (self.budget, self.max_frames or self.budget),
                self.max_rows,
            )
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
        whole = int((longest * np.diff(cuts)).sum())
        return 1 - int(self.lengths.sum(dtype=np.int64)) / whole

    def summary(self):
        """This epoch in a few words: rows, batches of all ranks, padding.

        Returns
        -------
        str
        """
        return (
            f"{len(self.lengths)} rows in {len(self._make_plan().turns)} "
            f"batches, padding {self.padding_ratio:.1%} of positions"
        )
