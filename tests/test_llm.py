"""The frozen LLM: untouched, any dtype, one-line errors."""

import os
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from blsp_plugin.decoding import decode_ids
from blsp_plugin.errors import BadInput
from blsp_plugin.llm import FrozenLLM
from tests.tiny import tiny_llm


def test_the_llm_stays_as_it_was_published(llm_folder):
    llm = FrozenLLM(llm_folder)
    published = AutoModelForCausalLM.from_pretrained(llm_folder)
    ours = llm.model.state_dict()
    for name, tensor in published.state_dict().items():
        assert torch.equal(ours[name], tensor), name
    assert llm.embedding.num_embeddings == published.config.vocab_size
    assert llm.tokenizer.pad_token_id is not None
    llm.train()
    assert not any(module.training for module in llm.modules())


def test_embedding_rms(llm):
    weight = llm.embedding.weight
    assert llm.embedding_rms == pytest.approx(
        weight.pow(2).mean().sqrt().item()
    )


def test_fingerprint_tells_weights_not_dtypes(llm_folder, tmp_path):
    names = {
        FrozenLLM(llm_folder).fingerprint(),
        FrozenLLM(llm_folder, dtype="bfloat16").fingerprint(),
    }
    assert len(names) == 1
    other = FrozenLLM(tiny_llm(tmp_path, seed=5))
    assert other.fingerprint() not in names


def test_folders_that_are_no_llm(tmp_path):
    (tmp_path / "empty").mkdir()
    bare = tmp_path / "bare"
    tiny_llm(bare)
    os.remove(bare / "model.safetensors")
    corrupt = tmp_path / "corrupt"
    tiny_llm(corrupt)
    with open(corrupt / "model.safetensors", "r+b") as stream:
        stream.write(b"\xff" * 64)
    for source in ("empty", "bare", "corrupt", "nowhere"):
        with pytest.raises(BadInput) as caught:
            FrozenLLM(tmp_path / source)
        assert str(tmp_path / source) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_stop_text_ends_a_response(llm, prompt):
    """Base models have no habit of ending: a text ends them."""
    prefix, suffix = prompt.ids("Go on.")
    ids = torch.tensor([[*prefix, *suffix]])
    mask = torch.ones_like(ids)
    embeds = llm.embed(ids)
    [free] = llm.generate(embeds, mask, max_new_tokens=12)
    stop = free.text[len(free.text) // 2 :][:2]
    [stopped] = llm.generate(embeds, mask, max_new_tokens=12, stop=stop)
    assert stop not in stopped.text and stopped.ended
    assert free.text.startswith(stopped.text)


def states(llm, embeds, prefixes=((1, 2, 3),) * 2):
    """Last hidden states, and the gradient of a weighted sum of them."""
    embeds = embeds.clone().requires_grad_()
    mask = torch.ones(embeds.shape[:2], dtype=torch.int64)
    places = torch.arange(3, 3 + embeds.shape[1]).expand_as(mask)
    hidden = llm.hidden(embeds, mask, places, prefixes)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(hidden.shape, generator=generator)
    (hidden * weights).sum().backward()
    return hidden, embeds.grad


def test_device_map_places_the_weights(llm, llm_folder):
    """An LLM that does not fit one card: transformers places its layers."""
    pytest.importorskip("accelerate")
    placed = FrozenLLM(llm_folder, options={"device_map": {"": "cpu"}})
    assert placed.to("meta").device.type == "cpu"  # it stays where it was put
    embeds = torch.randn(2, 5, llm.hidden_size)
    for one, two in zip(
        states(llm, embeds), states(placed, embeds), strict=True
    ):
        assert torch.equal(one, two)


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a compiler")
def test_compiled_layers_equal(llm, llm_folder):
    """With and without a prefix, in two shapes, and in generation.

    Together with checkpointing, which wraps what is compiled.
    """
    compiled = FrozenLLM(
        llm_folder, compile_layers=True, gradient_checkpointing=True
    )
    for rows, time in ((2, 5), (3, 7)):
        embeds = torch.randn(rows, time, llm.hidden_size)
        for prefixes in ([(1, 2, 3)] * rows, None):
            for one, two in zip(
                states(llm, embeds, prefixes),
                states(compiled, embeds, prefixes),
                strict=True,
            ):
                assert (one - two).abs().max() < 1e-4 * one.abs().max()
    prompts = [(5, 6, 7, 8), (5, 6, 9)]
    assert decode_ids(compiled, prompts, 8) == decode_ids(llm, prompts, 8)
