"""Rows of token ids and speech slots -> the tensors an LLM takes.

Pure functions on integers and tensors. A row is one contiguous sequence
``[prefix | slot | suffix | response | EOS]``; padding stands at one end only,
so that positions, and with them every result, are the same alone and in any
batch.

Authors
 * The blsp_plugin team 2026
"""

from typing import NamedTuple

import torch

__all__ = ["Row", "Packed", "pack", "scatter_speech", "predictors"]

IGNORE = -100


class Row(NamedTuple):
    """One training or generation row, before it becomes tensors.

    Arguments
    ---------
    prefix : sequence of int
        Token ids before the slot.
    slot : int or sequence of int
        Number of speech tokens, or the transcript's ids (the text twin).
    suffix : sequence of int
        Token ids between the slot and the response.
    response : sequence of int
        Token ids to be learnt; empty for generation.
    ended : bool
        Whether the response really ended: only then is EOS a target.
    """

    prefix: tuple
    slot: object
    suffix: tuple
    response: tuple = ()
    ended: bool = False

    @property
    def slot_length(self):
        """Tokens in the slot."""
        return self.slot if isinstance(self.slot, int) else len(self.slot)

    @property
    def length(self):
        """Tokens in the row."""
        return (
            len(self.prefix)
            + self.slot_length
            + len(self.suffix)
            + len(self.response)
            + int(self.ended)
        )


