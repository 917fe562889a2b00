"""Continuations on disk -> batches of clips with their rows.

The Parquet of stage 1 is opened memory-mapped; audio is read and its mel
computed in the loader's workers; a row is packed before the model runs, since
a clip's number of speech tokens is known from its samples.

Authors
 * The blsp_plugin team 2026
"""

import os
from typing import NamedTuple

import datasets
import numpy
import pyarrow.compute
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.data_pipeline import provides, takes
from torch.nn.utils.rnn import pad_sequence

from blsp_plugin.data.audio import read_speech
from blsp_plugin.errors import BadInput
from blsp_plugin.lengths import SAMPLE_RATE, mel_frames
from blsp_plugin.packing import Packed, Row, pack

__all__ = [
    "Collate",
    "Example",
    "SpeechBatch",
    "continuation_dataset",
    "open_continuations",
    "row_lengths",
]

COLUMNS = (
    "ID",
    "wav",
    "duration",
    "text",
    "instruction",
    "response_ids",
    "ended",
)


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


def open_continuations(path, cache_dir):
    """Open the Parquet file of stage 1, memory-mapped.

    Arguments
    ---------
    path : str
        The file.
    cache_dir : str
        Where its Arrow twin is kept.

    Returns
    -------
    datasets.Dataset

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
    datasets.disable_progress_bars()
    try:
        table = datasets.Dataset.from_parquet(path, cache_dir=cache_dir)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise BadInput(
            f"{path}: not a readable Parquet file ({error}); delete it and "
            "run recipes/continuation/generate.py again"
        ) from error
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise BadInput(
            f"{path}: lacks the column {missing[0]!r} (it has "
            f"{', '.join(table.column_names)}); it must come from "
            "recipes/continuation/generate.py"
        )
    if not len(table):
        raise BadInput(f"{path}: has no rows")
    return table


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
        Shape (rows,), int64.
    """
    arrow = table.with_format("arrow")[:]
    durations = arrow["duration"].to_numpy()
    samples = numpy.maximum(1, (durations * SAMPLE_RATE).round())
    tokens = speech_tokens(samples.astype(numpy.int64))
    responses = pyarrow.compute.list_value_length(arrow["response_ids"])
    responses = responses.to_numpy()
    instructions, index = numpy.unique(
        arrow["instruction"].to_numpy(), return_inverse=True
    )
    around = [
        sum(map(len, prompt.ids(instruction))) for instruction in instructions
    ]
    ended = arrow["ended"].to_numpy().astype(numpy.int64)
    return tokens + responses + ended + numpy.array(around)[index]


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
    stretch = [n for n in ("start", "stop") if n in table.column_names]

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

    dataset = DynamicItemDataset.from_arrow_dataset(table)
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
