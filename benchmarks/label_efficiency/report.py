"""The report in Markdown: tables with their losses beside their gains, and how each figure came about."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, Final

from benchmarks.label_efficiency.contenders import FULL, OURS
from benchmarks.label_efficiency.summary import GOAL, LEARNABLE, Estimate, Summary

REFERENCE: Final = "random"
SHORT: Final[Mapping[str, str]] = {"logistic_regression": "LR", "gaussian_nb": "GNB", "hoeffding_tree": "HT"}


TERMS: Final = """
`skactiveml.X` is a peer as shipped, with its own budget and neither ledger nor loan: some spend more than the rate.
`@ledger` is the same peer behind streamal's ledger, with the same loan and all of the budget its own to choose with;
`@explored` gives up 5 % of it for exploration, as streamal's strategies do. `full` has all labels, as late as others.
"""
MEANS: Final = "Over streams and rates, ± standard deviation of that mean over the seeds."
RATES: Final = "Over streams, models and delays."
SPENT: Final = """
Labels asked for in parts of what the rate allows, over all runs; beside it what they reached. The overshoot is the
largest excess at any prefix, in labels, over max(loan, rate x seen + 1), or without a loan over the latter.
"""
RANKS: Final = """
Mean ranks by mean kappa over the seeds, of all that spend within the ledger; 1 is best. Two differ at 5 % if Friedman's
test rejects and their ranks differ by the critical difference (Nemenyi). Blocks with the same stream are not
independent, so the first line is optimistic; the second one is the cautious bound. The last columns rank within the
blocks of one model and delay.
"""
RANKS_SHIPPED: Final = """
The same ranks with the peers as shipped among them, whatever they spent.
"""
LABELS: Final = f"""
How many times fewer labels than `{REFERENCE}` reach {GOAL:.0%} of full supervision's kappa: a geometric mean over the
streams where full supervision reaches {LEARNABLE} at all; their number is in brackets. Read off the mean kappa at each
rate against the labels really asked for, linear in their logarithm, with full supervision as the last point. Where one
of both is there at its lowest rate already, the ratio of a stream is a bound only; their number is given as well.
"""
DUELS: Final = """
Runs on the same stream, model, rate, delay and seed: the shares won and tied, the mean difference in kappa, and that
of the best and the worst stream; then the share won with each model and delay.
"""


def report(summary: Summary, subject: str, made: Mapping[str, Any]) -> str:
    """Return the report on a contender, `subject`, beside all others; `made` says where and how it was made."""
    blocks = summary.blocks
    starts = f"each seed {summary.shift:,} later than the last" if summary.shift else "each seed from another one on"
    parts: dict[str, Iterable[object]] = {
        "streams": sorted({block.stream for block in blocks}),
        "models": [model for model in SHORT if model in {block.model for block in blocks}],
        "rates": sorted({block.rate for block in blocks}),
        "delays": sorted({block.delay for block in blocks}),
        "seeds": summary.seeds,
        "commits": summary.commits,
        "rows": [f"at most {summary.rows:,} of each stream, {starts}; those before any answer can come are not scored"],
    }
    ordered = summary.by_kappa(summary.contenders)
    chosen = [*(f"- {name}: {', '.join(map(str, values))}" for name, values in parts.items())]
    sections = (
        (f"# Label efficiency: {subject} and its peers", TERMS, [*chosen, *(f"- {n}: {v}" for n, v in made.items())]),
        ("## Mean kappa", MEANS, kappas(summary, ordered, subject)),
        ("## Mean kappa by rate", RATES, by_rate(summary, ordered, subject)),
        ("## What was spent", SPENT, spent(summary, ordered, subject)),
        ("## Ranks", RANKS, ranked(summary, ledgered(ordered), subject)),
        ("## Ranks beside what is shipped", RANKS_SHIPPED, ranked(summary, ordered, subject)),
        (f"## Labels for {GOAL:.0%} of full supervision", LABELS, labels(summary, ordered, subject)),
        (f"## {subject} against each other one", DUELS, duels(summary, ordered, subject)),
        (
            f"## Where {subject} is below {REFERENCE}",
            "Means over the seeds, the worst first.",
            losses(summary, subject),
        ),
    )
    return "\n\n".join("\n\n".join([title, note.strip(), "\n".join(lines)]) for title, note, lines in sections) + "\n"


def ledgered(contenders: Iterable[str]) -> list[str]:
    """Return those that spend within the ledger.

    >>> ledgered(["random", "skactiveml.Split", "skactiveml.Split@ledger"])
    ['random', 'skactiveml.Split@ledger']
    """
    return [name for name in contenders if name in OURS or "@" in name]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table, its first column to the left and the others to the right.

    >>> list(table(["a", "b"], [["x", "1"]]))
    ['| a | b |', '|:---|---:|', '| x | 1 |']
    """
    yield f"| {' | '.join(head)} |"
    yield f"|:---|{'---:|' * (len(head) - 1)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def named(contender: str, subject: str) -> str:
    """Return the name of a contender; the one that the report is on stands out."""
    return f"**{contender}**" if contender == subject else contender


def column(model: str, delay: int) -> str:
    """Return the head of a column.

    >>> column("gaussian_nb", 100)
    'GNB, 100 late'
    """
    return f"{SHORT[model]}, {f'{delay:,} late' if delay else 'at once'}"


def shown(estimate: Estimate) -> str:
    """Return a mean with its deviation.

    >>> shown(Estimate(0.5, 0.0123))
    '0.500 ± 0.012'
    """
    return f"{estimate.mean:.3f} ± {estimate.deviation:.3f}"


