"""Carry out a schedule of faults, with one method for each kind."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

from ..errors import CannotStart, ClusterError, NotInstalled
from ..load.report import Spell
from ..parts.link import Link
from ..parts.part import Part
from ..supervisor.supervise import Cluster
from . import faults, schedule
from .history import Violation
from .observers import Observers
from .schedule import Strike

#: Seconds for which a render is lost after its process was killed or hung: until the lock expires, plus one attempt.
LOST = 6.0
#: Faults that may lose renders, and for how many seconds after their end; unreachable nodes may lose renders, too.
LOSES = {
    **dict.fromkeys(("kill worker", "kill renderer", "kill", "hang", "clock", "roll", "blackout"), LOST),
    **dict.fromkeys(("flush", "pressure"), 1.0),
}
ALL_START = "every part starts again"
#: Seconds that a part may take to start.
STARTS = 30.0

#: A strike: acts, and yields the seconds until it continues. Closed, it undoes its fault.
Acting = Generator[float, None, None]


@dataclass(order=True)
class _Step:
    at: float
    number: int
    strike: Strike = field(compare=False)
    acting: Acting | None = field(compare=False, default=None)
    began: float = field(compare=False, default=0.0)


class Nemesis:
    """Carries out a schedule, several strikes at a time, in one thread: parts end with the thread that starts them."""

    def __init__(
        self, cluster: Cluster, observers: Observers, strikes: Sequence[Strike], say: Callable[[str], None]
    ) -> None:
        self._cluster = cluster
        self._instances = [instance.name for instance in cluster.instances]
        self._observers = observers
        self._say = say
        self._began = time.monotonic()
        self._steps = [_Step(self._began + strike.at, number, strike) for number, strike in enumerate(strikes)]
        heapq.heapify(self._steps)
        self._busy: list[str] = []
        self._releases = itertools.count(1)
        self.skipped: list[str] = []
        self.failed: list[str] = []
        self.violations: list[Violation] = []
        #: The duration in seconds.
        self.lasted = 0.0
        self._after_quiet = schedule.after_quiet(strikes)
        #: Seconds by which strikes are late, so that a quiet time precedes them.
        self.late = 0.0
        #: How many strikes were left at the end.
        self.left = 0
        #: The faults with their actual times; on a busy machine they differ from the drawn ones.
        self.done: list[Spell] = []

    def run(self, seconds: float) -> None:
        """Strike until ``seconds`` are over, or a promise was broken."""
        looked = time.monotonic()
        while (now := time.monotonic()) < self._began + seconds:
            if self._steps and self._steps[0].at <= now:
                self._go_on(heapq.heappop(self._steps))
            elif now - looked > 1.0:
                if self.violations or self._observers.shows_a_violation():
                    return
                looked = time.monotonic()
            else:
                time.sleep(0.01)

    def stop(self) -> None:
        """Undo all faults that still last."""
        self.lasted = time.monotonic() - self._began
        while self._steps:
            step = self._steps.pop()
            if step.acting is not None:
                step.acting.close()
                self._finish(step)
            else:
                self.left += 1

    def wait_until_all_run(self) -> None:
        """Wait for all parts after :meth:`stop`. :raises CannotStart: a part does not run."""
        for part in self._cluster.parts:
            if part.leader is None:
                part.launch()
            part.wait_until_ready()

    def _go_on(self, step: _Step) -> None:
        """Continue a strike until its next pause; begin it first, or postpone it."""
        if step.acting is None:
            if self._postpone(step):
                return
            step.acting = self._begin(step)
        try:
            step.at = time.monotonic() + next(step.acting)
        except StopIteration:
            self._finish(step)
        except ClusterError as error:
            self._finish(step, done=False)
            self._fail(step, error)
        else:
            heapq.heappush(self._steps, step)

    def _postpone(self, step: _Step) -> bool:
        """Postpone a strike where it must wait; return whether it must."""
        if step.number in self._after_quiet and (wait := self._until_quiet_enough()) > 0:
            self.late += wait
            later = [step, *(other for other in self._steps if other.acting is None)]
            for other in later:
                other.at += wait
            self._steps.append(step)
            heapq.heapify(self._steps)
            return True
        if not schedule.may_strike(step.strike.fault, step.strike.part, self._busy, self._instances):
            step.at = time.monotonic() + 0.1  # the previous strike on its part is not over yet
            heapq.heappush(self._steps, step)
            return True
        return False

    def _begin(self, step: _Step) -> Acting:
        strike = step.strike
        step.began = time.monotonic()
        self._say(f"  {step.began - self._began:6.1f} s  {strike.fault} {strike.part}")
        if strike.fault in LOSES:
            self._observers.losses[step.number] = (step.began, math.inf)
        acting: Acting = getattr(self, "_" + strike.fault.replace(" ", "_"))(strike)
        self._busy += schedule.targets(strike, self._instances)
        return acting

    def _fail(self, step: _Step, error: ClusterError) -> None:
        reason = f"{step.strike.fault} {step.strike.part}: {error}"
        if isinstance(error, CannotStart):
            self.violations.append(Violation.of(ALL_START, step.began, time.monotonic(), reason))
        else:
            (self.skipped if isinstance(error, NotInstalled) else self.failed).append(reason)

    def _until_quiet_enough(self) -> float:
        """Return the seconds until a strike may begin: previous strikes may have taken longer than drawn."""
        if self._busy:
            return 0.1
        return max((spell.ended for spell in self.done), default=-math.inf) + schedule.QUIET_BETWEEN - time.monotonic()

    def _finish(self, step: _Step, done: bool = True) -> None:
        strike, now = step.strike, time.monotonic()
        if done:
            self.done.append(Spell(strike.fault, strike.part, step.began, now))
        if strike.fault in LOSES:
            # For other instances, the pages of an instance with a fast clock are fresh for so much longer.
            wrong = abs(strike.amount) if strike.fault == "clock" else 0.0
            self._observers.losses[step.number] = (step.began, now + LOSES[strike.fault] + wrong)
        for part in schedule.targets(step.strike, self._instances):
            self._busy.remove(part)

    # One method for each kind of schedule.FAULTS -------------------------------------------------------

    def _kill_worker(self, strike: Strike) -> Acting:
        yield from _once_there(lambda: faults.kill_worker(self._cluster, strike.part))
        # Until the new worker runs, another instance must be without a fault.
        yield from _until_started(self._cluster.instance(strike.part))

    def _kill_renderer(self, strike: Strike) -> Acting:
        yield from _once_there(lambda: faults.kill_renderer(self._cluster, strike.part))

    def _kill(self, strike: Strike) -> Acting:
        yield from _dead(self._cluster.instance(strike.part), strike.lasts)

    def _hang(self, strike: Strike) -> Acting:
        # After a hang, all its waits seem to have timed out, so the instance may take any node for unreachable.
        instance = self._cluster.instance(strike.part)
        with self._observers.away(*self._cluster.links, port=instance.port), instance.paused():
            yield strike.lasts

    def _clock(self, strike: Strike) -> Acting:
        instance = self._cluster.instance(strike.part)
        faults.set_clock(instance, strike.amount)
        try:
            yield from _restart(instance)
            yield strike.lasts
        finally:
            faults.set_clock(instance, 0.0)
        yield from _restart(instance)

    def _roll(self, _strike: Strike) -> Acting:
        release = f"release-{next(self._releases)}"
        for instance in self._cluster.instances:
            faults.set_release(instance, release)
            yield from _restart(instance)

    def _blackout(self, strike: Strike) -> Acting:
        with self._observers.darkness():
            for instance in self._cluster.instances:
                instance.kill()
            try:
                yield strike.lasts
            except GeneratorExit:
                self._cluster.instances[0].start()  # or the blackout would last beyond its declared end
                raise
            for instance in self._cluster.instances:
                instance.launch()
            yield from _until_started(self._cluster.instances[0])
        for instance in self._cluster.instances[1:]:
            yield from _until_started(instance)

    def _kill_node(self, strike: Strike) -> Acting:
        with self._observers.away(self._cluster.link(strike.part)):
            yield from _dead(self._cluster.node(strike.part), strike.lasts)

    def _hang_node(self, strike: Strike) -> Acting:
        with self._observers.away(self._cluster.link(strike.part)), self._cluster.node(strike.part).paused():
            yield strike.lasts

    def _flush(self, strike: Strike) -> Acting:
        self._cluster.node(strike.part).flush()
        yield 0.0

    def _cut_off(self, strike: Strike) -> Acting:
        return self._break_link(strike, Link.cut)

    def _dead_cable(self, strike: Strike) -> Acting:
        return self._break_link(strike, Link.swallow)

    def _slow_network(self, strike: Strike) -> Acting:
        return self._break_link(strike, lambda link: link.slow(strike.amount))

    def _break_link(self, strike: Strike, fault: Callable[[Link], None]) -> Acting:
        link = self._cluster.link(strike.part)
        # On a busy machine, instances may take a slow node for unreachable, too.
        with self._observers.away(link), link.healed():
            fault(link)
            yield strike.lasts

    def _pressure(self, strike: Strike) -> Acting:
        faults.press(self._cluster)
        try:
            yield strike.lasts
        finally:
            faults.relieve(self._cluster)

    def _reload(self, _strike: Strike) -> Acting:
        self._cluster.balancer.reload()
        yield 0.0


def _dead(part: Part, seconds: float) -> Acting:
    part.kill()
    try:
        yield seconds
    finally:
        part.launch()
    yield from _until_started(part)


def _restart(part: Part) -> Acting:
    part.ask_to_stop()
    deadline = time.monotonic() + part.stop_patience
    try:
        while part.exit_code() is None and time.monotonic() < deadline:
            yield 0.02
    finally:
        part.kill()
    part.launch()
    yield from _until_started(part)


def _until_started(part: Part) -> Acting:
    deadline = time.monotonic() + STARTS
    while not part.has_started():
        if time.monotonic() > deadline:
            raise CannotStart(f"{part.name} is not there after {STARTS:g} s")
        yield 0.02


def _once_there(strike: Callable[[], object]) -> Acting:
    """Repeat a strike until its target exists: an instance may have no process of a kind just after a kill."""
    deadline = time.monotonic() + STARTS / 2
    while True:
        try:
            strike()
            return
        except ClusterError:
            if time.monotonic() > deadline:
                raise
        yield 0.05
