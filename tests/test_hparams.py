"""Experiments: presets over bases, overrides, one-line errors."""

import pytest

from blsp_plugin.errors import BadInput
from blsp_plugin.hparams import load_hparams

BASE = """
seed: 1
counter: !new:collections.Counter
    a: !ref <seed>
name: base
path: !ref <name>/<seed>
data: {placeholder}
"""


@pytest.fixture
def files(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE.format(placeholder="x"))
    (tmp_path / "preset.yaml").write_text(
        "base: base.yaml\nname: preset\ncounter:\n    b: 5\n"
    )
    return tmp_path


def test_preset_over_base_and_command_line_over_preset(files):
    hparams, base, overrides = load_hparams(
        str(files / "preset.yaml"), "seed: 7"
    )
    assert hparams["path"] == "preset/7"
    assert hparams["counter"] == {"a": 7, "b": 5}
    # What the experiment folder keeps says the same as what was run.
    again, _, _ = load_hparams(base, overrides)
    assert again == hparams
    assert load_hparams(str(files / "base.yaml"))[0]["path"] == "base/1"


def test_preset_may_change_the_class_of_an_object(files):
    """Another class takes its place whole, without the base's arguments."""
    (files / "other.yaml").write_text(
        "base: base.yaml\ncounter: !new:collections.UserDict\n    b: 5\n"
    )
    hparams, path, overrides = load_hparams(str(files / "other.yaml"))
    assert type(hparams["counter"]).__name__ == "UserDict"
    assert hparams["counter"].data == {"b": 5}
    assert load_hparams(path, overrides)[0]["counter"] == hparams["counter"]


@pytest.mark.parametrize(
    ["content", "overrides", "says"],
    [
        (None, "", "no such hyperparameter file"),
        ("a: [1", "", "not a valid YAML"),
        ("base: nowhere.yaml\na: 1", "", "no such"),
        ("base: base.yaml\nnam: 1", "", "has no key 'nam'; did you mean name"),
        ("base: base.yaml", "seed: 1\nseed: 2", "--seed: given twice"),
        ("base: base.yaml", "sed: 1", "has no key 'sed'; did you mean seed"),
        (BASE.format(placeholder="!PLACEHOLDER"), "", "give --data"),
        ("a: !include:gone.yaml", "", "no such file"),
    ],
)
def test_wrong_yaml_is_one_line(files, content, overrides, says):
    path = files / "wrong.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BadInput, match=says) as caught:
        load_hparams(str(path), overrides)
    assert "\n" not in str(caught.value)


def test_mapping_in_the_place_of_nothing(tmp_path):
    """HyperPyYAML alone refuses it."""
    (tmp_path / "a.yaml").write_text("x: null\ny: !ref <x>\nz: 1\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nz: 2\n")
    for name, z in (("a", 1), ("b", 2)):
        path = str(tmp_path / f"{name}.yaml")
        hparams, path, overrides = load_hparams(path, "x: {p: 1}")
        assert hparams == {"x": {"p": 1}, "y": {"p": 1}, "z": z}
        assert load_hparams(path, overrides)[0] == hparams


def test_key_of_the_preset_alone(tmp_path):
    """It must be used there; otherwise it is a slip of the pen."""
    (tmp_path / "a.yaml").write_text("x: 1\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nown: 2\nx: !ref <own>\n")
    path = str(tmp_path / "b.yaml")
    assert load_hparams(path)[0] == {"own": 2, "x": 2}
    assert load_hparams(path, "own: 5")[0]["x"] == 5


def test_preset_over_a_preset(tmp_path):
    (tmp_path / "a.yaml").write_text("x: 1\ny: {p: 1, q: 2}\nz: !ref <x>\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.yaml").write_text("base: ../a.yaml\ny: {q: 3}\n")
    (tmp_path / "c.yaml").write_text("base: sub/b.yaml\nx: 5\n")
    hparams, _, _ = load_hparams(str(tmp_path / "c.yaml"))
    assert hparams == {"x": 5, "y": {"p": 1, "q": 3}, "z": 5}
    (tmp_path / "sub" / "b.yaml").write_text("base: ../a.yaml\nw: 3\n")
    with pytest.raises(BadInput, match="b.yaml: has no key 'w'"):
        load_hparams(str(tmp_path / "c.yaml"))


def test_value_that_is_no_yaml_is_one_line(tmp_path):
    (tmp_path / "a.yaml").write_text("x: 1\n")
    with pytest.raises(BadInput, match="x: English: Hi.*into a preset"):
        load_hparams(str(tmp_path / "a.yaml"), "x: English: Hi.\n")


def test_list_in_the_place_of_a_list_over_lines(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "x: # some\n- a\n- b\n\n# Part\nname: n\ny: !ref <name>/1\nz: 1\n"
    )
    hparams, _, _ = load_hparams(str(tmp_path / "a.yaml"), "x: [c, d]")
    assert hparams == {"x": ["c", "d"], "name": "n", "y": "n/1", "z": 1}


def test_lists_in_one_line_of_a_preset(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "x: 1\nnone: []  # yet\ny: [1]  # one\nz: 2\n"
    )
    preset = tmp_path / "b.yaml"
    preset.write_text("base: a.yaml\nx: [!new:collections.Counter {b: 2}]\n")
    hparams, _, _ = load_hparams(str(preset), "y: []")
    assert hparams == {"x": [{"b": 2}], "none": [], "y": [], "z": 2}
    assert load_hparams(str(preset))[0]["y"] == [1]
