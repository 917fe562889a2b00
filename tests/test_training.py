"""Stage 2 end to end, by its recipe, on tiny random models."""

import json
import os

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from tests.tiny import tiny_llm
from tests.training import ROOT, run_recipe, write_continuations


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, llm_folder, whisper_folder, corpus):
    """A preset over hparams/train.yaml for the tiny models."""
    folder = tmp_path_factory.mktemp("training")
    data = write_continuations(corpus, llm_folder, str(folder / "data"))
    preset = folder / "tiny.yaml"
    preset.write_text(
        f"""
base: {ROOT}/hparams/train.yaml
continuations: {data}
whisper: {whisper_folder}
llm: {llm_folder}
llm_dtype: float32
bottleneck: 16
num_workers: 0
number_of_epochs: 1
max_batch_rows: 1
warmup_steps: 2
"""
    )
    return preset


@pytest.fixture(scope="module")
def own(tiny):
    """Validates on what it trains on: 12 steps show on nothing else."""
    preset = tiny.with_name("own.yaml")
    preset.write_text(tiny.read_text() + "valid_data: !ref <train_data>\n")
    return preset


def weights(output):
    return load_file(os.path.join(output, "adapter", "adapter.safetensors"))


def metrics(output):
    with open(os.path.join(output, "metrics.json"), encoding="utf-8") as f:
        return json.load(f)


def assert_equal(one, two, tolerance=0.0):
    assert one.keys() == two.keys()
    for name in one:
        assert (one[name] - two[name]).abs().max() <= tolerance, name


@pytest.fixture(scope="module")
def finished(own, tmp_path_factory):
    """One undisturbed run of 12 steps."""
    output = str(tmp_path_factory.mktemp("finished"))
    done = run_recipe("blsp/train.py", own, output_folder=output)
    return output, done


def test_outputs_of_a_run(finished):
    output, _ = finished
    names = os.listdir(output)
    assert {"train_log.txt", "log.txt", "hyperparams.yaml"} <= set(names)
    assert any(n.startswith("CKPT+") for n in os.listdir(output + "/save"))
    numbers = metrics(output)
    assert numbers["steps"] == 12
    assert numbers["end.loss"] < numbers["start.loss"]
    assert 0 <= numbers["start.agreement"] <= 1
    assert numbers["end.text_loss"] > 0 and numbers["rejected"] == 0
    assert all(isinstance(v, int | float) for v in numbers.values())


def test_resume_is_exact(finished, own, tmp_path):
    """12 steps == 5 + kill -9 in step 8 + 7, bit for bit."""
    killing = tmp_path / "killing.yaml"
    killing.write_text(
        own.read_text() + "losses:\n"
        "    - !new:tests.training.KillingLoss\n        calls: 8\n"
    )
    output = str(tmp_path / "killed")
    arguments = {"output_folder": output, "ckpt_interval_minutes": 0}
    killed = run_recipe(
        "blsp/train.py",
        killing,
        "--ckpt_interval_steps",
        "5",
        check=False,
        **arguments,
    )
    assert killed.returncode == -9
    assert not os.path.exists(output + "/adapter")
    again = run_recipe("blsp/train.py", own, **arguments)
    assert "Loading a checkpoint" in again.stdout + again.stderr
    assert metrics(output)["steps"] == 12
    assert_equal(weights(output), weights(finished[0]))
    assert metrics(output)["end.loss"] == metrics(finished[0])["end.loss"]


def test_checkpoint_is_small_and_refuses_other_base(finished, tiny, tmp_path):
    output, _ = finished
    numbers = metrics(output)
    # Weights and two Adam moments in float32, and some kilobytes around.
    size = 3 * 4 * numbers["trainable_parameters"]
    assert numbers["checkpoint_bytes"] < size + 60_000
    [folder] = os.listdir(output + "/save")
    for name in os.listdir(f"{output}/save/{folder}"):
        assert not name.startswith(("llm", "encoder"))
    other = tiny_llm(tmp_path / "other", seed=7)
    refused = run_recipe(
        "blsp/train.py", tiny, check=False, output_folder=output, llm=other
    )
    assert refused.returncode == 2
    assert "trained for another llm" in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr


