"""Every order in which programs can use one store: a breadth-first search over the possible next steps.

At every moment each program (:mod:`tests.model.gate`) may take its next step, and besides:

- ``losses``: so many control keys (tags, epochs) may vanish;
- ``cuts``: so many times a node becomes unreachable; it comes back at any later moment, with what it had;
- ``doubts``: so many writes are answered with a time-out and happen at any later moment, or never.

A killed worker needs nothing of its own: what is served is checked at every answer, whether or not the
others ever take another step.

The search stops at the first violation, of which there is no shorter one; :attr:`Result.trace` tells it.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.model.gate import RAISES, UNREACHABLE, Gate, Paused, Program, Question, Spot, Unsound
from wsgi_isr.stores.base import route


@dataclass(frozen=True)
class System:
    """The programs, nodes and faults of a search.

    :param programs: by name.
    :param setup: a program that is run alone before all others.
    :param home: the node on which a key is while all nodes are up. While a node is cut off, its pages and locks are
        found on the next node; so are tags and epochs if ``control_keys_move``.
    :param renders: the highest allowed number of renders (reads of the data); each lost key allows one more.
    :param overwrites: returns the fault of a new value in place of an old one, or ``None``.
    :param vanishes: the keys that may be lost.
    :param private: keys that only one program touches, or that are never written (which is checked). The time of such
        an operation matters to no other program, so it is done at once.
    :param show: returns a key (as the value of ``"key"``) or the value of a key as text for a trace.
    """

    programs: Mapping[str, Program]
    setup: Program | None = None
    nodes: Sequence[str] = ("n1",)
    home: Callable[[str], str] = lambda key: "n1"
    losses: int = 0
    cuts: int = 0
    doubts: int = 0
    control_keys_move: bool = False
    renders: int | None = None
    overwrites: Callable[[str, Any, Any], str | None] = lambda key, old, new: None
    vanishes: Callable[[str], bool] = lambda key: route(key).control
    private: Callable[[str], bool] = lambda key: False
    show: Callable[[str, Any], str] = lambda key, value: str(value)


@dataclass
class Result:
    """The result of a search.

    ``served``: for each program, how it served, and whether its data was older than an acknowledged invalidation. It
    proves that the search came across the situation it is for.
    """

    states: int
    steps: int
    violation: str | None
    trace: list[str] = field(default_factory=list)
    served: set[tuple[str, str, bool]] = field(default_factory=set)

    def __str__(self) -> str:
        if self.violation is None:
            return f"no violation in {self.states} states, {self.steps} steps"
        told = "\n".join(f"{number:4} {line}" for number, line in enumerate(self.trace, 1))
        return f"{self.violation} (after {self.states} states, {self.steps} steps)\n{told}"


def explore(system: System, most: int = 5_000_000) -> Result:
    """Return the result of a search of all orders of ``system``.

    :raises Unsound: a program raised, did not do the same twice, or there are more than ``most`` states.
    """
    # Millions of tuples without a cycle among them: looking for garbage would take most of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return Explorer(system).run(most)
    finally:
        if collecting:
            gc.enable()


class _Facts(NamedTuple):
    version: int = 0
    ticks: int = 0
    renders: int = 0
    floors: tuple[int, ...] = (0, 0, 0)
    losses: int = 0
    cuts: int = 0
    doubts: int = 0
    down: tuple[str, ...] = ()
    queued: tuple[tuple[Question, Any], ...] = ()


class _World:
    """The facts besides the store. Equal facts are one object, which makes comparing states cheap.

    ``places`` are the cells in which keys are found in this state of the nodes.
    """

    __slots__ = ("facts", "places")

    def __init__(self, facts: _Facts, places: dict[str, int | None]) -> None:
        self.facts = facts
        self.places = places


_Cells = tuple[int, ...]
_State = tuple[_World, _Cells, tuple[int, ...]]
"""The world, the number of the item in each cell (0: missing), and that of each program's spot (0: at its end)."""
_Choice = tuple[str, Any]


class _Failed(Exception):
    """Raised where the property does not hold."""


