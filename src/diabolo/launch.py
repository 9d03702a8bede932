"""How this process was started: alone, or by torchrun as one of many that train one run together. Imports no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from diabolo.errors import UsageError

#: What torchrun tells each process that it starts; with less there is no meeting place, so the process is alone.
_TOLD = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """`rank` of `world` processes; of those `local_world` run on this machine, this one as number `local_rank`."""

    rank: int = 0
    local_rank: int = 0
    world: int = 1
    local_world: int = 1


def here() -> Launch:
    """What the environment says of this process."""
    told = {name: os.environ.get(name, "") for name in _TOLD}
    numbers = [told[name] for name in _TOLD[:4]]
    if not all(told.values()) or not all(map(str.isdecimal, numbers)) or int(told["WORLD_SIZE"]) < 2:
        return Launch()
    return Launch(*map(int, numbers))


def hush() -> None:
    """Say no news but from the first process: its words are those of all."""
    if here().rank:
        sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # to the end


def speak(expected: bool) -> None:
    """Let an error be heard: one that is expected from the first process of each machine, any other from each."""
    if here().rank and sys.__stderr__ and not (expected and here().local_rank):
        sys.stderr = sys.__stderr__


def end(code: int) -> NoReturn:
    """End this process with an exit code, as one of many without the interpreter's clean-up.

    DistributedDataParallel keeps torch's process group alive beyond its end, and so gloo's threads: one that lets go of a tensor
    while the interpreter is taken down aborts the process, and torchrun then ends all others
    (https://github.com/pytorch/pytorch/pull/179291).
    """
    if here().world > 1:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    sys.exit(code)


def refuse_other_verbs(words: Sequence[str]) -> None:
    """Refuse, as one of many, what each process would do once more.

    Raises:
        UsageError: for a verb that is not train.
    """
    if here().world > 1 and words and words[0] != "train" and not words[0].startswith("-"):
        raise UsageError(
            f"diabolo {words[0]} is not for {here().world} processes",
            "Together they train one run; anything else would be done once by each.",
            f"Leave torchrun out: diabolo {words[0]}",
        )


def refuse_several(runs: int) -> None:
    """Refuse, as one of many, to train several runs one after the other.

    Raises:
        UsageError: for more than one.
    """
    if here().world > 1 and runs > 1:
        raise UsageError(
            f"{runs} seeds are {runs} runs, and {here().world} processes train one",
            remedy="Start torchrun once for each seed.",
        )