def test_loss_normalisation_across_ranks(tiny, tmp_path):
    """2 gloo ranks == 1 rank accumulating 2 == one double batch."""
    sgd = tmp_path / "sgd.yaml"
    sgd.write_text(
        tiny.read_text()
        .replace("max_batch_rows: 1\n", "")
        .replace("number_of_epochs: 1", "number_of_epochs: 3")
        + "opt_class: !name:torch.optim.SGD\n    lr: 0.01\n"
        + "valid_data: !ref <train_data>\n"
    )
    runs = {
        "ranks": {"ranks": 2, "max_batch_rows": 6},
        "accumulated": {"grad_accumulation_factor": 2, "max_batch_rows": 6},
        "double": {"max_batch_rows": 12},
    }
    for name, options in runs.items():
        run_recipe(
            "blsp/train.py", sgd, output_folder=str(tmp_path / name), **options
        )
        assert metrics(tmp_path / name)["steps"] == 3
    start = metrics(tmp_path / "double")
    assert start["start.loss"] - start["end.loss"] > 1e-3  # it did learn
    double = weights(tmp_path / "double")
    for name in ("ranks", "accumulated"):
        assert_equal(weights(tmp_path / name), double, 2e-6)
        for key in ("start.loss", "end.loss", "end.agreement"):
            close = pytest.approx(start[key], rel=1e-6)
            assert metrics(tmp_path / name)[key] == close


def test_windows_are_full(tiny, tmp_path):
    """12 rows in windows of 5 batches: 2 steps, no remainder, no row lost."""
    output = str(tmp_path / "window")
    done = run_recipe(
        "blsp/train.py",
        tiny,
        output_folder=output,
        grad_accumulation_factor=5,
    )
    assert "train: 12 rows in 10 batches" in done.stdout + done.stderr
    assert metrics(output)["steps"] == 2


def test_debug_run(tiny, tmp_path):
    output = str(tmp_path / "debug")
    run_recipe("blsp/train.py", tiny, "--debug", output_folder=output)
    # Two batches are no result: nothing that could be taken for one is left.
    left = set(os.listdir(output))
    assert not left & {"adapter", "metrics.json", "start.json"}


def test_bad_clips_are_rejected_and_counted(tiny, tmp_path, llm_folder):
    from tests.tiny import tiny_corpus

    corpus = tiny_corpus(tmp_path / "bad", n=12)
    data = write_continuations(corpus, llm_folder, str(tmp_path / "data"))
    nan = os.path.join(corpus.data_root, "train", "train-003.flac")
    os.remove(nan)
    broken = torch.full((8000,), float("nan")).numpy()
    soundfile.write(nan[:-5] + ".wav", broken, 16000, subtype="FLOAT")
    os.rename(nan[:-5] + ".wav", nan)
    os.remove(os.path.join(corpus.data_root, "train", "train-005.flac"))
    arguments = {"continuations": data, "number_of_epochs": 2}
    output = str(tmp_path / "kept")
    run_recipe(
        "blsp/train.py",
        tiny,
        output_folder=output,
        max_rejected=0.2,
        **arguments,
    )
    with open(output + "/rejected.jsonl", encoding="utf-8") as stream:
        rejected = {line["id"]: line for line in map(json.loads, stream)}
    assert set(rejected) == {"train-003", "train-005"}
    assert all(nan[:-8] in line["reason"] for line in rejected.values())
    assert metrics(output)["rejected"] == 2 and metrics(output)["steps"] == 20
    stopped = run_recipe(
        "blsp/train.py",
        tiny,
        check=False,
        output_folder=str(tmp_path / "ended"),
        **arguments,
    )
    assert stopped.returncode == 2
    assert "max_rejected" in stopped.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ["overrides", "says"],
    [
        ({"train_data": "/nowhere/train.parquet"}, "no such file"),
        ({"learning_rate": 1}, "has no key 'learning_rate'"),
        ({"whisper": "/nowhere"}, "cannot open this Whisper"),
        ({"llm": "/nowhere"}, "cannot open this"),
    ],
)
def test_wrong_settings_are_one_line(tiny, tmp_path, overrides, says):
    done = run_recipe(
        "blsp/train.py",
        tiny,
        check=False,
        output_folder=str(tmp_path / "out"),
        **overrides,
    )
    assert done.returncode == 2
    assert says in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
