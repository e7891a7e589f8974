"""The data cache: functions whose results are kept in the same store, protocol and tags as pages.

A page takes over every tag of the data that it used, with the tag versions of the data, and the lowest remaining
lifetime. Inside a render that will be stored, stale data is regenerated at once. Elsewhere stale data is returned and
regenerated in the background.
"""

from __future__ import annotations

import base64
import functools
import inspect
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf
from types import ModuleType
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, overload

from ..cache.context import RenderContext, current, rendering
from ..cache.entry import Entry, HitForMiss, Value
from ..cache.invalidation import Invalidator, Receipt
from ..cache.keyspace import EVERYTHING, Keyspace, stored_tag, tag_name
from ..cache.lookup import Cache
from ..cache.tag_versions import TagVersions, claims
from ..cache.task import Answer, Failed, Limits, Passed, Product, Regenerated, Served, Task
from ..cache.verdict import CacheDirectives, Failure, Storable, Validity
from ..config import options as o
from ..config.frameworks import personal
from ..config.lifetime import Lifetime
from ..config.rules import PROFILES, Rule, RuleSet, check_templates, lease_for
from ..errors import ConfigError, RefreshError
from ..events import DataServed, Events
from . import codec
from .isolation import is_importing
from .registry import Functions, Known, closure_of

P = ParamSpec("P")
R = TypeVar("R")

#: Seconds for which a store keeps None as the result for arguments.
NOTHING_KEPT = 600.0

_log = logging.getLogger("wsgi_isr.data")


class DataEngine(Protocol):
    """The engine that keeps data: one process's share of a store (:class:`~.engine.Engine`)."""

    cache: Cache
    events: Events
    clock: Callable[[], float]
    monotonic: Callable[[], float]
    keyspace: Keyspace
    invalidator: Invalidator
    tag_versions: TagVersions
    profiles: Mapping[str, tuple[float, float]]
    keeps: bool

    def active_app(self) -> str | None:
        """Return the name of the active app; ``None`` if it is not known."""


_here: ContextVar[DataEngine | None] = ContextVar("wsgi_isr_home", default=None)
_elsewhere: Callable[[], Sequence[DataEngine]] = tuple
_is_serving: Callable[[], bool] = bool


@contextmanager
def activate(home: DataEngine) -> Iterator[None]:
    """Make ``home`` the engine of all data in this context. The wiring does so around all code that it calls."""
    token = _here.set(home)
    try:
        yield
    finally:
        _here.reset(token)


def set_engine_lookup(find_homes: Callable[[], Sequence[DataEngine]], is_serving: Callable[[], bool]) -> None:
    """Set the engines for data outside of any app: in a script, or in a thread that the app started.

    :param find_homes: returns the engines.
    :param is_serving: returns whether this process answers requests.
    """
    global _elsewhere, _is_serving
    _elsewhere, _is_serving = find_homes, is_serving


def inside() -> DataEngine | None:
    """Return the engine of the app around this call, if there is one."""
    return _here.get()


def is_among_visitors() -> bool:
    """Return whether this code may run for one client.

    Threads that an app starts, and middlewares around an ISR, have no context that tells. So any code of a process
    that answers requests counts, except an import.
    """
    return inside() is not None or (_is_serving() and not is_importing())


def here() -> DataEngine | None:
    """Return the engine for data used here.

    Outside of all apps it is the only engine. With several engines the result is ``None``: each may belong to another
    tenant.
    """
    if (home := _here.get()) is not None:
        return home
    homes = _elsewhere()
    return homes[0] if len(homes) == 1 else None


def _everywhere() -> Sequence[DataEngine]:
    """Return every engine that may keep data of this function."""
    return (home,) if (home := _here.get()) is not None else _elsewhere()


