"""How likely the LLM finds each of some given responses.

Choosing among labels by their likelihood needs no answer that can be parsed,
and never leaves the label set. A prompt is read once, its speech included; all
labels follow it side by side in one sequence, where each sees the prompt and
itself only. A full pass for every pair of clip and label, as classification by
an LLM is usually done, reads the same prompt once a label.

Authors
 * The blsp_plugin team 2026
"""

from dataclasses import dataclass

import torch

from blsp_plugin.decoding import read_prompts
from blsp_plugin.errors import BadInput
from blsp_plugin.packing import pack

__all__ = ["Choices", "choice_scores", "label_log_likelihoods"]

_TOKENS_AT_ONCE = 512  # of labels, behind one prompt


@dataclass
class Choices:
    """A closed set of answers, chosen by their likelihood.

    Arguments
    ---------
    labels : list or dict, optional
        The labels, or label -> its wording for the LLM; those of the test
        set's references if not given.
    normalise : str
        "sum": log-likelihood of a label with its end, that of a whole answer;
        "length": divided by its tokens, which does not favour short ones.
    calibrate : str, optional
        A text without content ("N/A"): what the LLM thinks of each label when
        it hears that is subtracted (Zhao et al., ICML 2021; Holtzman et al.,
        EMNLP 2021).

    Raises
    ------
    BadInput
        If ``normalise`` is another word.

    Example
    -------
    >>> Choices({"on": "switch it on", "off": "switch it off"}).wordings()
    {'on': 'switch it on', 'off': 'switch it off'}
    """

    labels: object = None
    normalise: str = "sum"
    calibrate: str = None

    def __post_init__(self):
        if self.normalise not in ("sum", "length"):
            raise BadInput(
                f"choices: normalise {self.normalise!r}; give sum or length"
            )

    def wordings(self):
        """Label -> wording, a dict of str."""
        labels = self.labels
        if not isinstance(labels, dict):
            labels = {label: label for label in labels}
        return {str(label): str(words) for label, words in labels.items()}

    def settings(self):
        """All that a choice depends on, a dict."""
        return {
            "labels": self.wordings(),
            "normalise": self.normalise,
            "calibrate": self.calibrate,
        }


def choice_scores(model, prompt, choices, instructions, rows, speech=None):
    """Scores of the labels to choose from; the highest is the choice.

    Arguments
    ---------
    model : BLSP
        Its LLM is asked.
    prompt : Prompt
        Of the LLM.
    choices : Choices
        The labels.
    instructions : list of str
        What stands before the speech, one a row.
    rows : list of Row
        Prompts without a response.
    speech : SpeechEmbeddings, optional
        Of the same rows; not given where the slots hold token ids.

    Returns
    -------
    torch.Tensor
        Shape (rows, labels), float32, on the CPU.
    """
    wordings = choices.wordings()
    scores = torch.empty(len(rows), len(wordings))
    # Wordings of the instruction may end otherwise, and so labels begin.
    for instruction in dict.fromkeys(instructions):
        here = [n for n, x in enumerate(instructions) if x == instruction]
        labels = [
            prompt.response_ids(instruction, words)
            for words in wordings.values()
        ]
        some = None if speech is None else speech.rows(here)
        part = model.score([rows[n] for n in here], labels, some)
        if choices.calibrate is not None:
            unheard = prompt.row(instruction, choices.calibrate)
            part = part - model.score([unheard], labels)
        if choices.normalise == "length":
            sizes = [len(label) + 1 for label in labels]
            part = part / torch.tensor(sizes, device=part.device)
        scores[here] = part.cpu()
    return scores


