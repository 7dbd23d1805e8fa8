"""What an evaluation gives, whatever the job."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """The numbers of one kind of result; -1 where there is nothing to measure.

    `stats[measure]` is what runs are compared by, larger is better; `per_class` is that measure, or the like of it, by class.
    """

    kind: str
    measure: str
    stats: dict[str, float]
    per_class: dict[str, float]

    @property
    def value(self) -> float:
        """The number that runs are compared by."""
        return self.stats[self.measure]

    def lines(self) -> list[str]:
        """The numbers as they are printed."""
        width = max(map(len, self.stats))
        return [f" {name:<{width}} {'–' if value < 0 else f'{value:.4f}'}" for name, value in self.stats.items()]
