"""Continuations on disk -> batches of clips with their rows.

The Arrow twin of stage 1's Parquet is opened memory-mapped; audio is read and
its mel computed in the loader's workers; a row is packed before the model
runs, since a clip's number of speech tokens is known from its samples.

Authors
 * The blsp_plugin team 2026
"""

import os
import pickle
from typing import NamedTuple

import datasets
import numpy
import pyarrow
import pyarrow.compute
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.data_pipeline import provides, takes
from torch.nn.utils.rnn import pad_sequence

from blsp_plugin.data.audio import read_speech
from blsp_plugin.data.twin import FIRST_LIKE, arrow_twin
from blsp_plugin.errors import BadInput
from blsp_plugin.lengths import SAMPLE_RATE, mel_frames
from blsp_plugin.packing import Packed, Row, pack

__all__ = [
    "Collate",
    "Example",
    "SpeechBatch",
    "continuation_dataset",
    "open_continuations",
    "row_frames",
    "row_lengths",
]

# What training needs of stage 1's table; it may come without the last two.
COLUMNS = pyarrow.schema(
    [
        ("ID", pyarrow.string()),
        ("wav", pyarrow.string()),
        ("duration", pyarrow.float64()),
        ("text", pyarrow.string()),
        ("instruction", pyarrow.string()),
        ("response_ids", pyarrow.list_(pyarrow.int32())),
        ("ended", pyarrow.bool_()),
        ("start", pyarrow.int64()),
        ("stop", pyarrow.int64()),
    ]
)
_OPTIONAL = ("start", "stop")


class Example(NamedTuple):
    """One clip with its row, as a loader worker makes it.

    Arguments
    ---------
    id : str
        Of the row.
    mel : torch.Tensor or None
        Shape (frames, n_mels); None if the clip was rejected.
    samples : int
        At 16 kHz.
    row : Row
        With the number of speech tokens in the slot.
    twin : Row or None
        The same with the transcript in the slot.
    reason : str
        Why the clip was rejected.
    """

    id: str
    mel: torch.Tensor
    samples: int = 0
    row: Row = None
    twin: Row = None
    reason: str = ""


class SpeechBatch(NamedTuple):
    """A batch as the model takes it.

    Arguments
    ---------
    ids : list of str
        Of the rows.
    mel : torch.Tensor
        Shape (batch, frames, n_mels), zero-padded.
    mel_lengths : torch.Tensor
        Shape (batch,), int64, valid frames.
    packed : Packed
        The rows, right-padded.
    twin : Packed or None
        Their text twins.
    seconds : float
        Of audio in the batch.
    rejected : list of (str, str)
        Ids of clips left out, with the reason.
    """

    ids: list
    mel: torch.Tensor
    mel_lengths: torch.Tensor
    packed: Packed
    twin: Packed
    seconds: float
    rejected: list

    def to(self, device):
        """The same batch on another device."""
        return self._replace(
            mel=self.mel.to(device),
            mel_lengths=self.mel_lengths.to(device),
            packed=self.packed.to(device),
            twin=None if self.twin is None else self.twin.to(device),
        )


def open_continuations(path, cache_dir, quiet=False):
    """Open the Parquet file of stage 1, memory-mapped.

    The first time it is copied to an Arrow file (`arrow_twin`), about as
    large as the texts in it; later it opens at once.

    Arguments
    ---------
    path : str
        The file.
    cache_dir : str
        Where its Arrow twin is kept.
    quiet : bool
        No progress bar while the twin is made.

    Returns
    -------
    datasets.Dataset
        With the columns that training needs, and `FIRST_LIKE`.

    Raises
    ------
    BadInput
        If it is missing, unreadable, empty, or has not the columns.
    """
    if not os.path.isfile(path):
        raise BadInput(
            f"{path}: no such file; write continuations first "
            "(recipes/continuation/generate.py)"
        )
    twin = arrow_twin(path, cache_dir, COLUMNS, _OPTIONAL, quiet)
    try:
        return datasets.Dataset.from_file(twin)
    except (OSError, pyarrow.ArrowException) as error:
        raise BadInput(
            f"{twin}: not readable ({error}); delete it and run the same "
            "command again"
        ) from error


def _mapped_again(table):
    """The same table, mapped anew.

    What was read, and what the system maps with it, stays mapped as long as
    the table lives. It is the disk's cache, not memory that is taken, but
    counts as resident in every process that read it.
    """
    return pickle.loads(pickle.dumps(table))


class _Rows:
    """Rows of a table for the toolkit's dataset, in bounded memory."""

    rows_a_mapping = 64  # of a row the system may map 6 MB (2 MB a folio)

    def __init__(self, table):
        self.table = table
        self.read = 0

    def __getitem__(self, row):
        # The first time as well: a worker's table is its parent's.
        if self.read % self.rows_a_mapping == 0:
            self.table = _mapped_again(self.table)
        self.read += 1
        return self.table[row]


def _in_batches(table):
    """The table in its order, some rows at a time; no row is a Python object.

    Yields
    ------
    pyarrow.Table
    """
    yield from _mapped_again(table).with_format("arrow").iter(100_000)


