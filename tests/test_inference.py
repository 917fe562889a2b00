"""SpeechLLM: a trained adapter opened again and used."""

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from blsp_plugin.errors import BadInput
from blsp_plugin.hparams import excerpt_hparams
from blsp_plugin.inference import SpeechLLM
from blsp_plugin.package import (
    load_adapter,
    load_layers,
    load_mean,
    save_adapter,
)
from blsp_plugin.packing import Row, pack
from tests.conftest import make_wavs
from tests.tiny import tiny_llm
from tests.training import ROOT

INSTRUCTION = "What is said?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, encoder, llm, prompt, llm_folder, whisper_folder):
    """An adapter folder as training writes it."""
    from blsp_plugin.adapters import ConvAdapter
    from blsp_plugin.model import BLSP

    torch.manual_seed(3)
    adapter = ConvAdapter(encoder.output_size, llm.hidden_size, 16)
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(BLSP(encoder, adapter, llm), prompt, folder)
    overrides = (
        f"whisper: {whisper_folder}\nllm: {llm_folder}\n"
        "bottleneck: 16\nllm_dtype: float32\n"
    )
    (folder / "hyperparams.yaml").write_text(
        excerpt_hparams(f"{ROOT}/hparams/train.yaml", overrides)
    )
    return folder


@pytest.fixture(scope="module")
def speech_llm(folder):
    return SpeechLLM.from_hparams(str(folder), run_opts={"device": "cpu"})


def test_answers_are_the_models(speech_llm, prompt):
    wavs = make_wavs([1.0, 0.3, 2.2], seed=4)
    texts = speech_llm.answer_batch(wavs, [INSTRUCTION] * 3, max_new_tokens=9)
    expected = speech_llm.model.answer(
        wavs, [INSTRUCTION] * 3, prompt, max_new_tokens=9
    )
    assert texts == [answer.text for answer in expected]
    for wav, text in zip(wavs, texts, strict=True):
        assert speech_llm.answer(wav, INSTRUCTION, max_new_tokens=9) == text


def test_save_and_load_keeps_the_logits(folder, model, prompt):
    load_adapter(model, prompt, folder)
    weights = {k: v.clone() for k, v in model.adapter.state_dict().items()}
    [wav] = make_wavs([1.5])
    speech = model.embed_wavs([wav])
    prefix, suffix = prompt.ids(INSTRUCTION)
    row = Row(prefix, int(speech.lengths[0]), suffix, (7, 8), True)
    packed = pack([row], 0, model.llm.eos_id)
    hidden = model(packed, speech).hidden
    for param in model.adapter.parameters():
        torch.nn.init.normal_(param)
    load_adapter(model, prompt, folder)
    again = model(packed, model.embed_wavs([wav])).hidden
    assert torch.equal(hidden, again)
    for name, tensor in model.adapter.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_toolkit_batch_is_clip_by_clip(speech_llm):
    wavs = make_wavs([2.0, 0.7], seed=5)
    padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    wav_lens = torch.tensor([1.0, len(wavs[1]) / len(wavs[0])])
    together = speech_llm.transcribe_batch(padded, wav_lens, max_new_tokens=9)
    alone = [
        speech_llm.answer(
            wav, speech_llm.transcribe_instruction, max_new_tokens=9
        )
        for wav in wavs
    ]
    assert together == alone


@pytest.mark.parametrize(
    ["rate", "channels", "seconds", "tokens"],
    [(48000, 2, 2, 13), (8000, 1, 5, 32), (16000, 1, 65, 407)],
)
def test_any_clip_is_accepted(
    speech_llm, tmp_path, rate, channels, seconds, tokens
):
    """Stereo, other rates, and more than 30 s, with the right token count."""
    rng = np.random.default_rng(0)
    samples = rng.normal(0, 0.01, (rate * seconds, channels))
    path = tmp_path / "clip.wav"
    soundfile.write(path, samples, rate)
    text = speech_llm.answer(str(path), INSTRUCTION, max_new_tokens=3)
    assert isinstance(text, str)
    from blsp_plugin.data.audio import read_speech

    speech = speech_llm.model.embed_wavs([read_speech(path)])
    assert speech.lengths.tolist() == [tokens]
    assert speech_llm.model.speech_tokens(seconds * 16000) == tokens


def test_bad_clips_are_one_line(speech_llm, tmp_path):
    for clip in (
        torch.zeros(0),
        torch.zeros(2, 100),
        torch.full((100,), float("nan")),
        str(tmp_path / "missing.wav"),
    ):
        with pytest.raises(BadInput) as caught:
            speech_llm.answer(clip, INSTRUCTION)
        assert "\n" not in str(caught.value)


