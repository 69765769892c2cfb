"""The report of reading a stage's sources: their formats, the number of rows, and the rows left out."""

from collections import Counter
from dataclasses import dataclass, field

from chatpipe import console
from chatpipe.data.row_files import BrokenRow, Row
from chatpipe.errors import UsageError

MEND_OR_ALLOW = (
    "Mend the file, name its format and columns (data: [{source: FILE, format: ..., columns: ...}]), "
    "or allow more (max_skipped: SHARE)."
)
"""The remedy for too many unusable rows."""


@dataclass
class Skipped:
    """Unusable rows: the number for each reason, and the place of the first of each."""

    reasons: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, row: Row | BrokenRow) -> None:
        self.reasons[reason] += 1
        detail = f", {row.detail}" if isinstance(row, BrokenRow) and row.detail else ""
        self.first.setdefault(reason, f"{row.where}{detail}")

    def check(self, source: str, total: int, max_share: float, hint: str = MEND_OR_ALLOW) -> None:
        """Raises `UsageError` when more than this share of `total` rows is unusable, or all of them."""
        count = self.reasons.total()
        if count == 0 or (count <= max_share * total and count < total):
            return
        lines = [
            f"{n} {'row' if n == 1 else 'rows'}: {reason} (first at {self.first[reason]})"
            for reason, n in self.reasons.most_common(4)
        ]
        raise UsageError(
            "\n".join([f"{source}: {count} of {total} rows cannot be used.", *lines]),
            hint,
        )


@dataclass
class SourceReport:
    """The report of one source under the recipe key `key`; `formats` are those of its files, in order."""

    key: str
    source: str
    formats: list[str] = field(default_factory=list)
    rows: int = 0
    skipped: Skipped = field(default_factory=Skipped)
    tools_ignored: int = 0
    """Usable rows that offer tools; chatpipe ignores the tools."""

    def add_format(self, form: str) -> None:
        """Adds the format of one more file."""
        if form not in self.formats:
            self.formats.append(form)

    def line(self) -> str:
        """One line for people."""
        reasons = self.skipped.reasons
        causes = [
            f"{count}: {reason}, first at {self.skipped.first[reason]}" for reason, count in reasons.most_common()
        ]
        left_out = f"{reasons.total()} left out" + (f" ({'; '.join(causes)})" if causes else "")
        return f"{self.key}: {self.source} read as {' and '.join(self.formats)}: {self.rows} rows, {left_out}"


@dataclass
class Report:
    """The reports of all sources in the order of their blocks; built-in worlds have none."""

    sources: list[SourceReport] = field(default_factory=list)

    @property
    def skipped(self) -> dict[str, int]:
        """Unusable rows of all sources by reason."""
        return dict(sum((source.skipped.reasons for source in self.sources), Counter[str]()))

    def say(self) -> None:
        """Prints a line for each source."""
        for source in self.sources:
            console.note(source.line())
            if source.tools_ignored:
                console.warn(
                    f"{source.key}: {source.tools_ignored} rows of {source.source} offer tools; these are ignored."
                )
