"""Write how much of each stream was trained on, beside what the recipe asked for.

In: the records of a run or of several. Out: tables as HTML, every name in them escaped; nothing
where no mixture was logged. `run.py` and `compare.py` call this.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from restomod.tools.pages.charts import si
from restomod.tools.pages.markup import NONE, key, percent, signed, table
from restomod.tools.record.run_record import RunRecord
from restomod.tools.report.run_figures import colours


class Mixture:
    """A run's streams, and their shares of the real tokens: asked of all phases together in the
    proportion in which they were trained, and drawn."""

    def __init__(self, run: RunRecord) -> None:
        self._tokens = run.log.stream_tokens
        self._asked = {phase.name: phase.mixture for phase in run.asked}
        self._trained = {phase: sum(counts.values()) for phase, counts in self._tokens.items()}
        self.total = sum(self._trained.values())
        names = [name for phase in run.asked for name in phase.mixture]
        names += [name for counts in self._tokens.values() for name in counts]
        self.streams = list(dict.fromkeys(names))
        self.phases = [p for p, tokens in self._trained.items() if tokens]
        self._known = all(self._asked.get(phase) for phase in self.phases)

    def tokens(self, streams: Sequence[str]) -> float:
        return sum(counts.get(s, 0.0) for counts in self._tokens.values() for s in streams)

    def drawn(self, streams: Sequence[str]) -> float:
        return self.tokens(streams) / self.total

    def asked(self, streams: Sequence[str]) -> float | None:
        """Return the share that was asked for; None if that is not known of all phases."""
        if not self._known:
            return None
        wanted = [
            self._asked[p].get(s, 0.0) * self._trained[p] for p in self.phases for s in streams
        ]
        return sum(wanted) / self.total

    def in_phase(self, phase: str, streams: Sequence[str]) -> str:
        """Write the shares asked for and drawn in one phase."""
        asked = self._asked.get(phase, {})
        wanted = [asked[stream] for stream in streams if stream in asked]
        drawn = sum(self._tokens[phase].get(s, 0.0) for s in streams) / self._trained[phase]
        return f"{percent(sum(wanted) if wanted else None)} → {percent(drawn)}"


def mixture_table(run: RunRecord) -> str:
    """Compare each stream's share, and each domain's, with what its phases asked for."""
    mixture, log, colour = Mixture(run), run.log, colours(run)
    if not mixture.total:
        return ""
    phases = mixture.phases if len(log.stream_tokens) > 1 else []

    def row(title: str, streams: Sequence[str], epochs: float | None) -> list[str]:
        asked, drawn = mixture.asked(streams), mixture.drawn(streams)
        return [
            title,
            si(mixture.tokens(streams)),
            NONE if epochs is None else f"{epochs:.3g}",
            percent(asked, 2),
            percent(drawn, 2),
            signed(None if asked is None else 100 * (drawn - asked), 2),
            *(mixture.in_phase(phase, streams) for phase in phases),
        ]

    rows = [
        row(f"{key(colour[stream])}{escape(stream)}", [stream], log.epochs.get(stream))
        for stream in mixture.streams
    ]
    domain_of = {stream: log.domains.get(stream, stream) for stream in mixture.streams}
    for domain in dict.fromkeys(domain_of.values()):
        of_domain = [stream for stream in mixture.streams if domain_of[stream] == domain]
        if of_domain != [domain]:
            rows.append(row(f"domain {escape(domain)}", of_domain, None))
    head = ["stream", "real tokens", "epochs", "asked", "realised", "difference, points", *phases]
    return table(head, rows, "Mixture asked and realised", "wide")


def compared_mixtures(runs: Sequence[tuple[str, RunRecord]]) -> str:
    """Tabulate what each run asked of its streams and drew, a row a run; a run comes with its name
    as HTML."""
    found = [(title, Mixture(run)) for title, run in runs]
    found = [(title, mixture) for title, mixture in found if mixture.total]
    streams = list(dict.fromkeys(s for _, mixture in found for s in mixture.streams))
    rows = []
    for title, mixture in found:
        cells = [
            f"{percent(mixture.asked([s]))} → {percent(mixture.drawn([s]))}"
            if s in mixture.streams
            else ""
            for s in streams
        ]
        rows.append([title, *cells])
    if not rows:
        return ""
    note = '<p class="note">Share of real tokens over all phases: asked → drawn.</p>'
    return note + table(["run", *streams], rows, "Mixtures", "named")
