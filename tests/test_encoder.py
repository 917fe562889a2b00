"""The encoder: parity with transformers, batch invariance, long audio."""

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import WhisperFeatureExtractor, WhisperModel

from blsp_plugin.encoder import WhisperEncoder
from blsp_plugin.errors import BadInput
from blsp_plugin.lengths import mel_frames
from tests.conftest import make_wavs
from tests.tiny import tiny_whisper


def encode(encoder, wavs, extra=0):
    """Encode a ragged batch, with some padding frames more than needed."""
    mel = pad_sequence([encoder.mel(w) for w in wavs], batch_first=True)
    mel = torch.nn.functional.pad(mel, (0, 0, 0, extra), value=3.0)
    lengths = torch.tensor([mel_frames(len(w)) for w in wavs])
    return encoder(mel, lengths)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_parity_with_hf_whisper(tmp_path, n_mels):
    folder = tiny_whisper(tmp_path, n_mels=n_mels)
    encoder = WhisperEncoder(folder, pad_to_30s=True)
    reference = WhisperModel.from_pretrained(folder).encoder.eval()
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    for wav in make_wavs([0.3, 2.7, 29.99, 30.0], loud=(1,)):
        features = extractor(
            wav.numpy(), sampling_rate=16000, return_tensors="pt"
        ).input_features
        mel = encoder.mel(wav)
        assert (mel.T - features[0]).abs().max() < 1e-5
        with torch.no_grad():
            expected = reference(features).last_hidden_state[0]
        states, lengths = encode(encoder, [wav])
        valid = lengths.item()
        assert (states[0, :valid] - expected[:valid]).abs().max() < 1e-5


def test_states_do_not_depend_on_the_batch(encoder):
    wavs = make_wavs([0.4, 3.0, 1.7, 0.02], loud=(1,))
    states, lengths = encode(encoder, wavs, extra=37)
    for i, wav in enumerate(wavs):
        alone, [length] = encode(encoder, [wav])
        assert length == lengths[i]
        assert (states[i, :length] - alone[0]).abs().max() < 1e-4
        assert not states[i, length:].any()


def test_long_clips_go_in_chunks(encoder):
    long, short = make_wavs([65.3, 2.0])
    states, lengths = encode(encoder, [long, short])
    pieces = [encode(encoder, [p])[0][0] for p in long.split(30 * 16000)]
    whole = torch.cat(pieces)
    assert lengths[0] == len(whole)
    assert (states[0] - whole).abs().max() < 1e-4
    alone = encode(encoder, [short])[0][0]
    assert (states[1, : lengths[1]] - alone).abs().max() < 1e-4


def test_encoder_stays_frozen_and_in_eval(encoder):
    encoder.train()
    assert not encoder.training
    assert not any(module.training for module in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())


def test_half_precision_checkpoint_is_cast(whisper_folder, tmp_path):
    model = WhisperModel.from_pretrained(whisper_folder).half()
    model.save_pretrained(tmp_path)
    WhisperFeatureExtractor.from_pretrained(whisper_folder).save_pretrained(
        tmp_path
    )
    encoder = WhisperEncoder(tmp_path)
    states, _ = encode(encoder, make_wavs([0.5]))
    assert states.dtype == torch.float32


def test_models_that_cannot_be_opened(whisper_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    corrupt = tmp_path / "corrupt"
    tiny_whisper(corrupt)
    with open(corrupt / "model.safetensors", "r+b") as stream:
        stream.truncate(1000)
    for source in (tmp_path / "empty", corrupt, tmp_path / "nowhere"):
        with pytest.raises(BadInput) as caught:
            WhisperEncoder(source)
        assert str(source) in str(caught.value)
        assert "\n" not in str(caught.value)
