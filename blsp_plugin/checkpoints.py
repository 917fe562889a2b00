"""What is written of a trained model: the adapter, never the frozen parts.

An adapter means nothing without its base, so both an adapter folder and a
training checkpoint carry the base's fingerprints and refuse another one.

Authors
 * The blsp_plugin team 2026
"""

import json
import os
import random

import numpy
import torch
from safetensors.torch import load_file, save_file
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)

from blsp_plugin.errors import BadInput
from blsp_plugin.pretrained import open_pretrained

__all__ = [
    "ADAPTER_FILES",
    "BaseGuard",
    "RandomState",
    "SavedDict",
    "base_fingerprints",
    "check_base",
    "check_provenance",
    "save_adapter",
    "load_adapter",
]

ADAPTER_FILES = ("adapter.json", "adapter.safetensors")


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
    """
    return {
        "encoder": model.encoder.fingerprint(),
        "llm": model.llm.fingerprint(),
        "tokenizer": prompt.tokenizer_fingerprint(),
        "prompt": prompt.fingerprint(),
    }


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
        check_base(written_by, {part: base[part] for part in written_by}, path)


def save_adapter(model, prompt, folder, **facts):
    """Write the adapter alone, with the names of its base.

    Arguments
    ---------
    model : BLSP
        Whose adapter to write.
    prompt : Prompt
        It was trained with.
    folder : str
        Gets ``adapter.safetensors`` and ``adapter.json``.
    **facts : dict
        Further entries of the JSON (sources of the models, metrics).
    """
    os.makedirs(folder, exist_ok=True)
    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.adapter.state_dict().items()
    }
    base = base_fingerprints(model, prompt)
    path, weights_path = (os.path.join(folder, f) for f in ADAPTER_FILES)
    save_file(weights, weights_path + ".tmp")
    with open(path + ".tmp", "w", encoding="utf-8") as stream:
        json.dump({"base": base, **facts}, stream, indent=2)
    for file in (weights_path, path):
        os.replace(file + ".tmp", file)


def load_adapter(model, prompt, folder):
    """Read an adapter into a model of the base that it was trained for.

    Arguments
    ---------
    model : BLSP
        Its adapter gets the weights.
    prompt : Prompt
        Of the LLM.
    folder : str
        Holds ``adapter.safetensors`` and ``adapter.json``.

    Raises
    ------
    BadInput
        If the folder lacks a file, a file is corrupt, or the adapter belongs
        to another base or has other shapes.
    """
    path, weights_path = (os.path.join(folder, f) for f in ADAPTER_FILES)
    for file in (path, weights_path):
        if not os.path.isfile(file):
            raise BadInput(
                f"{file}: no such file; train an adapter first "
                "(recipes/blsp/train.py)"
            )
    try:
        with open(path, encoding="utf-8") as stream:
            base = json.load(stream)["base"]
    except (ValueError, KeyError) as error:
        raise BadInput(f"{path}: not an adapter's JSON ({error})") from error
    check_base(base, base_fingerprints(model, prompt), path)
    weights = open_pretrained(load_file, weights_path, "adapter")
    try:
        model.adapter.load_state_dict(weights)
    except RuntimeError as error:
        raise BadInput(
            f"{weights_path}: does not fit this adapter; use the adapter "
            f"settings that it was trained with ({error})"
        ) from error