class Packed(NamedTuple):
    """A batch of rows as tensors, each of shape (batch, time).

    Arguments
    ---------
    input_ids : torch.Tensor
        int64; the pad id in speech slots and in padding.
    attention_mask : torch.Tensor
        int64; 1 on valid tokens.
    position_ids : torch.Tensor
        int64; 0..n-1 over the valid tokens, 0 in padding.
    labels : torch.Tensor
        int64; the response's ids (and EOS) at their own places, else -100.
    slot_mask : torch.Tensor
        bool; True where a speech embedding goes.
    prefixes : tuple of tuple of int, optional
        Each row's prefix, where it is not in the tensors: the LLM starts from
        its keys and values, and positions count it.
    joined : bool
        All rows are one sequence, without padding (batch is 1): each starts
        where the positions start again, and sees itself only.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    slot_mask: torch.Tensor
    prefixes: tuple = None
    joined: bool = False

    @property
    def response_tokens(self):
        """Targets of each row, EOS included; shape (rows,), int64."""
        return self._by_row(self.labels != IGNORE)

    @property
    def speech_tokens(self):
        """Speech tokens of each row; shape (rows,), int64."""
        return self._by_row(self.slot_mask)

    def _by_row(self, mask):
        if not self.joined:
            return mask.sum(1)
        row = (self.position_ids[0] == 0).cumsum(0) - 1
        counts = row.new_zeros(int(row[-1]) + 1)
        return counts.index_add(0, row, mask[0].to(row))

    def to(self, device):
        """The same batch on another device."""
        tensors = (tensor.to(device) for tensor in self[:5])
        return Packed(*tensors, *self[5:])


def pack(rows, pad_id, eos_id, side="right", share_prefix=False, join=False):
    """Turn rows into one padded batch.

    Arguments
    ---------
    rows : sequence of Row
        The batch.
    pad_id : int
        Id for padding and speech slots (never looked at: masked or replaced).
    eos_id : int
        Target after a response that ended.
    side : str
        Where the padding stands: "right" (training) or "left" (generation).
    share_prefix : bool
        Leave the prefixes out of the tensors.
    join : bool
        Make one sequence of the rows, one after the other, instead of padding
        them; not together with ``share_prefix``.

    Returns
    -------
    Packed
        Shapes (batch, longest row), or (1, all tokens).

    Example
    -------
    >>> rows = [Row((5,), 2, (6,), (7, 8), True), Row((5,), 1, (6,), (9,))]
    >>> packed = pack(rows, pad_id=0, eos_id=2)
    >>> packed.input_ids.tolist()
    [[5, 0, 0, 6, 7, 8, 2], [5, 0, 6, 9, 0, 0, 0]]
    >>> packed.labels[1].tolist()
    [-100, -100, -100, 9, -100, -100, -100]
    """
    if side not in ("left", "right"):
        raise ValueError(f"side must be 'left' or 'right', not {side!r}")
    if join:
        if share_prefix:
            raise ValueError("joined rows have no shared prefix")
        parts = [pack([row], pad_id, eos_id) for row in rows]
        tensors = zip(*(part[:5] for part in parts), strict=True)
        return Packed(*(torch.cat(t, dim=1) for t in tensors), joined=True)
    prefixes = None
    if share_prefix:
        prefixes = tuple(tuple(row.prefix) for row in rows)
        rows = [row._replace(prefix=()) for row in rows]
    time = max(row.length for row in rows)
    shape = (len(rows), time)
    input_ids = torch.full(shape, pad_id, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    position_ids = torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORE, dtype=torch.int64)
    slot_mask = torch.zeros(shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        speech = isinstance(row.slot, int)
        slot = [pad_id] * row.slot if speech else list(row.slot)
        target = list(row.response) + [eos_id] * int(row.ended)
        ids = [*row.prefix, *slot, *row.suffix, *target]
        start = 0 if side == "right" else time - len(ids)
        end = start + len(ids)
        input_ids[i, start:end] = torch.tensor(ids, dtype=torch.int64)
        attention_mask[i, start:end] = 1
        first = len(prefixes[i]) if share_prefix else 0
        position_ids[i, start:end] = torch.arange(first, first + len(ids))
        if target:
            labels[i, end - len(target) : end] = torch.tensor(target)
        if speech:
            first = start + len(row.prefix)
            slot_mask[i, first : first + row.slot] = True
    return Packed(
        input_ids, attention_mask, position_ids, labels, slot_mask, prefixes
    )


def scatter_speech(embeds, slot_mask, speech, lengths):
    """Put each row's valid speech embeddings into its slots.

    Arguments
    ---------
    embeds : torch.Tensor
        Token embeddings, shape (batch, time, hidden).
    slot_mask : torch.Tensor
        Shape (batch, time), bool; or (1, time) of joined rows.
    speech : torch.Tensor
        Shape (batch, longest, hidden), padded at the end.
    lengths : torch.Tensor
        Shape (batch,), valid speech tokens of each row.

    Returns
    -------
    torch.Tensor
        Shape (batch, time, hidden); differentiable in ``speech``.

    Raises
    ------
    ValueError
        If a row has not as many slots as speech tokens.
    """
    slots = slot_mask.sum(1)
    joined = len(slots) != len(lengths)
    if not torch.equal(
        slots.sum() if joined else slots,
        (lengths.sum() if joined else lengths).to(slots),
    ):
        raise ValueError(
            f"slots {slots.tolist()} do not match the speech tokens "
            f"{lengths.tolist()}"
        )
    steps = torch.arange(speech.shape[1], device=speech.device)
    valid = steps.unsqueeze(0) < lengths.unsqueeze(1)
    return embeds.masked_scatter(
        slot_mask.unsqueeze(-1), speech[valid].to(embeds.dtype)
    )


def predictors(labels):
    """Where each label is predicted: one position before it.

    Arguments
    ---------
    labels : torch.Tensor
        Shape (batch, time), -100 outside the response.

    Returns
    -------
    mask : torch.Tensor
        Shape (batch, time), bool, True at the predicting positions; the first
        response token is predicted by the last token of the suffix.
    targets : torch.Tensor
        Shape (number of True,), the labels in the same order.

    Example
    -------
    >>> mask, targets = predictors(torch.tensor([[-100, 4, 5, -100]]))
    >>> mask.tolist(), targets.tolist()
    ([[True, True, False, False]], [4, 5])
    """
    wanted = labels[:, 1:] != IGNORE
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = wanted
    return mask, labels[:, 1:][wanted]
