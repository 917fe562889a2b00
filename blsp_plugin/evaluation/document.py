"""The content of a report, before it is HTML or Markdown.

A list of blocks, made task by task: what a page of either kind shows, and in
which order, is decided here only.

Authors
 * The blsp_plugin team 2026
"""

from blsp_plugin.evaluation.analysis import (
    agreement,
    choose_clips,
    confusion,
    error_bins,
    word_errors,
)
from blsp_plugin.evaluation.blocks import (
    Clips,
    Heading,
    Paragraph,
    Plots,
    Table,
)
from blsp_plugin.evaluation.plots import plot_lines

__all__ = ["make_document"]

SPEECH, GOLD, FLOOR = "speechllm", "gold", "untrained"
_COMPARED = (SPEECH, "cascade", FLOOR)
_SPEED = {
    "rtf": ("RTF", 3),
    "first_token_seconds": ("first token s", 2),
    "tokens_per_second": ("tokens/s", 1),
}
_MARK = "†"
_LEVEL = 0.05
_LONGEST = 30
_NONE = "–"


def make_document(runs, clips=20):
    """Everything that a report says about some runs.

    Arguments
    ---------
    runs : list of Run
        From `find_runs`.
    clips : int
        Clips to listen to, for each task.

    Returns
    -------
    list
        Blocks in their order.
    """
    tasks = dict.fromkeys(task for run in runs for task in run.tasks)
    blocks = [Heading(1, "Evaluation report"), Heading(2, "Results")]
    blocks += _results(runs, list(tasks))
    for number, task in enumerate(tasks):
        having = [run for run in runs if task in run.tasks]
        blocks += _task(having, task, f"t{number}", clips)
    return blocks


def _results(runs, tasks):
    """Systems in rows, the main figure of every task and run in columns."""
    columns = [(t, run) for t in tasks for run in runs if t in run.tasks]
    labels = {}
    for task, run in columns:
        for name, label in run.tasks[task].systems.items():
            labels.setdefault(name, label)
    head = ["system"]
    for task, run in columns:
        facts = run.tasks[task]
        arrow = "↑" if facts.higher_is_better else "↓"
        lines = [task, f"{facts.columns.get(facts.main, '')} {arrow}"]
        head.append("\n".join(lines + [run.name] * (len(runs) > 1)))
    rows = [
        [label] + [_cell(run, t, name, run.tasks[t].main) for t, run in columns]
        for name, label in labels.items()
    ]
    caption = "Main figure of every task" + " and run" * (len(runs) > 1)
    return [
        Table(caption, head, rows),
        Paragraph(
            "Arrows point to the better end. Brackets: 95 % interval over "
            "the clips. "
            f"{_MARK}: differs from the cascade, paired test, "
            f"p < {_LEVEL}. RTF: seconds of computing per second of audio."
        ),
    ]


def _cell(run, task, system, figure, digits=1):
    """A figure, its interval, and the mark if it is the main one."""
    value = run.figure(task, system, figure)
    if value is None:
        return _NONE
    text = f"{value:.{digits}f}"
    low = run.figure(task, system, f"{figure}_low")
    high = run.figure(task, system, f"{figure}_high")
    if low is not None and high is not None:
        text += f" [{low:.{digits}f}, {high:.{digits}f}]"
    p = run.figure(task, system, "p_vs_cascade")
    if figure == run.tasks[task].main and p is not None and p < _LEVEL:
        text += f" {_MARK}"
    return text


def _task(runs, task, key, clips):
    """Everything about one task."""
    blocks = [Heading(2, f"Task {task}")]
    blocks += [Paragraph(_facts(run, task, len(runs) > 1)) for run in runs]
    blocks.append(_figures(runs, task))
    chosen = None
    for number, run in enumerate(runs):
        facts = run.tasks[task]
        answers = {
            name: {record["id"]: record for record in run.records(task, name)}
            for name in facts.systems
        }
        answers = {name: said for name, said in answers.items() if said}
        where = f" ({run.name})" if len(runs) > 1 else ""
        here = f"{key}-r{number}"
        if facts.kind == "asr":
            blocks += _bins(run, task, answers, where, here)
        blocks += _agreement(facts, answers, where, here)
        if facts.kind == "slu" and SPEECH in answers:
            blocks += _confusion(answers[SPEECH].values(), where)
        # One choice for all runs: the first with a speech LLM makes it.
        found = SPEECH in answers and (chosen is None or chosen[0] != SPEECH)
        if found or (answers and chosen is None):
            heard = SPEECH if SPEECH in answers else next(iter(answers))
            records = answers[heard].values()
            best = facts.higher_is_better
            chosen = heard, choose_clips(records, clips, best)
    if chosen and clips:
        heard, records = chosen
        blocks += _clips(runs, task, records, heard)
    return blocks