def test_adapter_for_another_base_is_refused(folder, model, prompt, tmp_path):
    from blsp_plugin.llm import FrozenLLM
    from blsp_plugin.prompts import Prompt

    other = Prompt(prompt.tokenizer, content="{speech}\n{instruction}")
    with pytest.raises(BadInput, match="another prompt"):
        load_adapter(model, other, folder)
    model.llm = FrozenLLM(tiny_llm(tmp_path / "llm", seed=9))
    with pytest.raises(BadInput, match="another llm"):
        load_adapter(model, prompt, folder)


def test_damaged_adapters_are_one_line(folder, model, prompt, tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        load_adapter(model, prompt, tmp_path)
    with pytest.raises(BadInput, match=r"has no adapter\.json"):
        SpeechLLM.from_hparams(str(tmp_path))
    json = (folder / "adapter.json").read_bytes()
    weights = (folder / "adapter.safetensors").read_bytes()
    for json_bytes, weight_bytes, says in (
        (json[:20], weights, "not an adapter's JSON"),
        (json, weights[:500], "cannot open this adapter"),
        (json, b"\x00" * 100, "cannot open this adapter"),
    ):
        (tmp_path / "adapter.json").write_bytes(json_bytes)
        (tmp_path / "adapter.safetensors").write_bytes(weight_bytes)
        with pytest.raises(BadInput, match=says) as caught:
            load_adapter(model, prompt, tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / "adapter.json").write_bytes(json)
    (tmp_path / "adapter.safetensors").write_bytes(weights)
    from blsp_plugin.adapters import ConvAdapter

    model.adapter = ConvAdapter(32, model.llm.hidden_size, bottleneck=8)
    with pytest.raises(BadInput, match="does not fit"):
        load_adapter(model, prompt, tmp_path)


def test_mean_of_adapters(folder, model, prompt, tmp_path):
    load_mean(model, prompt, [folder])
    one = {k: v.clone() for k, v in model.adapter.state_dict().items()}
    load_adapter(model, prompt, folder)
    assert all(
        torch.equal(one[k], v) for k, v in model.adapter.state_dict().items()
    )
    for param in model.adapter.parameters():
        torch.nn.init.normal_(param)
    two = {k: v.clone() for k, v in model.adapter.state_dict().items()}
    save_adapter(model, prompt, tmp_path / "two")
    load_mean(model, prompt, [folder, tmp_path / "two", folder])
    for name, tensor in model.adapter.state_dict().items():
        torch.testing.assert_close(tensor, (2 * one[name] + two[name]) / 3)
    with pytest.raises(BadInput, match="no such file"):
        load_mean(model, prompt, [folder, tmp_path])


def test_layers_of_another_llms_adapter(folder, model, tmp_path):
    """What hears is taken over, what speaks another LLM's embeddings is not."""
    from blsp_plugin.adapters import ConvAdapter, CTCAdapter

    torch.manual_seed(1)
    other = ConvAdapter(32, 48, bottleneck=16)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    new = load_layers(other, folder)
    trained = model.adapter.state_dict()
    assert new and len(new) < len(before)
    for name, tensor in other.state_dict().items():
        if name in new:
            assert tensor.shape != trained[name].shape
            assert torch.equal(tensor, before[name])
        else:
            assert not torch.equal(tensor, before[name])
    with pytest.raises(BadInput, match="has no layer that fits a CTCAdapter"):
        load_layers(CTCAdapter(40, 48), folder)
    with pytest.raises(BadInput, match="no such file"):
        load_layers(other, tmp_path)


def test_layers_come_without_the_scale_of_what_stays(tmp_path):
    """CTC into the LLM's embeddings is followed by CTC by letters."""
    from blsp_plugin.adapters import CTCAdapter, SpelledCTCAdapter

    torch.manual_seed(1)
    first = CTCAdapter(32, 48, layers=2)
    torch.nn.init.constant_(first.log_scale, 4.0)
    save_file(first.state_dict(), tmp_path / "adapter.safetensors")
    second = SpelledCTCAdapter(32, 48, 10, layers=1)
    new = load_layers(second, tmp_path)
    assert {"log_scale", "project.weight", "speller.letters"} <= set(new)
    assert second.log_scale.exp().item() == pytest.approx(20.0)
    for name, tensor in second.convs.state_dict().items():
        assert torch.equal(tensor, first.convs.state_dict()[name])
