"""The store and the world as one program sees them, one question at a time.

A *program* is an ordinary function that gets a :class:`Gate`, which is a store whose verbs are scheduling points. No
threads are involved. For each step the program runs again from its beginning with its answers so far. It is left at
the first question without an answer. So a program is an automaton whose states are :class:`Spot`, made on demand. A
program may be a model or the real code. It has to ask the same questions after the same answers, which is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from wsgi_isr.errors import StoreUnavailable
from wsgi_isr.stores.base import Many, Store, Token, Versioned

Program = Callable[["Gate"], None]

Question = tuple[Any, ...]
"""``(verb, key, *arguments)``, or one to the world: ``("commit",)``, ``("read",)``, ``("time",)``."""

#: In place of an answer, where the node is cut off or a write timed out.
UNREACHABLE = "unreachable"

# How a visitor may be served. Each word has its floor: the version of the data that is owed to it.
FRESH, STALE, RETAINED = "fresh", "stale", "retained"
#: By time alone, and marked so: where a node that has to be asked cannot be reached.
UNPROVEN = "unproven"
_FLOOR_OF = {FRESH: 0, STALE: 1, RETAINED: 2, UNPROVEN: 0}
#: How many of the floors an acknowledged invalidation raises.
RAISES = {"stale": 1, "expire": 2, "purge": 3}


class Paused(BaseException):
    """Raised in a program that asked a question without an answer yet."""


class Unsound(AssertionError):
    """A program raised, or did not repeat itself: an error of the program, no violation of the protocol."""


class Spot:
    """The position of a program: its answers so far, and its next question.

    ``acks``, ``served`` and ``violation`` are its reports since the last answer. ``begins``: a visitor comes with the
    next question. ``at_once``: no program can observe when it is answered. ``number`` is 0 at the end.
    """

    __slots__ = ("acks", "at_once", "begins", "history", "number", "question", "served", "then", "violation", "writer")

    def __init__(self, name: str, history: tuple[tuple[Question, Any], ...]) -> None:
        self.history = history
        # The token of its next write: the same in any order of steps, and never used twice.
        self.writer = (name, len(history))
        self.number = 0
        self.question: Question = ()
        self.begins = False
        self.at_once = False
        self.acks: list[tuple[str, int]] = []
        self.served: list[tuple[str, bool]] = []
        self.violation = ""
        self.then: dict[Any, Spot] = {}


class Gate(Store):
    """See the module. ``nodes`` and ``home`` say where keys are while all nodes are up."""

    def __init__(self, name: str, spot: Spot, nodes: Sequence[str], home: Callable[[str], str]) -> None:
        self.name = name
        self.nodes = tuple(nodes)
        self.unsound: Unsound | None = None
        self._home = home
        self._spot = spot
        self._position = 0
        self._nonces = 0
        self._begins = False
        self._refused = False
        self._floors = (0, 0, 0)

    # The world ---------------------------------------------------------------------------------------

    def commit(self) -> int:
        """Commit the next version of the data."""
        version: int = self._ask(("commit",))
        return version

    def read(self) -> int:
        """Return the version of the committed data. This read counts as the render."""
        version: int = self._ask(("read",))
        return version

    def time(self) -> int:
        """Return the time. The clock moves with every commit and acknowledgement; reading it takes no time."""
        now: int = self._ask(("time",))
        return now

    def acknowledge(self, mode: str, version: int) -> None:
        """Report that an invalidation of all data before ``version`` is done."""
        self._speak()
        self._spot.acks.append((mode, version))

    def begin(self) -> None:
        """Begin a visit, right before the next question: the latest moment demands the newest data."""
        self._speak()
        self._begins = True
        self._refused = False

    def serve(self, how: str, version: int) -> None:
        """Report that the visitor of the last :meth:`begin` gets data of ``version``."""
        if self._begins:
            self.time()  # a visitor served without a question has the same right to new data
        self._speak()
        owed = self._floors[_FLOOR_OF[how]]
        self._spot.served.append((how, version < self._floors[0]))
        wrong = ""
        if how == UNPROVEN:
            # A visitor may be served by time alone only if a node has not answered.
            wrong = "" if self._refused else "and every node had answered"
        elif version < owed:
            wrong = f"and v{owed} was acknowledged before"
        if wrong and not self._spot.violation:
            self._spot.violation = f"{self.name} was served v{version} as {how}, {wrong}"

    def nonce(self) -> str:
        """Return a text of 12 characters that no other caller ever gets."""
        self._nonces += 1
        return f"{self.name:.8}.{self._nonces}".ljust(12, "_")

    def urandom(self, size: int) -> bytes:
        """Return bytes in place of :func:`os.urandom`, for sizes that are a multiple of 12."""
        assert size % 12 == 0, size
        return "".join(self.nonce() for _ in range(size // 12)).encode()

    # The store ---------------------------------------------------------------------------------------

    def node_of(self, key: str) -> str:
        return self._home(key)

    def get(self, key: str) -> Any:
        return self._call("get", key)

    def get_many(self, keys: Sequence[str]) -> Many:
        """Read key by key in the given order, as memcached does. Other programs may write in between."""
        found, unreachable = {}, {}
        for key in keys:
            try:
                value = self._call("get", key)
            except StoreUnavailable as error:
                unreachable[key] = error
            else:
                if value is not None:
                    found[key] = value
        return Many(found, unreachable)

    def gets(self, key: str) -> Versioned | None:
        held = self._call("gets", key)
        return None if held is None else Versioned(*held)

    def set(self, key: str, value: Any, ttl: float | None = None) -> None:
        self._call("set", key, value)

    def add(self, key: str, value: Any, ttl: float | None = None) -> bool:
        done: bool = self._call("add", key, value)
        return done

    def cas(self, key: str, value: Any, token: Token, ttl: float | None = None) -> bool:
        done: bool = self._call("cas", key, None if ttl == 0 else value, token)
        return done

    def delete(self, key: str) -> bool:
        done: bool = self._call("delete", key)
        return done

    def close(self) -> None:
        """Do nothing: there are no resources."""

    def _call(self, *question: Any) -> Any:
        answer = self._ask(question)
        if answer is UNREACHABLE:
            self._refused = True
            raise StoreUnavailable(self.node_of(question[1]), "cut off")
        return answer

    def _ask(self, question: Question) -> Any:
        self._speak()
        spot = self._spot
        if self._position == len(spot.history):
            spot.question, spot.begins = question, self._begins
            raise Paused
        asked, answer = spot.history[self._position]
        if asked != question:
            # Kept, because the program may catch it as an error of the store.
            self.unsound = Unsound(f"{self.name} asked {asked} once, and {question} after the same answers")
            raise self.unsound
        self._position += 1
        # Acknowledgements from before this answer belong to an earlier spot.
        spot.acks, spot.served, spot.violation = [], [], ""
        if self._begins:
            self._begins = False
            answer, self._floors = answer
        return answer

    def _speak(self) -> None:
        # A `finally` of a program that was left goes on for a while. Its reports are not recorded.
        if self._spot.question:
            raise Paused
