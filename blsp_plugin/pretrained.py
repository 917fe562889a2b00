"""Opening pretrained models by path or hub id, and knowing them again.

Authors
 * The blsp_plugin team 2026
"""

import contextlib
import hashlib
import os

import torch
from speechbrain.nnet.adapters import LoRA

from blsp_plugin.errors import BadInput

__all__ = [
    "open_pretrained",
    "fingerprint_module",
    "fingerprint_text",
    "has_lora",
    "lora_layers",
    "native_precision",
    "own_dtype",
    "without_lora",
]

_SAMPLES_PER_TENSOR = 64
_SINGLE = {"bfloat16": "float32", "bf16": "fp32"}


def open_pretrained(opener, source, what, **kwargs):
    """Call a ``from_pretrained``-like opener; its failure becomes one line.

    Arguments
    ---------
    opener : callable
        Called as ``opener(source, **kwargs)``.
    source : str
        Folder or hub id.
    what : str
        What is opened ("LLM", "Whisper", "tokenizer"), for the message.
    **kwargs : dict
        Handed to the opener.

    Returns
    -------
    object
        What the opener returned.

    Raises
    ------
    BadInput
        If the folder lacks a file or a file in it cannot be read.
    """
    source = os.fspath(source)
    try:
        return opener(source, **kwargs)
    except Exception as error:  # the openers raise a dozen different classes
        reason = " ".join(str(error).split()) or type(error).__name__
        if len(reason) > 300:
            reason = reason[:300] + " ..."
        if os.path.isdir(source):
            mend = "check that the folder is whole and fetch it again if not"
        else:
            mend = "give a folder, or a hub id where the hub can be reached"
        raise BadInput(
            f"{source}: cannot open this {what} "
            f"({type(error).__name__}: {reason}); {mend}"
        ) from error


def fingerprint_module(module):
    """Short name of a module's weights, the same in float32 and bfloat16.

    Every tensor contributes its name, its shape and 64 of its values, rounded
    to bfloat16; hashing whole 7B models at each start would take a minute.

    Arguments
    ---------
    module : torch.nn.Module
        The frozen model.

    Returns
    -------
    str
        16 hexadecimal digits.

    Example
    -------
    >>> layer = torch.nn.Linear(4, 4)
    >>> fingerprint_module(layer) == fingerprint_module(layer.bfloat16())
    True
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // _SAMPLES_PER_TENSOR)
        values = flat[::step][:_SAMPLES_PER_TENSOR]
        values = values.to("cpu", torch.bfloat16).view(torch.int16)
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]


def fingerprint_text(*texts):
    """Short name of some texts (a chat template, a configuration).

    Arguments
    ---------
    *texts : tuple of str
        What to name.

    Returns
    -------
    str
        16 hexadecimal digits.

    Example
    -------
    >>> fingerprint_text("a", "b") != fingerprint_text("ab")
    True
    """
    joined = "\x00".join(texts).encode("utf-8", "surrogatepass")
    return hashlib.sha256(joined).hexdigest()[:16]


def lora_layers(module):
    """LoRA in a frozen model.

    Arguments
    ---------
    module : torch.nn.Module

    Returns
    -------
    torch.nn.ModuleList
        Empty if it is the published model.
    """
    return torch.nn.ModuleList(
        part for part in module.modules() if isinstance(part, LoRA)
    )


@contextlib.contextmanager
def without_lora(module):
    """A model as it was published, for a while.

    Arguments
    ---------
    module : torch.nn.Module
        Maybe with LoRA in it.
    """
    layers = lora_layers(module)
    scales = [layer.scaling for layer in layers]
    for layer in layers:
        layer.scaling = 0.0
    try:
        yield
    finally:
        for layer, scale in zip(layers, scales, strict=True):
            layer.scaling = scale


def has_lora(module):
    """Whether a (frozen) model is not the published one: it has LoRA.

    Also where LoRA's weights have no gradient any more, as in inference.

    Arguments
    ---------
    module : torch.nn.Module

    Returns
    -------
    bool
    """
    return any(isinstance(part, LoRA) for part in module.modules())


def native_precision(name):
    """A precision, or single precision where a CPU would emulate bfloat16.

    That is, on a machine without a GPU: CPUs without AVX-512 or Arm's BF16
    have no fast products in bfloat16, and a training step takes tens of times
    longer than in float32 (docs/experiments.md, section 21).

    Arguments
    ---------
    name : str
        Of a dtype ("bfloat16"), or of autocast's precision ("bf16").

    Returns
    -------
    str
        The name; "float32" or "fp32" instead of bfloat16 on such a machine.

    Example
    -------
    >>> native_precision("bfloat16") in ("bfloat16", "float32")
    True
    >>> native_precision("int8")
    'int8'
    """
    return name if _has_bfloat16() else _SINGLE.get(name, name)


def _has_bfloat16():
    """Does this machine compute in bfloat16? With a GPU it need not ask."""
    if torch.cuda.is_available():
        return True
    # What torch itself asks before it gives a product to oneDNN.
    onednn = torch.backends.mkldnn.is_available()
    return onednn and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def own_dtype(module, device, dtype):
    """Context in which a frozen model computes in its weights' dtype.

    Whatever autocast says outside: the same in training and evaluation. Only
    LoRA, whose weights are float32, needs autocast to go along.

    Arguments
    ---------
    module : torch.nn.Module
        The model.
    device : torch.device
        It is on.
    dtype : torch.dtype
        Of its weights.

    Returns
    -------
    context manager
    """
    mixed = dtype != torch.float32 and has_lora(module)
    return torch.autocast(device.type, dtype if mixed else None, enabled=mixed)
