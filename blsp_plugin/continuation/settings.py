"""What decides the texts of an output folder, and refusing anything else.

Authors
 * The blsp_plugin team 2026
"""

import json
import os

from blsp_plugin.errors import BadInput

__all__ = ["check_settings"]


def check_settings(path, settings):
    """Let a folder hold the work of one set of settings only.

    Arguments
    ---------
    path : str
        ``settings.json`` of the folder; none, if it has not been begun yet.
    settings : dict
        Everything that decides the texts.

    Raises
    ------
    BadInput
        If the folder was begun with other settings; names the differences.

    Example
    -------
    >>> path = getfixture("tmp_path") / "settings.json"
    >>> from blsp_plugin.files import write_json
    >>> write_json({"llm": "a", "seed": 1}, path)
    >>> check_settings(path, {"llm": "a", "seed": 2})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    blsp_plugin.errors.BadInput: ... seed was 1 and is 2 now; ...
    """
    path = os.fspath(path)
    if not os.path.exists(path):
        return
    try:
        with open(path, encoding="utf-8") as stream:
            before = _flatten(json.load(stream))
    except (ValueError, AttributeError) as error:
        raise BadInput(
            f"{path}: not readable ({error}); use another output_folder"
        ) from error
    now = _flatten(json.loads(json.dumps(settings)))
    differences = [
        f"{key} was {_short(before.get(key))} and is {_short(now.get(key))} now"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    if differences:
        more = len(differences) - 3
        raise BadInput(
            f"{path}: this folder was begun with other settings: "
            + ", ".join(differences[:3])
            + (f" and {more} more" if more > 0 else "")
            + "; use another output_folder, or the settings it was begun with"
        )


def _flatten(tree, prefix=""):
    """{"a": {"b": 1}} -> {"a.b": 1}, so that a difference has a name."""
    pairs = enumerate(tree) if isinstance(tree, list) else tree.items()
    flat = {}
    for key, value in pairs:
        if isinstance(value, dict | list):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _short(value):
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