def _facts(run, task, named):
    """One line: how many clips, what was asked, how it is scored."""
    facts = run.tasks[task]
    parts = []
    if facts.clips is not None:
        parts.append(f"{facts.clips} clips")
    if facts.hours is not None:
        parts.append(f"{facts.hours:.2f} h")
    if facts.rejected is not None:
        parts.append(f"{facts.rejected} rejected")
    text = ", ".join(parts)
    if facts.metric:
        text += f"; {facts.metric}"
    if facts.instruction:
        text += f'; instruction: "{facts.instruction}"'
    text = text.removeprefix("; ")
    return f"{run.name}: {text}" if named else text


def _figures(runs, task):
    """Every figure of a task; systems in rows, a run after the other."""
    columns = {}
    for run in runs:
        columns.update(run.tasks[task].columns)
    pairs = [(run, name) for run in runs for name in run.tasks[task].systems]

    def somewhere(figure):
        return any(
            run.figure(task, name, figure) is not None for run, name in pairs
        )

    speed = {name: how for name, how in _SPEED.items() if somewhere(name)}
    tested = somewhere("p_vs_cascade")
    several = len(runs) > 1
    head = ["run"] * several + ["system", *columns.values()]
    head += ["p vs cascade"] * tested + [label for label, _ in speed.values()]
    rows = []
    for run, name in pairs:
        row = [run.name] * several + [run.tasks[task].systems[name]]
        row += [_cell(run, task, name, figure) for figure in columns]
        if tested:
            row.append(_cell(run, task, name, "p_vs_cascade", 3))
        row += [_cell(run, task, name, f, n) for f, (_, n) in speed.items()]
        rows.append(row)
    caption = f"All figures of {task}"
    return Table(caption, head, rows, names=1 + several)


def _bins(run, task, answers, where, key):
    """Word error rate by length and by speech rate: plots and tables."""
    facts = run.tasks[task]
    # Only these two are Whisper's; the metric says which one was used.
    language = "any" if "Basic" in facts.metric else "en"
    errors = {
        name: word_errors(said.values(), language)
        for name, said in answers.items()
    }
    first = next(iter(answers), None)
    lengths = {
        clip: float(record["duration"])
        for clip, record in answers.get(first, {}).items()
        if isinstance(record.get("duration"), int | float)
        and record["duration"] > 0
    }
    if not lengths:
        return []
    rates = {clip: errors[first][clip][1] / s for clip, s in lengths.items()}
    blocks = [
        Heading(3, f"Word error rate by length and speech rate{where}"),
        Paragraph(
            "All errors of a group of clips over all its reference words. "
            "Where a line leaves the frame, the table below has its numbers."
            + _doubt(run, task, errors)
        ),
    ]
    plots, tables = [], []
    for name, values, unit in (
        ("clip length", lengths, "s"),
        ("speech rate", rates, "words/s"),
    ):
        bins = error_bins(errors, values)
        if not bins.counts:
            return []
        ranges = [f"{low:.1f}–{high:.1f}" for low, high in bins.ranges]
        ticks = [
            f"{span}\nn = {count}"
            for span, count in zip(ranges, bins.counts, strict=True)
        ]
        title = f"WER by {name}{where}"
        plot = plot_lines(
            f"{key}-{name.split()[1]}",
            list(range(len(ticks))),
            bins.rates,
            facts.systems,
            ticks,
            _top(bins.rates),
            title=f"WER by {name}",
            xlabel=f"{name} ({unit}), n clips",
            ylabel="WER %",
        )
        plots.append((title, plot))
        head = ["system"] + [
            f"{span} {unit}\nn = {count}"
            for span, count in zip(ranges, bins.counts, strict=True)
        ]
        rows = [
            [facts.systems[system]] + [f"{rate:.1f}" for rate in row]
            for system, row in bins.rates.items()
        ]
        caption = f"WER % by {name}{where}"
        tables.append(Table(caption, head, rows, folded=True))
    return [*blocks, Plots(plots), *tables]


