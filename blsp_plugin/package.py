"""The folder of a trained adapter, and opening it without running its code.

``adapter.json`` says everything in plain JSON: the classes and sizes of what
was trained, the prompt, where the base comes from and its fingerprints. So a
folder from a stranger is opened without executing anything of it. The
``hyperparams.yaml`` beside it is for SpeechBrain's own loaders, which build
whatever objects a YAML names.

Authors
 * The blsp_plugin team 2026
"""

import hashlib
import json
import math
import os

import torch
from safetensors.torch import load_file, save_file
from speechbrain.nnet.adapters import LoRA
from speechbrain.utils.checkpoints import average_state_dicts

from blsp_plugin import adapters, starter
from blsp_plugin.checkpoints import base_fingerprints, check_base
from blsp_plugin.encoder import WhisperEncoder
from blsp_plugin.errors import BadInput
from blsp_plugin.files import write_json
from blsp_plugin.hparams import executed_by
from blsp_plugin.llm import FrozenLLM
from blsp_plugin.model import BLSP
from blsp_plugin.pretrained import (
    lora_layers,
    native_precision,
    open_pretrained,
)
from blsp_plugin.prompts import Prompt

__all__ = [
    "ADAPTER_FILES",
    "FORMAT",
    "LORA_FILE",
    "PACKAGE_FILES",
    "build_adapter",
    "check_package",
    "file_digest",
    "load_adapter",
    "load_layers",
    "load_mean",
    "open_package",
    "opening_yaml",
    "read_facts",
    "save_adapter",
]

ADAPTER_FILES = ("adapter.json", "adapter.safetensors")
LORA_FILE = "lora.safetensors"
YAML_FILE = "hyperparams.yaml"
PACKAGE_FILES = (*ADAPTER_FILES, LORA_FILE, YAML_FILE, "README.md")
FORMAT = 1  # grows when an older reader would misread the JSON
_KINDS = {
    "format": int,
    "base": dict,
    "files": dict,
    "whisper": str,
    "llm": str,
    "llm_dtype": str,
    "encoder_dtype": str,
    "pad_to_30s": bool,
    "prompt": dict,
}
_PROMPT_KINDS = {
    "content": str,
    "template": (str, type(None)),
    "system": (str, type(None)),
    "chat_options": dict,
}
_DTYPES = ("float32", "bfloat16", "float16", "int8")
_LARGEST = 2**16  # of a number in the JSON
_MOST_LAYERS = 512
_LARGEST_JSON = 2**20  # bytes


def save_adapter(model, prompt, folder, **facts):
    """Write the adapter (and LoRA) alone, with the names of its base.

    Arguments
    ---------
    model : BLSP
        Whose adapter to write.
    prompt : Prompt
        It was trained with.
    folder : str
        Gets ``adapter.safetensors`` and ``adapter.json``; with LoRA also
        ``lora.safetensors``.
    **facts : dict
        Further entries of the JSON.
    """
    os.makedirs(folder, exist_ok=True)
    files = {ADAPTER_FILES[1]: model.adapter.state_dict()}
    lora = _lora(model)
    if lora:
        files[LORA_FILE] = lora
    for name, weights in files.items():
        _save_weights(weights, os.path.join(folder, name))
    facts = {
        "format": FORMAT,
        "base": base_fingerprints(model, prompt),
        "whisper": starter.portable(model.encoder.source),
        "llm": starter.portable(model.llm.source),
        "llm_dtype": str(model.llm.dtype).removeprefix("torch."),
        "encoder_dtype": str(model.encoder.dtype).removeprefix("torch."),
        "pad_to_30s": model.encoder.pad_to_30s,
        "adapter": _adapter_facts(model.adapter),
        "lora": _lora_facts(model),
        "prompt": {name: getattr(prompt, name) for name in _PROMPT_KINDS},
        **facts,
    }
    facts["files"] = {
        name: file_digest(os.path.join(folder, name)) for name in files
    }
    write_json(facts, os.path.join(folder, ADAPTER_FILES[0]))


