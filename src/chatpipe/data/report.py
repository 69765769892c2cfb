"""What reading the sources of a stage came to: what each was taken for, how many rows it has, which were left out."""

from collections import Counter
from dataclasses import dataclass, field

from chatpipe import console
from chatpipe.data.row_files import Skipped


@dataclass
class SourceReport:
    """Of one source under the recipe key `key`. `formats` are those of its files, in the order they were met."""

    key: str
    source: str
    formats: list[str] = field(default_factory=list)
    rows: int = 0
    skipped: Skipped = field(default_factory=Skipped)
    tools_ignored: int = 0
    """Usable rows that offer tools, which the model is not shown."""

    def took_for(self, form: str) -> None:
        """Notes the format of one more file."""
        if form not in self.formats:
            self.formats.append(form)

    def line(self) -> str:
        """What was read, in one line for people."""
        reasons = self.skipped.reasons
        said = [f"{count}: {reason}, first at {self.skipped.first[reason]}" for reason, count in reasons.most_common()]
        left_out = f"{reasons.total()} left out" + (f" ({'; '.join(said)})" if said else "")
        return f"{self.key}: {self.source} read as {' and '.join(self.formats)}: {self.rows} rows, {left_out}"


@dataclass
class Report:
    """Of all sources in the order of their blocks, but for the built-in world, of which there is nothing to say."""

    sources: list[SourceReport] = field(default_factory=list)

    @property
    def skipped(self) -> dict[str, int]:
        """Rows that could not be used, by reason, over all sources."""
        return dict(sum((source.skipped.reasons for source in self.sources), Counter[str]()))

    def say(self) -> None:
        """Tells the person at the terminal, a line for each source."""
        for source in self.sources:
            console.note(source.line())
            if source.tools_ignored:
                console.warn(
                    f"{source.key}: {source.tools_ignored} rows of {source.source} offer tools; these are ignored."
                )
