"""Rows that a training cannot use: named, saved, counted.

Authors
 * The blsp_plugin team 2026
"""

import os

import torch
from speechbrain.utils.logger import get_logger

from blsp_plugin.data.manifest import (
    Rejected,
    check_rejected,
    write_rejected,
)
from blsp_plugin.distributed import ranks
from blsp_plugin.errors import BadInput

__all__ = ["BadRows"]

logger = get_logger(__name__)


class BadRows:
    """Clips that could not be read, and batches without a finite loss.

    Arguments
    ---------
    folder : str
        Output folder: gets ``rejected.jsonl`` and ``nonfinite/``.
    max_rejected : float
        Fraction of unreadable clips that ends the run.
    patience : int
        Batches whose loss may be not finite.
    """

    def __init__(self, folder, max_rejected, patience):
        self.folder = folder
        self.max_rejected = max_rejected
        self.patience = patience
        self.of = {}  # rows of each split
        self._rejected = {}
        self._nonfinite = 0

    def __len__(self):
        """Clips rejected so far, on this rank."""
        return len(self._rejected)

    def rejected(self, batch):
        """Report clips of a batch that could not be read.

        Arguments
        ---------
        batch : SpeechBatch

        Raises
        ------
        BadInput
            If they are too many by now.
        """
        seen = self._rejected
        new = [(i, why) for i, why in batch.rejected if i not in seen]
        if not new:
            return
        for row_id, reason in new:
            logger.warning("%s is left out: %s", row_id, reason)
            seen[row_id] = Rejected(row_id, "", 0, reason)
        rank, world_size = ranks()
        name = "rejected.jsonl" if rank == 0 else f"rejected.rank{rank}.jsonl"
        path = os.path.join(self.folder, name)
        write_rejected(seen.values(), path)
        rows = -(-sum(self.of.values()) // world_size)  # of this rank
        check_rejected(len(seen), rows, self.max_rejected, path=path)

    def nonfinite(self, batch, loss, step):
        """Report a batch whose loss is not a finite number, and save it.

        Arguments
        ---------
        batch : SpeechBatch
        loss : torch.Tensor
            Scalar.
        step : int
            Optimizer steps so far.

        Raises
        ------
        BadInput
            If that has happened more often than ``patience``.
        """
        self._nonfinite += 1
        folder = os.path.join(self.folder, "nonfinite")
        os.makedirs(folder, exist_ok=True)
        name = f"step{step}_rank{ranks()[0]}_{self._nonfinite}.pt"
        path = os.path.join(folder, name)
        torch.save({"loss": loss.item(), **batch._asdict()}, path)
        rows = ", ".join(batch.ids)
        logger.warning(
            "The loss is %s on the rows %s: left out, saved in %s",
            loss.item(),
            rows,
            path,
        )
        if self._nonfinite > self.patience:
            raise BadInput(
                f"{path}: the loss was not finite on {self._nonfinite} "
                f"batches, last on the rows {rows}; look at them, lower the "
                "learning rate, or raise --nonfinite_patience"
            )
