"""Turn the switch of a namespace (:mod:`.switch`): for the commands, and for the dashboard."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from ..config.options import MAX_SECONDS
from ..errors import ConfigError, StoreError, listed
from ..stores.base import Store
from ..stores.files import owner_of, this_user
from .app_records import Apps, Registry, advice, kept_pattern
from .switch import MAX_RULES, MAX_TEXT, NO_RECORD, ON, Copies, Record, checked


class Turned(NamedTuple):
    """The result of a turn.

    :param record: the new record; the present one where nothing changed.
    :param before: the record that was in effect before; ``None`` if the cache was on.
    :param has_changed: whether a record was written.
    :param store: the absolute location of the store.
    :param note: why nothing changed.
    :param nodes: the nodes of the store; empty for a store of one process.
    :param missed: the nodes that missed the record, each with its error.
    :param file: the file that holds the record for the processes of this machine, where no node does.
    :param warnings: reasons why the turn may have reached no process, and what to write.
    """

    record: Record
    before: Record | None
    has_changed: bool
    store: str
    namespace: str
    note: str = ""
    nodes: tuple[str, ...] = ()
    missed: tuple[tuple[str, StoreError], ...] = ()
    file: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def is_delivered(self) -> bool:
        """Return whether each process learns of the record. A file reaches the processes of this machine alone."""
        return not self.nodes or len(self.missed) < len(self.nodes)


class Switchboard:
    """The switch of one namespace.

    :param registry: the apps that have used the namespace, for warnings and for their rules.
    :param after: called after each turn, so that this process reads the epochs again.
    """

    def __init__(
        self,
        copies: Copies,
        store: Store,
        namespace: str,
        registry: Registry,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self._copies = copies
        self._store = store
        self._namespace = namespace
        self._registry = registry
        self._after = after

    def turn(
        self,
        mode: str,
        seconds: float | None = None,
        rules: Sequence[str] = (),
        actor: str = "",
        known: Collection[str] | None = None,
    ) -> Turned:
        """Turn the switch to ``mode``, in place of the present record, and return the result.

        :param seconds: the duration; ``None`` for no end.
        :param rules: the patterns of the rules concerned; empty for the whole cache.
        :param actor: the user, for the log; by default the user and the machine of this process.
        :param known: the patterns of the app's rules; ``None`` for those in the records of the store.
        :raises ConfigError: a rule or the duration is wrong, no process can be told, or the apps have a signing key
            that is missing here.
        """
        if seconds is not None and not (math.isfinite(seconds) and 0 < seconds <= MAX_SECONDS):
            raise ConfigError("for", f"{seconds!r} is out of range", "write 10m")
        found = self._copies.read()
        apps = None if found.unreachable else self._apps()
        if self._copies.are_signed(found.values.values()) or (
            apps is None and not found.unreachable and self._store.keeps and self._registry.is_signed()
        ):
            problem = f"the app signs the records of the namespace {self._namespace!r}, and no key is known here"
            raise ConfigError("signing_key", problem, "set WSGI_ISR_SIGNING_KEY as the app has it")
        self._check(rules, known, apps)
        stored, filed = self._copies.newest(found.values.values()), self._copies.filed()
        newest = max(stored, filed, key=lambda record: record.stamp)
        now = self._copies.clock()
        before = newest if newest.is_active(now) else None
        warnings = tuple(self._warnings(rules, known, apps))
        place = self._store.location, self._namespace
        if not self._store.keeps:
            return Turned(NO_RECORD, None, False, *place, note="the store keeps nothing")
        if mode == ON and before is None and not found.unreachable:
            return Turned(newest, None, False, *place, note="the cache is on", warnings=warnings)
        record = Record(
            max(int(now * 1000), newest.stamp + 1),
            mode,
            None if seconds is None else now + seconds,
            tuple(dict.fromkeys(rules)) or None,
            _utf_8(actor or f"{this_user()} on {socket.gethostname()}")[:MAX_TEXT],
            now,
        )
        if checked(record, now) is None:
            problem = f"no process would obey the record {record}: the present one is from the future"
            raise ConfigError("the switch", problem, "check the clock of this machine")
        missed = self._copies.write(record)
        is_local = not self._store.shared or len(missed) == len(self._copies.nodes)
        try:
            file = self._turn_file(record, filed, is_local)
        finally:
            self._after()
        nodes = self._copies.nodes if self._store.shared else ()
        return Turned(record, before, True, *place, "", nodes, tuple(missed.items()), file, warnings)

    def _turn_file(self, record: Record, filed: Record, is_needed: bool) -> str | None:
        """Write the record to the file, or remove an older one. Return the path of a file that is needed.

        :raises ConfigError: the file that is needed cannot be written, or an old one cannot be removed.
        """
        file = self._copies.file
        try:
            if is_needed and file:
                self._copies.write_file(record)
                return file
            if filed is not NO_RECORD:
                self._copies.remove_file()
        except OSError as error:
            place = str(error.filename or file)
            problem = f"{place}: {error.strerror}; it belongs to {owner_of(place)}, and this process is {this_user()}"
            remedy = f"run the command as that user, or {'remove' if record.mode == ON else 'create'} {file} by hand"
            raise ConfigError("the file of the switch", problem, remedy) from error
        return None

    # Rules and warnings ----------------------------------------------------------------------------------

    def _apps(self) -> Apps | None:
        return self._registry.apps() if self._store.keeps else None

    def _check(self, rules: Sequence[str], known: Collection[str] | None, apps: Apps | None) -> None:
        """Check that each pattern is the one of a rule.

        :raises ConfigError: a pattern is unknown; the error names the rules.
        """
        if len({*rules}) > MAX_RULES or any(len(pattern) > MAX_TEXT for pattern in rules):
            raise ConfigError("rule", f"{len(rules)} rules are too many or too long", "leave out --rule")
        for pattern in rules:
            if _utf_8(pattern) != pattern:
                raise ConfigError("rule", f"{pattern!a} is not UTF-8", "write the pattern as the app has it")
        shown = known
        if known is None:
            if apps is None or not apps.records or not all(record.is_complete for record in apps.records):
                return
            shown = {pattern for record in apps.records for pattern in record.rules}
        for pattern in rules:
            if (pattern if known is not None else kept_pattern(pattern)) not in (shown or ()):
                problem = f"{pattern!r} is the pattern of no rule"
                raise ConfigError("rule", problem, f"one of: {listed(sorted(shown or ()))}")

    def _warnings(self, rules: Sequence[str], known: Collection[str] | None, apps: Apps | None) -> list[str]:
        """Return reasons why the turn may reach no process."""
        if known is not None or not self._store.keeps or not self._store.shared:
            return []
        said = [one.text for one in advice((), (), apps, self._store, self._namespace, is_own=False)]
        if rules and (apps is None or not apps.records):
            said.append(
                f"the rules of the app are unknown here, so {listed(rules)} may be misspelt: write --app myapp:app"
            )
        return said


def _utf_8(text: str) -> str:
    """Return a text that has a form in UTF-8. A command line or the name of a user may have other bytes."""
    return text.encode("utf-8", "backslashreplace").decode()
