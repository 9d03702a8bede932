"""Several jobs at a time as one display: steps done of all steps, what each running job is at, and how long the rest will take.

The time that is left is that of a schedule: what each running job still needs, then the waiting jobs one after another, each
on the process that is free first. A job's needs are measured on itself where it has begun, else on jobs of the same cost, else
on the others in proportion to their costs.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from diabolo.progress import Progress

#: The name of the stage whose units are the steps of a training.
TRAINING = "training"
#: So many running jobs are named; with more, the others are counted.
_NAMED = 4
#: Halves of a pass through a model that a training step takes: two forward, and twice as much backward.
_HALVES = 6


@dataclass
class Task:
    """A job as the display sees it, and what was measured of it so far.

    name: what it is called; place: its directory; steps: of its whole training; epochs: that these are; measuring: how many steps
    of its training its evaluation takes at a first guess, 0 for none; cost: of a step, in a unit of one's own.
    """

    name: str
    place: str
    steps: int
    epochs: int
    measuring: float = 0.0
    cost: float = 1.0
    done: int = 0  # steps, those of an earlier process included
    stage: str = ""
    began: float | None = None  # the process
    first: tuple[float, int] | None = None  # when its first steps were told, and how many
    last: tuple[float, int] | None = None
    measured_since: float | None = None
    units: list[tuple[float, int]] = field(default_factory=list)  # of the present stage of its evaluation
    total: int = 0
    ended: float | None = None

    @property
    def setting_up(self) -> float | None:
        """Seconds from the start of the process to the first step."""
        return None if self.began is None or self.first is None else self.first[0] - self.began

    @property
    def pace(self) -> float | None:
        """Seconds that a step takes."""
        if self.first is None or self.last is None or self.last[1] == self.first[1]:
            return None
        return (self.last[0] - self.first[0]) / (self.last[1] - self.first[1])

    @property
    def evaluation(self) -> float | None:
        """Seconds that its evaluation took."""
        return None if self.ended is None or self.measured_since is None else self.ended - self.measured_since

    @property
    def at(self) -> str:
        """What it is at, in words."""
        if self.stage != TRAINING:
            return f"{self.name} {self.stage or 'starting'}"
        epoch = min(self.epochs, 1 + self.done * self.epochs // max(self.steps, 1))
        return f"{self.name} epoch {epoch}/{self.epochs}"


def measuring_steps(draws: int, test: int, importance: int, batch: int) -> float:
    """A first guess at the steps of training that an evaluation takes, from how often it runs half of a model.

    draws: of z for each of `test` examples, which are encoded and decoded at the mean, too; importance: draws in all for the
    estimates of log p(x); batch: examples of a training step.
    """
    return (test * (draws + 2) + importance) / (_HALVES * batch)


class Display:
    """Puts what jobs tell into one `Progress`; a task is called by its number."""

    def __init__(
        self,
        tasks: Sequence[Task],
        processes: int,
        progress: Progress,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tasks, self.processes, self.progress, self.now = tasks, processes, progress, now
        many = f"{len(tasks)} runs, {processes} at a time" if len(tasks) > 1 else "1 run"
        progress.start(many, sum(task.steps for task in tasks))

    # ---------------------------------------------------------------- what is told
    def begin(self, number: int) -> None:
        """The process of a job was started."""
        self.tasks[number].began = self.now()
        self._show(0)

    def stage(self, number: int, name: str, total: int) -> None:
        """A job began a stage of so many units."""
        task = self.tasks[number]
        task.stage, task.total, task.units = name, total, []
        if name != TRAINING and task.measured_since is None:
            task.measured_since = self.now()
            self._step(task, task.steps - task.done)

    def advance(self, number: int, units: int) -> None:
        """A job did so many units of its stage. The first ones of a training are those of an earlier process."""
        task, now = self.tasks[number], self.now()
        if task.stage != TRAINING:
            done = task.units[-1][1] if task.units else 0
            task.units = [*task.units[:1], (now, done + units)]
            self._show(0)
            return
        task.last = (now, task.done + units)
        task.first = task.first or task.last
        self._step(task, units)

    def end(self, number: int) -> None:
        """The process of a job has ended, however it did: what was not done of it will not be."""
        task = self.tasks[number]
        task.ended = self.now()
        self._step(task, task.steps - task.done)

    def say(self, number: int, text: str) -> None:
        """One line of news of a job."""
        task = self.tasks[number]
        self.progress.say(f"{task.name}: {text.removeprefix(f'{task.place}: ')}")

    # ---------------------------------------------------------------- what is shown
    def _step(self, task: Task, steps: int) -> None:
        task.done += steps
        self._show(steps)

    def _show(self, steps: int) -> None:
        left = self.left()
        if left is not None:
            self.progress.remaining(left)
        running = [task for task in self.tasks if task.began is not None and task.ended is None]
        more = f" and {len(running) - _NAMED} more" if len(running) > _NAMED else ""
        self.progress.advance(steps, ", ".join(task.at for task in running[:_NAMED]) + more)

    # ---------------------------------------------------------------- how long it will take
    def left(self) -> float | None:
        """Seconds until the last job ends; None while nothing was measured that tells."""
        needs = {i: self._needs(task) for i, task in enumerate(self.tasks) if task.ended is None}
        known = [need for need in needs.values() if need is not None]
        if len(known) < len(needs):
            return None
        running = [needs[i] for i in needs if self.tasks[i].began is not None]
        waiting = [needs[i] for i in needs if self.tasks[i].began is None]
        return makespan([need or 0.0 for need in running], [need or 0.0 for need in waiting], self.processes)

    def _needs(self, task: Task) -> float | None:
        """Seconds that a job still needs from now on."""
        now, pace = self.now(), task.pace
        if pace is None:
            pace = self._as_others(task, [other.pace for other in self.tasks])
        evaluation = self._evaluation(task, pace)
        if evaluation is None:
            return None
        if task.measured_since is not None:
            return max(evaluation - (now - task.measured_since), _rest(task, now))
        if pace is None:
            return None
        ahead = (task.steps - task.done) * pace + evaluation
        if task.last is not None:
            return max(0.0, ahead - (now - task.last[0]))
        gone = 0.0 if task.began is None else now - task.began
        return ahead + max(0.0, (_mean([t.setting_up for t in self.tasks]) or 0.0) - gone)

    def _evaluation(self, task: Task, pace: float | None) -> float | None:
        if not task.measuring:
            return 0.0
        measured = self._as_others(task, [other.evaluation for other in self.tasks])
        if measured is not None:
            return measured
        if task.measured_since is not None and pace is None:
            return 0.0  # its present stage is all that is known of it
        return None if pace is None else task.measuring * pace

    def _as_others(self, task: Task, measured: Sequence[float | None]) -> float | None:
        """What was measured of the tasks, as it would be of this one."""
        alike = [value for other, value in zip(self.tasks, measured) if other.cost == task.cost]
        if any(value is not None for value in alike):
            return _mean(alike)
        each = [None if value is None else value / other.cost for other, value in zip(self.tasks, measured)]
        unit = _mean(each)
        return None if unit is None else unit * task.cost


def makespan(running: Sequence[float], waiting: Sequence[float], processes: int) -> float:
    """When the last of the waiting jobs ends, if each begins in order on the process that is free first; `running`: when the
    processes at work are free."""
    free = [*running, *[0.0] * (processes - len(running))]
    heapq.heapify(free)
    for need in waiting:
        heapq.heappush(free, heapq.heappop(free) + need)
    return max(free, default=0.0)


def _rest(task: Task, now: float) -> float:
    """Seconds that the present stage of an evaluation needs at its pace so far."""
    if len(task.units) < 2:
        return 0.0
    (began, some), (last, done) = task.units
    pace = (last - began) / (done - some) if done > some else 0.0
    return max(0.0, (task.total - done) * pace - (now - last))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
