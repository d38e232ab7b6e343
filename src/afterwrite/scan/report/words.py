"""What the faces of a report say alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from afterwrite.errors import Finding, Severity
from afterwrite.scan.cost.figures import Costs
from afterwrite.scan.verdicts import Eventual, Verdict

MEANING = {
    Verdict.RETIRE: "only log: the store replaces them",
    Verdict.DEFER: "effects that may happen a moment after commit",
    Verdict.REVIEW: "cannot be known: look at the line named",
    Verdict.KEEP: "business logic: they stay",
}


def server(version: int) -> str:
    """``18.1`` of server_version_num."""
    return f"{version // 10_000}.{version % 10_000}"


def counted(count: int, noun: str) -> str:
    """``1 trigger``, ``2 triggers``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def gravest_first(findings: Iterable[Finding]) -> list[Finding]:
    """Findings in the order in which a reader wants them."""
    order = [Severity.ERROR, Severity.WARNING, Severity.INFO]
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def percent(share: float | None) -> str:
    """A share between 0 and 1 in words; an en dash where it is not known."""
    if share is None:
        return "–"
    if 0 < share < 0.001:
        return "< 0.1 %"
    return f"{share:.1%}".replace("%", " %") if share < 0.1 else f"{share:.0%}".replace("%", " %")


def noticed(eventual: Iterable[Eventual]) -> Iterator[str]:
    """What becomes eventually consistent, and who might notice, a sentence for each table."""
    for each in eventual:
        columns = f" ({', '.join(each.columns)})" if each.columns else ""
        by = f", which {_several(each.noticed_by)} might notice" if each.noticed_by else ""
        yield f"{each.table}{columns}{by}"


def _several(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown


def saved(costs: Costs) -> Iterator[str]:
    """What the write path would save, a sentence for each choice of verdicts that was reckoned."""
    for saving in costs.savings:
        if saving.time_low is None and saving.wal_low is None:
            continue
        named = " and ".join(verdict.value for verdict in saving.verdicts)
        parts = [
            f"{_between(low, high)} less {what}"
            for low, high, what in (
                (saving.time_low, saving.time_high, "time"),
                (saving.wal_low, saving.wal_high, "WAL"),
            )
            if low is not None
        ]
        how = f" ({saving.how})" if saving.how else ""
        yield f"Without the {counted(saving.triggers, 'trigger')} to {named}, writing takes {' and '.join(parts)}{how}"


def _between(low: float | None, high: float | None) -> str:
    least, most = percent(low), percent(high)
    return least if high is None or least == most else f"{least} to {most}"
