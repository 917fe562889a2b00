"""What the frozen models make of the data, computed once and kept on disk.

The encoder's states of a clip and the LLM's of a transcript are the same in
every epoch and every run. `EncoderStates` and `TeacherTargets` compute those
that are missing, on all ranks, and hand them to the loader's workers; see
`blsp_plugin.data.cache` for how they are kept.

Authors
 * The blsp_plugin team 2026
"""

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy
import torch
from speechbrain.utils.distributed import ddp_barrier
from speechbrain.utils.logger import get_logger
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from tqdm import tqdm

from blsp_plugin.data.cache import ArrayCache, clip_key, text_key
from blsp_plugin.data.dataset import (
    STRETCH,
    MelFeatures,
    response_lengths,
    row_frames,
)
from blsp_plugin.data.sampler import TokenBudgetSampler
from blsp_plugin.data.workers import worker_options
from blsp_plugin.distributed import gather_objects, ranks
from blsp_plugin.errors import BadInput
from blsp_plugin.files import write_json
from blsp_plugin.lengths import (
    CHUNK_MEL,
    encoder_frames,
    mel_frames,
    stacked_frames,
)
from blsp_plugin.losses import TeacherStates, TeacherTopK
from blsp_plugin.packing import pack
from blsp_plugin.pretrained import fingerprint_text

__all__ = ["EncoderStates", "TeacherTargets"]

logger = get_logger(__name__)


class _Work(NamedTuple):
    """Entries to compute.

    Arguments
    ---------
    items : torch.utils.data.Dataset
        Gives (key, input), input None where nothing is to be done.
    sizes : numpy.ndarray
        Length of each item; those of similar length go together.
    bytes_each : numpy.ndarray
        Size of each entry, an estimate.
    compute : callable
        List of inputs -> list of dict of tensors.
    """

    items: torch.utils.data.Dataset
    sizes: numpy.ndarray
    bytes_each: numpy.ndarray
    compute: Callable


class _Cached:
    """A cache, and how its missing entries are computed."""

    what = ""  # for messages

    def __init__(self, folder, configuration):
        self.cache = ArrayCache(folder, configuration)
        self._expected = 0.0  # bytes, of all tables that are filled

    def _mark(self, table, also=""):
        """File that says that a table has been gone through."""
        twin = table.cache_files[0]["filename"] if table.cache_files else ""
        twin = os.path.basename(twin)
        name = f"{fingerprint_text(twin, str(len(table)), also)}.filled"
        return os.path.join(self.cache.folder, name)

    def _fill(self, mark, work, budget, workers, quiet):
        """Compute what is missing, once for a table.

        Looking for what is missing reads every clip, which takes hours where
        there are millions: a table is gone through once. Its Arrow twin has
        another name when the table has changed.

        Arguments
        ---------
        mark : str
            File that is there if the table has been gone through.
        work : _Work
            What to compute where it is missing.
        budget : int
            Of a batch, in the unit of the work's sizes, padding included.
        workers : int
            Of the loader.
        quiet : bool
            Without a progress bar.
        """
        rank, world_size = ranks()
        self._expected += float(work.bytes_each.sum())
        # One answer for all ranks: what follows has barriers.
        if gather_objects(os.path.exists(mark))[0]:
            self.cache.refresh()
            return
        wanted = int(self._expected - self.cache.bytes)
        if rank == 0 and wanted > 0:
            logger.info(
                "%s: up to %.2f GB in %s",
                self.what,
                wanted / 1e9,
                self.cache.folder,
            )
            self.cache.reserve(wanted)
        sampler = TokenBudgetSampler(
            work.sizes,
            budget,
            shuffle=False,
            rank=rank,
            world_size=world_size,
        )
        loader = DataLoader(
            work.items,
            batch_sampler=sampler,
            collate_fn=list,
            **worker_options(workers),
        )
        seen = set()
        bar = tqdm(
            loader, desc=self.what, unit="batch", disable=quiet or rank > 0
        )
        with self.cache.writer(rank) as writer:
            for batch in bar:
                new = {
                    key: value
                    for key, value in batch
                    if value is not None and key not in seen
                }
                if not new:
                    continue
                seen.update(new)
                entries = work.compute(list(new.values()))
                for key, entry in zip(new, entries, strict=True):
                    writer.put(key, entry)
        ddp_barrier()
        self.cache.refresh()
        if rank == 0:
            write_json({"rows": len(work.sizes)}, mark)
        ddp_barrier()


