"""A trained adapter as a folder for others: packed, described, checked.

Nothing of the trained folder is executed, and the base is opened only where
it is asked for: what is written follows from the JSON and the weights.

Authors
 * The blsp_plugin team 2026
"""

import contextlib
import io
import os
import re
import secrets
import shutil
from typing import NamedTuple

import ruamel.yaml
import torch
from safetensors.torch import load_file, save_file

from blsp_plugin import starter
from blsp_plugin.errors import BadInput
from blsp_plugin.files import atomic_write, disk_errors, write_json
from blsp_plugin.model_card import gather_results, model_card
from blsp_plugin.package import (
    ADAPTER_FILES,
    LORA_FILE,
    PACKAGE_FILES,
    YAML_FILE,
    check_package,
    file_digest,
    open_package,
)
from blsp_plugin.packing import pack

__all__ = ["Exported", "export_adapter", "export_transformers", "push"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_SCHEME = "starter:"
_DTYPES = ("float32", "bfloat16")
_NATIVE = "blsp_plugin.pretrained.native_precision"
_PLACES = {  # key of the JSON -> what has it as `source` in the YAML, its dtype
    "whisper": ("speech_encoder", "encoder_dtype"),
    "llm": ("llm_model", "llm_dtype"),
}


class Exported(NamedTuple):
    """What was written.

    Arguments
    ---------
    folder : str
        The target.
    files : dict of int
        name -> bytes.
    difference : float or None
        Largest difference of the logits before and after, where it was
        looked at.
    """

    folder: str
    files: dict
    difference: float


def export_adapter(
    source,
    target,
    metrics=(),
    whisper=None,
    llm=None,
    dtype=None,
    licence=None,
    languages=(),
    check=False,
    overwrite=False,
    allow_local_paths=False,
):
    """Pack a trained adapter: weights, JSON, the toolkit's YAML, a model card.

    Arguments
    ---------
    source : str
        The ``adapter_folder`` of a training. What stands beside it
        (``metrics.json``, ``hyperparams.yaml``) goes into the model card.
    target : str
        Folder to write. It appears whole or not at all.
    metrics : sequence of str
        Output folders of evaluations, or their ``metrics.json``.
    whisper : str, optional
        Hub id of the encoder, where the training had it in a folder.
    llm : str, optional
        Hub id of the LLM, likewise.
    dtype : str, optional
        Of the weights in the files, "float32" or "bfloat16"; as trained if
        not given.
    licence : str, optional
        The hub's name of one ("apache-2.0"), for the card.
    languages : sequence of str
        Codes of the languages that are understood; what the evaluations say
        if not given.
    check : bool
        Open the base as well, and compare logits before and after.
    overwrite : bool
        Write into a folder that holds other files than a package's; they
        stay, those of a package are replaced.
    allow_local_paths : bool
        Name folders of this machine as the base, for a package that does not
        travel.

    Returns
    -------
    Exported

    Raises
    ------
    BadInput
        If the trained folder is damaged, the base has no name that holds on
        other machines, or the target holds something else.
    """
    if dtype not in (None, *_DTYPES):
        raise BadInput(f"dtype {dtype}: files are {' or '.join(_DTYPES)}")
    facts = check_package(source)
    _check_target(source, target, overwrite, PACKAGE_FILES)
    given = {"whisper": whisper, "llm": llm}
    facts = {**facts, **_portable_base(facts, given, allow_local_paths)}
    yaml = _yaml_text(source, facts, allow_local_paths)
    results = gather_results(source, metrics)
    difference = None
    with _appearing(target) as folder:
        facts["files"] = _copy_weights(source, folder, facts["files"], dtype)
        write_json(facts, os.path.join(folder, ADAPTER_FILES[0]))
        with atomic_write(os.path.join(folder, YAML_FILE)) as stream:
            stream.write(yaml)
        name = os.path.basename(os.path.abspath(target))
        with atomic_write(os.path.join(folder, "README.md")) as stream:
            stream.write(model_card(name, facts, results, licence, languages))
        check_package(folder)
        if check:
            difference = _difference(source, folder, whisper, llm)
    return Exported(target, _sizes(target), difference)


def export_transformers(
    source, target, whisper=None, llm=None, dtype=None, overwrite=False
):
    """Write encoder, adapter and LLM as one model for transformers.

    Arguments
    ---------
    source : str
        The ``adapter_folder`` of a training.
    target : str
        Folder to write.
    whisper : str, optional
        Folder or hub id of the encoder, where it is not found under the name
        in the folder.
    llm : str, optional
        Of the LLM, likewise.
    dtype : str, optional
        Of the LLM's weights, "float32" or "bfloat16"; as trained if not
        given, whatever this machine computes in.
    overwrite : bool
        Write into a folder that is not empty.

    Returns
    -------
    Exported

    Raises
    ------
    BadInput
        See `export_adapter`; the adapter or its base cannot be written so.
    """
    from blsp_plugin.huggingface import export_to_transformers

    facts = check_package(source)
    _check_target(source, target, overwrite, ())
    dtypes = (dtype or facts["llm_dtype"], facts["encoder_dtype"])
    model, prompt = open_package(source, whisper, llm, *dtypes)
    with _appearing(target) as folder:
        export_to_transformers(model, prompt, folder)
    return Exported(target, _sizes(target), None)


def push(folder, name, private=False):
    """Upload a folder to the Hugging Face hub.

    Arguments
    ---------
    folder : str
        From `export_adapter`.
    name : str
        ``user/name``.
    private : bool
        Whether a repository that is made is private.

    Returns
    -------
    str
        Address of the repository.

    Raises
    ------
    BadInput
        If it cannot be uploaded; the folder stays as it is.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        url = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message="Adapter for a speech LLM",
        )
    except Exception as error:  # of the hub, of HTTP, of the system
        raise BadInput(
            f"{name}: not uploaded ({type(error).__name__}: {error}); "
            f"{folder} is whole: log in (hf auth login), look at the network, "
            "and export again with --overwrite"
        ) from error
    return str(url)


def _portable_base(facts, given, allow_local_paths):
    """Names of the base that hold on other machines."""
    names = {}
    for key, name in given.items():
        name = starter.portable(name or facts[key])
        travels = name.startswith(_SCHEME) or (
            _HUB_ID.fullmatch(name) and not os.path.isdir(name)
        )
        if not (travels or allow_local_paths):
            raise BadInput(
                f"{name}: the adapter's {key} is a folder of this machine; "
                f"name what others can fetch, --{key} <hub id>, or give "
                "--allow-local-paths for a package that stays here"
            )
        names[key] = name
    return names


def _copy_weights(source, folder, files, dtype):
    """Copy or convert the weights; their digests."""
    for name in files:
        path = os.path.join(folder, name)
        with disk_errors(path):
            if dtype is None:
                shutil.copyfile(os.path.join(source, name), path)
                continue
            weights = load_file(os.path.join(source, name))
            for key, value in weights.items():
                if value.is_floating_point():  # letters are no numbers
                    weights[key] = value.to(getattr(torch, dtype))
            save_file(weights, path)
    return {name: file_digest(os.path.join(folder, name)) for name in files}


def _check_target(source, target, overwrite, own):
    """Refuse to write over what is not ours."""
    if os.path.realpath(source) == os.path.realpath(target):
        raise BadInput(f"{target}: is the trained folder; name another one")
    if os.path.lexists(target) and not os.path.isdir(target):
        raise BadInput(f"{target}: is a file; name a folder")
    if overwrite or not os.path.isdir(target):
        return
    foreign = sorted(set(os.listdir(target)) - set(own))
    if foreign:
        raise BadInput(
            f"{target}: holds something else ({foreign[0]}); name another "
            "folder, or give --overwrite to write beside it"
        )


@contextlib.contextmanager
def _appearing(target):
    """A folder that gets its name when it is whole."""
    target = os.path.abspath(target)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    token = secrets.token_hex(4)
    folder, old = f"{target}.{token}.tmp", f"{target}.{token}.old"
    os.mkdir(folder)
    try:
        yield folder
        if not os.path.isdir(target):
            os.rename(folder, target)
        elif set(os.listdir(target)) <= set(PACKAGE_FILES):
            os.rename(target, old)
            os.rename(folder, target)
            shutil.rmtree(old)
        else:
            _move_into(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_into(folder, target):
    """Replace a package among other files; its JSON goes first, comes last."""
    for name in (*ADAPTER_FILES, LORA_FILE):
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(target, name))
    names = sorted(os.listdir(folder), key=lambda n: n == ADAPTER_FILES[0])
    for name in names:
        place = os.path.join(target, name)
        if os.path.isdir(place) and not os.path.islink(place):
            raise BadInput(f"{place}: is a folder, where a file is to go")
        os.replace(os.path.join(folder, name), place)


def _sizes(folder):
    names = sorted(os.listdir(folder))
    return {
        name: os.path.getsize(os.path.join(folder, name))
        for name in names
        if os.path.isfile(os.path.join(folder, name))
    }


# The toolkit's YAML


def _yaml_text(source, facts, allow_local_paths):
    """The trained folder's YAML with sources that travel, or a new one."""
    path = os.path.join(source, YAML_FILE)
    ours = facts.get("adapter") is not None
    tree = _read_yaml(path) if os.path.isfile(path) else None
    if tree is not None:
        _set_base(tree, facts)
        local = None if allow_local_paths else _local_path(tree)
        if local is None:
            return _dump(tree)
        if not ours:
            raise BadInput(
                f"{path}: names {local}, a path of this machine; take it out, "
                "or give --allow-local-paths"
            )
    if not ours:
        raise BadInput(
            f"{source}: its adapter is of a class of your own, which only a "
            f"{YAML_FILE} can name; add it"
        )
    return _dump(_yaml_of(facts, _lora_places(source, facts)))


def _lora_places(source, facts):
    """Names of the layers with LoRA, by the model that they are in."""
    if not facts.get("lora"):
        return {}
    places = {}
    for name in load_file(os.path.join(source, LORA_FILE)):
        part, layer = name.rsplit(".", 2)[0].split(".", 1)
        model = {"llm": "llm_model", "encoder": "speech_encoder"}[part]
        places.setdefault(model, {})[layer] = None
    return {model: list(layers) for model, layers in places.items()}


def _read_yaml(path):
    """The tree of a YAML, unless it is none or not that of a training."""
    try:
        with open(path, encoding="utf-8") as stream:
            tree = ruamel.yaml.YAML().load(stream)
    except (ruamel.yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not a valid YAML file: {error}") from error
    named = isinstance(tree, dict) and all(
        key in tree and isinstance(tree.get(part), dict)
        for key, (part, _) in _PLACES.items()
    )
    return tree if named else None


def _set_base(tree, facts):
    """Sources that travel, in a precision that the machine computes in."""
    for key, (part, dtype) in _PLACES.items():
        tree[key] = _source(facts[key])
        tree[part]["source"] = _tagged("!ref", f"<{key}>")
        tree[part]["dtype"] = _call(_NATIVE, facts[dtype])


def _local_path(node):
    """A string in a tree that is a path of this machine."""
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list):
        return next(filter(None, map(_local_path, node)), None)
    node = getattr(node, "value", node)  # with a tag
    absolute = isinstance(node, str) and os.path.isabs(node)
    return node if absolute else None


def _yaml_of(facts, lora_places):
    """A YAML that opens what the JSON describes."""
    tree = ruamel.yaml.comments.CommentedMap(dict.fromkeys(_PLACES))
    tree["speech_encoder"] = _new(
        "blsp_plugin.encoder.WhisperEncoder", pad_to_30s=facts["pad_to_30s"]
    )
    tree["llm_model"] = _new("blsp_plugin.llm.FrozenLLM")
    _set_base(tree, facts)
    names = ("content", "template", "system", "chat_options")
    tree["prompt"] = _new(
        "blsp_plugin.prompts.Prompt",
        tokenizer=_tagged("!ref", "<llm_model.tokenizer>"),
        **{name: facts["prompt"][name] for name in names},
    )
    if lora_places:
        tree["lora"] = [
            _new(
                "speechbrain.nnet.adapters.AdaptedModel",
                model_to_adapt=_tagged("!ref", f"<{model}>"),
                adapter_class=_tagged(
                    "!name:speechbrain.nnet.adapters.LoRA", ""
                ),
                target_layers=layers,
                adapter_kwargs=dict(facts["lora"]),
            )
            for model, layers in lora_places.items()
        ]
    described = facts["adapter"]
    tree["adapter"] = _new(
        f"blsp_plugin.adapters.{described['class']}", **described["arguments"]
    )
    tree["modules"] = {
        "encoder": _tagged("!ref", "<speech_encoder>"),
        "adapter": _tagged("!ref", "<adapter>"),
        "llm": _tagged("!ref", "<llm_model>"),
    }
    tree["pretrainer"] = _new("speechbrain.utils.parameter_transfer.Pretrainer")
    return tree


def _source(name):
    """A model's name in YAML; the starter kit's is looked up when opened."""
    if not name.startswith(_SCHEME):
        return name
    return _call("blsp_plugin.starter.resolve", name)


def _call(name, value):
    node = ruamel.yaml.comments.CommentedSeq([value])
    node.yaml_set_ctag(ruamel.yaml.tag.Tag(suffix=f"!apply:{name}"))
    return node


def _new(name, **arguments):
    node = ruamel.yaml.comments.CommentedMap(arguments)
    node.yaml_set_ctag(ruamel.yaml.tag.Tag(suffix=f"!new:{name}"))
    return node


def _tagged(tag, value):
    node = ruamel.yaml.comments.TaggedScalar(value)
    node.yaml_set_ctag(ruamel.yaml.tag.Tag(suffix=tag))
    return node


def _dump(tree):
    stream = io.StringIO()
    yaml = ruamel.yaml.YAML()
    yaml.width = 4096  # a folded line would be another text in a prompt
    yaml.dump(tree, stream)
    text = stream.getvalue()
    if not text.startswith("#"):
        text = (
            "# For SpeechBrain: SpeechLLM.from_hparams(hparams_file=...)\n"
            + (text)
        )
    return text


# What comes of it


@torch.no_grad()
def _difference(source, folder, whisper, llm):
    """Largest difference of the logits of the trained and the packed one."""
    generator = torch.Generator().manual_seed(0)
    wav = 0.05 * torch.randn(32000, generator=generator)
    logits = []
    for place in (source, folder):
        model, prompt = open_package(place, whisper, llm)
        speech = model.embed_wavs([wav])
        row = prompt.row("What is said?", int(speech.lengths[0]))
        row = row._replace(response=row.suffix, ended=True)
        hidden = model(pack([row], 0, model.llm.eos_id), speech).hidden
        logits.append(model.llm.project(hidden))
    return float((logits[0] - logits[1]).abs().max())
