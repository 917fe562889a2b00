"""Case and punctuation by what an LLM finds likely: nothing is generated.

Each word may be lower-case or have a capital, with a mark or none before it;
a beam search keeps what makes the likeliest text. A small LLM that cannot
follow an instruction to correct a sentence still knows what text looks like,
and it cannot write other words (docs/experiments.md has the figures).

Authors
 * The blsp_plugin team 2026
"""

from typing import NamedTuple

import torch
from transformers import DynamicCache

from blsp_plugin.continuation.engines.hf import HFEngine
from blsp_plugin.data.recasing import WORD
from blsp_plugin.data.text import needs_recasing, recase
from blsp_plugin.decoding import Generation

__all__ = ["CasingEngine", "choices", "restore"]

OPENING = "The following is a page from a novel.\n\n"
ENDS = (".", "?", "!")


class _Beam(NamedTuple):
    """The beginning of a text."""

    sentence: int
    text: str
    score: float  # log-probability, nats


class CasingEngine(HFEngine):
    """An engine that answers with the transcript, recased and punctuated.

    It stands where another engine would be asked to rewrite the transcripts;
    the prompt's instruction is not read.

    Arguments
    ---------
    llm : FrozenLLM
        Any causal LM.
    batch_size : int
        Transcripts searched together.
    window : int
        Transcripts sorted by length together.
    opening : str
        What the LLM reads before the text: the kind of text to expect.
    beam : int
        Beginnings kept of each text.
    language : str
        Of the transcripts.
    """

    def __init__(
        self,
        llm,
        batch_size=16,
        window=512,
        opening=OPENING,
        beam=3,
        language="en",
    ):
        super().__init__(llm, batch_size, window)
        self.opening = opening
        self.beam = beam
        self.language = language

    def _generate(self, batch):
        texts = restore(
            self.llm,
            [request.text for request in batch],
            self.opening,
            self.beam,
            self.language,
        )
        return [Generation([], text, True) for text in texts]

    def fingerprint(self):
        """Name of the LLM and of what else decides: see `Engine`."""
        facts = (self.opening, self.beam, self.language)
        return f"{super().fingerprint()} casing by {facts!r}"


def choices(word, first):
    """How a word can go on a text, of which there are few.

    Arguments
    ---------
    word : str
        As the rule has it ("I" stays).
    first : bool
        Whether it starts the text.

    Returns
    -------
    list of str

    Example
    -------
    >>> choices("paris", False)
    [' paris', ' Paris', ', paris', ', Paris', '. Paris', '? Paris']
    >>> choices("I", False), choices("Then", True)
    ([' I', ', I', '. I', '? I'], ['Then'])
    """
    capital = word[0].upper() + word[1:]
    if first:
        return [capital]
    forms = dict.fromkeys((word, capital))
    within = [f"{mark} {form}" for mark in ("", ",") for form in forms]
    return within + [f"{mark} {capital}" for mark in (".", "?")]


@torch.no_grad()
def restore(llm, transcripts, opening=OPENING, beam=3, language="en"):
    """Find the likeliest case and punctuation of some transcripts.

    Arguments
    ---------
    llm : FrozenLLM
        With keys and values in its cache (no recurrent state).
    transcripts : list of str
        Those with case come back as they are, as do those without words.
    opening : str
        See `CasingEngine`.
    beam : int
        See `CasingEngine`.
    language : str
        Of the transcripts.

    Returns
    -------
    list of str
        Words parted by spaces, with ``, . ? !`` after them.
    """
    texts = list(transcripts)
    words = [
        WORD.findall(recase(text, language)) if needs_recasing(text) else []
        for text in texts
    ]
    beams = [_Beam(i, "", 0.0) for i, found in enumerate(words) if found]
    if not beams:
        return texts
    search = _Search(llm, opening, len(beams))
    for place in range(max(map(len, words)) + 1):
        grown, parents, pieces = [], [], []
        for row, old in enumerate(beams):
            spoken = words[old.sentence]
            if place < len(spoken):
                ways = choices(spoken[place], place == 0)
            else:
                ways = ENDS
            for piece in ways:
                grown.append(old._replace(text=old.text + piece))
                parents.append(row)
                pieces.append(piece)
        scores = search.grow(parents, pieces)
        order = sorted(
            range(len(grown)),
            key=lambda k: -(beams[parents[k]].score + scores[k]),
        )
        kept, seen = [], {}
        for k in order:
            sentence = grown[k].sentence
            seen[sentence] = seen.get(sentence, 0) + 1
            if place == len(words[sentence]):
                if seen[sentence] == 1:
                    texts[sentence] = grown[k].text
            elif seen[sentence] <= beam:
                kept.append(k)
        if not kept:
            break
        beams = [
            grown[k]._replace(score=beams[parents[k]].score + scores[k])
            for k in kept
        ]
        search.keep(kept)
    return texts


class _Search:
    """The LLM's cache, one row a beginning."""

    def __init__(self, llm, opening, n_rows):
        self.llm = llm
        ids = llm.tokenizer(opening)["input_ids"]
        self.cache = DynamicCache(config=llm.model.config)
        self.mask = torch.ones(1, len(ids), dtype=torch.long, device=llm.device)
        row = torch.tensor([ids], device=llm.device)
        places = torch.arange(len(ids), device=llm.device).unsqueeze(0)
        self.last = self._read(row, self.mask, places)[:, -1]
        self.keep([0] * n_rows)

    def keep(self, rows):
        """Go on with some rows, perhaps the same one several times."""
        rows = torch.tensor(rows, device=self.llm.device)
        self.cache.batch_select_indices(rows)
        self.mask, self.last = self.mask[rows], self.last[rows]

    def grow(self, parents, pieces):
        """Append a piece of text to rows; return log-probabilities."""
        self.keep(parents)
        ids = self.llm.tokenizer(pieces, add_special_tokens=False)["input_ids"]
        longest = max(map(len, ids))
        rows = torch.zeros(len(ids), longest, dtype=torch.long)
        valid = torch.zeros_like(rows)
        for i, row in enumerate(ids):
            rows[i, : len(row)] = torch.tensor(row)
            valid[i, : len(row)] = 1
        rows, valid = rows.to(self.mask), valid.to(self.mask)
        places = self.mask.sum(1, keepdim=True) + valid.cumsum(1) - 1
        # Rows of other lengths leave holes in the cache, masked for good.
        self.mask = torch.cat([self.mask, valid], 1)
        hidden = self._read(rows, self.mask, places.clamp(min=0))
        before = torch.cat([self.last.unsqueeze(1), hidden[:, :-1]], 1)
        found = valid.bool()
        logits = self.llm.project(before[found])
        chosen = logits.gather(1, rows[found].unsqueeze(1)).squeeze(1)
        scores = torch.zeros_like(rows, dtype=torch.float)
        scores[found] = chosen - logits.logsumexp(1)
        ends = valid.sum(1) - 1
        self.last = hidden[torch.arange(len(ids), device=ends.device), ends]
        return scores.sum(1).tolist()

    def _read(self, ids, mask, places):
        return self.llm.model.base_model(
            inputs_embeds=self.llm.embed(ids),
            attention_mask=mask,
            position_ids=places,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
