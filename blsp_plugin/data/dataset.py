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
from speechbrain.utils.data_pipeline import DynamicItem
from torch.nn.utils.rnn import pad_sequence

from blsp_plugin.data.audio import read_speech
from blsp_plugin.data.twin import FIRST_LIKE, arrow_twin
from blsp_plugin.errors import BadInput
from blsp_plugin.lengths import SAMPLE_RATE, mel_frames
from blsp_plugin.packing import Packed, Row, pack

__all__ = [
    "Collate",
    "Example",
    "MelFeatures",
    "SpeechBatch",
    "continuation_dataset",
    "open_continuations",
    "response_lengths",
    "row_frames",
    "row_lengths",
]

# What training needs of stage 1's table; it may come without the last ones.
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
        ("behaviour", pyarrow.string()),
    ]
)
STRETCH = ("start", "stop")
_OPTIONAL = (*STRETCH, "behaviour")


class Example(NamedTuple):
    """One clip with its row, as a loader worker makes it.

    Arguments
    ---------
    id : str
        Of the row.
    features : torch.Tensor or None
        The clip's mel, shape (frames, n_mels), or its encoder states, shape
        (frames, width); None if the clip was rejected.
    samples : int
        At 16 kHz.
    row : Row
        With the number of speech tokens in the slot.
    twin : Row or None
        The same with the transcript in the slot.
    kind : str
        Behaviour (or instruction) of the row.
    teacher : tuple of torch.Tensor or None
        What the LLM makes of the transcript, from a cache.
    reason : str
        Why the clip was rejected.
    """

    id: str
    features: torch.Tensor
    samples: int = 0
    row: Row = None
    twin: Row = None
    kind: str = ""
    teacher: tuple = None
    reason: str = ""


class SpeechBatch(NamedTuple):
    """A batch as the model takes it.

    Arguments
    ---------
    ids : list of str
        Of the rows.
    mel : torch.Tensor or None
        Shape (batch, frames, n_mels), zero-padded; None where the encoder's
        states come from a cache.
    mel_lengths : torch.Tensor or None
        Shape (batch,), int64, valid frames.
    states : torch.Tensor or None
        Shape (batch, frames, width), zero-padded, from a cache.
    state_lengths : torch.Tensor or None
        Shape (batch,), int64, valid frames.
    packed : Packed
        The rows, right-padded.
    rows : list of Row
        The same, before they became tensors.
    twin : Packed or None
        Their text twins.
    transcripts : list of sequence of int or None
        What stands in the slots of the twins.
    kinds : list of str
        Behaviour (or instruction) of each row.
    teacher : TeacherStates or TeacherTopK or None
        What the LLM makes of the transcripts, from a cache.
    seconds : float
        Of audio in the batch.
    rejected : list of (str, str)
        Ids of clips left out, with the reason.
    """

    ids: list
    mel: torch.Tensor = None
    mel_lengths: torch.Tensor = None
    states: torch.Tensor = None
    state_lengths: torch.Tensor = None
    packed: Packed = None
    rows: list = ()
    twin: Packed = None
    transcripts: list = None
    kinds: list = ()
    teacher: tuple = None
    seconds: float = 0.0
    rejected: list = ()

    def to(self, device):
        """The same batch on another device."""
        moved = {}
        for name, value in self._asdict().items():
            if isinstance(value, torch.Tensor | Packed):
                moved[name] = value.to(device)
        if self.teacher is not None:
            tensors = (tensor.to(device) for tensor in self.teacher)
            moved["teacher"] = type(self.teacher)(*tensors)
        return self._replace(**moved)


def open_continuations(path, cache_dir, quiet=False, behaviours=None):
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
    behaviours : sequence of str, optional
        Only these; all if not given.

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
    twin = arrow_twin(path, cache_dir, COLUMNS, _OPTIONAL, quiet, behaviours)
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


