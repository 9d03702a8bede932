"""The errors a user can cause or meet; each carries the exit code of the command line."""

from __future__ import annotations


class DiaboloError(Exception):
    """What went wrong, why, and what to do about it: three sentences, the last two optional."""

    exit_code = 1

    def __init__(self, what: str, why: str = "", remedy: str = "") -> None:
        super().__init__("\n".join(part for part in (what, why, remedy) if part))
        self.what, self.why, self.remedy = what, why, remedy


class UsageError(DiaboloError, ValueError):
    """A wrong word, configuration or place to write to (exit code 2)."""

    exit_code = 2


class DataError(DiaboloError):
    """Data or a run that is missing, corrupt or does not match (exit code 3)."""

    exit_code = 3


class DivergedError(DiaboloError):
    """Training met too many non-finite steps in a row (exit code 4)."""

    exit_code = 4


def not_finite(error: ValueError) -> DataError | None:
    """What `torch.distributions` means where it refuses parameters out of their range; None for any other error."""
    if not str(error).startswith("Expected parameter"):
        return None
    return DataError(
        "this model gives numbers that are not finite: its training diverged or has hardly begun",
        remedy="Find out with: diabolo doctor RUN",
    )


def did_you_mean(word: str, accepted: list[str]) -> str:
    """A sentence that names the accepted words and, where one is near, suggests it."""
    import difflib

    near = difflib.get_close_matches(word, accepted, n=1, cutoff=0.6)
    guess = f'Did you mean "{near[0]}"? ' if near else ""
    return f"{guess}Accepted: {', '.join(accepted) or 'nothing'}."
