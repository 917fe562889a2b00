"""Stage 2 end to end, by its recipe, on tiny random models."""

import json
import os

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from blsp_plugin.errors import BadInput
from blsp_plugin.inference import SpeechLLM
from blsp_plugin.llm import FrozenLLM
from blsp_plugin.model import BLSP
from blsp_plugin.package import load_mean
from blsp_plugin.packing import Row
from tests.tiny import tiny_llm, tiny_whisper
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
valid_data: {data}/train.parquet
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
def finished(tiny, tmp_path_factory):
    """One undisturbed run of 12 steps."""
    output = str(tmp_path_factory.mktemp("finished"))
    done = run_recipe("blsp/train.py", tiny, output_folder=output)
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


def test_workers_change_nothing(finished, tiny, tmp_path):
    """Batches from another process: the same adapter, bit for bit."""
    output = str(tmp_path)
    run_recipe("blsp/train.py", tiny, output_folder=output, num_workers=2)
    assert_equal(weights(output), weights(finished[0]))
    assert metrics(output)["end.loss"] == metrics(finished[0])["end.loss"]


def resume(tiny, folder, ranks=1, losses=(), more="", **options):
    """5 steps, kill -9 in step 8, and the rest; as a run without a break."""
    kill = ["!new:tests.training.KillingLoss\n        calls: 8", *losses]
    kept = ["!new:blsp_plugin.losses.ResponseCrossEntropy", *losses]
    runs = {}
    for name, objects in (("killing", kill), ("kept", kept)):
        runs[name] = folder / f"{name}.yaml"
        lines = "".join(f"    - {item}\n" for item in objects)
        runs[name].write_text(f"base: {tiny}\nlosses:\n{lines}{more}")
    output = str(folder / "killed")
    arguments = {"ckpt_interval_minutes": 0, "ranks": ranks, **options}
    killed = run_recipe(
        "blsp/train.py",
        runs["killing"],
        "--ckpt_interval_steps",
        "5",
        check=False,
        fresh=True,
        output_folder=output,
        **arguments,
    )
    assert killed.returncode == (-9 if ranks == 1 else 1), killed.stderr
    assert not os.path.exists(output + "/adapter")
    again = run_recipe(
        "blsp/train.py",
        runs["kept"],
        fresh=True,
        output_folder=output,
        **arguments,
    )
    assert "Loading a checkpoint" in again.stdout + again.stderr
    return output, runs["kept"], arguments


