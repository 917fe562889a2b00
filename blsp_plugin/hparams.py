"""Reading an experiment's YAML: a whole one, or a preset over a base.

A preset is a YAML whose first key is ``base: <file>``; its other keys replace
those of the base, so that an experiment shows only what makes it different. A
key that the base has not is taken for a typing error, unless the preset itself
refers to it.
The base may be a preset itself. SpeechBrain's ``!include`` cannot do that at
the top level.

Authors
 * The blsp_plugin team 2026
"""

import atexit
import difflib
import io
import os
import re
import tempfile

import ruamel.yaml
from hyperpyyaml import load_hyperpyyaml, resolve_references

from blsp_plugin.errors import BadInput

__all__ = ["executed_by", "excerpt_hparams", "load_hparams"]

# What a trained adapter needs to be opened again, in this order.
INFERENCE_KEYS = (
    "whisper",
    "llm",
    "speech_encoder",
    "llm_model",
    "prompt",
    "lora",
    "adapter",
    "modules",
)


def load_hparams(path, overrides=None):
    """Read a hyperparameter file and build its objects.

    Arguments
    ---------
    path : str
        The YAML file. With a key ``base`` it is a preset over that file
        (relative to its own folder).
    overrides : str or dict, optional
        What ``speechbrain.parse_arguments`` made of the command line.

    Returns
    -------
    hparams : dict
        The experiment.
    path : str
        File that the overrides apply to, for
        ``speechbrain.create_experiment_directory``: of a preset, a temporary
        one that holds the base with the preset's changes in it.
    overrides : str
        The overrides, likewise.

    Raises
    ------
    BadInput
        If a file is missing, is no YAML, or has not the keys named by the
        preset or on the command line.
    """
    yaml = ruamel.yaml.YAML()
    changes = _as_mapping(yaml, overrides)
    given = path
    if not os.path.isfile(path):
        raise BadInput(f"{path}: no such hyperparameter file")
    try:
        path, changes = _whole_file(yaml, path, changes)
        _spread_lists(changes)
        stream = io.StringIO()
        yaml.dump(changes, stream)
        overrides = stream.getvalue() if changes else ""
        with open(path, encoding="utf-8") as stream:
            return load_hyperpyyaml(stream, overrides), path, overrides
    except KeyError as error:
        unknown = re.match(r"Override '(.*)' not found in: (.*)", error.args[0])
        if unknown is None:
            raise
        key, keys = unknown.groups()
        keys = re.findall(r"'([^']*)'", keys)
        raise _unknown_key(given, key, keys) from error
    except ruamel.yaml.YAMLError as error:
        raise BadInput(f"{path}: not a valid YAML file: {error}") from error
    except FileNotFoundError as error:
        raise BadInput(f"{path}: {error.filename}: no such file") from error
    except ValueError as error:
        placeholder = re.match(r"'(.*)' is a !PLACEHOLDER", str(error))
        if placeholder is None:
            raise
        key = placeholder.group(1)
        raise BadInput(f"{given}: give --{key} on the command line") from error


def _load_tree(yaml, path):
    """Read a file; of a preset, its base with its changes."""
    with open(path, encoding="utf-8") as stream:
        text = stream.read()
    tree = yaml.load(text)
    if not isinstance(tree, dict) or "base" not in tree:
        return tree
    base = os.path.join(os.path.dirname(path), tree.pop("base"))
    whole = _load_tree(yaml, base)
    for key in tree:
        # A key of the preset's own is one that it uses itself.
        if key not in whole and f"<{key}>" not in text:
            raise _unknown_key(path, key, whole)
    _merge(whole, tree)
    return whole