def read_facts(folder):
    """Read what an adapter's folder says of itself.

    Arguments
    ---------
    folder : str
        Holds ``adapter.json``.

    Returns
    -------
    dict

    Raises
    ------
    BadInput
        If it is missing, no JSON, or not an adapter's.
    """
    path = os.path.join(folder, ADAPTER_FILES[0])
    if not os.path.isfile(path):
        raise BadInput(
            f"{path}: no such file; train an adapter first "
            "(recipes/blsp/train.py)"
        )
    try:
        if os.path.getsize(path) > _LARGEST_JSON:
            raise ValueError("more than a megabyte")
        with open(path, encoding="utf-8") as stream:
            facts = json.load(stream)
        _check_kinds(facts, {"base": dict})
        if "format" in facts:  # older ones are opened by their YAML
            _check_kinds(facts, {"format": int})
            if facts["format"] > FORMAT:
                raise BadInput(
                    f"{path}: has format {facts['format']}, this version "
                    f"reads {FORMAT}; update blsp_plugin"
                )
            _check_kinds(facts, _KINDS)
            _check_kinds(facts["prompt"], _PROMPT_KINDS)
            _check_values(facts)
    except BadInput:
        raise
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not an adapter's JSON ({error})") from error
    return facts


def _check_kinds(facts, kinds):
    if not isinstance(facts, dict):
        raise ValueError("not a mapping")
    for name, kind in kinds.items():
        if name not in facts or not isinstance(facts[name], kind):
            raise ValueError(f"{name!r} is missing or of another kind")


def _check_values(facts):
    """What a stranger may have written there, and would end in a traceback."""
    for name in ("llm_dtype", "encoder_dtype"):
        if facts[name] not in _DTYPES or facts["encoder_dtype"] == "int8":
            raise ValueError(f"{name} {facts[name]!r}")
    weights = (ADAPTER_FILES[1], LORA_FILE)
    for name, digest in facts["files"].items():
        if name not in weights or not isinstance(digest, str):
            raise ValueError(f"files has {name!r}; only {', '.join(weights)}")
    lora = facts.get("lora") or {}
    _check_kinds(lora, dict.fromkeys(lora, (int, float)))
    if lora and not (
        lora.keys() == {"rank", "alpha"}
        and lora["rank"] in range(1, _LARGEST)
        and math.isfinite(lora["alpha"])
    ):
        raise ValueError(f"lora {lora}")


def open_package(
    folder,
    whisper=None,
    llm=None,
    dtype=None,
    encoder_dtype=None,
    llm_class=FrozenLLM,
    **options,
):
    """Open a trained adapter with its base; nothing of the folder is executed.

    Arguments
    ---------
    folder : str
        Holds ``adapter.json`` and ``adapter.safetensors``.
    whisper : str, optional
        Folder or hub id of the encoder, where it is not that of the JSON.
    llm : str, optional
        Folder or hub id of the LLM, likewise.
    dtype : str, optional
        Of the LLM's weights: "float32", "bfloat16" or "int8"; if not given,
        the one that it was trained with (see `native_precision`).
    encoder_dtype : str, optional
        Of the encoder's weights: "float32" or "bfloat16", likewise.
    llm_class : type
        What opens the LLM: a kind of `FrozenLLM`.
    **options : dict
        Passed on to it.

    Returns
    -------
    model : BLSP
    prompt : Prompt

    Raises
    ------
    BadInput
        If a file is missing, damaged or unfit, if a class is not of this
        package, or if the base is another one.
    """
    facts = read_facts(folder)
    adapter = build_adapter(facts, folder)
    encoder = WhisperEncoder(
        whisper or starter.resolve(facts["whisper"]),
        facts["pad_to_30s"],
        encoder_dtype or native_precision(facts["encoder_dtype"]),
    )
    # A model that brings its own code would ask at the terminal.
    no_code = {"trust_remote_code": False}
    llm = llm_class(
        llm or starter.resolve(facts["llm"]),
        dtype or native_precision(facts["llm_dtype"]),
        **{"options": no_code, **options},
    )
    model = BLSP(encoder, adapter, llm)
    path = os.path.join(folder, ADAPTER_FILES[0])
    try:
        prompt = Prompt(
            llm.tokenizer,
            **{name: facts["prompt"][name] for name in _PROMPT_KINDS},
        )
        base = base_fingerprints(model, prompt)
    except BadInput:
        raise
    except Exception as error:  # a template may raise anything
        raise BadInput(
            f"{path}: its prompt does not fit {llm.source} "
            f"({type(error).__name__}: {error})"
        ) from error
    check_base(facts["base"], base, path)
    if facts.get("lora"):
        _add_lora(model, facts["lora"], path)
    load_adapter(model, prompt, folder)
    return model.eval(), prompt


