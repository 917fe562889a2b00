"""What a training keeps of itself: what learns, never the frozen parts.

An adapter means nothing without its base, so a checkpoint, as an adapter's
package, carries the base's fingerprints and refuses another one.

Authors
 * The blsp_plugin team 2026
"""

import errno
import json
import os
import random
import shutil

import numpy
import torch
from speechbrain.utils.checkpoints import (
    Checkpointer,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import ddp_barrier, if_main_process
from speechbrain.utils.logger import get_logger

from blsp_plugin.errors import BadInput

__all__ = [
    "AtomicCheckpointer",
    "BaseGuard",
    "RandomState",
    "SavedDict",
    "base_fingerprints",
    "check_base",
    "check_best_by",
    "check_provenance",
]

logger = get_logger(__name__)


class AtomicCheckpointer(Checkpointer):
    """SpeechBrain's checkpointer, whose checkpoints are whole or not there.

    The host writes a checkpoint's metadata first: one that was killed while
    saving, or hit a full disk, would be chosen for the next start and fail.
    Here a checkpoint gets its name when all of it is on the disk.

    Arguments
    ---------
    *args, **kwargs
        Those of `speechbrain.utils.checkpoints.Checkpointer`.
    """

    unfinished = "SAVING+"

    def _new_checkpoint_dirpath(self):
        path = super()._new_checkpoint_dirpath()
        return path.with_name(self.unfinished + path.name)

    def save_checkpoint(self, *args, **kwargs):
        """Save, then give the checkpoint its name.

        Arguments
        ---------
        *args, **kwargs
            Those of the host.

        Returns
        -------
        Checkpoint or None
            None on other ranks than the main one.

        Raises
        ------
        BadInput
            If the disk is full. Earlier checkpoints are untouched.
        """
        folder = self.checkpoints_dir
        if if_main_process():
            for left in folder.glob(self.unfinished + "*"):
                shutil.rmtree(left)
        try:
            checkpoint = super().save_checkpoint(*args, **kwargs)
        except (OSError, RuntimeError) as error:
            # torch reports a full disk as some failed write or other.
            full = shutil.disk_usage(folder).free < 2**20
            for left in folder.glob(self.unfinished + "*"):
                shutil.rmtree(left)
            if full or getattr(error, "errno", None) == errno.ENOSPC:
                raise BadInput(
                    f"{folder}: no space left on the disk for a checkpoint; "
                    "free some and run the same command again to continue "
                    "from the latest one"
                ) from error
            raise
        if checkpoint is not None:
            checkpoint = self._finish(checkpoint)
        # Every rank lists the checkpoints next, and must find the same ones.
        ddp_barrier()
        return checkpoint

    def _finish(self, checkpoint):
        """Bring a saved checkpoint to the disk and give it its name."""
        for path in checkpoint.path.iterdir():
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
        name = checkpoint.path.name.removeprefix(self.unfinished)
        final = checkpoint.path.rename(checkpoint.path.with_name(name))
        files = checkpoint.paramfiles.items()
        paramfiles = {key: final / file.name for key, file in files}
        return checkpoint._replace(path=final, paramfiles=paramfiles)


@register_checkpoint_hooks
class BaseGuard:
    """Lets a checkpoint be loaded only on the base that it was trained for.

    Arguments
    ---------
    base : dict of str
        From `base_fingerprints`.
    """

    def __init__(self, base):
        self.base = base

    @mark_as_saver
    def save(self, path):
        """Write the fingerprints into the checkpoint."""
        with open(path, "w", encoding="utf-8") as stream:
            json.dump(self.base, stream)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Compare the checkpoint's fingerprints."""
        with open(path, encoding="utf-8") as stream:
            check_base(json.load(stream), self.base, path)


@register_checkpoint_hooks
class SavedDict(dict):
    """A dict of plain values, as a recoverable."""

    @mark_as_saver
    def save(self, path):
        """Write the items."""
        with open(path, "w", encoding="utf-8") as stream:
            json.dump(self, stream)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Replace the items."""
        with open(path, encoding="utf-8") as stream:
            items = json.load(stream)
        self.clear()
        self.update(items)


@register_checkpoint_hooks
class RandomState:
    """The random generators of Python, numpy and torch, as a recoverable."""

    @mark_as_saver
    def save(self, path):
        """Write the states."""
        numpy_state = numpy.random.get_state()
        torch.save(
            {
                "python": random.getstate(),
                "numpy": (numpy_state[1].tolist(), *numpy_state[2:]),
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all(),
            },
            path,
        )

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Restore the states."""
        state = torch.load(path, weights_only=True)
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers), gauss))
        keys, *rest = state["numpy"]
        numpy.random.set_state(("MT19937", numpy.array(keys), *rest))
        torch.set_rng_state(state["torch"])
        if len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])


def base_fingerprints(model, prompt):
    """Names of everything frozen that an adapter was trained for.

    Arguments
    ---------
    model : BLSP
        With the encoder and the LLM.
    prompt : Prompt
        Of the LLM.

    Returns
    -------
    dict of str
        Without the LLM's where its weights are not here (served elsewhere).
    """
    base = {
        "encoder": model.encoder.fingerprint(),
        "llm": model.llm.fingerprint(),
        "tokenizer": prompt.tokenizer_fingerprint(),
        "prompt": prompt.fingerprint(),
    }
    return {part: name for part, name in base.items() if name is not None}


def check_base(trained_for, base, where):
    """Refuse an adapter (or checkpoint) that was trained for another base.

    Arguments
    ---------
    trained_for : dict of str
        Fingerprints that it carries.
    base : dict of str
        Fingerprints of what is loaded now.
    where : str
        Its file, for the message.

    Raises
    ------
    BadInput
        Naming what differs.
    """
    for part, name in base.items():
        if trained_for.get(part) != name:
            raise BadInput(
                f"{where}: was trained for another {part} (fingerprint "
                f"{trained_for.get(part)}, here {name}); give the {part} it "
                "was trained with, or train a new adapter"
            )


def check_best_by(figure):
    """Refuse what does not tell the best checkpoint.

    The CTC loss of a model that grows sure of itself rises while what the LLM
    makes of it still gets better, so it is not always the loss.

    Arguments
    ---------
    figure : str
        Of the validation; its lowest value is the best.

    Raises
    ------
    BadInput
        If it is none of ``loss``, ``ce``, ``kl``.
    """
    known = ("loss", "ce", "kl")
    if figure not in known:
        raise BadInput(f"best_by: {figure!r} is none of {', '.join(known)}")


def check_provenance(data_file, base):
    """Refuse continuations that another LLM or prompt has written.

    Arguments
    ---------
    data_file : str
        A Parquet file of stage 1; its folder holds ``provenance.json``.
    base : dict of str
        Fingerprints of what is loaded now.

    Raises
    ------
    BadInput
        Naming what differs.
    """
    path = os.path.join(os.path.dirname(data_file), "provenance.json")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as stream:
            settings = json.load(stream)["settings"]
        # An engine's name for its LLM starts with the weights' fingerprint.
        written_by = {
            "llm": settings["llm"].split()[0],
            "prompt": settings["prompt"],
        }
        if written_by["llm"] == "unknown":
            del written_by["llm"]
            logger.warning(
                "%s: nobody has compared the LLM's weights (%s) with those "
                "that are trained with",
                path,
                settings["llm"],
            )
        check_base(written_by, {part: base[part] for part in written_by}, path)
