"""Packing: labels, positions, padding, scatter."""

import pytest
import torch

from blsp_plugin.packing import Row, pack, predictors, scatter_speech

PAD, EOS = 0, 2
ROWS = [
    Row((11, 12), 3, (13,), (21, 22), True),
    Row((11, 12), 1, (13,), (23, 24, 25), False),
    Row((11, 12), [31, 32, 33, 34, 35], (13,), (26,), True),
]


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_only_on_response(side):
    packed = pack(ROWS, PAD, EOS, side)
    for i, row in enumerate(ROWS):
        labelled = packed.labels[i] != -100
        wanted = list(row.response) + [EOS] * row.ended
        assert packed.labels[i][labelled].tolist() == wanted
        # A label stands at its own token, and only there.
        assert packed.input_ids[i][labelled].tolist() == wanted
        assert not (labelled & packed.slot_mask[i]).any()
        assert not (labelled & (packed.attention_mask[i] == 0)).any()


def test_no_eos_when_cut():
    packed = pack(ROWS, PAD, EOS)
    ends = [row[row != -100][-1].item() for row in packed.labels]
    assert ends == [EOS, 25, EOS]
    assert EOS not in packed.labels[1] and EOS not in packed.input_ids[1]


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_contiguous_and_padding_at_one_end(side):
    packed = pack(ROWS, PAD, EOS, side)
    for i, row in enumerate(ROWS):
        valid = packed.attention_mask[i].bool()
        assert valid.sum() == row.length
        assert packed.position_ids[i][valid].tolist() == list(range(row.length))
        where = valid.nonzero().flatten()
        assert where[-1] - where[0] + 1 == row.length
        end = where[0] if side == "right" else len(valid) - 1 - where[-1]
        assert end == 0
        assert packed.slot_mask[i].sum() == (
            row.slot if isinstance(row.slot, int) else 0
        )


def test_sides_hold_the_same_rows():
    left, right = (pack(ROWS, PAD, EOS, side) for side in ("left", "right"))
    for one, two in zip(left[:5], right[:5], strict=True):
        for i in range(len(ROWS)):
            a = one[i][left.attention_mask[i].bool()]
            b = two[i][right.attention_mask[i].bool()]
            assert torch.equal(a, b)


def test_predictors_are_one_before_the_labels():
    packed = pack(ROWS, PAD, EOS)
    mask, targets = predictors(packed.labels)
    assert targets.tolist() == [21, 22, EOS, 23, 24, 25, 26, EOS]
    # The suffix's last token predicts the first response token.
    assert packed.input_ids[mask].tolist() == [13, 21, 22, 13, 23, 24, 13, 26]


def test_scatter_puts_valid_speech_into_slots():
    rows = ROWS[:2]
    packed = pack(rows, PAD, EOS)
    embeds = torch.zeros(2, packed.input_ids.shape[1], 4)
    speech = torch.arange(1, 25).float().view(2, 3, 4).requires_grad_()
    lengths = torch.tensor([3, 1])
    mixed = scatter_speech(embeds, packed.slot_mask, speech, lengths)
    assert torch.equal(mixed[0, 2:5], speech[0])
    assert torch.equal(mixed[1, 2], speech[1, 0])
    assert mixed[~packed.slot_mask].abs().sum() == 0
    mixed.sum().backward()
    assert speech.grad[0].eq(1).all() and speech.grad[1, 0].eq(1).all()
    assert speech.grad[1, 1:].eq(0).all()
    with pytest.raises(ValueError, match="do not match"):
        scatter_speech(embeds, packed.slot_mask, speech, torch.tensor([2, 1]))
