"""The speech LLM as a module of an ordinary SpeechBrain recipe."""

import csv
import json
import runpy

import pytest
import torch

from blsp_plugin.adapters import ConvAdapter
from blsp_plugin.encoder import WhisperEncoder
from blsp_plugin.inference import SpeechLLM
from blsp_plugin.llm import FrozenLLM
from blsp_plugin.model import BLSP
from blsp_plugin.package import save_adapter
from blsp_plugin.prompts import Prompt
from tests.conftest import make_wavs
from tests.tiny import tiny_corpus, tiny_tasks
from tests.training import ROOT, run_recipe

HPARAMS = "hparams/pipeline.yaml"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, whisper_folder, llm_folder):
    folder = tmp_path_factory.mktemp("adapter")
    encoder, llm = WhisperEncoder(whisper_folder), FrozenLLM(llm_folder)
    torch.manual_seed(3)
    adapter = ConvAdapter(encoder.output_size, llm.hidden_size, 16)
    save_adapter(BLSP(encoder, adapter, llm), Prompt(llm.tokenizer), folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Clips whose label follows from their length, so that it can be told."""
    folder = tmp_path_factory.mktemp("commands")
    corpus = tiny_corpus(folder / "corpus", n=48, n_eval=8)
    tiny_tasks(corpus, folder / "tasks")
    for split in ("train", "valid", "test"):
        path = folder / "tasks" / f"{split}.csv"
        with open(path, encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        for row in rows:
            row["intent"] = "long" if float(row["duration"]) > 0.9 else "short"
        with open(path, "w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return folder / "tasks"


def test_speechbrain_pipeline_embeds_it(adapter, data, tmp_path):
    """It learns; the speech LLM stays as it was, and in no checkpoint."""
    files = {path: path.read_bytes() for path in adapter.iterdir()}
    settings = {
        "data_folder": data,
        "adapter_folder": adapter,
        "output_folder": tmp_path / "out",
        "number_of_labels": 3,
        "batch_size": 16,
        "lr": 0.01,
    }
    run_recipe("pipeline/train.py", HPARAMS, number_of_epochs=4, **settings)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["train.loss"] < 0.8 * metrics["train.first_loss"]
    assert set(metrics) >= {
        "valid.loss",
        "valid.accuracy",
        "test.accuracy",
        "zero_shot.accuracy",
    }
    assert 0 <= metrics["zero_shot.accuracy"] <= 100
    assert metrics["test.accuracy"] >= 50
    # Nothing but the classifier, in any file of the checkpoint.
    [checkpoint] = (tmp_path / "out" / "save").glob("CKPT+*")
    weights = torch.load(checkpoint / "classifier.ckpt", weights_only=True)
    assert sum(weight.numel() for weight in weights.values()) < 15000
    assert all(name.split(".")[0] != "llm" for name in weights)
    assert sum(f.stat().st_size for f in checkpoint.iterdir()) < 200000
    # The adapter's folder is untouched, and the same command goes on.
    assert files == {path: path.read_bytes() for path in adapter.iterdir()}
    done = run_recipe(
        "pipeline/train.py",
        HPARAMS,
        number_of_epochs=5,
        instruction="null",
        **settings,
    )
    assert "epoch 5" in done.stdout + done.stderr
    assert "epoch 4" not in done.stdout + done.stderr


def test_it_stays_frozen_in_a_brain(adapter, data):
    """In this process: no gradient, no training mode, not one bit."""
    import speechbrain as sb

    cpu = {"device": "cpu"}
    speech_llm = SpeechLLM.from_hparams(str(adapter), run_opts=cpu)
    before = {k: v.clone() for k, v in speech_llm.state_dict().items()}
    head = torch.nn.Linear(speech_llm.embedding_size, 2)

    class Brain(sb.Brain):
        def compute_forward(self, batch, stage):
            embeds, _ = speech_llm.encode_batch(*batch)
            assert not embeds.requires_grad
            return self.modules.head(embeds.mean(1))

        def compute_objectives(self, predictions, batch, stage):
            return predictions.square().mean()

    brain = Brain({"head": head}, torch.optim.Adam, run_opts=cpu)
    batch = torch.stack(make_wavs([1.0, 1.0])), torch.ones(2)
    loader = torch.utils.data.DataLoader([batch], batch_size=None)
    brain.fit([0, 1], loader, progressbar=False)
    assert brain.optimizer.state
    for name, tensor in speech_llm.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not any(p.requires_grad for p in speech_llm.parameters())
    assert not any(module.training for module in speech_llm.mods.modules())


def test_too_many_labels_are_one_line(adapter, data, tmp_path, capsys):
    main = runpy.run_path(f"{ROOT}/recipes/pipeline/train.py")["main"]
    settings = {
        "data_folder": data,
        "adapter_folder": adapter,
        "output_folder": tmp_path / "out",
        "number_of_labels": 2,
    }
    options = [f"--{name}={value}" for name, value in settings.items()]
    with pytest.raises(SystemExit) as stop:
        main([f"{ROOT}/{HPARAMS}", "--device", "cpu", *options])
    assert stop.value.code == 2
    assert "give --number_of_labels 3" in capsys.readouterr().err