class Cached(Known, Generic[P, R]):
    """A function whose results are kept; made by :func:`cached`."""

    _has_warned = False

    def __init__(self, function: Callable[P, R], rule: Rule, tags: Any, version: int | str, name: str = "") -> None:
        functools.update_wrapper(self, function)
        self.name = name or f"{function.__module__}:{function.__qualname__}"
        self._function = function
        self._signature = inspect.signature(function)
        self._types = codec.Types(function)
        self._rule = rule
        self._tags = tags
        # Functions of one factory share a name. The data in their closures tells them apart.
        closure = closure_of(function)
        self.around = closure.digest
        self.code = getattr(function, "__code__", None)
        self._version = version
        #: The identity of the function in this process.
        self.told = self.name, json.dumps(version), self.around
        self._untold = ""
        if is_among_visitors():
            self.watch(function, closure)
        elif closure.untold and not is_importing():
            self._untold = closure.untold
        _functions.add(self)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else _Bound(self, instance)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the kept result, or a new one.

        :raises Unencodable: an argument cannot be part of a key. Exceptions of the function pass through.
        """
        frame, home = current(), here()
        if home is None or (skip := self._skips(home, frame) or "closure" * self.is_personal()):
            return self._unkept(frame, "no-home" if home is None else skip, args, kwargs)
        began, shown = home.monotonic(), self._shown(*args, **kwargs)
        task = self._task(home, args, kwargs)
        found: Answer | Regenerated = home.cache.get(task, only_fresh=frame is not None and frame.stored)
        if isinstance(found, Served):
            label, age = found.label, found.cached.entry.age(home.clock())
            if (read := self._read(found.cached.entry, home, frame)) is None:
                # Another version of the code has stored it. Treat it as missing and call the function here.
                found, label, age = home.cache.refresh(task, "", inline=True), "MISS", 0.0
                read = self._read(found.cached.entry, home, frame) if isinstance(found, Regenerated) else None
            if read is not None:
                seconds = home.monotonic() - began
                home.events.emit(DataServed(self.name, label, task.text, age, seconds=seconds, shown=shown))
                return read[0]
        reason = found.reason if isinstance(found, (Failed, Passed)) else "unreadable"
        seconds = home.monotonic() - began
        home.events.emit(DataServed(self.name, "SKIP", task.text, reason=reason, seconds=seconds, shown=shown))
        if isinstance(found, Failed):
            if found.error is not None:
                self._carry(found, home, frame)
                raise found.error
            if (unkept := self._read_unkept(found, home, frame)) is not None:
                return unkept[0]
        # No result of another call came in time, or no result could be kept.
        return self._own(home, frame, tags_of_data(task), args, kwargs)

    def _own(self, home: DataEngine, frame: RenderContext | None, tags: Sequence[str], args: Any, kwargs: Any) -> R:
        """Return a new result for one caller. The page that uses it still takes over its ``tags`` and lifetime."""
        carried = {} if frame is None else claims(home.tag_versions.capture(tags).snapshot(tags))
        with rendering(home.profiles, stored=frame is not None and frame.stored) as asked:
            try:
                return self._function(*args, **kwargs)
            finally:
                if frame is not None:
                    frame.directives.take_over(asked, carried)
                    frame.directives.limit(*self._lifetime(home.profiles))

    def _skips(self, home: DataEngine, frame: RenderContext | None) -> str:
        """Return why the cache is not used; empty if it is."""
        if not home.keeps:
            return "store-disabled"
        if self._rule.revalidate == 0 and self._rule.revalidate is not False:
            return "revalidate-0"
        if frame is not None and frame.draft:
            return "draft"
        if home.active_app() is None:
            return "unknown-app"
        return "closure" if super().is_personal() else ""

    def is_personal(self) -> bool:
        """Return whether the function may hold data of one visitor that is not in its key.

        Outside of known requests, every function with an object in its closure counts, except the functions of a
        module. An app's factory may have made it, or a middleware around an ISR that answers its first request.
        """
        if super().is_personal():
            return True
        if not self._untold or inside() is not None:
            return False
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "%s is not kept outside of requests: it is made with %s; pass that as an argument, or call refresh()",
                self.name,
                self._untold,
            )
        return True

    def _unkept(self, frame: RenderContext | None, reason: str, args: Any, kwargs: Any) -> R:
        """Return a new result that is not kept, because there is no engine or it may not be kept."""
        if reason == "revalidate-0" and frame is not None:
            frame.directives.no_store = True
        if (home := here()) is not None:
            home.events.emit(DataServed(self.name, "SKIP", reason=reason, shown=self._shown(*args, **kwargs)))
            if reason in ("closure", "unknown-app"):
                tags = list(map(tag_name, self._given_tags(self._bind(args, kwargs))))
                return self._own(home, frame, tags, args, kwargs)
        return self._function(*args, **kwargs)

    def _read(self, entry: Entry, home: DataEngine, frame: RenderContext | None) -> tuple[R] | None:
        """Return the kept result (which may be None) and note its use; ``None`` if it cannot be read."""
        read = self._decoded(entry.content)
        if read is not None and frame is not None:
            frame.directives.use(entry, home.clock())
        return read

    def _read_unkept(self, found: Failed, home: DataEngine, frame: RenderContext | None) -> tuple[R] | None:
        """Return the result of a shared call that may not be kept; ``None`` if there is none.

        A result from before an invalidation is not returned: this caller may have arrived after the invalidation.
        """
        if (
            found.directives is None
            or home.tag_versions.validity(found.snapshot, home.tag_versions.ask()) >= Validity.EXPIRED
        ):
            return None
        read = self._decoded(found.content)
        if read is not None:
            self._carry(found, home, frame)
        return read

    def _carry(self, failed: Failed, home: DataEngine, frame: RenderContext | None) -> None:
        """Give the page the tags and the lifetime of a result whose call failed.

        The page may depend on the failure (such as a page that says that there is no such post).
        """
        if frame is not None:
            frame.directives.take_over(failed.directives or CacheDirectives(), claims(failed.snapshot))
            frame.directives.limit(*self._lifetime(home.profiles))

    def _decoded(self, content: Any) -> tuple[R] | None:
        if not isinstance(content, Value):
            return None
        try:
            value: R = codec.decode(content.data, self._types.allows)
        except ValueError as error:
            _log.warning("%s: what is kept cannot be read (%s); it is made anew", self.name, error)
            return None
        return (value,)

    # Hooks for functions that know more about their results (.http_session) --------------------------------

    def _shown(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return a call's text for people; empty if the function's name is enough."""
        return ""

    def _unkept_because(self, value: R) -> str:
        """Return why a result must not be kept; empty if it may be.

        Such a result is a failure, but all callers that wait for it get it.
        """
        return ""

    def _kept_for(self, value: R) -> float | None:
        """Return the seconds after which the store may forget a result; ``None`` for never."""
        return None

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Receipt | None:
        """Invalidate the kept result of these arguments, in every app of this process.

        :returns: the receipt; ``None`` if no data is kept at all.
        :raises InvalidationError: it could not be delivered.
        """
        names = [_own_tag(self._text(args, kwargs))]
        receipts = [home.invalidator.invalidate(names, "expire") for home in _everywhere() if home.keeps]
        return receipts[0] if receipts else None

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function now, keep the result, and return it. Calls already in progress are not reused.

        Until then, and after a failure, the kept result is stale.

        :raises RefreshError: the call took longer than its ``timeout``, or its result cannot be kept.
        :raises InvalidationError: other processes could not be told. Exceptions of the function pass through.
        """
        frame, home = current(), here()
        if home is None or self._skips(home, frame):
            return self(*args, **kwargs)
        task = self._task(home, args, kwargs)
        outcome = home.cache.refresh(task, _own_tag(task.text))
        if isinstance(outcome, Failed):
            self._carry(outcome, home, frame)
            raise outcome.error or RefreshError(self.name, outcome.reason)
        entry = outcome.cached.entry
        if isinstance(entry.content, HitForMiss):
            raise RefreshError(self.name, entry.content.reason)
        read = self._read(entry, home, frame)
        # Another process made the result, of types that this process does not know.
        return self(*args, **kwargs) if read is None else read[0]

    # Tasks ---------------------------------------------------------------------------------------------

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)

    def _text(self, args: tuple[Any, ...], kwargs: dict[str, Any], app: str = "") -> str:
        """Return the key of a call, unambiguously.

        It has module, qualified name, version, arguments by name, closure data, and the app if there are several.
        """
        arguments = base64.b85encode(codec.encode(self._bind(args, kwargs), key=True)).decode()
        return _joined([self.name, self._version, arguments, self.around, app])

    def _task(self, home: DataEngine, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Task:
        text, rule = self._text(args, kwargs, home.active_app() or ""), self._rule
        _functions.use(self)
        timeout, wait = rule.render_timeout or 30.0, 10.0 if rule.lock_timeout is None else rule.lock_timeout
        limits = Limits(timeout, wait, lease_for(timeout))
        return Task(home.keyspace.data(text), text, self.name, limits, data=True)

    def _given_tags(self, arguments: dict[str, Any]) -> list[str]:
        if not callable(self._tags):
            return [tag.format_map(arguments) for tag in self._tags]
        return list(o.TAGS.check(f"{self.name}: tags", self._tags(arguments)))

    def _lifetime(self, profiles: Mapping[str, tuple[float, float]]) -> Lifetime:
        revalidate, expire = self._rule.revalidate, self._rule.expire
        if isinstance(revalidate, str):
            if revalidate not in profiles:
                raise o.unknown(f"cached: revalidate={revalidate!r}", profiles, "there is no such profile")
            profile = profiles[revalidate]
            return Lifetime(profile[0], profile[1] if expire is None else expire)
        return Lifetime(None if revalidate in (None, False) else float(revalidate), expire)


_functions: Functions[Cached[Any, Any]] = Functions()


class _Bound(Generic[P, R]):
    """A cached method of one object; the object is one of the arguments."""

    def __init__(self, method: Cached[P, R], instance: Any) -> None:
        self._method = method
        self._instance = instance

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        return self._method(self._instance, *args, **kwargs)

    def invalidate(self, *args: Any, **kwargs: Any) -> Receipt | None:
        """See :meth:`Cached.invalidate`."""
        return self._method.invalidate(self._instance, *args, **kwargs)

    def refresh(self, *args: Any, **kwargs: Any) -> R:
        """See :meth:`Cached.refresh`."""
        return self._method.refresh(self._instance, *args, **kwargs)


@overload
def cached(function: Callable[P, R], /) -> Cached[P, R]: ...
@overload
def cached(
    *,
    revalidate: float | str | bool = ...,
    expire: float | None = ...,
    tags: Any = ...,
    version: int = ...,
    timeout: float | None = ...,
    lock_timeout: float | None = ...,
) -> Callable[[Callable[P, R]], Cached[P, R]]: ...
def cached(
    function: Callable[P, R] | None = None,
    /,
    *,
    revalidate: float | str | bool = False,
    expire: float | None = None,
    tags: Any = (),
    version: int = 1,
    timeout: float | None = None,
    lock_timeout: float | None = None,
) -> Any:
    """Keep the results of a function or method, like Next.js's ``unstable_cache``.

    The key is module, qualified name, ``version`` and all arguments (for a method, the object too). Arguments and
    results consist of None, numbers, text, bytes, lists, tuples, dicts, sets, dates, Decimal, UUID and dataclasses. A
    result keeps its type (for dataclasses, see :class:`.codec.Types`). Such values in the function's closure, as they
    are when it is made, are part of the key as well; other values there are not.

    A function that is made in a view and holds another value (an object of the visitor, perhaps) is called each time.
    So is such a function that is called outside of requests, unless its module makes it while it is imported. If two
    functions of a module share a name (lambdas, say) but not their code, one raises ``ConfigError`` when it is called.

    :param revalidate: seconds, a profile, ``False`` for until invalidated, ``0`` for never kept: then a page that uses
        it is not stored either.
    :param expire: seconds past which a result is no longer returned while a new one is made.
    :param tags: a list, with ``{argument}`` filled in, or a callable that gets the arguments as a dict.
    :param version: change it when the meaning of the result changes.
    :param timeout: seconds for the longest call.
    :param lock_timeout: seconds to wait for another process's call.
    :raises ConfigError: a value is impossible.
    """

    def decorate(function: Callable[P, R]) -> Cached[P, R]:
        # An object, or the object of a bound method, would not be in the key; a class is no argument that has bytes.
        owner = getattr(function, "__self__", None)
        named = callable(function) and isinstance(getattr(function, "__qualname__", None), str)
        if not named or not (owner is None or isinstance(owner, ModuleType)):
            remedy = "write one with def, or decorate the method in its class"
            raise ConfigError("cached", f"{function!r} is no function of its own", remedy)
        kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
        if any(is_kind(function) for is_kind in kinds):
            raise ConfigError("cached", f"{function.__qualname__} returns no data", "cache a plain function")
        rule = Rule(revalidate=revalidate, expire=expire, render_timeout=timeout, lock_timeout=lock_timeout)
        # The same checks as for pages. Profiles are checked on use.
        RuleSet({"/": rule}, Rule(), {revalidate: (0.0, inf)} if isinstance(revalidate, str) else PROFILES)
        checked = o.TAGS.check("cached: tags", tags)
        if not callable(checked):
            parameters = inspect.signature(function).parameters
            check_templates("cached: ", checked, set(parameters))
        return Cached(function, rule, checked, version)

    return decorate if function is None else decorate(function)


def tags_of_data(task: Task) -> list[str]:
    """Return all tags that data has before it is made."""
    given = _functions.find(task)._given_tags(_arguments(task))
    return [EVERYTHING, stored_tag(_own_tag(task.text)), *map(tag_name, given)]


def app_of(task: Task) -> str:
    """Return the name of the app that data was requested in; empty if there is one app."""
    return str((*json.loads(task.text), "", "")[4])


def _own_tag(text: str) -> str:
    """Return the tag of one key alone, in all apps."""
    return f"data:{_joined(json.loads(text)[:4])}"


def _joined(parts: list[Any]) -> str:
    """Return the parts of a key as text, without trailing empty parts."""
    while parts[-1] == "":
        parts = parts[:-1]
    return json.dumps(parts)


def produce_data(task: Task, profiles: Mapping[str, tuple[float, float]] = PROFILES) -> Product:
    """Return the result of the function of a task, called with the arguments in the task's key."""
    function = _functions.find(task)
    with rendering(profiles) as asked:
        arguments = _arguments(task)
        try:
            value = function._function(*_positional(function, arguments), **_named(function, arguments))
        except Exception as error:
            return Failure("exception", None, asked, personal(error, function.name))
    if function.is_personal():  # the function may have changed during the call
        return Failure("closure")
    unkept = function._unkept_because(value)
    if asked.no_store and not unkept:
        return HitForMiss("revalidate-0")
    try:
        data = codec.encode(value)
    except codec.Unencodable as error:
        _log.warning("%s is not kept: %s", function.name, error)
        return HitForMiss("unencodable")
    if unkept := unkept or asked.failed:
        return Failure(unkept, Value(data), asked)
    lifetime = function._lifetime(profiles)
    if asked.lifetime is not None:
        lifetime = lifetime.lowest(asked.lifetime.revalidate, asked.lifetime.expire)
    tags = tuple(map(tag_name, dict.fromkeys(asked.tags)))
    keep = function._kept_for(value)
    # Clients can invent arguments that have no result. As for a 404, no tags are created, and the store may forget the
    # result.
    is_nothing = value is None and bool(arguments)
    is_negative = keep is not None or is_nothing
    if is_nothing:
        keep = min(NOTHING_KEPT, keep or NOTHING_KEPT)
    carried = tuple(asked.carried.items())
    return Storable(Value(data), lifetime, keep, tags, carried, asked, is_negative)


def _arguments(task: Task) -> dict[str, Any]:
    arguments: dict[str, Any] = codec.decode(base64.b85decode(json.loads(task.text)[2]), codec.every)
    return arguments


def _positional(function: Cached[Any, Any], arguments: dict[str, Any]) -> list[Any]:
    taken: list[Any] = []
    for name, parameter in function._signature.parameters.items():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            taken.append(arguments[name])
        elif parameter.kind is parameter.VAR_POSITIONAL:
            taken += arguments[name]
    return taken


def _named(function: Cached[Any, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for name, parameter in function._signature.parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            named[name] = arguments[name]
        elif parameter.kind is parameter.VAR_KEYWORD:
            named |= arguments[name]
    return named