def row_lengths(table, prompt, speech_tokens, share_prefix=False):
    """LLM tokens of each row, from the columns alone.

    Arguments
    ---------
    table : datasets.Dataset
        From `open_continuations`.
    prompt : Prompt
        Gives the tokens around the slot.
    speech_tokens : callable
        Samples (array) -> speech tokens (array).
    share_prefix : bool
        Without the prefix, whose states are shared.

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
                prefix, suffix = prompt.ids(instruction)
                prefix = () if share_prefix else prefix
                around[row] = len(prefix) + len(suffix)
        length = numpy.array([around[row] for row in same.tolist()])[index]
        length += speech_tokens(_samples(batch))
        length += _responses(batch)
        lengths.append(length.astype(numpy.int32))
    return numpy.concatenate(lengths)


def _responses(batch):
    """Response tokens, EOS included."""
    lengths = pyarrow.compute.list_value_length(batch["response_ids"])
    return lengths.to_numpy() + batch["ended"].to_numpy()


def response_lengths(table):
    """Response tokens of each row, EOS included.

    Arguments
    ---------
    table : datasets.Dataset
        From `open_continuations`.

    Returns
    -------
    numpy.ndarray
        Shape (rows,), int32.
    """
    lengths = [_responses(batch) for batch in _in_batches(table)]
    return numpy.concatenate(lengths).astype(numpy.int32)


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


class MelFeatures:
    """Clip -> log-mel features, read and computed where it is called.

    Arguments
    ---------
    log_mel : LogMel
        Of the encoder.
    """

    def __init__(self, log_mel):
        self.log_mel = log_mel

    def __call__(self, wav, *stretch):
        """Read a clip.

        Arguments
        ---------
        wav : str
            The file.
        *stretch : tuple of int
            Its first sample and the one after its last, if it is a part.

        Returns
        -------
        features : torch.Tensor
            Shape (frames, n_mels).
        samples : int
            At 16 kHz.
        """
        speech = read_speech(wav, *stretch)
        return self.log_mel(speech), speech.shape[0]


class _Examples:
    """Columns of a row -> `Example`; see `continuation_dataset`."""

    def __init__(
        self, prompt, features, speech_tokens, twins, counts_transcript, teacher
    ):
        self.prompt = prompt
        self.features = features
        self.speech_tokens = speech_tokens
        self.twins = twins
        self.counts_transcript = counts_transcript
        self.teacher = teacher

    def __call__(
        self, row_id, wav, text, instruction, ids, ended, kind, *stretch
    ):
        twin = taught = None
        try:
            clip, samples = self.features(wav, *stretch)
            row = self.prompt.row(instruction, self.speech_tokens(samples))
            row = row._replace(response=ids, ended=ended)
            if self.twins:
                slot = self.prompt.slot_ids(instruction, text)
                twin = row._replace(slot=slot)
            if self.counts_transcript:
                if not twin.slot:
                    raise BadInput(f"{row_id}: has no transcript; drop the row")
                row = row._replace(slot=len(twin.slot))
            if self.teacher is not None:
                taught = self.teacher(twin)
        except BadInput as error:
            # One bad clip must not end a run of days: it is reported and left
            # out by the brain, which knows how many may be bad.
            return Example(row_id, None, reason=str(error))
        kind = kind or instruction
        return Example(row_id, clip, samples, row, twin, kind, taught)


def continuation_dataset(
    table,
    prompt,
    features,
    speech_tokens,
    twins=False,
    counts_transcript=False,
    teacher=None,
):
    """A toolkit dataset whose item "example" is an `Example`.

    Arguments
    ---------
    table : datasets.Dataset
        From `open_continuations`.
    prompt : Prompt
        Of the LLM.
    features : callable
        As `MelFeatures`, or the encoder's states from a cache.
    speech_tokens : callable
        Samples (int) -> speech tokens (int).
    twins : bool
        Also build the text twins (validation and most losses need them).
    counts_transcript : bool
        A clip gets as many speech tokens as its transcript has tokens.
    teacher : callable, optional
        Twin (Row) -> what the LLM makes of it, a named tuple of tensors.

    Returns
    -------
    speechbrain.dataio.dataset.DynamicItemDataset
    """
    names = table.column_names
    kind = "behaviour" if "behaviour" in names else "instruction"
    stretch = [name for name in STRETCH if name in names]
    twins = twins or counts_transcript or teacher is not None
    pipeline = _Examples(
        prompt, features, speech_tokens, twins, counts_transcript, teacher
    )
    takes = "ID wav text instruction response_ids ended".split()
    item = DynamicItem([*takes, kind, *stretch], pipeline, ["example"])
    # The host lists the numbers of all rows, 400 MB of ten million: it is given
    # one row first, and then all of them and their range.
    dataset = DynamicItemDataset.from_arrow_dataset(table.select([0]))
    dataset.data, dataset.data_ids = _Rows(table), range(len(table))
    dataset.add_dynamic_item(item)
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
    share_prefix : bool
        Leave the prefixes out of the tensors: see `pack`.
    join : bool
        Make one sequence of the rows: see `pack`. Twins are padded as ever.
    encoded : bool
        The clips come as encoder states, from a cache.
    """

    def __init__(
        self,
        pad_id,
        eos_id,
        side="right",
        share_prefix=False,
        join=False,
        encoded=False,
    ):
        self.pad_id = pad_id
        self.eos_id = eos_id
        self.side = side
        self.share_prefix = share_prefix
        self.join = join
        self.encoded = encoded

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
        rejected = [(e.id, e.reason) for e in examples if e.reason]
        examples = [e for e in examples if not e.reason]
        if not examples:
            return SpeechBatch([], rejected=rejected)
        twins = [example.twin for example in examples]
        rows = [example.row for example in examples]
        clips = [example.features for example in examples]
        features = pad_sequence(clips, batch_first=True)
        samples = [example.samples for example in examples]
        batch = SpeechBatch(
            ids=[example.id for example in examples],
            packed=self._pack(rows, self.share_prefix, self.join),
            rows=rows,
            kinds=[example.kind for example in examples],
            seconds=sum(samples) / SAMPLE_RATE,
            rejected=rejected,
        )
        if self.encoded:
            lengths = torch.tensor([len(clip) for clip in clips])
            batch = batch._replace(states=features, state_lengths=lengths)
        else:
            # With 30-s padding a mel is longer than its clip.
            lengths = torch.tensor([mel_frames(n) for n in samples])
            batch = batch._replace(mel=features, mel_lengths=lengths)
        if None not in twins:
            batch = batch._replace(
                twin=self._pack(twins, self.share_prefix),
                transcripts=[list(twin.slot) for twin in twins],
            )
        if examples[0].teacher is not None:
            parts = [example.teacher for example in examples]
            tensors = map(torch.cat, zip(*parts, strict=True))
            batch = batch._replace(teacher=type(parts[0])(*tensors))
        return batch

    def _pack(self, rows, *how):
        return pack(rows, self.pad_id, self.eos_id, self.side, *how)