def _doubt(run, task, errors):
    """Say so if the evaluation counted words in another way."""
    for system, clips in errors.items():
        edits = sum(e for e, _ in clips.values())
        words = sum(w for _, w in clips.values())
        figure = run.figure(task, system, "wer")
        if figure is None or abs(figure - 100 * edits / max(1, words)) < 0.05:
            continue
        return (
            " These figures come from another normaliser or from other clips "
            "than those of the table above: compare them with each other only."
        )
    return ""


def _top(rates):
    """End of the axis: an untrained adapter must not flatten the others."""
    others = [max(row) for name, row in rates.items() if name != FLOOR]
    highest = max(map(max, rates.values()))
    return max(1.0, min(highest, 1.5 * max(others, default=highest))) * 1.05


def _agreement(facts, answers, where, key):
    """How long the answers to speech follow those to the gold transcript."""
    curves = agreement(answers, _COMPARED, GOLD, _LONGEST)
    if not curves:
        return []
    words = range(1, _LONGEST + 1)
    plot = plot_lines(
        f"{key}-agreement",
        list(words),
        curves,
        facts.systems,
        top=105,
        title="Agreement with the answer to the gold transcript",
        xlabel="first n words",
        ylabel="clips in agreement %",
    )
    shown = [n for n in (1, 2, 3, 5, 10, 15, 20, 30) if n <= _LONGEST]
    rows = [
        [facts.systems[name]] + [f"{curve[n - 1]:.1f}" for n in shown]
        for name, curve in curves.items()
    ]
    caption = f"Clips in agreement with the gold transcript's answer, %{where}"
    head = ["system"] + [f"n = {n}" for n in shown]
    return [
        Heading(3, f"Agreement of speech and text{where}"),
        Paragraph(
            "Share of clips whose first n words are those that the same LLM "
            "answers to the gold transcript, case and punctuation set aside."
        ),
        Plots([(caption, plot)]),
        Table(caption, head, rows, folded=True),
    ]


def _confusion(records, where):
    """Which label the speech LLM took for which."""
    found = confusion(records)
    if found is None:
        return []
    shades = [
        [count / max(1, sum(row)) for count in row] for row in found.counts
    ]
    rows = [
        [label, str(sum(counts))]
        + [f"{100 * share:.0f}" if share else "" for share in row]
        for label, counts, row in zip(
            found.rows, found.counts, shades, strict=True
        )
    ]
    caption = f"Meant (rows) and answered (columns), % of the row{where}"
    head = ["label", "n", *found.columns]
    return [
        Heading(3, f"Labels that the speech LLM confuses{where}"),
        Table(caption, head, rows, shades=[[0, *row] for row in shades]),
    ]


def _clips(runs, task, records, heard):
    """What every system of every run said of some clips."""
    labels = {}
    said = {record["id"]: {} for record in records}
    wanted = {record["id"]: record["reference"] for record in records}
    facts = next(r.tasks[task] for r in runs if heard in r.tasks[task].systems)
    for run in runs:
        for name, label in run.tasks[task].systems.items():
            labels.setdefault(name, label)
            for record in run.records(task, name):
                clip = record["id"]
                # Another test set may use the same ids.
                if wanted.get(clip) == record["reference"]:
                    answer = (name, record["hypothesis"], _score(record))
                    said[clip].setdefault(answer, []).append(run.name)
    items = [
        {"record": r, "said": _merge(said[r["id"]], labels)} for r in records
    ]
    text = f"The worst clips of {facts.systems[heard]} first, then others."
    if len(runs) > 1:
        text += " An answer that is the same in several runs stands once."
    heading = Heading(3, f"Clips to listen to ({task})")
    return [heading, Paragraph(text), Clips(items)]


def _score(record):
    score = record.get("score")
    return f"{score:.1f}" if isinstance(score, int | float) else ""


def _merge(answers, labels):
    """Answers in the order of the systems; with runs where these differ."""
    lines = []
    for name, label in labels.items():
        own = [item for item in answers.items() if item[0][0] == name]
        for (_, text, score), where in own:
            who = f"{label} ({', '.join(where)})" if len(own) > 1 else label
            lines.append((who, text, score))
    return lines
