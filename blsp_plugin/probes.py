"""How far speech is from its transcript in the eyes of the LLM.

Per response token, and per behaviour: cross-entropy on speech and on text,
the KL between their next-token distributions, how often the likeliest next
token is the response's and the text branch's; and how far greedy
continuations of the clip go along with the response. They tell of divergence
long before a word error rate does.

Authors
 * The blsp_plugin team 2026
"""

import json
import os

import torch
from speechbrain.utils.logger import get_logger

from blsp_plugin.distributed import gather_objects
from blsp_plugin.files import write_jsonl
from blsp_plugin.losses import CHUNK

__all__ = ["PROBES", "Probes", "probe_tokens", "record_probes"]

logger = get_logger(__name__)

# Means over response tokens; `greedy_match` is over those of some rows.
PROBES = ("ce", "text_loss", "kl", "accuracy", "agreement", "greedy_match")


@torch.no_grad()
def probe_tokens(states, teacher, llm, chunk=CHUNK):
    """Compare speech and text where the response is predicted.

    Arguments
    ---------
    states : ResponseStates
        On speech.
    teacher : TeacherStates
        On text, the same positions.
    llm : FrozenLLM
        Its ``project`` is the LM head.
    chunk : int
        Positions projected to the vocabulary at a time.

    Returns
    -------
    torch.Tensor
        Shape (tokens, 5), float32: all of `PROBES` but the greedy match.
    """
    rows = []
    for hidden, targets, text in zip(
        states.hidden.split(chunk),
        states.targets.split(chunk),
        teacher.hidden.split(chunk),
        strict=True,
    ):
        speech = llm.project(hidden).log_softmax(-1)
        text = llm.project(text).log_softmax(-1)
        wanted = targets.unsqueeze(1)
        guess = speech.argmax(-1)
        columns = [
            -speech.gather(1, wanted)[:, 0],
            -text.gather(1, wanted)[:, 0],
            (text.exp() * (text - speech)).sum(-1),
            (guess == targets).float(),
            (guess == text.argmax(-1)).float(),
        ]
        rows.append(torch.stack(columns, dim=1))
    return torch.cat(rows)


class Probes:
    """What a validation adds up, by behaviour.

    Arguments
    ---------
    model : BLSP
        That is validated.
    greedy_rows : collection of str
        Ids of rows whose clips are continued greedily.
    """

    def __init__(self, model, greedy_rows=()):
        self.model = model
        self.greedy_rows = greedy_rows
        self._sums = {}

    def add(self, batch, predictions, loss):
        """Add a batch.

        Arguments
        ---------
        batch : SpeechBatch
        predictions : Predictions
            With the states of speech and text.
        loss : float
            Sum over the batch's response tokens.
        """
        counts = batch.packed.response_tokens.tolist()
        values = probe_tokens(
            predictions.states, predictions.teacher, self.model.llm
        )
        parts = values.double().cpu().split(counts)
        for kind, part in zip(batch.kinds, parts, strict=True):
            self._add(kind, (*part.sum(0).tolist(), 0, len(part), 0, 0))
        self._add("all", (0,) * (len(PROBES) + 2) + (loss,))
        self._continue(batch, predictions.speech)

    def _continue(self, batch, speech):
        """Write greedily to some of the clips, and compare."""
        chosen = [n for n, i in enumerate(batch.ids) if i in self.greedy_rows]
        if not chosen:
            return
        rows = [batch.rows[n] for n in chosen]
        written = self.model.generate(
            [row._replace(response=(), ended=False) for row in rows],
            speech.rows(chosen),
            max_new_tokens=max(len(row.response) for row in rows),
        )
        for n, row, generation in zip(chosen, rows, written, strict=True):
            same = os.path.commonprefix(
                [list(row.response), list(generation.ids)]
            )
            zeros = (0,) * (len(PROBES) - 1)
            sums = (*zeros, len(same), 0, len(row.response), 0)
            self._add(batch.kinds[n], sums)

    def _add(self, kind, values):
        """Probes, response tokens, those of greedy rows, loss."""
        values = torch.tensor(values, dtype=torch.float64)
        self._sums[kind] = self._sums.get(kind, 0) + values

    def summary(self):
        """Means over all ranks.

        Returns
        -------
        stats : dict of float
            ``loss`` and `PROBES`, per response token.
        by_behaviour : dict of dict of float
            `PROBES` and ``tokens``.
        """
        total = {}
        for sums in gather_objects(self._sums):
            for kind, values in sums.items():
                total[kind] = total.get(kind, 0) + values
        whole = sum(total.values())
        kinds = sorted(set(total) - {"all"})
        by_behaviour = {"all": _means(whole)}
        by_behaviour.update({kind: _means(total[kind]) for kind in kinds})
        stats = {"loss": (whole[-1] / max(1, whole[-3])).item()}
        stats.update({name: by_behaviour["all"][name] for name in PROBES})
        return stats, by_behaviour


def _means(sums):
    tokens, greedy = sums[-3:-1].tolist()
    counts = [max(1.0, tokens)] * (len(PROBES) - 1) + [max(1.0, greedy)]
    means = [s / c for s, c in zip(sums.tolist(), counts, strict=False)]
    return {**dict(zip(PROBES, means, strict=True)), "tokens": tokens}


def record_probes(folder, step, by_behaviour):
    """Add a validation to ``probes.jsonl``, and draw ``probes.svg``.

    What an earlier run wrote of this step or later ones, before it was
    stopped and continued, makes room.

    Arguments
    ---------
    folder : str
        Where both are.
    step : int
        Optimizer steps so far.
    by_behaviour : dict of dict of float
        From `Probes.summary`.
    """
    path = os.path.join(folder, "probes.jsonl")
    records = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as stream:
            records = [json.loads(line) for line in stream]
    records = [record for record in records if record["step"] < step]
    for kind, values in by_behaviour.items():
        records.append({"step": step, "behaviour": kind, **values})
    write_jsonl(records, path)
    _plot(records, os.path.join(folder, "probes.svg"))


def _plot(records, path):
    """Draw the probes over the steps, one line a behaviour."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.debug("%s is not drawn: matplotlib is not installed", path)
        return
    # Margins by hand: a layout engine draws all twice, at each validation.
    figure = Figure(figsize=(10, 5))
    margins = {"left": 0.06, "right": 0.98, "bottom": 0.1, "top": 0.94}
    axes = figure.subplots(
        2, 3, gridspec_kw={**margins, "wspace": 0.25, "hspace": 0.45}
    )
    kinds = list(dict.fromkeys(record["behaviour"] for record in records))
    for axis, name in zip(axes.flat, PROBES, strict=True):
        for kind in kinds:
            points = [r for r in records if r["behaviour"] == kind]
            axis.plot(
                [point["step"] for point in points],
                [point[name] for point in points],
                marker="o",
                label=kind,
            )
        axis.set_title(name)
        axis.set_xlabel("step")
    axes.flat[0].legend()
    figure.savefig(path)