def check_package(folder):
    """Look at a folder's files without its base.

    Arguments
    ---------
    folder : str
        Holds ``adapter.json`` and what it names.

    Returns
    -------
    dict
        From `read_facts`.

    Raises
    ------
    BadInput
        If a file is missing or another one than the JSON was written with,
        weights cannot be read, or they are not those of the adapter that the
        JSON describes.
    """
    facts = read_facts(folder)
    if "format" not in facts:
        raise _needs_yaml(folder)
    if facts.get("adapter") is None:
        _read_weights(os.path.join(folder, ADAPTER_FILES[1]), "adapter")
    else:
        build_adapter(facts, folder)
    if facts.get("lora"):
        _read_lora(os.path.join(folder, LORA_FILE), facts["lora"]["rank"])
    _check_digests(facts, folder)
    return facts


def opening_yaml(folder, name=YAML_FILE):
    """How to open a folder by its YAML, and what that would execute.

    Arguments
    ---------
    folder : str
        Holds the YAML, maybe.
    name : str
        Of the YAML.

    Returns
    -------
    str
        For a message.
    """
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        return f"which is missing ({path})"
    calls = ", ".join(executed_by(path)) or "nothing"
    return f"hparams_file={name!r}; it would execute: {calls}"


def _adapter_facts(adapter):
    """Class and sizes of an adapter; None for one that is not ours."""
    name = type(adapter).__name__
    if getattr(adapters, name, None) is not type(adapter):
        return None
    return {"class": name, "arguments": adapter.sizes()}


def build_adapter(facts, folder):
    """Make the adapter that a folder describes, without its weights.

    Arguments
    ---------
    facts : dict
        From `read_facts`.
    folder : str
        Holds the weights too, which must be those of such an adapter.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    BadInput
        If it is none of this package's, or not as large as its file.
    """
    path = os.path.join(folder, ADAPTER_FILES[0])
    described = facts.get("adapter")
    if described is None or "format" not in facts:
        raise _needs_yaml(folder)
    try:
        name, arguments = described["class"], described["arguments"]
        if name not in adapters.__all__:
            raise ValueError(f"no adapter {name!r}")
        numbers = []
        for value in arguments.values():
            numbers += value if isinstance(value, list) else [value]
        layers = arguments.get("layers", 1)
        layers = layers if isinstance(layers, list) else [layers]
        if (
            not all(0 <= number <= _LARGEST for number in numbers)
            or max(layers) > _MOST_LAYERS
        ):
            raise ValueError(f"sizes {arguments}")
        kind = getattr(adapters, name)
        with torch.device("meta"):  # sizes cost nothing here
            shapes = _shapes(kind(**arguments).state_dict())
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RecursionError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise BadInput(
            f"{path}: does not describe an adapter ({error})"
        ) from error
    weights_path = os.path.join(folder, ADAPTER_FILES[1])
    if shapes != _shapes(_read_weights(weights_path, "adapter")):
        raise BadInput(f"{weights_path}: does not fit {name} of {path}")
    return kind(**arguments)


def _needs_yaml(folder):
    return BadInput(
        f"{os.path.join(folder, ADAPTER_FILES[0])}: does not say all (an "
        "adapter of a class of your own, or an older version's folder); if "
        f"you trust the folder, open it by its YAML, {opening_yaml(folder)}"
    )


def _check_digests(facts, folder):
    for name, digest in facts.get("files", {}).items():
        path = os.path.join(folder, name)
        if not os.path.isfile(path) or file_digest(path) != digest:
            raise BadInput(
                f"{path}: is not the file that {ADAPTER_FILES[0]} was written "
                "with; copy the whole adapter folder"
            )


def _shapes(weights):
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def file_digest(path):
    """SHA-256 of a file.

    Arguments
    ---------
    path : str

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _save_weights(weights, path):
    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in weights.items()
    }
    save_file(weights, path + ".tmp")
    os.replace(path + ".tmp", path)


def _read_weights(path, what):
    if not os.path.isfile(path):
        raise BadInput(f"{path}: no such file; copy the whole adapter folder")
    return open_pretrained(load_file, path, what)


def _lora(model):
    """LoRA's weights, by their names in the model."""
    return {
        f"{place}.{name}": param
        for place, module in model.named_modules()
        if isinstance(module, LoRA)
        for name, param in module.named_parameters()
        if not name.startswith("pretrained_module.")
    }


def _lora_facts(model):
    """False, or the settings of LoRA; where it stands, its weights tell."""
    layers = lora_layers(model)
    if not len(layers):
        return False
    rank = layers[0].adapter_up_proj.weight.shape[1]
    return {"rank": rank, "alpha": layers[0].scaling * rank}