def _samples(batch):
    """Samples of the clips, at least 1 each."""
    samples = (batch["duration"].to_numpy() * SAMPLE_RATE).round()
    return numpy.maximum(1, samples).astype(numpy.int64)


def row_lengths(table, prompt, speech_tokens):
    """LLM tokens of each row, from the columns alone.

    Arguments
    ---------
    table : datasets.Dataset
        From `open_continuations`.
    prompt : Prompt
        Gives the tokens around the slot.
    speech_tokens : callable
        Samples (array) -> speech tokens (array).

    Returns
    -------
    numpy.ndarray
        Shape (rows,), int32.
    """
    lengths, around = [], {}
    for batch in _in_batches(table):
        same, places, index = numpy.unique(
            batch[FIRST_LIKE], return_index=True, return_inverse=True
        )
        for row, place in zip(same.tolist(), places.tolist(), strict=True):
            if row not in around:
                instruction = batch["instruction"][place].as_py()
                around[row] = sum(map(len, prompt.ids(instruction)))
        length = numpy.array([around[row] for row in same.tolist()])[index]
        length += speech_tokens(_samples(batch))
        responses = pyarrow.compute.list_value_length(batch["response_ids"])
        length += responses.to_numpy() + batch["ended"].to_numpy()
        lengths.append(length.astype(numpy.int32))
    return numpy.concatenate(lengths)


def row_frames(table):
    """Mel frames of each row's clip, which the encoder sees.

    Arguments
    ---------
    table : datasets.Dataset
        From `open_continuations`.

    Returns
    -------
    numpy.ndarray
        Shape (rows,), int32.
    """
    return numpy.concatenate(
        [
            mel_frames(_samples(batch)).astype(numpy.int32)
            for batch in _in_batches(table)
        ]
    )


def continuation_dataset(table, prompt, log_mel, speech_tokens, twins=False):
    """A toolkit dataset whose item "example" is an `Example`.

    Arguments
    ---------
    table : datasets.Dataset
        From `open_continuations`.
    prompt : Prompt
        Of the LLM.
    log_mel : LogMel
        Of the encoder.
    speech_tokens : callable
        Samples (int) -> speech tokens (int).
    twins : bool
        Also build the text twins (validation needs them).

    Returns
    -------
    speechbrain.dataio.dataset.DynamicItemDataset
    """
    stretch = [n for n in _OPTIONAL if n in table.column_names]

    @takes(
        "ID", "wav", "text", "instruction", "response_ids", "ended", *stretch
    )
    @provides("example")
    def pipeline(row_id, wav, text, instruction, response_ids, ended, *stretch):
        try:
            speech = read_speech(wav, *stretch)
        except BadInput as error:
            # One bad clip must not end a run of days: it is reported and left
            # out by the brain, which knows how many may be bad.
            return Example(row_id, None, reason=str(error))
        samples = speech.shape[0]
        prefix, suffix = prompt.ids(instruction)
        row = Row(prefix, speech_tokens(samples), suffix, response_ids, ended)
        twin = None
        if twins:
            twin = row._replace(slot=prompt.slot_ids(instruction, text))
        return Example(row_id, log_mel(speech), samples, row, twin)

    # The host lists the numbers of all rows, 400 MB of ten million: it is given
    # one row first, and then all of them and their range.
    dataset = DynamicItemDataset.from_arrow_dataset(table.select([0]))
    dataset.data, dataset.data_ids = _Rows(table), range(len(table))
    dataset.add_dynamic_item(pipeline)
    dataset.set_output_keys(["example"])
    return dataset


class Collate:
    """Examples -> `SpeechBatch`.

    Arguments
    ---------
    pad_id : int
        For padding and slots.
    eos_id : int
        Target after a response that ended.
    side : str
        Where the padding stands, "right" for training.
    """

    def __init__(self, pad_id, eos_id, side="right"):
        self.pad_id = pad_id
        self.eos_id = eos_id
        self.side = side

    def __call__(self, items):
        """Build the batch.

        Arguments
        ---------
        items : list of dict
            Each with an `Example` under "example".

        Returns
        -------
        SpeechBatch
            Without tensors (None) if every clip was rejected.
        """
        examples = [item["example"] for item in items]
        rejected = [(e.id, e.reason) for e in examples if e.mel is None]
        examples = [e for e in examples if e.mel is not None]
        if not examples:
            return SpeechBatch([], None, None, None, None, 0.0, rejected)
        samples = [example.samples for example in examples]
        twins = [example.twin for example in examples]
        return SpeechBatch(
            ids=[example.id for example in examples],
            mel=pad_sequence([e.mel for e in examples], batch_first=True),
            mel_lengths=torch.tensor([mel_frames(n) for n in samples]),
            packed=self._pack([example.row for example in examples]),
            twin=None if None in twins else self._pack(twins),
            seconds=sum(samples) / SAMPLE_RATE,
            rejected=rejected,
        )

    def _pack(self, rows):
        return pack(rows, self.pad_id, self.eos_id, self.side)
