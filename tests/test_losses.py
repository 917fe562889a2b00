"""Losses: equal to their naive forms, in value and gradient."""

import pytest
import torch
from torch.nn import functional

from blsp_plugin.losses import (
    CIFQuantity,
    HiddenL2,
    InputCTC,
    ResponseCrossEntropy,
    ResponseKL,
    TeacherStates,
    TeacherTopK,
    TokenCTC,
    response_loss,
)
from blsp_plugin.packing import pack
from blsp_plugin.speech import SpeechEmbeddings
from tests.conftest import make_wavs
from tests.test_model import INSTRUCTION, SECONDS, TEXTS, batch, speech_rows

CHUNKS = (1, 3, 1024)


class Case:
    """A batch of speech rows and their twins, and what the LLM makes of it."""

    def __init__(self, model, prompt):
        self.model = model
        wavs = make_wavs(SECONDS)
        rows = speech_rows(model, prompt, wavs)
        self.mel, self.lengths, self.packed = batch(model, wavs, rows)
        slots = [prompt.slot_ids(INSTRUCTION, f"well {t}") for t in TEXTS]
        twins = [r._replace(slot=s) for r, s in zip(rows, slots, strict=True)]
        llm = model.llm
        self.twin = pack(twins, llm.tokenizer.pad_token_id, llm.eos_id)
        self.teacher = model.teach(self.twin)

    def logits(self, packed, speech=None):
        """The whole vocabulary tensor, by the LLM's own forward."""
        return self.model.llm.model(
            inputs_embeds=self.model.inputs_embeds(packed, speech),
            attention_mask=packed.attention_mask,
            position_ids=packed.position_ids,
        ).logits

    def speech(self):
        return self.model.embed_speech(self.mel, self.lengths)

    def gradients(self, loss):
        self.model.adapter.zero_grad()
        loss.backward()
        return [p.grad.clone() for p in self.model.adapter.parameters()]

    def check(self, losses, naive, teacher=None):
        """Value and gradients, for any size of chunk."""
        expected = self.gradients(naive)
        for chunk in CHUNKS:
            states = self.model(self.packed, self.speech())
            loss = response_loss(
                losses, states, teacher, self.model.llm, chunk=chunk
            )
            assert abs(loss.item() - naive.item()) < 1e-5 * abs(naive.item())
            for one, two in zip(self.gradients(loss), expected, strict=True):
                assert (one - two).abs().max() < 1e-5 * two.abs().max().clamp(1)
            with torch.no_grad():
                quiet = response_loss(
                    losses, states, teacher, self.model.llm, chunk=chunk
                )
            assert not quiet.requires_grad
            assert abs(quiet - loss) < 1e-6 * abs(loss)


@pytest.fixture
def case(model, prompt):
    return Case(model, prompt)


def naive_ce(case):
    return functional.cross_entropy(
        case.logits(case.packed, case.speech())[:, :-1].flatten(0, 1),
        case.packed.labels[:, 1:].flatten(),
        ignore_index=-100,
        reduction="sum",
    )


def naive_kl(case, temperature):
    """Row by row, over the whole vocabulary, from the definition."""
    student = case.logits(case.packed, case.speech()) / temperature
    with torch.no_grad():
        teacher = case.logits(case.twin) / temperature
    total = 0
    for row in range(len(case.packed.labels)):
        # The token at a place is predicted one place before it.
        here = (case.packed.labels[row] != -100).nonzero()[:, 0] - 1
        there = (case.twin.labels[row] != -100).nonzero()[:, 0] - 1
        p = teacher[row, there].softmax(-1)
        q = student[row, here].softmax(-1)
        total = total + (p * (p.log() - q.log())).sum()
    return total * temperature**2


def test_ce_matches_naive(case):
    case.check([ResponseCrossEntropy()], naive_ce(case))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kl_matches_naive(case, temperature):
    """Shifted, the first response token included, times T squared."""
    loss = ResponseKL(temperature=temperature)
    case.check([loss], naive_kl(case, temperature), case.teacher)
    # All of the vocabulary in the top k: the same.
    logits = case.model.llm.project(case.teacher.hidden) / temperature
    log_probs, ids = logits.log_softmax(-1).topk(logits.shape[-1])
    top = TeacherTopK(ids, log_probs)
    states = case.model(case.packed, case.speech())
    value = response_loss([loss], states, top, case.model.llm)
    naive = naive_kl(case, temperature)
    assert abs(value - naive) < 1e-3 * naive
    # A few of them: a lower bound.
    few = TeacherTopK(ids[:, :5], log_probs[:, :5])
    value = response_loss([loss], states, few, case.model.llm)
    assert 0 < value < naive


def test_mix_of_losses_is_their_weighted_sum(case):
    hidden = case.model(case.packed, case.speech()).hidden
    l2 = (hidden - case.teacher.hidden).square().mean(-1).sum()
    naive = 0.5 * naive_ce(case) + 2.0 * naive_kl(case, 2.0) + 3.0 * l2
    losses = [
        ResponseCrossEntropy(0.5),
        ResponseKL(2.0, temperature=2.0),
        HiddenL2(3.0),
    ]
    case.check(losses, naive, case.teacher)


