"""Checkpoints: whole or not there."""

import os

import pytest
import torch
from speechbrain.utils.checkpoints import Checkpointer

from blsp_plugin.checkpoints import (
    AtomicCheckpointer,
    SavedDict,
    check_provenance,
)
from blsp_plugin.errors import BadInput
from blsp_plugin.files import write_json
from tests.disk import small_disk


class Killed(BaseException):
    """Stands for the moment of a kill: nothing may be cleaned up after it."""


def checkpointer(folder, kind=AtomicCheckpointer, size=4):
    layer = torch.nn.Linear(size, size)
    facts = SavedDict(step=1)
    return kind(folder, {"layer": layer, "facts": facts}), layer, facts


def kill_while_saving(saver):
    """Leave on the disk what a kill in the middle of a save leaves."""

    def killed(obj, path):
        raise Killed

    saver.custom_save_hooks["facts"] = killed
    with pytest.raises(Killed):
        saver.save_checkpoint()
    del saver.custom_save_hooks["facts"]


def test_a_save_that_was_killed_is_no_checkpoint(tmp_path):
    # The host's own checkpointer would choose the half one.
    saver, _, _ = checkpointer(tmp_path / "host", Checkpointer)
    saver.save_checkpoint()
    kill_while_saving(saver)
    with pytest.raises((KeyError, RuntimeError)):
        checkpointer(tmp_path / "host", Checkpointer)[0].recover_if_possible()

    saver, layer, facts = checkpointer(tmp_path / "ours")
    saver.save_checkpoint(meta={"loss": 1.0})
    weight = layer.weight.detach().clone()
    kill_while_saving(saver)
    again, other, facts = checkpointer(tmp_path / "ours")
    facts["step"] = 5
    found = again.recover_if_possible(min_key="loss")
    assert found.meta["loss"] == 1.0
    assert torch.equal(other.weight, weight) and facts == {"step": 1}
    again.save_and_keep_only(num_to_keep=1)
    names = os.listdir(tmp_path / "ours")
    assert len(names) == 1 and names[0].startswith("CKPT+")


def test_full_disk_keeps_the_last_checkpoint(tmp_path):
    with small_disk(tmp_path / "disk", "1500k") as disk:
        saver, layer, _ = checkpointer(disk, size=500)  # a megabyte
        saver.save_checkpoint()
        weight = layer.weight.detach().clone()
        torch.nn.init.zeros_(layer.weight)
        with pytest.raises(BadInput, match="no space left") as caught:
            saver.save_checkpoint()
        assert str(disk) in str(caught.value)
        assert "\n" not in str(caught.value)
        again, other, _ = checkpointer(disk, size=500)
        again.recover_if_possible()
        assert torch.equal(other.weight, weight)


def test_continuations_of_another_base_are_refused(tmp_path, caplog):
    data = tmp_path / "train.parquet"
    base = {"llm": "0123456789abcdef", "prompt": "p", "encoder": "e"}

    def written(llm, prompt="p"):
        settings = {"settings": {"llm": llm, "prompt": prompt}}
        write_json(settings, tmp_path / "provenance.json")

    check_provenance(str(data), base)  # of unknown origin: nothing to compare
    written("0123456789abcdef in bfloat16")
    check_provenance(str(data), base)
    written("fedcba9876543210 in bfloat16")
    with pytest.raises(BadInput, match="llm"):
        check_provenance(str(data), base)
    # A server shows no weights: said once, and the prompt still counts.
    written("unknown weights served as llm")
    assert "served as" not in caplog.text
    check_provenance(str(data), base)
    assert "unknown weights served as llm" in caplog.text
    written("unknown weights served as llm", prompt="q")
    with pytest.raises(BadInput, match="prompt"):
        check_provenance(str(data), base)
