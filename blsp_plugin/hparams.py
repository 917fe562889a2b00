"""Reading an experiment's YAML: a whole one, or a preset over a base.

A preset is a YAML whose first key is ``base: <file>``; its other keys replace
those of the base, so that an experiment shows only what makes it different.
SpeechBrain's ``!include`` cannot do that at the top level.

Authors
 * The blsp_plugin team 2026
"""

import difflib
import io
import os
import re

import ruamel.yaml
from hyperpyyaml import load_hyperpyyaml
from hyperpyyaml.core import recursive_update

from blsp_plugin.errors import BadInput

__all__ = ["load_hparams"]


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
    base : str
        File that the overrides apply to (``path`` unless it is a preset),
        for ``speechbrain.create_experiment_directory``.
    overrides : str
        All overrides, the preset's included, likewise.

    Raises
    ------
    BadInput
        If a file is missing, is no YAML, or has not the keys named by the
        preset or on the command line.
    """
    yaml = ruamel.yaml.YAML()
    changes = _as_mapping(yaml, overrides)
    if not os.path.isfile(path):
        raise BadInput(f"{path}: no such hyperparameter file")
    try:
        with open(path, encoding="utf-8") as stream:
            tree = yaml.load(stream)
        if isinstance(tree, dict) and "base" in tree:
            base = os.path.join(os.path.dirname(path), tree.pop("base"))
            recursive_update(tree, changes, must_match=False)
            path, changes = base, tree
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
        near = difflib.get_close_matches(key, keys, 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise BadInput(f"{path}: has no key '{key}'{hint}") from error
    except ruamel.yaml.YAMLError as error:
        raise BadInput(f"{path}: not a valid YAML file: {error}") from error
    except FileNotFoundError as error:
        raise BadInput(f"{path}: {error.filename}: no such file") from error
    except ValueError as error:
        placeholder = re.match(r"'(.*)' is a !PLACEHOLDER", str(error))
        if placeholder is None:
            raise
        key = placeholder.group(1)
        raise BadInput(f"{path}: give --{key} on the command line") from error


def _as_mapping(yaml, overrides):
    if isinstance(overrides, str):
        return yaml.load(overrides) or {}
    return dict(overrides or {})
