"""What a check of a run returns, and the list of all checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from diabolo.examination import Examination

Severity = Literal["severe", "moderate"]


@dataclass(frozen=True)
class Finding:
    """Something is wrong: the sentence with what was measured, why it matters, what to do. "severe": the run's numbers mean
    little as they are; "moderate": they are right, and could be better or cheaper."""

    name: str
    measured: str
    why: str
    remedy: str
    severity: Severity


@dataclass(frozen=True)
class Sound:
    """Checked, and nothing wrong: the number, and the limit that it keeps."""

    name: str
    measured: str
    limit: str


@dataclass(frozen=True)
class Unchecked:
    """Not checked, and why: evidence is missing, or the question does not arise."""

    name: str
    why: str


@dataclass(frozen=True)
class Remark:
    """Worth knowing, nothing wrong."""

    name: str
    measured: str


Outcome = Finding | Sound | Unchecked | Remark
Check = Callable[["Examination"], Outcome]
CHECKS: dict[str, Check] = {}


def check(name: str) -> Callable[[Check], Check]:
    """Put a check into `CHECKS`, which are done in the order they stand in: causes before consequences."""

    def add(function: Check) -> Check:
        CHECKS[name] = function
        return function

    return add


@dataclass(frozen=True)
class Diagnosis:
    """All outcomes for a run, in the order of the checks."""

    run: str
    outcomes: tuple[Outcome, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(o for o in self.outcomes if isinstance(o, Finding))

    @property
    def sound(self) -> tuple[Sound, ...]:
        return tuple(o for o in self.outcomes if isinstance(o, Sound))

    @property
    def unchecked(self) -> tuple[Unchecked, ...]:
        return tuple(o for o in self.outcomes if isinstance(o, Unchecked))

    @property
    def remarks(self) -> tuple[Remark, ...]:
        return tuple(o for o in self.outcomes if isinstance(o, Remark))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        kinds = ("findings", "sound", "unchecked", "remarks")
        return {"run": self.run, **{kind: [asdict(o) for o in getattr(self, kind)] for kind in kinds}}
