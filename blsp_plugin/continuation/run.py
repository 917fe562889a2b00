"""Writing what a folder lacks, with a progress bar.

Authors
 * The blsp_plugin team 2026
"""

import time
from typing import NamedTuple

import torch
from speechbrain.utils.distributed import ddp_barrier
from tqdm import tqdm

from blsp_plugin.continuation.shards import Shard
from blsp_plugin.distributed import ranks, sum_over_ranks

__all__ = ["Written", "write_responses"]


class Written(NamedTuple):
    """What one run has done.

    Arguments
    ---------
    resumed : int
        Responses that were there already.
    rows : int
        Responses written now, by all processes.
    tokens : int
        Tokens of these.
    seconds : float
        The time it took.
    """

    resumed: int
    rows: int
    tokens: int
    seconds: float

    @property
    def speeds(self):
        """For ``metrics.json``."""
        seconds = max(self.seconds, 1e-9)
        return {
            "resumed": self.resumed,
            "seconds": self.seconds,
            "rows_per_second": self.rows / seconds,
            "tokens_per_second": self.tokens / seconds,
        }


def write_responses(output, device="cpu", progress=True):
    """Write every response of a folder that is missing; on all processes.

    Arguments
    ---------
    output : OutputFolder
        Prepared, by one process.
    device : str
        For the engine.
    progress : bool
        Whether to show a bar: rows, rows/s, tokens/s, time left.

    Returns
    -------
    Written
    """
    rank, world = ranks()
    work, share = output.continuation, (output.part, output.parts)
    done = {split: index.done for split, index in output.scan().items()}
    ddp_barrier()  # nobody writes before everybody has looked
    sizes = {
        split: work.missing(plan, done[split], *share)
        for split, plan in output.plans.items()
    }
    if any(missing for _, missing in sizes.values()):
        work.engine.to(device)
    start = time.time()
    counts = torch.zeros(2, dtype=torch.int64, device=device)
    for split, plan in output.plans.items():
        total, missing = sizes[split]
        if not missing:
            continue
        bar = tqdm(
            desc=split,
            total=total,
            initial=total - missing,
            unit="row",
            disable=rank > 0 or not progress,
        )
        with bar, Shard(output.shard(split, rank)) as shard:
            for records in work.write(
                plan, shard, done[split], rank, world, *share
            ):
                tokens = sum(len(record["response_ids"]) for record in records)
                counts += torch.tensor([len(records), tokens]).to(counts)
                # The other processes have done about as much.
                bar.update(min(len(records) * world, total - bar.n))
                speed = counts[1].item() * world / (time.time() - start)
                bar.set_postfix_str(f"{speed:.0f} tokens/s")
    rows, tokens = sum_over_ranks(counts).tolist()
    resumed = sum(total - missing for total, missing in sizes.values())
    return Written(resumed, rows, tokens, time.time() - start)