def test_head_is_projected_once_a_chunk_and_not_for_l2(case, monkeypatch):
    calls = []
    project = case.model.llm.project

    def count(hidden):
        calls.append(len(hidden))
        return project(hidden)

    monkeypatch.setattr(case.model.llm, "project", count)
    states = case.model(case.packed, case.speech())
    tokens = len(states.targets)
    response_loss([HiddenL2()], states, case.teacher, case.model.llm)
    assert calls == []
    losses = [ResponseCrossEntropy(), ResponseKL()]
    loss = response_loss(losses, states, case.teacher, case.model.llm, chunk=4)
    loss.backward()
    # Student and teacher, each position once; the backward pass adds none.
    assert sum(calls) == 2 * tokens and max(calls) == 4


def test_teacher_of_other_positions_is_refused(case):
    states = case.model(case.packed, case.speech())
    short = TeacherStates(case.teacher.hidden[1:])
    with pytest.raises(ValueError, match="positions of the teacher"):
        response_loss([ResponseKL()], states, short, case.model.llm)


def test_ctc_matches_naive_and_lets_clips_be(model, prompt):
    """A clip's share does not depend on its batch mates."""
    torch.manual_seed(0)
    llm = model.llm
    loss = InputCTC(llm.hidden_size)
    transcripts = [[7, 8, 9], [20, 20], [5] * 30]
    lengths = torch.tensor([9, 6, 4])
    embeds = torch.randn(3, 9, llm.hidden_size, requires_grad=True)
    tokens = torch.tensor([4, 2, 7])
    speech = SpeechEmbeddings(embeds, lengths)
    total = loss(speech, transcripts, tokens, llm.table)
    table = functional.normalize(llm.embedding.weight.float(), dim=-1)
    naive = 0
    for i in range(2):  # the third has fewer embeddings than tokens
        frames = functional.normalize(embeds[i, : lengths[i]], dim=-1)
        blank = functional.normalize(loss.blank, dim=0)
        logits = torch.cat([blank[None], table]) @ frames.T
        log_probs = (loss.log_scale.exp() * logits.T).log_softmax(-1)
        nll = functional.ctc_loss(
            log_probs[:, None],
            torch.tensor([transcripts[i]]) + 1,
            lengths[i : i + 1],
            torch.tensor([len(transcripts[i])]),
            reduction="none",
        )
        naive = naive + nll.sum() / len(transcripts[i]) * tokens[i]
    assert abs(total - naive) < 1e-4 * naive
    total.backward()
    assert embeds.grad[0, :9].abs().sum() > 0
    assert embeds.grad[1, 6:].abs().sum() == 0
    assert loss.blank.grad.abs().sum() > 0 and loss.log_scale.grad != 0


def test_token_ctc_matches_naive(model):
    """On the whole vocabulary; a sample of it comes near."""
    torch.manual_seed(0)
    llm = model.llm
    transcripts = [[7, 8, 9], [20, 20], [5] * 30]
    frames, tokens = torch.tensor([9, 6, 4]), torch.tensor([4, 2, 7])
    vectors = torch.randn(3, 9, llm.hidden_size, requires_grad=True)
    blank = torch.randn(3, 9, requires_grad=True)
    more = {"vectors": vectors, "blank": blank, "frames": frames}
    speech = SpeechEmbeddings(torch.zeros(3, 1, 8), frames, more)
    loss = TokenCTC(negatives=0)
    total = loss(speech, transcripts, tokens, llm.table)
    table = functional.normalize(llm.embedding.weight.float(), dim=-1)
    logits = torch.cat([blank.unsqueeze(-1), vectors @ table.T], dim=-1)
    naive = functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1),
        torch.tensor(sum(transcripts, [])) + 1,
        frames,
        torch.tensor([3, 2, 30]),
        reduction="none",
        zero_infinity=True,
    )
    naive = (naive / torch.tensor([3, 2, 30]) * tokens).sum()
    assert abs(total - naive) < 1e-4 * naive
    ours = torch.autograd.grad(total, [vectors, blank])
    theirs = torch.autograd.grad(naive, [vectors, blank])
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-4)
    sampled = TokenCTC(negatives=len(table) // 4)
    values = [
        sampled(speech, transcripts, tokens, llm.table) for _ in range(20)
    ]
    assert abs(sum(values) / 20 - naive) < 0.02 * naive
    with torch.no_grad():
        exact = sampled.eval()(speech, transcripts, tokens, llm.table)
    assert abs(exact - naive) < 1e-4 * naive


def test_quantity_of_cif():
    fired = torch.tensor([3.0, 5.0], requires_grad=True)
    speech = SpeechEmbeddings(
        torch.zeros(2, 4, 8), torch.tensor([4, 4]), {"fired": fired}
    )
    loss = CIFQuantity()(speech, [[1] * 4, [1] * 4], torch.tensor([2, 8]), None)
    assert loss.item() == pytest.approx(1 / 4 * 2 + 1 / 4 * 8)
    loss.backward()
    assert fired.grad.tolist() == [-0.5, 2.0]
