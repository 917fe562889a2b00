"""Adapters: lengths, batch invariance, and that each of them learns."""

import pytest
import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from blsp_plugin.adapters import (
    CFormerAdapter,
    ConcatMLPAdapter,
    ConvAdapter,
    CTCAdapter,
    SpelledCTCAdapter,
)
from blsp_plugin.adapters.cformer import integrate_and_fire
from blsp_plugin.embedding_table import EmbeddingTable
from blsp_plugin.errors import BadInput
from blsp_plugin.lengths import encoder_frames, mel_frames
from blsp_plugin.losses import (
    CIFQuantity,
    ResponseCrossEntropy,
    TokenCTC,
    response_loss,
)
from blsp_plugin.model import BLSP
from blsp_plugin.speech import SpeechEmbeddings
from tests.conftest import make_wavs
from tests.test_model import INSTRUCTION, SECONDS, TEXTS, batch, speech_rows

KINDS = {
    "conv-4": (ConvAdapter, {"bottleneck": 16, "layers": 2}),
    "conv-8": (ConvAdapter, {"bottleneck": 16, "layers": 3}),
    "conv-16": (ConvAdapter, {"bottleneck": 16, "layers": 4}),
    "mlp-4": (ConcatMLPAdapter, {"hidden_size": 24, "stride": 4}),
    "mlp-8": (ConcatMLPAdapter, {"hidden_size": 24, "stride": 8}),
    "mlp-16": (ConcatMLPAdapter, {"hidden_size": 24, "stride": 16}),
    "cformer": (CFormerAdapter, {"layers": (1, 1), "heads": 4}),
    # Random tokens are not to be trusted: no sharper than they are.
    "ctc": (CTCAdapter, {"layers": 2, "dropout": 0.0, "sharpness": 1.0}),
    "spelled": (
        SpelledCTCAdapter,
        {
            "layers": 2,
            "dropout": 0.0,
            "sharpness": 1.0,
            "vector_size": 24,
            "spelling_width": 24,
        },
    ),
}
# What trains them beside the response.
INPUT_LOSSES = {
    "cformer": [CIFQuantity()],
    "ctc": [TokenCTC(negatives=0)],
    "spelled": [TokenCTC(negatives=0)],
}


def texts():
    """What 50 tokens are; two of them the same, one nothing, one long."""
    some = [b" %d" % (n * n) for n in range(47)]
    return [*some, b" 4", b"", b" a token of more letters than are read"]


