"""Verification: every past decision is made again from the topics alone, and compared with what was written then.

Nothing is written, so it may run beside the service. A partition is replayed (`streamal.service.replay`) from the last
takeover before the stretch that is asked for, as far back as the topics are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from streamal.service.replay import WHOLE, Models, PartitionReport, Replay, Stretch, Subject


@dataclass(frozen=True, slots=True)
class Report:
    """What a verification found, partition by partition."""

    partitions: Sequence[PartitionReport]

    @property
    def replayed(self) -> bool:
        """Whether there was anything to compare."""
        return any(p.transactions for p in self.partitions)

    @property
    def sound(self) -> bool:
        """Whether nothing differs, and nothing was left out for want of records without anything being replayed."""
        return not any(p.differences or (p.unverifiable and not self.replayed) for p in self.partitions)

    def as_json(self) -> dict[str, Any]:
        """Return everything as a JSON object."""
        return {"sound": self.sound, "partitions": [asdict(p) for p in self.partitions]}


def verify(
    subject: Subject,
    partitions: Sequence[int] = (),
    stretch: Stretch = WHOLE,
    progress: Callable[[], object] = lambda: None,
) -> Report:
    """Replay partitions, all by default, and compare; `progress` is called after each transaction.

    Raises:
        TransportError: the log cannot be read.
    """
    count = subject.log.partitions(subject.topics.instances)
    models = Models(subject)
    return Report([Replay(subject, models, p, count).run(stretch, progress) for p in partitions or range(count)])
