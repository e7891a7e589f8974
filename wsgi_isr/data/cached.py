"""The data cache: ``@cached`` stores the results of functions by the same store, protocol and tags as pages.

A page takes over every tag of the data that it used, with the tag versions of the data, and the lowest remaining
lifetime. Inside a render that will be stored, stale data is regenerated at once. Elsewhere stale data is returned and
regenerated in the background.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from math import inf
from types import ModuleType
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar, overload

from ..cache.context import RenderContext, current, rendering
from ..cache.entry import Entry, HitForMiss
from ..cache.invalidation import Receipt
from ..cache.tag_versions import claims
from ..cache.task import Failed, Passed, Served, Task
from ..cache.verdict import CacheDirectives, Validity
from ..config import options as o
from ..config.lifetime import PROFILES
from ..config.policy import check_templates
from ..config.rules import Rule
from ..errors import ConfigError, RefreshError
from ..events import DataServed
from .active_engine import DataEngine, all_engines, current_engine
from .data_key import DataKey
from .function import DataFunction, tags_of_data

P = ParamSpec("P")
R = TypeVar("R")

#: The reasons for a bypass with which the page that uses the result is not stored either.
_UNSTORED_PAGE = ("store-disabled", "revalidate-0", "draft")


class _Found(NamedTuple):
    """A result from the cache.

    :param label: as the ``X-ISR`` of a page.
    :param age: seconds.
    """

    result: Any
    label: str
    age: float


class Cached(DataFunction[P, R]):
    """A function whose results are stored; made by :func:`cached`."""

    def __init__(self, function: Callable[P, R], rule: Rule, tags: Any, version: int | str, name: str = "") -> None:
        functools.update_wrapper(self, function)
        super().__init__(function, rule, tags, version, name)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else _BoundMethod(self, instance)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the stored result, or a new one.

        :raises Unencodable: an argument cannot be part of a key. Exceptions of the function pass through.
        """
        outer, engine = current(), current_engine()
        reason = self._bypass_reason(engine, outer)
        if engine is None or reason:
            if engine is not None:
                shown = self._description(*args, **kwargs)
                engine.events.emit(DataServed(self.name, "SKIP", reason=reason, shown=shown))
            return self._bypass(reason, engine, outer, args, kwargs)
        began, shown = engine.monotonic(), self._description(*args, **kwargs)
        task = self._task(engine, args, kwargs)
        found = self._look_up(task, engine, outer)
        seconds = engine.monotonic() - began
        if isinstance(found, _Found):
            engine.events.emit(DataServed(self.name, found.label, task.text, found.age, seconds=seconds, shown=shown))
            result: R = found.result
            return result
        reason = "unreadable" if found is None else found.reason
        engine.events.emit(DataServed(self.name, "SKIP", task.text, reason=reason, seconds=seconds, shown=shown))
        if isinstance(found, Failed) and (shared := self._shared(found, engine, outer)) is not None:
            return shared[0]
        return self._bypass(reason, engine, outer, args, kwargs, task)

    def _bypass_reason(
        self, engine: DataEngine | None, outer: RenderContext | None, *, is_refresh: bool = False
    ) -> str:
        """Return why a call must go around the cache, as a token; empty if it uses the cache.

        :param is_refresh: the call is a :meth:`refresh`, which a function with objects in its closure allows outside
            of requests.
        """
        if engine is None:
            return "no-engine"
        if not engine.keeps:
            return "store-disabled"
        if self._rule.revalidate == 0 and self._rule.revalidate is not False:
            return "revalidate-0"
        if outer is not None and outer.draft:
            return "draft"
        if engine.active_app() is None:
            return "unknown-app"
        is_personal = self.has_personal_closure() if is_refresh else self.is_personal()
        return "closure" if is_personal else ""

    def _bypass(
        self,
        reason: str,
        engine: DataEngine | None,
        outer: RenderContext | None,
        args: Any,
        kwargs: Any,
        task: Task | None = None,
    ) -> R:
        """Call the function around the cache: the result is for this caller alone, and is not stored.

        Each call without a result from the cache ends here. The render around the call still takes over the tags and
        the lifetime of the result.

        :param reason: the token of :meth:`_bypass_reason`, or the reason of a look-up without a result.
        :param outer: the render around the call, of a page or of other data.
        :param task: the task of the look-up; ``None`` without a look-up.
        """
        if engine is None or (task is None and reason in _UNSTORED_PAGE):
            if reason == "revalidate-0" and outer is not None:
                outer.directives.no_store = True
            return self._function(*args, **kwargs)
        tags = self._declared_tags(self._arguments(args, kwargs)) if task is None else tags_of_data(task)
        carried = {} if outer is None else claims(engine.tag_versions.capture(tags).snapshot(tags))
        with rendering(engine.profiles, stored=outer is not None and outer.stored) as directives:
            try:
                return self._function(*args, **kwargs)
            finally:
                if outer is not None:
                    outer.directives.take_over(directives, carried)
                    outer.directives.limit(*self._lifetime(engine.profiles))

    # Look-ups ----------------------------------------------------------------------------------------------

    def _look_up(self, task: Task, engine: DataEngine, outer: RenderContext | None) -> _Found | Failed | Passed | None:
        """Return the result of a task from the cache, or why there is none; ``None`` if it cannot be read."""
        answer = engine.cache.get(task, only_fresh=outer is not None and outer.stored)
        if isinstance(answer, (Failed, Passed)):
            return answer
        if isinstance(answer, Served):
            entry = answer.cached.entry
            label, age = answer.label, entry.age(engine.clock())
            if (read := self._read(entry, engine, outer)) is not None:
                return _Found(read[0], label, age)
            # Another version of the code has stored the result. Treat it as missing, and call the function here.
            outcome = engine.cache.refresh(task, "", inline=True)
            if isinstance(outcome, Failed):
                return outcome
            if (read := self._read(outcome.cached.entry, engine, outer)) is not None:
                return _Found(read[0], "MISS", 0.0)
        return None

    def _read(self, entry: Entry, engine: DataEngine, outer: RenderContext | None) -> tuple[R] | None:
        """Return the stored result (which may be None) and note its use; ``None`` if it cannot be read."""
        read = self._decoded(entry.content)
        if read is not None and outer is not None:
            outer.directives.use(entry, engine.clock())
        return read

    def _shared(self, failed: Failed, engine: DataEngine, outer: RenderContext | None) -> tuple[R] | None:
        """Return the result of a shared call that may not be stored; ``None`` if there is none.

        Raise the exception of the shared call, if it raised one. A result from before an invalidation is not returned:
        this caller may have arrived after the invalidation.
        """
        if failed.error is not None:
            self._take_over(failed, engine, outer)
            raise failed.error
        if failed.directives is None:
            return None
        if engine.tag_versions.validity(failed.snapshot, engine.tag_versions.ask()) >= Validity.EXPIRED:
            return None
        read = self._decoded(failed.content)
        if read is not None:
            self._take_over(failed, engine, outer)
        return read

    def _take_over(self, failed: Failed, engine: DataEngine, outer: RenderContext | None) -> None:
        """Give the page the tags and the lifetime of a failed call.

        The page may depend on the failure: it may say that there is no such post.
        """
        if outer is not None:
            outer.directives.take_over(failed.directives or CacheDirectives(), claims(failed.snapshot))
            outer.directives.limit(*self._lifetime(engine.profiles))

    # Invalidation ------------------------------------------------------------------------------------------

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Receipt | None:
        """Invalidate the stored result of these arguments, in every app of this process.

        :returns: the receipt; ``None`` if no data is stored at all.
        :raises InvalidationError: it could not be delivered.
        """
        names = [self._key(args, kwargs).tag]
        receipts = [engine.invalidator.invalidate(names, "expire") for engine in all_engines() if engine.keeps]
        return receipts[0] if receipts else None

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function now, store the result, and return it. Calls already in progress are not reused.

        Until then, and after a failure, the stored result is stale.

        :raises RefreshError: the call took longer than its ``timeout``, or its result cannot be stored.
        :raises InvalidationError: other processes could not be told. Exceptions of the function pass through.
        """
        outer, engine = current(), current_engine()
        if engine is None or self._bypass_reason(engine, outer, is_refresh=True):
            return self(*args, **kwargs)
        task = self._task(engine, args, kwargs)
        outcome = engine.cache.refresh(task, DataKey.parse(task.text).tag)
        if isinstance(outcome, Failed):
            self._take_over(outcome, engine, outer)
            raise outcome.error or RefreshError(self.name, outcome.reason)
        entry = outcome.cached.entry
        if isinstance(entry.content, HitForMiss):
            raise RefreshError(self.name, entry.content.reason)
        read = self._read(entry, engine, outer)
        # Another process may have produced the result, with types that this process does not know.
        return self(*args, **kwargs) if read is None else read[0]


class _BoundMethod(Generic[P, R]):
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
    """Return ``function`` with its results stored, like Next.js's ``unstable_cache``.

    The key consists of module, qualified name, ``version`` and all arguments (for a method, the object too). Arguments
    and results consist of None, numbers, text, bytes, lists, tuples, dicts, sets, dates, Decimal, UUID and dataclasses.
    A result keeps its type (for dataclasses, see :class:`.codec.Types`). The key also holds such values in the closure
    of the function, as they are when the function is made. It holds no other values of the closure.

    A function with another value in its closure is called each time if a view made it: the value may be an object of
    the visitor. Such a function is called each time outside of requests, too, unless its module made it while it was
    imported. Two functions of a module may share a name (lambdas, say), but not their code. Then the call of one raises
    ``ConfigError``.

    :param revalidate: seconds, a profile, ``False`` for until invalidated, ``0`` for never stored: then a page that
        uses the result is not stored either.
    :param expire: seconds past which a result is no longer returned while a new one is produced.
    :param tags: a list, with ``{argument}`` filled in, or a callable that gets the arguments as a dict.
    :param version: change it when the meaning of the result changes.
    :param timeout: seconds for the longest call.
    :param lock_timeout: seconds to wait for another process's call.
    :raises ConfigError: a value is impossible.
    """

    def decorate(function: Callable[P, R]) -> Cached[P, R]:
        _check_cacheable(function)
        rule = Rule(revalidate=revalidate, expire=expire, render_timeout=timeout, lock_timeout=lock_timeout)
        # The same checks as for pages. Profiles are checked on use.
        from ..config.rule_set import RuleSet  # late, as in Config.load

        RuleSet({"/": rule}, Rule(), {revalidate: (0.0, inf)} if isinstance(revalidate, str) else PROFILES)
        checked = o.TAGS.check("cached: tags", tags)
        if not callable(checked):
            check_templates("cached: ", checked, set(inspect.signature(function).parameters))
        return Cached(function, rule, checked, version)

    return decorate if function is None else decorate(function)


def _check_cacheable(function: Any) -> None:
    """Check that the name and the arguments of a function identify its results.

    :raises ConfigError: they do not, or the function returns no data.
    """
    # The object of a bound method would not be in the key. A class is no argument that can be encoded.
    owner = getattr(function, "__self__", None)
    is_named = callable(function) and isinstance(getattr(function, "__qualname__", None), str)
    if not is_named or not (owner is None or isinstance(owner, ModuleType)):
        remedy = "write one with def, or decorate the method in its class"
        raise ConfigError("cached", f"{function!r} is no function of its own", remedy)
    kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    if any(is_kind(function) for is_kind in kinds):
        raise ConfigError("cached", f"{function.__qualname__} returns no data", "cache a plain function")