def test_resume_is_exact(finished, tiny, tmp_path):
    """12 steps == 5 + kill -9 in step 8 + 7, bit for bit."""
    output, _, _ = resume(tiny, tmp_path)
    assert metrics(output)["steps"] == 12
    assert_equal(weights(output), weights(finished[0]))
    assert metrics(output)["end.loss"] == metrics(finished[0])["end.loss"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_resume_is_exact_with_every_switch(tiny, tmp_path, ranks):
    """Caches, KL, hidden states, CTC, masks, checkpointing, two ranks."""
    options = {
        "encoder_cache": str(tmp_path / "cache"),
        "teacher_cache": str(tmp_path / "cache"),
        "gradient_checkpointing": True,
        "number_of_epochs": 2,
    }
    losses = [
        "!new:blsp_plugin.losses.ResponseKL",
        "!new:blsp_plugin.losses.HiddenL2",
        "!new:blsp_plugin.losses.InputCTC\n"
        "        embedding_size: !ref <llm_model.hidden_size>\n"
        "        weight: 0.1",
    ]
    more = (
        "state_masks:\n"
        "    - !new:speechbrain.augment.freq_domain.SpectrogramDrop\n"
        "        drop_length_low: 2\n        drop_length_high: 5\n"
    )
    output, preset, arguments = resume(
        tiny, tmp_path, ranks, losses, more, **options
    )
    whole = str(tmp_path / "whole")
    run_recipe("blsp/train.py", preset, output_folder=whole, **arguments)
    assert metrics(output)["steps"] == metrics(whole)["steps"]
    assert_equal(weights(output), weights(whole))
    for name in ("end.loss", "end.kl", "end.greedy_match"):
        assert metrics(output)[name] == metrics(whole)[name]
    with (
        open(output + "/probes.jsonl") as one,
        open(whole + "/probes.jsonl") as two,
    ):
        assert one.read() == two.read()


def test_best_checkpoint_by_another_figure(tiny, tmp_path):
    """KL is trained to be large: `loss` would keep where it is largest."""
    preset = tmp_path / "unlearn.yaml"
    preset.write_text(
        f"base: {tiny}\nbest_by: kl\n"
        "losses: [!new:blsp_plugin.losses.ResponseKL {weight: -1.0}]\n"
    )
    output = str(tmp_path / "out")
    run_recipe(
        "blsp/train.py", preset, output_folder=output, number_of_epochs=3
    )
    with open(f"{output}/probes.jsonl", encoding="utf-8") as stream:
        seen = [json.loads(line) for line in stream]
    kls = [s["kl"] for s in seen if s["step"] and s["behaviour"] == "all"]
    assert len(kls) == 3 and kls[0] < kls[-1]
    assert metrics(output)["end.kl"] == min(kls)


def test_training_begins_with_an_adapter(finished, tiny, tmp_path):
    """Its validation before the first step is that at the other's end."""
    adapter = os.path.join(finished[0], "adapter")
    output = str(tmp_path / "out")
    run_recipe(
        "blsp/train.py",
        tiny,
        output_folder=output,
        first_adapter=f"[{adapter}, {adapter}]",  # their mean
        number_of_epochs=0,  # it is only measured
    )
    assert not os.path.exists(f"{output}/adapter")
    with open(f"{output}/start.json") as stream:
        starts = json.load(stream)
    ends = metrics(finished[0])
    for name in ("loss", "kl", "agreement"):
        assert starts[name] == ends[f"end.{name}"]
    run_recipe(
        "blsp/train.py",
        tiny,
        output_folder=output,
        first_adapter=adapter,
        optimizer_step_limit=1,
    )
    assert metrics(output)["steps"] == 1
    refused = run_recipe(
        "blsp/train.py",
        tiny,
        check=False,
        output_folder=str(tmp_path / "none"),
        first_adapter=str(tmp_path),
    )
    assert refused.returncode == 2
    assert "adapter.json: no such file" in refused.stderr.splitlines()[-1]


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


def test_accumulation_by_tokens(tiny, tmp_path):
    """Batches of 5, 5 and 2 rows in a step == one batch: no mean of means."""
    sgd = tmp_path / "sgd.yaml"
    sgd.write_text(
        f"base: {tiny}\nopt_class: !name:torch.optim.SGD\n    lr: 0.01\n"
    )
    runs = {
        "parts": {"grad_accumulation_factor": 3, "max_batch_rows": 5},
        "whole": {"max_batch_rows": 12},
    }
    for name, options in runs.items():
        run_recipe(
            "blsp/train.py", sgd, output_folder=str(tmp_path / name), **options
        )
        assert metrics(tmp_path / name)["steps"] == 1
    whole = weights(tmp_path / "whole")
    assert_equal(weights(tmp_path / "parts"), whole, 1e-6)
    losses = [metrics(tmp_path / name)["train.loss"] for name in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_sharded_validation_equals_single(tiny, tmp_path):
    """Every number of a validation, its greedy continuations included."""
    options = {"number_of_epochs": 1, "max_batch_rows": 12}
    options["valid_batch_tokens"] = 100
    kept = {}
    for ranks in (1, 2):
        output = tmp_path / str(ranks)
        run_recipe(
            "blsp/train.py",
            tiny,
            output_folder=str(output),
            ranks=ranks,
            **options,
        )
        with open(output / "start.json", encoding="utf-8") as stream:
            kept[ranks] = json.load(stream)
        with open(output / "probes.jsonl", encoding="utf-8") as stream:
            kept[ranks].update(json.loads(next(stream)))
    assert kept[1].keys() == kept[2].keys()
    assert kept[1].pop("behaviour") == kept[2].pop("behaviour") == "all"
    for name, value in kept[1].items():
        assert kept[2][name] == pytest.approx(value, rel=1e-6), name
    assert {"kl", "agreement", "greedy_match", "tokens"} <= set(kept[1])
    pytest.importorskip("matplotlib")
    with open(output / "probes.svg", encoding="utf-8") as stream:
        assert "<svg" in stream.read()


def test_nonfinite_batch_is_named(tiny, tmp_path):
    """Rows are named and saved; the run goes on, or stops, as configured."""
    breaking = tmp_path / "breaking.yaml"
    breaking.write_text(
        f"base: {tiny}\nlosses:\n"
        "    - !new:tests.training.BreakingLoss\n        call: 4\n"
    )
    output = str(tmp_path / "went_on")
    done = run_recipe("blsp/train.py", breaking, output_folder=output)
    [name] = os.listdir(output + "/nonfinite")
    saved = torch.load(f"{output}/nonfinite/{name}", weights_only=False)
    assert saved["loss"] != saved["loss"] and saved["ids"]
    said = f"The loss is nan on the rows {', '.join(saved['ids'])}"
    assert said in done.stdout + done.stderr
    assert metrics(output)["steps"] == 11
    for tensor in weights(output).values():
        assert torch.isfinite(tensor).all()
    stopped = run_recipe(
        "blsp/train.py",
        breaking,
        "--nonfinite_patience",
        "0",
        check=False,
        output_folder=str(tmp_path / "stopped"),
    )
    assert stopped.returncode == 2
    last = stopped.stderr.splitlines()[-1]
    assert "nonfinite_patience" in last and saved["ids"][0] in last


@pytest.mark.parametrize("where", ["llm_model", "speech_encoder"])
def test_lora_checkpoint_is_small(tiny, tmp_path, where):
    """LoRA learns and is kept; the model under it is neither."""
    preset = tmp_path / "lora.yaml"
    preset.write_text(
        f"base: {tiny}\n"
        "lora: !new:speechbrain.nnet.adapters.AdaptedModel\n"
        f"    model_to_adapt: !ref <{where}>\n"
        "    adapter_class: !name:speechbrain.nnet.adapters.LoRA\n"
        '    target_layers: ["*.q_proj", "*.v_proj"]\n'
        "    adapter_kwargs:\n        rank: 2\n"
        "losses:\n    - !new:blsp_plugin.losses.ResponseKL\n"
    )
    output = str(tmp_path / "out")
    run_recipe("blsp/train.py", preset, output_folder=output)
    numbers = metrics(output)
    size = 3 * 4 * numbers["trainable_parameters"]
    assert numbers["checkpoint_bytes"] < size + 80_000
    lora = load_file(os.path.join(output, "adapter", "lora.safetensors"))
    assert lora and all("adapter_" in name for name in lora)
    ups = [w for name, w in lora.items() if "adapter_up_proj" in name]
    assert all(weight.abs().sum() > 0 for weight in ups)  # they start at zero
    # What the LLM makes of text is what it made of it before.
    assert numbers["end.text_loss"] == numbers["start.text_loss"]
    # It comes back with the adapter, and is not forgotten without notice.
    clip = torch.randn(8000, generator=torch.Generator().manual_seed(0))
    speech_llm = SpeechLLM.from_hparams(os.path.join(output, "adapter"))
    state = dict(speech_llm.model.named_parameters())
    for name, weight in lora.items():
        assert torch.equal(state[name], weight)
    # Frozen for inference, LoRA is there still: text is answered without it.
    model, prompt = speech_llm.model, speech_llm.prompt
    assert not model.llm.can_share_prefix(10) or where != "llm_model"
    row = Row(*prompt.ids("Go on.")[:1], (40, 50, 60), prompt.ids("Go on.")[1])
    plain = BLSP(None, None, FrozenLLM(model.llm.source))
    texts = [model.generate([row], max_new_tokens=8)]
    heard = [speech_llm.answer(clip, "Go on.") for _ in range(2)]
    texts.append(model.generate([row], max_new_tokens=8))
    assert texts == [plain.generate([row], max_new_tokens=8)] * 2
    assert heard[0] == heard[1]
    for opened in (
        {"dtype": "bfloat16", "encoder_dtype": "bfloat16"},
        {"dtype": "int8"},
        {"hparams_file": "hyperparams.yaml"},
    ):
        again = SpeechLLM.from_hparams(
            os.path.join(output, "adapter"), **opened
        )
        said = again.answer(clip, "Go on.")
        assert isinstance(said, str)
    assert said == heard[0]
    with pytest.raises(BadInput, match="has LoRA"):
        load_mean(model, prompt, [os.path.join(output, "adapter")] * 2)
    os.remove(os.path.join(output, "adapter", "lora.safetensors"))
    with pytest.raises(BadInput, match="lora.safetensors: no such file"):
        SpeechLLM.from_hparams(os.path.join(output, "adapter"))


def test_any_pair_and_adapter_by_keys(
    tiny, tmp_path, sentencepiece_folder, corpus
):
    """128 mels, another tokenizer family, another adapter, joined rows."""
    data = write_continuations(
        corpus, sentencepiece_folder, str(tmp_path / "data")
    )
    preset = tmp_path / "pair.yaml"
    preset.write_text(
        f"base: {tiny}\n"
        f"continuations: {data}\n"
        "valid_data: !ref <train_data>\n"
        f"whisper: {tiny_whisper(tmp_path / 'whisper', n_mels=128)}\n"
        f"llm: {sentencepiece_folder}\n"
        "adapter: !new:blsp_plugin.adapters.CFormerAdapter\n"
        "    input_size: !ref <speech_encoder.output_size>\n"
        "    output_size: !ref <llm_model.hidden_size>\n"
        "    gain: !ref <llm_model.embedding_rms>\n"
        "    layers: [1, 1]\n    heads: 4\n"
        "losses:\n"
        "    - !new:blsp_plugin.losses.ResponseCrossEntropy\n"
        "    - !new:blsp_plugin.losses.CIFQuantity\n"
    )
    runs = {}
    for join in (False, True):
        output = str(tmp_path / str(join))
        options = {"join_rows": join, "max_batch_rows": 4}
        run_recipe("blsp/train.py", preset, output_folder=output, **options)
        runs[join] = metrics(output)
    assert runs[True]["end.loss"] < runs[True]["start.loss"]
    for name in ("train.loss", "end.loss", "end.kl"):
        assert runs[True][name] == pytest.approx(runs[False][name], rel=1e-4)


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
        ({"best_by": "wer"}, "'wer' is none of loss, ce, kl"),
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