def kappas(summary: Summary, ordered: Sequence[str], subject: str) -> Iterator[str]:
    """Yield the means per model and delay."""
    blocks = [*(summary.where(model=model, delay=delay) for model, delay in summary.sets()), summary.blocks]
    rows = [
        [named(contender, subject), *(shown(summary.mean(contender, part)) for part in blocks)]
        for contender in (FULL, *ordered)
    ]
    yield from table(["contender", *(column(*of) for of in summary.sets()), "all"], rows)


def by_rate(summary: Summary, ordered: Sequence[str], subject: str) -> Iterator[str]:
    """Yield the means per rate."""
    rates = sorted({block.rate for block in summary.blocks})
    rows = [
        [named(contender, subject), *(shown(summary.mean(contender, summary.where(rate=rate))) for rate in rates)]
        for contender in ordered
    ]
    yield from table(["contender", *(f"{rate:.0%}" for rate in rates)], rows)


def spent(summary: Summary, ordered: Sequence[str], subject: str) -> Iterator[str]:
    """Yield what was spent beside what was reached."""
    rows = []
    for contender in ordered:
        found = summary.spending(contender)
        shares = (f"{share:.1%}" for share in (found.mean, found.least, found.most))
        rows.append(
            [named(contender, subject), *shares, f"{found.overshoot:.1f}", f"{summary.mean(contender).mean:.3f}"]
        )
    yield from table(["contender", "spent", "least", "most", "largest overshoot", "mean kappa"], rows)


def ranked(summary: Summary, contenders: Sequence[str], subject: str) -> Iterator[str]:
    """Yield the mean ranks over the blocks and over the streams, with their tests."""
    blocks, streams = summary.ranks(contenders), summary.ranks(contenders, lambda block: block.stream)
    for name, found in (("blocks", blocks), ("streams", streams)):
        yield f"- {found.blocks} {name}: Friedman p = {found.p:.2g}, critical difference {found.critical:.2f}"
    yield ""
    each = [summary.only(*of).ranks(contenders) for of in summary.sets()]
    rows = [
        [named(name, subject), *(f"{found.mean[name]:.2f}" for found in (blocks, streams, *each))]
        for name in sorted(contenders, key=lambda contender: blocks.mean[contender])
    ]
    yield from table(["contender", "over blocks", "over streams", *(column(*of) for of in summary.sets())], rows)


def labels(summary: Summary, ordered: Sequence[str], subject: str) -> Iterator[str]:
    """Yield how many times fewer labels than the reference are needed."""
    if REFERENCE not in ordered:
        yield f"Nothing to compare with: `{REFERENCE}` has not run."
        return
    rows = []
    for contender in ordered:
        found = [summary.needed(contender, REFERENCE, *of) for of in summary.sets()]
        cells = (
            f"{need.ratio:.2f} ({need.streams}{f', {need.bounds} bounds' if need.bounds else ''})"
            if need.streams
            else "-"
            for need in found
        )
        rows.append([named(contender, subject), *cells])
    yield from table(["contender", *(column(*of) for of in summary.sets())], rows)


def duels(summary: Summary, ordered: Sequence[str], subject: str) -> Iterator[str]:
    """Yield the comparison with each other contender."""
    rows = []
    for other in ordered:
        if other != subject:
            found = summary.duel(subject, other)
            differences = (found.difference, max(found.streams.values()), min(found.streams.values()))
            shares = (found.won, found.tied, *(summary.only(*of).duel(subject, other).won for of in summary.sets()))
            won, tied, *each = (f"{share:.0%}" for share in shares)
            rows.append([other, won, tied, *(f"{value:+.3f}" for value in differences), *each])
    head = ["against", "won", "tied", "difference", "best stream", "worst stream"]
    yield from table([*head, *(column(*of) for of in summary.sets())], rows)


def losses(summary: Summary, subject: str) -> Iterator[str]:
    """Yield the blocks that are lost against the reference."""
    if REFERENCE not in summary.contenders or subject == REFERENCE:
        yield f"Nothing to compare with `{REFERENCE}`."
        return
    found = list(summary.losses(subject, REFERENCE))
    yield f"{len(found)} of {len(summary.blocks)} blocks."
    rows = [
        [
            block.stream,
            SHORT[block.model],
            f"{block.rate:.0%}",
            f"{block.delay:,}",
            f"{summary.kappa(block, subject):.3f}",
            f"{summary.kappa(block, REFERENCE):.3f}",
            f"{difference.mean:+.3f} ± {difference.deviation:.3f}",
        ]
        for block, difference in found
    ]
    head = ["stream", "model", "rate", "delay", subject, REFERENCE, "difference"]
    if rows:
        yield ""
        yield from table(head, rows)


def blocks_table(summary: Summary) -> str:
    """Return every block of every contender as CSV: kappa with its deviation over the seeds, and what was spent."""
    lines = ["stream,model,rate,delay,contender,seeds,seen,asked,kappa,deviation,max_overshoot"]
    parties = [(block, contender) for block in summary.blocks for contender in summary.contenders]
    parties += [(block, FULL) for block in dict.fromkeys(block._replace(rate=1.0) for block in summary.blocks)]
    for block, contender in parties:
        runs = summary.runs_of(block, contender)
        kappa = Estimate.of(run.kappa for run in runs)
        asked, overshoot = fmean(run.asked for run in runs), max(run.max_overshoot for run in runs)
        figures = (f"{asked:.1f}", f"{kappa.mean:.4f}", f"{kappa.deviation:.4f}", f"{overshoot:.2f}")
        lines.append(",".join(map(str, (*block, contender, len(runs), runs[0].seen, *figures))))
    return "\n".join(lines) + "\n"