def make(kind, width=32, vocabulary_size=50, **options):
    torch.manual_seed(0)
    adapter, settings = KINDS[kind]
    if issubclass(adapter, CTCAdapter):  # its scale is the LLM's own
        options.pop("gain", None)
    if adapter is SpelledCTCAdapter:
        options["vocabulary_size"] = vocabulary_size
    adapter = adapter(32, width, **settings, **options)
    if isinstance(adapter, CTCAdapter) and vocabulary_size == 50:
        table = torch.nn.Embedding(50, width)
        adapter.bind(EmbeddingTable(table, texts))
    return adapter


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_a_clip_does_not_depend_on_its_batch(kind, training):
    adapter = make(kind, gain=0.3).train(training)
    lengths = [50, 9, 1, 33]
    clips = [torch.randn(length, 32) for length in lengths]
    tokens = torch.tensor([4, 2, 1, 6]) if adapter.counts_transcript else None
    alone = []
    for i, clip in enumerate(clips):
        own = None if tokens is None else tokens[i : i + 1]
        with torch.no_grad():
            alone.append(adapter(clip[None], torch.tensor([len(clip)]), own))
    states = pad_sequence(clips, batch_first=True)
    states = functional.pad(states, (0, 0, 0, 7), value=5.0)
    for i, length in enumerate(lengths):
        states[i, length:] = 1e3  # garbage
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        many = None if tokens is None else tokens[order]
        with torch.no_grad():
            speech, counts, more = adapter(
                states[order], torch.tensor(lengths)[order], many
            )
        for place, i in enumerate(order):
            one, [count], alone_more = alone[i]
            assert counts[place] == count == len(one[0])
            if tokens is None:
                assert count == adapter.output_lengths(lengths[i])
            else:
                assert count == tokens[i]
            assert more.keys() == alone_more.keys()
            for name, value in alone_more.items():
                value, own = value[0], more[name][place]
                if value.dim():  # the rest is padding
                    own = own[: len(value)]
                assert (own - value).abs().max() < 1e-4, name
            assert (speech[place, :count] - one[0]).abs().max() < 1e-5
            assert not speech[place, count:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_each_adapter_trains(kind, model, prompt):
    """Cross-entropy through the frozen LLM falls; all weights learn."""
    llm = model.llm
    adapter = make(kind, 32, llm.vocabulary_size, gain=llm.embedding_rms)
    model = BLSP(model.encoder, adapter, model.llm)
    wavs = make_wavs(SECONDS)
    rows = speech_rows(model, prompt, wavs)
    slots = [prompt.slot_ids(INSTRUCTION, text) for text in TEXTS]
    if adapter.counts_transcript:
        rows = [
            row._replace(slot=len(slot))
            for row, slot in zip(rows, slots, strict=True)
        ]
    mel, lengths, packed = batch(model, wavs, rows, share_prefix=True)
    tokens, counts = packed.slot_mask.sum(1), packed.response_tokens
    optimizer = torch.optim.Adam(adapter.parameters(), lr=3e-3)
    values, totals = [], []
    # Which frames are tokens jumps while two tables are learnt.
    for _ in range(120 if kind == "spelled" else 60):
        speech = model.embed_speech(mel, lengths, tokens)
        states = model(packed, speech)
        loss = response_loss([ResponseCrossEntropy()], states, None, model.llm)
        values.append(loss.item() / len(states.targets))
        for other in INPUT_LOSSES.get(kind, ()):
            loss = loss + other(speech, slots, counts, model.table)
        totals.append(loss.item() / len(states.targets))
        optimizer.zero_grad()
        loss.backward()
        for name, param in adapter.named_parameters():
            assert param.grad is not None and param.grad.any(), name
        optimizer.step()
    # Tokens of a CTC that guesses can say little else.
    assert values[-1] < (0.9 if kind in ("ctc", "spelled") else 0.7) * values[0]
    assert totals[-1] < 0.7 * totals[0]
    with torch.autocast("cpu", torch.bfloat16):
        again = model.embed_speech(mel, lengths, tokens)
    assert torch.isfinite(again.embeds).all()
    assert model.answer(wavs, [INSTRUCTION] * 5, prompt, max_new_tokens=3)


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_are_known_before_the_model_runs(kind):
    adapter = make(kind)
    for seconds in (0.1, 1.0, 4.2, 31.0):
        frames = encoder_frames(mel_frames(int(16000 * seconds)))
        count = adapter.output_lengths(frames)
        assert count == adapter.output_lengths(torch.tensor([frames])).item()
        if not adapter.counts_transcript:
            speech, lengths, _ = adapter(
                torch.randn(1, frames, 32), torch.tensor([frames])
            )
            assert lengths.tolist() == [count] == [speech.shape[1]]


def test_free_firing_does_not_depend_on_the_batch():
    """Nor do its numbers of tokens, with weights that differ by frame."""
    adapter = make("cformer").eval()
    torch.nn.init.normal_(adapter.weight.weight, std=0.5)
    lengths = torch.tensor([50, 9, 1, 33])
    states = torch.full((4, 57, 32), 1e3)
    for i, length in enumerate(lengths):
        states[i, :length] = torch.randn(length, 32)
    with torch.no_grad():
        speech, counts, more = adapter(states, lengths)
        for i, length in enumerate(lengths):
            one, [count], alone = adapter(
                states[i : i + 1, :length], lengths[i : i + 1]
            )
            [asked] = alone["fired"]
            assert count == counts[i] == asked.round().clamp(min=1)
            assert abs(asked - more["fired"][i]) < 1e-5
            assert (speech[i, :count] - one[0]).abs().max() < 1e-4


def ctc_adapter(vectors, blank, frames):
    """One that heard this: rows of ids (0: between all) and blank logits."""
    adapter = make("ctc", width=16).eval()
    table = torch.nn.Embedding(50, 16)
    adapter.bind(EmbeddingTable(table))
    unit = functional.normalize(table.weight.detach(), dim=-1)
    vectors = 40.0 * unit[torch.tensor(vectors)]
    blank, frames = torch.tensor(blank), torch.tensor(frames)
    hidden = torch.randn(*vectors.shape[:2], 32)
    adapter._listen = lambda *_: (vectors, blank, frames, hidden)
    return adapter, table.weight


def test_ctc_keeps_what_is_not_blank_and_not_said_before():
    low, high = 0.0, 90.0
    adapter, table = ctc_adapter(
        [[7, 7, 3, 3, 3, 9], [5, 6, 5, 5, 1, 1], [4, 4, 4, 4, 4, 4]],
        [
            [low, low, low, high, low, high],  # 7 3 3
            [high, low, low, low, low, low],  # 6 5, then padding
            [high] * 6,  # nothing: the likeliest
        ],
        [6, 4, 6],
    )
    speech, lengths, _ = adapter(None, None)
    assert lengths.tolist() == [3, 2, 1]
    for row, ids in enumerate(([7, 3, 3], [6, 5], [4])):
        assert torch.allclose(speech[row, : len(ids)], table[ids], atol=1e-3)
        assert not speech[row, len(ids) :].any()


def test_ctc_gives_as_many_tokens_as_are_asked_for():
    adapter, table = ctc_adapter(
        [[7, 7, 3, 2], [5, 6, 8, 8]],
        [[1.0, 2.0, 50.0, 45.0], [3.0, 70.0, 2.0, 1.0]],
        [4, 4],
    )
    # The second 7 is the first again; then the least of the blanks.
    for number, ids in ((1, [7]), (2, [7, 2]), (3, [7, 3, 2])):
        speech, lengths, _ = adapter(None, None, torch.tensor([number, 1]))
        assert lengths.tolist() == [number, 1]
        assert torch.allclose(speech[0, :number], table[ids], atol=1e-3)
        assert torch.allclose(speech[1, 0], table[8], atol=1e-3)
    speech, lengths, _ = adapter(None, None, torch.tensor([8, 1]))
    assert lengths.tolist() == [8, 1]
    expected = table[[7, 7, 7, 7, 3, 3, 2, 2]]
    assert torch.allclose(speech[0], expected, atol=1e-3)


def test_ctc_speech_is_a_mean_that_the_gradient_passes():
    """Between two tokens: the shares are those of the sharpened softmax."""
    adapter, table = ctc_adapter([[7]], [[0.0]], [1])
    unit = functional.normalize(table.detach(), dim=-1)
    hidden = torch.randn(1, 1, 32)
    vector = (unit[7] + unit[9]).mul(3.0).requires_grad_()
    adapter._listen = lambda *_: (
        vector[None, None],
        torch.zeros(1, 1),
        torch.tensor([1]),
        hidden,
    )
    adapter.nearest = 50
    speech, _, _ = adapter(None, None)
    expected = (unit @ vector * adapter.sharpness).softmax(0) @ table
    assert torch.allclose(speech[0, 0], expected, atol=1e-5)
    speech.sum().backward()
    assert vector.grad.abs().sum() > 0
    # What no token says is added, on the mean's scale.
    with torch.no_grad():
        adapter.beyond.bias.fill_(32**0.5)
    speech, _, _ = adapter(None, None)
    scale = expected.square().mean().sqrt()
    assert torch.allclose(speech[0, 0], expected + scale, atol=1e-5)


def test_ctc_that_listens_already_trains_the_rest():
    """All but the linear map is held; the weights' names are the same."""
    sizes = {"input_size": 32, "output_size": 64, "layers": 1}
    adapter = CTCAdapter(**sizes, train_listening=False)
    learning = {n for n, p in adapter.named_parameters() if p.requires_grad}
    assert learning == {"beyond.weight", "beyond.bias"}
    CTCAdapter(**sizes).load_state_dict(adapter.state_dict())
    assert CTCAdapter(**sizes).sizes() == adapter.sizes()


def test_cformer_evaluates_as_it_trains(monkeypatch):
    """Torch's fused layers of evaluation stay out, and are left on."""

    def fused(*arguments, **options):
        raise AssertionError("fused kernel")

    for name in (
        "_transformer_encoder_layer_fwd",
        "_native_multi_head_attention",
    ):
        monkeypatch.setattr(torch, name, fused)
    adapter = make("cformer")
    given = (
        torch.randn(2, 50, 32),
        torch.tensor([50, 9]),
        torch.tensor([5, 3]),
    )
    with torch.no_grad():
        trained, evaluated = adapter(*given), adapter.eval()(*given)
    assert torch.equal(trained[0], evaluated[0])
    assert torch.backends.mha.get_fastpath_enabled()


def naive_fire(states, weights):
    """Frame by frame, as the paper tells it."""
    tokens, room = [], 1.0
    total = torch.zeros(states.shape[1])
    for state, weight in zip(states, weights.tolist(), strict=True):
        while weight >= room - 1e-9:
            tokens.append(total + room * state)
            weight -= room
            room, total = 1.0, torch.zeros_like(total)
        total = total + weight * state
        room -= weight
    return torch.stack(tokens)


def test_integrate_and_fire_matches_naive():
    torch.manual_seed(0)
    for frames, tokens in ((20, 5), (3, 7), (1, 1), (40, 40)):
        states = torch.randn(frames, 6)
        weights = torch.rand(frames) + 0.01
        weights = weights * tokens / weights.sum()
        expected = naive_fire(states, weights.double())
        made = integrate_and_fire(states[None], weights[None], tokens)[0]
        assert len(expected) in (tokens, tokens - 1)  # rounding, at the end
        for one, two in zip(made, expected, strict=False):
            assert (one - two).abs().max() < 1e-4


def test_number_of_tokens_is_learnt():
    """Without a given number, a clip fires what its weights add up to."""
    adapter = make("cformer")
    states, lengths = torch.randn(2, 60, 32), torch.tensor([60, 30])
    optimizer = torch.optim.Adam(adapter.parameters(), lr=1e-2)
    transcripts = [[1] * 12, [1] * 3]
    for _ in range(60):
        speech = SpeechEmbeddings(*adapter(states, lengths))
        loss = CIFQuantity()(speech, transcripts, torch.tensor([1, 1]), None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert abs(speech.lengths - torch.tensor([12, 3])).max() <= 1


def test_spelled_tokens_are_told_apart_by_their_letters():
    """Whatever tokens are asked for together, and whatever changed before."""
    adapter = make("spelled")
    table = adapter._table
    with torch.no_grad():
        unit = table.rows()
        assert unit.shape == (50, 24 + 32)
        letters, own = unit.split([24, 32], dim=-1)
        assert torch.allclose(letters.norm(dim=-1), torch.ones(50))
        assert torch.equal(letters[2], letters[47])  # spelled alike
        assert (letters[2] - letters[3]).abs().max() > 1e-3
        assert torch.equal(own, EmbeddingTable(table.embedding).unit)
        for some in ([3], [48, 2, 2], [49, 0, 48]):
            spelled = adapter.speller(torch.tensor(some))
            assert torch.allclose(spelled, letters[some], atol=1e-6)
        assert table.rows() is unit  # kept
        table._of = None
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(table.rows(), unit)
        table.embedding.weight[2].neg_()
        assert torch.allclose(table.rows()[2, 24:], -own[2])
        adapter.speller.out.bias.add_(0.5)
        assert (table.rows() - unit)[:, :24].abs().max() > 1e-3
    ids = torch.tensor([[3, 4], [4, 48]])
    learnt = table.rows(ids)
    assert torch.allclose(learnt, table.unit[ids], atol=1e-6)
    learnt.sum().backward()
    assert adapter.speller.convs[0].weight.grad.any()
    adapter.requires_grad_(False)
    assert table.rows() is table.unit  # nothing to learn: kept again


def test_what_is_spelled_alike_is_told_apart_by_the_llms_embeddings():
    """The second map counts along them, and only what it learnt."""
    adapter = make("spelled").eval()
    table = adapter._table
    states, lengths = torch.randn(1, 40, 32), torch.tensor([40])
    with torch.no_grad():
        before, *_ = adapter._listen(states, lengths)
        assert not before[..., 24:].any()  # 0 at first
        logits = table.logits(before)
        assert torch.equal(logits[..., 2], logits[..., 47])
        adapter.project_own.bias.copy_(3.0 * table.unit[47, 24:])
        after, *_ = adapter._listen(states, lengths)
        added = table.logits(after) - logits
        wanted = 3.0 * table.unit[:, 24:] @ table.unit[47, 24:]
        assert torch.allclose(added, wanted.expand_as(added), atol=1e-4)
        assert (added[..., 47] - added[..., 2]).min() > 1.0
    adapter.train()(states, lengths)[0].sum().backward()
    assert adapter.project_own.weight.grad.any()


def test_spelled_adapter_gives_the_embeddings_of_the_llm():
    """A frame that is a token's vector is the token's embedding."""
    adapter = make("spelled", width=16).eval()
    table, adapter.nearest = adapter._table, 1
    with torch.no_grad():
        vectors = 60.0 * table.rows(torch.tensor([[7, 7, 3]]))
        adapter._listen = lambda *_: (
            vectors,
            torch.zeros(1, 3),
            torch.tensor([3]),
            torch.randn(1, 3, 32),
        )
        speech, lengths, _ = adapter(None, None)
        wanted = table.embedding.weight[[7, 3]]
    assert lengths.tolist() == [2]
    assert torch.allclose(speech[0], wanted, atol=1e-5)


def test_training_spells_no_more_than_it_compares_with():
    adapter = SpelledCTCAdapter(8, 8, 50, layers=1)
    table = adapter.bind(EmbeddingTable(torch.nn.Embedding(50, 8)))
    spelled = []
    adapter.speller.register_forward_hook(
        lambda _, given, out: spelled.append(len(given[0]))
    )
    states, lengths = torch.rand(1, 40, 8), torch.tensor([40])
    adapter.only_listens = True
    speech = SpeechEmbeddings(*adapter(states, lengths))
    loss = TokenCTC(negatives=4)
    loss(speech, [[3, 7, 3]], torch.tensor([3]), table).backward()
    assert sum(spelled) <= 2 + 4


def test_spelling_comes_with_the_weights():
    """Where nobody says what the tokens are, the file does."""
    adapter, other = make("spelled"), make("spelled")
    other.speller.letters.zero_()
    other.load_state_dict(adapter.state_dict())
    other.bind(EmbeddingTable(torch.nn.Embedding(50, 32)))
    letters = other._table.unit[:, :24]
    assert torch.equal(letters, adapter._table.unit[:, :24])
    sizes = SpelledCTCAdapter(**adapter.sizes()).sizes()
    assert sizes == adapter.sizes()
    with pytest.raises(BadInput, match="is 50, but the LLM has 9 tokens"):
        other.bind(EmbeddingTable(torch.nn.Embedding(9, 32)))
    held = SpelledCTCAdapter(8, 8, 5, layers=1, train_listening=False)
    learning = {n for n, p in held.named_parameters() if p.requires_grad}
    assert learning == {"beyond.weight", "beyond.bias"}