class Explorer:
    """One search; see :func:`explore`."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._names = list(system.programs)
        self._programs = list(system.programs.values())
        self._spots: list[Spot | None] = [None]
        self._worlds: dict[_Facts, _World] = {}
        self._places: dict[tuple[str, ...], dict[str, int | None]] = {}
        self._cells: dict[tuple[str, str], int] = {}
        self._vanishing: list[int] = []
        self._items: list[Any] = [None]
        self._numbers: dict[Any, int] = {}
        self._touched: dict[str, set[tuple[int, bool]]] = {}
        self._runs = 0
        self._served: set[tuple[str, str, bool]] = set()
        self._came_from: dict[_State, tuple[_State, _Choice] | None] = {}

    def run(self, most: int) -> Result:
        """Search until the end or the first violation."""
        start = self._start()
        came_from = self._came_from
        came_from[start] = None
        todo = deque([start])
        steps = 0
        while todo:
            state = todo.popleft()
            for choice in self._choices(state):
                steps += 1
                try:
                    after = self._take(state, choice)
                except _Failed as violation:
                    trace = self._tell(state, choice)
                    return Result(len(came_from), steps, str(violation), trace, self._served)
                if after not in came_from:
                    came_from[after] = (state, choice)
                    todo.append(after)
            if len(came_from) > most:
                raise Unsound(f"more than {most} states")
        return Result(len(came_from), steps, None, [], self._served)

    # Programs ----------------------------------------------------------------------------------------

    def _spot(self, actor: int, history: tuple[tuple[Question, Any], ...]) -> Spot:
        """Run a program again with its answers so far, and return its spot."""
        self._runs += 1
        if self._runs % 20_000 == 0:
            gc.collect(0)  # a program that was left is a cycle, through the traceback of its end
        spot = Spot(self._names[actor], history)
        gate = Gate(self._names[actor], spot, self._system.nodes, self._system.home)
        error: Exception | None = None
        try:
            self._programs[actor](gate)
        except Paused:
            pass
        except Exception as raised:
            error = raised
        if gate.unsound is not None:
            raise gate.unsound
        if spot.question:
            spot.number = len(self._spots)
            spot.at_once = not spot.begins and self._is_at_once(actor, spot.question)
            self._spots.append(spot)
        elif error is not None:
            story = "\n".join(map(str, history))
            raise Unsound(f"{self._names[actor]} raised {error!r} after\n{story}") from error
        self._served |= {(self._names[actor], how, behind) for how, behind in spot.served}
        return spot

    def _is_at_once(self, actor: int, question: Question) -> bool:
        if question[0] == "time":
            return True
        if len(question) < 2 or not self._system.private(question[1]):
            return False
        if actor < len(self._system.programs):  # the one after them is the setup
            touched = self._touched.setdefault(question[1], set())
            touched.add((actor, question[0] in _WRITES))
            if len({who for who, _ in touched}) > 1 and any(writes for _, writes in touched):
                raise Unsound(f"{question[1]} is not private")
        return True

    def _start(self) -> _State:
        facts, cells = _Facts(), _Cells()
        count = len(self._programs)
        nobody = (0,) * (count + 1)
        if self._system.setup is not None:
            self._names.append("setup")
            self._programs.append(self._system.setup)
            state = self._enter(self._world(facts), cells, nobody, count, self._spot(count, ()))
            while state[2] != nobody:
                state = self._step(state, count)
            facts, cells = state[0].facts, state[1]
        losses, cuts, doubts = self._system.losses, self._system.cuts, self._system.doubts
        world = self._world(facts._replace(renders=0, losses=losses, cuts=cuts, doubts=doubts))
        state = (world, cells, nobody)
        for actor in range(count):
            state = self._enter(*state, actor, self._spot(actor, ()))
        return state

    def _world(self, facts: _Facts) -> _World:
        world = self._worlds.get(facts)
        if world is None:
            world = self._worlds[facts] = _World(facts, self._places.setdefault(facts.down, {}))
        return world

    # Steps that may come next ------------------------------------------------------------------------

    def _choices(self, state: _State) -> Iterator[_Choice]:
        world, cells, spots = state
        facts = world.facts
        for actor, number in enumerate(spots):
            if number:
                yield "step", actor
                if facts.doubts and self._spots[number].question[0] in _WRITES:  # type: ignore[union-attr]
                    yield "doubt", actor
        if facts.losses:
            for cell in self._vanishing:
                if cell < len(cells) and cells[cell]:
                    yield "lose", cell
        for node in facts.down:
            yield "heal", node
        if facts.cuts:
            for node in self._system.nodes:
                if node not in facts.down:
                    yield "cut", node
        for queued in facts.queued:
            yield "late", queued

    def _take(self, state: _State, choice: _Choice) -> _State:
        kind, what = choice
        if kind == "step":
            return self._step(state, what)
        world, cells, spots = state
        facts = world.facts
        if kind == "lose":
            return self._world(facts._replace(losses=facts.losses - 1)), _put(cells, what, 0), spots
        if kind == "cut":
            down = tuple(sorted((*facts.down, what)))
            return self._world(facts._replace(down=down, cuts=facts.cuts - 1)), cells, spots
        if kind == "heal":
            return self._world(facts._replace(down=tuple(node for node in facts.down if node != what))), cells, spots
        if kind == "doubt":
            spot = self._at(state, what)
            queued = (*facts.queued, (spot.question, spot.writer))
            world = self._world(facts._replace(queued=queued, doubts=facts.doubts - 1))
            return self._enter(world, cells, spots, what, self._after(spot, what, world, UNREACHABLE))
        left = tuple(other for other in facts.queued if other != what)
        world, cells, _ = self._ask(self._world(facts._replace(queued=left)), cells, *what)
        return world, cells, spots

    def _at(self, state: _State, actor: int) -> Spot:
        spot = self._spots[state[2][actor]]
        assert spot is not None
        return spot

    def _step(self, state: _State, actor: int) -> _State:
        spot = self._at(state, actor)
        world, cells, answer = self._ask(state[0], state[1], spot.question, spot.writer)
        return self._enter(world, cells, state[2], actor, self._after(spot, actor, world, answer))

    def _after(self, spot: Spot, actor: int, world: _World, answer: Any) -> Spot:
        if spot.begins:
            answer = (answer, world.facts.floors)
        after = spot.then.get(answer)
        if after is None:
            after = spot.then[answer] = self._spot(actor, (*spot.history, (spot.question, answer)))
        return after

    def _enter(self, world: _World, cells: _Cells, spots: tuple[int, ...], actor: int, spot: Spot) -> _State:
        if spot.violation:
            raise _Failed(spot.violation)
        for mode, version in spot.acks:
            facts = world.facts
            raised = [max(floor, version) for floor in facts.floors[: RAISES[mode]]]
            floors = (*raised, *facts.floors[RAISES[mode] :])
            world = self._world(facts._replace(floors=floors, ticks=facts.ticks + 1))
        state = (world, cells, (*spots[:actor], spot.number, *spots[actor + 1 :]))
        return self._step(state, actor) if spot.at_once else state

    # The store and the world -------------------------------------------------------------------------

    def _ask(self, world: _World, cells: _Cells, question: Question, writer: Any) -> tuple[_World, _Cells, Any]:
        verb = question[0]
        if len(question) < 2:
            world, answer = self._ask_world(world.facts, verb)
            return world, cells, answer
        try:
            place = world.places[question[1]]
        except KeyError:
            place = world.places[question[1]] = self._place(world.facts.down, question[1])
        if place is None:
            return world, cells, UNREACHABLE
        number = cells[place] if place < len(cells) else 0
        if verb == "get":
            return world, cells, self._items[number][0] if number else None
        held = self._items[number]
        if verb == "gets":
            return world, cells, held
        if (
            verb == "set"
            or (verb == "add" and held is None)
            or (verb == "cas" and held is not None and held[1] == question[3])
            or (verb == "delete" and held is not None)
        ):
            value = question[2] if verb != "delete" else None
            if held is not None and (wrong := self._system.overwrites(question[1], held[0], value)):
                raise _Failed(wrong)
            return world, _put(cells, place, self._item(value, writer)), True
        return world, cells, False

    def _ask_world(self, facts: _Facts, verb: str) -> tuple[_World, int]:
        if verb == "commit":
            facts = facts._replace(version=facts.version + 1, ticks=facts.ticks + 1)
        elif verb == "read" and self._system.renders is not None:
            facts = facts._replace(renders=facts.renders + 1)
            if facts.renders > self._system.renders + self._system.losses - facts.losses:
                raise _Failed(f"{facts.renders} renders in one window")
        return self._world(facts), facts.ticks if verb == "time" else facts.version

    def _item(self, value: Any, writer: Any) -> int:
        if value is None:
            return 0
        number = self._numbers.get((value, writer))
        if number is None:
            number = self._numbers[value, writer] = len(self._items)
            self._items.append((value, writer))
        return number

    def _place(self, down: tuple[str, ...], key: str) -> int | None:
        """Return the cell of a key. A key has a cell for each node that it may be on."""
        node = self._system.home(key)
        if node in down:
            if route(key).control and not self._system.control_keys_move:
                return None
            up = [other for other in self._system.nodes if other not in down]
            if not up:
                return None
            node = up[0]
        place = self._cells.get((node, key))
        if place is None:
            place = self._cells[node, key] = len(self._cells)
            if self._system.vanishes(key):
                self._vanishing.append(place)
        return place

    # The story ---------------------------------------------------------------------------------------

    def _tell(self, state: _State, choice: _Choice) -> list[str]:
        way = [(state, choice)]
        while (before := self._came_from[way[-1][0]]) is not None:
            way.append(before)
        return [self._line(*step) for step in reversed(way)]

    def _line(self, state: _State, choice: _Choice) -> str:
        kind, what = choice
        if kind == "lose":
            node, key = next(known for known, place in self._cells.items() if place == what)
            return f"          the {self._system.show('key', key)} is lost on {node}"
        if kind in ("cut", "heal"):
            return f"          {what} " + ("is cut off" if kind == "cut" else "is back")
        if kind == "late":
            return f"          what {what[1][0]} had sent happens now: {self._asked(what[0])}"
        spot = self._at(state, what)
        answer: Any = UNREACHABLE
        if kind == "step":
            try:
                answer = self._ask(state[0], state[1], spot.question, spot.writer)[2]
            except _Failed as violation:
                return f"{self._names[what]:>9} {self._asked(spot.question)}: {violation}"
        comes = "(a visitor comes) " if spot.begins else ""
        after = self._after(spot, what, state[0], answer)
        acks = [f"; acknowledged: {mode} of everything before v{version}" for mode, version in after.acks]
        served = [f"; served {how}" for how, _ in after.served]
        said = "".join([*self._answered(spot.question, answer), *acks, *served])
        return f"{self._names[what]:>9} {comes}{self._asked(spot.question)}{said}"

    def _asked(self, question: Question) -> str:
        words = [question[0]]
        if len(question) > 1:
            words.append(self._system.show("key", question[1]))
        if len(question) > 2:
            words += [":=", "gone" if question[2] is None else self._system.show(question[1], question[2])]
        return " ".join(words)

    def _answered(self, question: Question, answer: Any) -> str:
        if answer is not UNREACHABLE and question[0] in ("get", "gets"):
            value = answer[0] if question[0] == "gets" and answer is not None else answer
            return f" -> {self._system.show(question[1], value)}"
        return "" if answer is True and question[0] == "set" else f" -> {answer}"


_WRITES = frozenset({"set", "add", "cas", "delete"})


def _put(cells: _Cells, place: int, number: int) -> _Cells:
    changed = [*cells, *[0] * (place + 1 - len(cells))]
    changed[place] = number
    # Places are given out as keys are met: a state from before must equal the same one from after.
    while changed and not changed[-1]:
        changed.pop()
    return tuple(changed)
