"""Token-budget batches: nothing lost, nothing twice, resumable."""

import os

import numpy as np
import pytest
import speechbrain as sb
import torch
from speechbrain.dataio.dataloader import SaveableDataLoader
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter

from blsp_plugin.data.sampler import TokenBudgetSampler
from blsp_plugin.errors import BadInput


def speech_lengths(rows, seed=0):
    rng = np.random.default_rng(seed)
    return np.clip(rng.gamma(4, 25, rows), 10, 600).astype(int)


LENGTHS = speech_lengths(1000)
# Mel frames: 16 a speech token, which a quarter or more of the tokens are.
FRAMES = LENGTHS * np.random.default_rng(1).integers(4, 16, 1000)
BOTH = {"frames": FRAMES, "max_frames": 12000}


def epoch_of(sampler, epoch=1):
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("max_rows", [None, 7])
def test_batches_hold_every_row_once_within_the_budget(shuffle, max_rows):
    sampler = TokenBudgetSampler(LENGTHS, 1500, max_rows, shuffle)
    batches = epoch_of(sampler)
    assert len(batches) == len(sampler)
    assert sorted(sum(batches, [])) == list(range(1000))
    sizes = [len(b) * LENGTHS[b].max() for b in batches]
    assert max(sizes) <= 1500
    assert max_rows is None or max(map(len, batches)) <= 7
    expected = 1 - LENGTHS.sum() / sum(sizes)
    assert sampler.padding_ratio == pytest.approx(expected)
    assert sampler.padding_ratio < 0.05


def test_budget_is_used():
    batches = epoch_of(TokenBudgetSampler(LENGTHS, 2000))
    fill = [len(b) * LENGTHS[b].max() / 2000 for b in batches]
    assert np.mean(fill) > 0.9


def test_longer_than_the_budget_is_a_batch_of_its_own():
    lengths = [50, 900, 10, 10, 901]
    batches = epoch_of(TokenBudgetSampler(lengths, 100))
    assert [1] in batches
    assert [4] in batches
    assert sorted(sum(batches, [])) == [0, 1, 2, 3, 4]