def _whole_file(yaml, path, changes):
    """A file without a base, and the changes that are still to be made to it.

    It lives as long as we do if it is not the given one.
    """
    with open(path, encoding="utf-8") as stream:
        tree = yaml.load(stream)
    if not isinstance(tree, dict):
        return path, changes
    preset = "base" in tree
    if preset:
        tree = _load_tree(yaml, path)
    # HyperPyYAML puts mappings into mappings only, not in the place of `null`.
    mappings = {
        key: value
        for key, value in changes.items()
        if isinstance(value, dict) and key in tree and tree[key] is None
    }
    if not (preset or mappings):
        return path, changes
    tree.update(mappings)
    _spread_lists(tree)
    handle, merged = tempfile.mkstemp(suffix="-" + os.path.basename(path))
    atexit.register(os.remove, merged)
    with open(handle, "w", encoding="utf-8") as stream:
        yaml.dump(tree, stream)
    return merged, {k: v for k, v in changes.items() if k not in mappings}


def _merge(tree, changes):
    """Update a tree; another class (tag) takes the place of an object whole.

    HyperPyYAML's own overrides would keep the class and change its arguments.
    """
    for key, value in changes.items():
        old = tree.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            if value.tag.value in (None, old.tag.value):
                _merge(old, value)
                continue
        tree[key] = value


def _spread_lists(node):
    """Write an item a line; of lists in one line ruamel.yaml makes other YAML.

    Objects in them lose their braces, and in the place of a list over several
    lines they join the lines after them.
    """
    if node and isinstance(node, ruamel.yaml.comments.CommentedSeq):
        node.fa.set_block_style()
    if isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            _spread_lists(child)


def _unknown_key(path, key, keys):
    near = difflib.get_close_matches(key, list(keys), 3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return BadInput(f"{path}: has no key '{key}'{hint}")


def excerpt_hparams(path, overrides, keys=INFERENCE_KEYS):
    """The part of an experiment that opens a trained adapter's models.

    Arguments
    ---------
    path : str
        The base file, as `load_hparams` returned it.
    overrides : str
        The overrides, likewise.
    keys : sequence of str
        The keys to keep; references between them stay references.

    Returns
    -------
    str
        YAML for `SpeechLLM.from_hparams`, with an empty pretrainer: the
        interface itself loads the adapter, after a look at its fingerprints.
    """
    yaml = ruamel.yaml.YAML()
    with open(path, encoding="utf-8") as stream:
        tree = yaml.load(resolve_references(stream, overrides))
    for key in [key for key in tree if key not in keys]:
        del tree[key]
    _drop_comments(tree)
    stream = io.StringIO()
    stream.write(
        "# Opens this adapter: blsp_plugin.inference.SpeechLLM.from_hparams\n"
    )
    yaml.dump(tree, stream)
    stream.write(
        "pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer\n"
    )
    return stream.getvalue()


def executed_by(path):
    """What opening a YAML would call; nothing of it is called here.

    Arguments
    ---------
    path : str
        A HyperPyYAML file.

    Returns
    -------
    list of str
        Names of classes and functions, and files that it includes, in order.

    Raises
    ------
    BadInput
        If it is no YAML.
    """
    calls = {}
    try:
        with open(path, encoding="utf-8") as stream:
            for event in ruamel.yaml.YAML(typ="base").parse(stream):
                tag = str(getattr(event, "tag", None) or "")
                kind, _, name = tag.removeprefix("!").partition(":")
                if kind in ("new", "apply", "name", "module", "include"):
                    calls[name] = None
    except (ruamel.yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not a valid YAML file: {error}") from error
    return list(calls)


def _drop_comments(node):
    """The base's banners make no sense in an excerpt."""
    if hasattr(node, "ca"):
        node.ca.comment = None
        node.ca.items.clear()
        for child in node.values() if isinstance(node, dict) else node:
            _drop_comments(child)


def _as_mapping(yaml, overrides):
    if isinstance(overrides, str):
        try:
            return yaml.load(overrides) or {}
        except ruamel.yaml.constructor.DuplicateKeyError as error:
            option = error.problem.split('"')[1]
            raise BadInput(
                f"--{option}: given twice on the command line; leave one out"
            ) from error
        except ruamel.yaml.YAMLError as error:
            where = str(getattr(error, "problem_mark", "")).split("\n")
            raise BadInput(
                f"command line: not YAML ({error.problem}: "
                f"{' '.join(where[1:2]).strip()}); put such a value into a "
                "preset"
            ) from error
    return dict(overrides or {})