class EncoderStates(_Cached):
    """The frozen encoder's states of clips, in bfloat16.

    Takes the place of `MelFeatures` in `continuation_dataset`.

    Arguments
    ---------
    folder : str
        Of all caches.
    encoder : WhisperEncoder
        Frozen.
    """

    what = "encoder states"

    def __init__(self, folder, encoder):
        super().__init__(
            folder,
            {
                "kind": "states",
                "encoder": encoder.fingerprint(),
                "computed_in": str(encoder.dtype),
            },
        )

    def __call__(self, wav, *stretch):
        """Read a clip's states.

        Arguments
        ---------
        wav : str
            The file.
        *stretch : tuple of int
            Its first sample and the one after its last, if it is a part.

        Returns
        -------
        states : torch.Tensor
            Shape (frames, width), bfloat16.
        samples : int
            At 16 kHz.

        Raises
        ------
        BadInput
            If they are not there, because the clip could not be read, or are
            damaged.
        """
        key = clip_key(wav, *stretch)
        if key not in self.cache:
            raise BadInput(
                f"{wav}: no encoder states in {self.cache.folder}; the clip "
                "could not be read when they were computed, or has changed "
                "since; delete *.filled there and run the same command again"
            )
        entry = self.cache[key]
        return entry["states"], int(entry["samples"])

    def fill(self, table, encoder, budget, workers=0, quiet=False):
        """Compute the states that are missing.

        Arguments
        ---------
        table : datasets.Dataset
            From `open_continuations`.
        encoder : WhisperEncoder
            On its device.
        budget : int
            Mel frames of a batch, padding included.
        workers : int
            Processes that read clips.
        quiet : bool
            Without a progress bar.
        """
        device = next(encoder.parameters()).device

        def compute(clips):
            mels, samples = zip(*clips, strict=True)
            lengths = torch.tensor([mel_frames(n) for n in samples])
            mel = pad_sequence(mels, batch_first=True)
            states, lengths = encoder(mel.to(device), lengths.to(device))
            states = states.to(torch.bfloat16).cpu()
            return [
                {"states": part[:length], "samples": torch.tensor(count)}
                for part, length, count in zip(
                    states, lengths.tolist(), samples, strict=True
                )
            ]

        frames = row_frames(table)
        sizes = 2.0 * encoder.output_size * encoder_frames(frames)
        if encoder.pad_to_30s:
            frames = CHUNK_MEL * stacked_frames(frames, CHUNK_MEL)
        items = _Clips(table, MelFeatures(encoder.mel), self.cache)
        work = _Work(items, frames, sizes, compute)
        self._fill(self._mark(table), work, budget, workers, quiet)


class _Clips(torch.utils.data.Dataset):
    """(key, features) of clips that are not in a cache yet."""

    def __init__(self, table, features, cache):
        self.table = table
        self.features = features
        self.cache = cache

    def __len__(self):
        return len(self.table)

    def __getitem__(self, number):
        row = self.table[number]
        stretch = [row[name] for name in STRETCH if name in row]
        try:
            key = clip_key(row["wav"], *stretch)
            if key in self.cache:
                return key, None
            return key, self.features(row["wav"], *stretch)
        except BadInput:  # the training will say so, when it comes to the row
            return b"", None


class TeacherTargets(_Cached):
    """What the frozen LLM makes of transcripts, at the response positions.

    Arguments
    ---------
    folder : str
        Of all caches.
    llm : FrozenLLM
        The teacher.
    top_k : int
        So many likeliest next tokens with their log-probabilities; 0: last
        hidden states in bfloat16, which every loss can use.
    temperature : float
        Of the log-probabilities: that of the loss.
    """

    what = "teacher targets"

    def __init__(self, folder, llm, top_k=0, temperature=1.0):
        configuration = {
            "kind": "teacher",
            "llm": llm.fingerprint(),
            "computed_in": str(llm.dtype),
            "top_k": top_k,
        }
        if top_k:
            configuration["temperature"] = float(temperature)
        super().__init__(folder, configuration)
        self.top_k = top_k
        self.temperature = temperature

    def __call__(self, twin):
        """Read a row's targets.

        Arguments
        ---------
        twin : Row
            With the transcript in the slot, and the response.

        Returns
        -------
        TeacherStates or TeacherTopK
        """
        key = _twin_key(twin)
        if key not in self.cache:
            raise BadInput(
                f"no teacher targets of a row in {self.cache.folder}; delete "
                "*.filled there and run the same command again"
            )
        entry = self.cache[key]
        kind = TeacherTopK if self.top_k else TeacherStates
        return kind(**entry)

    def fill(
        self, table, prompt, model, lengths, budget, workers=0, quiet=False
    ):
        """Compute the targets that are missing.

        Arguments
        ---------
        table : datasets.Dataset
            From `open_continuations`.
        prompt : Prompt
            Of the LLM.
        model : BLSP
            With the LLM on its device.
        lengths : numpy.ndarray
            About how many tokens each row has.
        budget : int
            Tokens of a batch, padding included.
        workers : int
            Processes that tokenise.
        quiet : bool
            Without a progress bar.
        """
        llm = model.llm
        share = llm.can_share_prefix(int(max(lengths)))

        def compute(twins):
            packed = pack(
                twins,
                llm.tokenizer.pad_token_id,
                llm.eos_id,
                share_prefix=share,
            ).to(llm.device)
            hidden = model.teach(packed).hidden
            counts = packed.response_tokens.tolist()
            return [self._entry(part, llm) for part in hidden.split(counts)]

        each = 6.0 * self.top_k if self.top_k else 2.0 * llm.hidden_size
        sizes = response_lengths(table) * each
        work = _Work(_Twins(table, prompt, self.cache), lengths, sizes, compute)
        mark = self._mark(table, prompt.fingerprint())
        self._fill(mark, work, budget, workers, quiet)

    def _entry(self, hidden, llm):
        if not self.top_k:
            return {"hidden": hidden.to(torch.bfloat16).cpu()}
        logits = llm.project(hidden) / self.temperature
        log_probs, ids = logits.log_softmax(-1).topk(self.top_k)
        return {
            "ids": ids.to(torch.int32).cpu(),
            "log_probs": log_probs.to(torch.bfloat16).cpu(),
        }


def _twin_key(twin):
    parts = (twin.prefix, twin.slot, twin.suffix, twin.response)
    ids = [[int(i) for i in part] for part in parts]
    return text_key(*map(str, ids), str(bool(twin.ended)))


class _Twins(torch.utils.data.Dataset):
    """(key, twin) of rows that are not in a cache yet."""

    def __init__(self, table, prompt, cache):
        self.table = table
        self.prompt = prompt
        self.cache = cache

    def __len__(self):
        return len(self.table)

    def __getitem__(self, number):
        row = self.table[number]
        twin = self.prompt.row(row["instruction"], row["text"])
        twin = twin._replace(response=row["response_ids"], ended=row["ended"])
        key = _twin_key(twin)
        return key, None if key in self.cache else twin