def _read_lora(path, rank):
    """LoRA's weights, as large as the JSON says."""
    weights = _read_weights(path, "LoRA")
    for name, weight in weights.items():
        if rank not in weight.shape:
            raise BadInput(
                f"{path}: {name} is not of rank {rank}, as {ADAPTER_FILES[0]} "
                "says"
            )
    return weights


def _add_lora(model, settings, path):
    """Put LoRA where its weights' names say."""
    weights_path = os.path.join(os.path.dirname(path), LORA_FILE)
    names = _read_lora(weights_path, settings["rank"])
    places = dict.fromkeys(name.rsplit(".", 2)[0] for name in names)
    for place in places:
        parent, _, name = place.rpartition(".")
        try:
            holder = model.get_submodule(parent)
            target = getattr(holder, name)
            setattr(holder, name, LoRA(target, **settings))
        except (
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise BadInput(
                f"{weights_path}: {place} is no place for LoRA in this model "
                f"({error})"
            ) from error


def _load_lora(model, folder, expected):
    """Read LoRA's weights, if there should be some."""
    places = _lora(model)
    if bool(places) != expected:
        raise BadInput(
            f"{folder}: was trained {'with' if expected else 'without'} LoRA; "
            "open it with the `lora` setting that it was trained with"
        )
    if not expected:
        return
    path = os.path.join(folder, LORA_FILE)
    weights = _read_weights(path, "LoRA")
    if _shapes(places) != _shapes(weights):
        raise BadInput(
            f"{path}: does not fit this LoRA; use the `lora` settings that it "
            "was trained with"
        )
    with torch.no_grad():
        for name, param in places.items():
            param.copy_(weights[name])


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
    facts = read_facts(folder)
    path, weights_path = (os.path.join(folder, f) for f in ADAPTER_FILES)
    check_base(facts["base"], base_fingerprints(model, prompt), path)
    weights = _read_weights(weights_path, "adapter")
    try:
        model.adapter.load_state_dict(weights)
    except RuntimeError as error:
        raise BadInput(
            f"{weights_path}: does not fit this adapter; use the adapter "
            f"settings that it was trained with ({error})"
        ) from error
    _load_lora(model, folder, bool(facts.get("lora")))
    _check_digests(facts, folder)


def load_mean(model, prompt, folders):
    """Read the mean of several adapters' weights; see `load_adapter`.

    Of an adapter and what further training made of it, or of two trainings
    that began with the same one, the mean is often better than each (model
    soups, Wortsman et al. 2022, ICML); that of unrelated ones hears nothing.

    Arguments
    ---------
    model, prompt
        Of all of them.
    folders : sequence of str
        One or more.

    Raises
    ------
    BadInput
        As `load_adapter`; if there are several, and the model has LoRA.
    """
    if len(folders) > 1 and lora_layers(model):
        raise BadInput(
            f"{folders[0]}: has LoRA, whose products the mean of the factors "
            "does not give; begin with one adapter"
        )
    states = []
    for folder in folders:
        load_adapter(model, prompt, folder)
        state = model.adapter.state_dict()
        states.append(
            {
                name: tensor.clone()
                for name, tensor in state.items()
                if tensor.is_floating_point()  # the rest is the LLM's
            }
        )
    model.adapter.load_state_dict(average_state_dicts(states), strict=False)


def load_layers(adapter, folder):
    """Begin with those layers of another LLM's adapter that fit this one.

    What hears is nearly the same for every LLM; what speaks its embeddings is
    not, and stays as it is.

    Arguments
    ---------
    adapter : torch.nn.Module
        Gets the weights of the same names and shapes, but for single numbers:
        a scale belongs to the vectors that are not taken.
    folder : str
        Holds ``adapter.safetensors``.

    Returns
    -------
    list of str
        Names of the weights that stay as they are.

    Raises
    ------
    BadInput
        If the file is missing or corrupt, or nothing of it fits.
    """
    path = os.path.join(folder, ADAPTER_FILES[1])
    weights, own = _read_weights(path, "adapter"), adapter.state_dict()
    shapes = _shapes(own)
    fitting = {
        name: tensor
        for name, tensor in weights.items()
        if tensor.ndim and shapes.get(name) == tuple(tensor.shape)
    }
    if not fitting:
        raise BadInput(
            f"{path}: has no layer that fits a {type(adapter).__name__} of "
            "these sizes; name the folder of an adapter of the same class"
        )
    adapter.load_state_dict(fitting, strict=False)
    return sorted(own.keys() - fitting.keys())