@torch.no_grad()
def label_log_likelihoods(model, rows, labels, speech=None):
    """Log-likelihood of each label, with its end, as the whole response.

    Arguments
    ---------
    model : BLSP
        Its LLM is asked.
    rows : list of Row
        Prompts without a response.
    labels : sequence of sequence of int
        Token ids of the labels, not empty.
    speech : SpeechEmbeddings, optional
        Of the same rows; not given where the slots hold token ids.

    Returns
    -------
    torch.Tensor
        Shape (rows, labels), float32, sums over the label's tokens and the
        end-of-sequence token.
    """
    llm = model.llm
    longest = max(row.length for row in rows) + sum(map(len, labels)) + 1
    if not llm.can_share_prefix(longest) or _masks_are_built_in(llm):
        return _one_by_one(model, rows, labels, speech)
    packed = pack(
        rows, llm.tokenizer.pad_token_id, llm.eos_id, "left", share_prefix=True
    ).to(llm.device)
    embeds = model.inputs_embeds(packed, speech).to(llm.dtype)
    with llm.running():
        scores = []
        for cache, mask, logits in read_prompts(
            llm, embeds, packed.attention_mask, packed.prefixes
        ):
            kept = [(layer.keys, layer.values) for layer in cache.layers]
            parts = []
            for part in _parts(labels):
                parts.append(_behind(llm, cache, mask, logits, part))
                for layer, (keys, values) in zip(
                    cache.layers, kept, strict=True
                ):
                    layer.keys, layer.values = keys, values
            scores.append(torch.cat(parts, dim=1))
        return torch.cat(scores)


def _masks_are_built_in(llm):
    """Whether attention takes no mask of one's own (flash attention)."""
    return "flash" in (llm.model.config._attn_implementation or "")


def _parts(labels):
    """Labels that go behind a prompt together."""
    start = count = 0
    for number, label in enumerate(labels):
        if number > start and count + len(label) > _TOKENS_AT_ONCE:
            yield labels[start:number]
            start, count = number, 0
        count += len(label)
    yield labels[start:]


def _behind(llm, cache, mask, logits, labels):
    """Labels side by side behind prompts that have been read."""
    device = mask.device
    ids = torch.tensor([i for label in labels for i in label], device=device)
    sizes = [len(label) for label in labels]
    owner = torch.arange(len(labels), device=device).repeat_interleave(
        torch.tensor(sizes, device=device)
    )
    place = torch.cat([torch.arange(size) for size in sizes]).to(device)
    # A token sees those of its own label up to itself, and the whole prompt.
    own = (owner[:, None] == owner) & (place[:, None] >= place)
    rows, count = len(mask), len(ids)
    seen = torch.cat(
        [
            mask.bool()[:, None].expand(rows, count, -1),
            own.expand(rows, count, count),
        ],
        dim=2,
    )
    bias = torch.zeros(seen.shape, dtype=llm.dtype, device=device)
    bias = bias.masked_fill(~seen, torch.finfo(llm.dtype).min)
    hidden = llm.model.base_model(
        inputs_embeds=llm.embed(ids).expand(rows, count, -1),
        attention_mask=bias[:, None],
        position_ids=mask.sum(1, keepdim=True) + place,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    first = logits.float().log_softmax(-1)
    scores = first[:, [label[0] for label in labels]]
    # What comes after each token: the label's next one, or its end.
    wanted = torch.cat([ids[1:], ids.new_tensor([llm.eos_id])])
    ends = torch.tensor(sizes, device=device).cumsum(0) - 1
    wanted[ends] = llm.eos_id
    for row in range(rows):  # the logits of one row at a time
        after = llm.project(hidden[row]).log_softmax(-1)
        after = after.gather(1, wanted[:, None])[:, 0]
        scores[row].index_add_(0, owner, after.to(scores))
    return scores


def _one_by_one(model, rows, labels, speech):
    """A pass for each label: what the above equals."""
    llm, scores = model.llm, []
    for label in labels:
        answered = [
            row._replace(response=tuple(label), ended=True) for row in rows
        ]
        packed = pack(answered, llm.tokenizer.pad_token_id, llm.eos_id)
        hidden, targets = model(packed.to(llm.device), speech)
        after = llm.project(hidden).log_softmax(-1)
        after = after.gather(1, targets[:, None])[:, 0]
        scores.append(after.view(len(rows), len(label) + 1).sum(1))
    return torch.stack(scores, dim=1)