def test_order_is_decided_by_seed_and_epoch():
    first = epoch_of(TokenBudgetSampler(LENGTHS, 1500, seed=3), 2)
    assert first == epoch_of(TokenBudgetSampler(list(LENGTHS), 1500, seed=3), 2)
    other_epoch = epoch_of(TokenBudgetSampler(LENGTHS, 1500, seed=3), 3)
    other_seed = epoch_of(TokenBudgetSampler(LENGTHS, 1500, seed=4), 2)
    together = {frozenset(batch) for batch in first}
    for other in (other_epoch, other_seed):
        assert other != first
        # Not the same batches in another order either.
        same = together & {frozenset(batch) for batch in other}
        assert len(same) < len(first) / 4
    plain = TokenBudgetSampler(LENGTHS, 1500, shuffle=False)
    assert epoch_of(plain, 1) == epoch_of(plain, 2)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_ranks_share_an_epoch(world_size):
    ranks = [
        TokenBudgetSampler(LENGTHS, 1500, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    epochs = [epoch_of(sampler) for sampler in ranks]
    assert {len(batches) for batches in epochs} == {len(ranks[0])}
    rows = [row for batches in epochs for batch in batches for row in batch]
    assert sorted(rows) == list(range(1000))


@pytest.mark.parametrize("batches", [2, 3, 4, 8])
@pytest.mark.parametrize("budgets", [{}, BOTH])
def test_sampler_same_for_any_world_size(batches, budgets):
    """N ranks, or one that accumulates over N, or between: the same steps."""

    def steps(world_size):
        ranks = [
            epoch_of(
                TokenBudgetSampler(
                    LENGTHS,
                    1500,
                    rank=rank,
                    world_size=world_size,
                    batches_per_step=batches,
                    **budgets,
                )
            )
            for rank in range(world_size)
        ]
        dealt = [b for turn in zip(*ranks, strict=True) for b in turn]
        assert len(dealt) % batches == 0
        return [
            sorted(sum(dealt[i : i + batches], []))
            for i in range(0, len(dealt), batches)
        ]

    expected = steps(1)
    assert sorted(sum(expected, [])) == list(range(1000))
    for world_size in range(2, batches + 1):
        if batches % world_size == 0:
            assert steps(world_size) == expected


def test_batches_hold_both_budgets():
    sampler = TokenBudgetSampler(LENGTHS, 1500, **BOTH)
    batches = epoch_of(sampler)
    assert sorted(sum(batches, [])) == list(range(1000))
    sizes = np.array([len(b) * LENGTHS[b].max() for b in batches])
    frames = np.array([FRAMES[b].sum() for b in batches])
    assert sizes.max() <= 1500
    assert frames.max() <= 12000
    # Each is what ends some of them.
    assert (frames > 11000).any()
    assert (sizes > 1400).any()
    padding = 1 - LENGTHS.sum() / sizes.sum()
    assert sampler.padding_ratio == pytest.approx(padding)
    assert sampler.summary() == (
        f"1000 rows in {len(batches)} batches, padding "
        f"{sampler.padding_ratio:.1%} of positions"
    )
    again = epoch_of(TokenBudgetSampler(LENGTHS, 1500, **BOTH))
    assert again == batches
    other = {frozenset(batch) for batch in epoch_of(sampler, 2)}
    same = other & {frozenset(batch) for batch in batches}
    assert len(same) < len(batches) / 4


def test_longer_than_the_second_budget_is_a_batch_of_its_own():
    sampler = TokenBudgetSampler(
        [9, 9, 9, 9], 100, frames=[5, 50, 5, 5], max_frames=20
    )
    batches = epoch_of(sampler)
    assert [1] in batches
    assert sorted(sum(batches, [])) == [0, 1, 2, 3]


@pytest.mark.parametrize("rows", range(1, 30))
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_few_rows(rows, world_size):
    for max_rows in (1, 2, None):

        def make(rank, max_rows=max_rows):
            return TokenBudgetSampler(
                np.arange(1, rows + 1), 30, max_rows, True, 0, rank, world_size
            )

        if rows < world_size:
            with pytest.raises(BadInput, match=f"{rows} rows are too few"):
                make(0)
            continue
        epochs = [epoch_of(make(rank)) for rank in range(world_size)]
        assert len({len(batches) for batches in epochs}) == 1
        flat = [row for e in epochs for batch in e for row in batch]
        assert sorted(flat) == list(range(rows))
        assert all(batch for e in epochs for batch in e)


def test_bad_settings():
    for settings, complaint in (
        ({"budget": 0}, "raise the budget"),
        ({"budget": 10, "max_rows": 0}, "raise the budget or max_rows"),
        ({"budget": 10, "lengths": [3, 0]}, "row 1 has length 0; drop it"),
        ({"budget": 10, "lengths": []}, "0 rows are too few"),
        ({"budget": 10, "rank": 2, "world_size": 2}, "rank 2 is not one"),
        (
            {"budget": 10, "world_size": 2, "batches_per_step": 3},
            "batches_per_step 3 is not a multiple of world_size 2",
        ),
        (
            {"budget": 10, "frames": [1, 2, 3], "max_frames": 0},
            "raise max_frames",
        ),
        (
            {"budget": 10, "frames": [1, 2], "max_frames": 9},
            "3 lengths and 2 frames do not go together",
        ),
        (
            {"budget": 10, "frames": None, "max_frames": 9},
            "do not go together",
        ),
        (
            {"budget": 10, "frames": [1, 0, 3], "max_frames": 9},
            "row 1 has frames 0; drop it",
        ),
    ):
        with pytest.raises(BadInput, match=complaint):
            TokenBudgetSampler(**{"lengths": [1, 2, 3], **settings})


class Rows(torch.utils.data.Dataset):
    """Rows that are their numbers; notes which are read, in any process."""

    def __init__(self, notes=os.devnull):
        self.notes = notes

    def __len__(self):
        return len(LENGTHS)

    def __getitem__(self, row):
        with open(self.notes, "a", encoding="utf-8") as stream:
            stream.write(f"{row}\n")
        return row


def make_loader(workers=0, notes=os.devnull):
    sampler = TokenBudgetSampler(LENGTHS, 1500, rank=1, world_size=2, **BOTH)
    return SaveableDataLoader(
        Rows(notes), batch_sampler=sampler, num_workers=workers
    )


def listed(batches):
    return [batch.tolist() for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_sampler_resumes_mid_epoch(tmp_path, workers):
    """The rest of the batches, and nothing else is read."""
    loader = make_loader(workers)
    loader.batch_sampler.set_epoch(5)
    expected = listed(loader)

    loader = make_loader(workers)
    loader.batch_sampler.set_epoch(5)
    batches = iter(loader)
    seen = listed(next(batches) for _ in range(9))
    checkpointer = Checkpointer(tmp_path, {"loader": loader})
    checkpointer.save_checkpoint(end_of_epoch=False)
    del batches

    notes = tmp_path / "read"
    loader = make_loader(workers, notes)
    Checkpointer(tmp_path, {"loader": loader}).recover_if_possible()
    loader.batch_sampler.set_epoch(5)
    rest = listed(loader)
    assert seen + rest == expected
    read = [int(line) for line in notes.read_text().split()]
    assert sorted(read) == sorted(sum(rest, []))
    loader.batch_sampler.set_epoch(6)
    assert len(listed(loader)) == len(loader.batch_sampler)


class Killed(Exception):
    """Stands for the signal."""


class Recorder(sb.Brain):
    """Trains nothing much and writes down which rows it was given."""

    def __init__(self, folder, kill_at=None):
        modules = {"model": torch.nn.Linear(1, 1)}
        counter = EpochCounter(2)
        super().__init__(
            modules,
            lambda parameters: torch.optim.SGD(parameters, 0.1),
            run_opts={"ckpt_interval_steps": 10, "noprogressbar": True},
            checkpointer=Checkpointer(folder, {"counter": counter}),
        )
        self.counter, self.kill_at, self.seen = counter, kill_at, []
        sampler = TokenBudgetSampler(LENGTHS, 1500)
        # What makes the Brain call set_epoch.
        self.train_sampler = sampler
        self.loader_kwargs = {"batch_sampler": sampler}

    def compute_forward(self, batch, stage):
        if len(self.seen) == self.kill_at:
            raise Killed
        self.seen.append((self.counter.current, batch.tolist()))
        return self.modules.model(torch.ones(1, 1))

    def compute_objectives(self, predictions, batch, stage):
        return predictions.sum()

    def run(self):
        self.fit(self.counter, Rows(), train_loader_kwargs=self.loader_kwargs)
        return self.seen


def test_brain_sets_the_epoch_and_resumes(tmp_path):
    expected = Recorder(tmp_path / "whole").run()
    epochs = [[b for e, b in expected if e == epoch] for epoch in (1, 2)]
    assert epochs[0] != epochs[1]
    for batches in epochs:
        assert sorted(sum(batches, [])) == list(range(1000))

    killed = Recorder(tmp_path / "killed", kill_at=len(epochs[0]) + 25)
    with pytest.raises(Killed):
        killed.run()
    # The last checkpoint is of step 20 of the second epoch.
    assert (
        Recorder(tmp_path / "killed").run() == expected[len(epochs[0]) + 20 :]
    )
