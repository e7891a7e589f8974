"""Cached functions as the cache sees them: their keys, tags and lifetimes, and the calls that produce results."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, Generic, ParamSpec, TypeVar

from ..cache.context import rendering
from ..cache.entry import HitForMiss, Value
from ..cache.keyspace import EVERYTHING, stored_tag, tag_name
from ..cache.task import Limits, Product, Task
from ..cache.verdict import CacheDirectives, Failure, Storable
from ..config import options as o
from ..config.frameworks import personal_data_error
from ..config.lifetime import Lifetime
from ..config.policy import lease_for
from ..config.rules import Rule
from . import codec
from .active_engine import DataEngine, may_be_in_request, request_engine
from .closure import Identified, closure_of
from .data_key import DataKey, identity_of, pack_arguments
from .isolation import is_importing
from .registry import Functions

P = ParamSpec("P")
R = TypeVar("R")

#: Seconds after which the store may drop None as the result for arguments.
NONE_TTL = 600.0
_TIMEOUT = 30.0
_LOCK_TIMEOUT = 10.0

_log = logging.getLogger("wsgi_isr.data")


class DataFunction(Identified, Generic[P, R]):
    """A function whose results can be stored.

    :param tags: a list of tags with ``{argument}`` in them, or a callable that gets the arguments as a dict.
    :param name: the name in keys and logs; by default the module and the qualified name.
    """

    _has_warned = False

    def __init__(self, function: Callable[P, R], rule: Rule, tags: Any, version: int | str, name: str = "") -> None:
        self.name = name or f"{function.__module__}:{function.__qualname__}"
        self._function = function
        self._signature = inspect.signature(function)
        self._types = codec.Types(function)
        self._rule = rule
        self._tags = tags
        self._version = version
        closure = closure_of(function)
        self.closure_digest = closure.digest
        self.code = getattr(function, "__code__", None)
        self.identity = identity_of(self.name, version, closure.digest)
        self._unidentified = ""
        if may_be_in_request():
            self.watch(function, closure)
        elif not closure.is_complete and not is_importing():
            self._unidentified = closure.unidentified
        _functions.add(self)

    def is_personal(self) -> bool:
        """Return whether the function may hold data of one client that is not in its key.

        Outside of known requests, every function with an object in its closure counts, unless a module made the
        function while it was imported. The factory of an app may have made the function. So may a middleware around an
        ISR that answers its first request.
        """
        if self.has_personal_closure():
            return True
        if not self._unidentified or request_engine() is not None:
            return False
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "%s is not kept outside of requests: it is made with %s; pass that as an argument, or call refresh()",
                self.name,
                self._unidentified,
            )
        return True

    # Keys, tags and lifetimes ------------------------------------------------------------------------------

    def _task(self, engine: DataEngine, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Task:
        """Return the task to produce the result of a call.

        :raises Unencodable: an argument cannot be part of a key.
        """
        text = self._key(args, kwargs, engine.active_app() or "").text
        _functions.use(self)
        timeout = self._rule.render_timeout or _TIMEOUT
        wait = _LOCK_TIMEOUT if self._rule.lock_timeout is None else self._rule.lock_timeout
        return Task(engine.keyspace.data(text), text, self.name, Limits(timeout, wait, lease_for(timeout)), data=True)

    def _key(self, args: tuple[Any, ...], kwargs: dict[str, Any], app: str = "") -> DataKey:
        packed = pack_arguments(self._arguments(args, kwargs))
        return DataKey(self.name, self._version, packed, self.closure_digest, app)

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by name, the defaults included."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)

    def _declared_tags(self, arguments: dict[str, Any]) -> list[str]:
        """Return the tags that the function declares for these arguments, as the store names them."""
        if callable(self._tags):
            tags = o.TAGS.check(f"{self.name}: tags", self._tags(arguments))
        else:
            tags = [tag.format_map(arguments) for tag in self._tags]
        return [tag_name(tag) for tag in tags]

    def _lifetime(self, profiles: Mapping[str, tuple[float, float]]) -> Lifetime:
        revalidate, expire = self._rule.revalidate, self._rule.expire
        if isinstance(revalidate, str):
            if revalidate not in profiles:
                raise o.unknown(f"cached: revalidate={revalidate!r}", profiles, "there is no such profile")
            profile = profiles[revalidate]
            return Lifetime(profile[0], profile[1] if expire is None else expire)
        return Lifetime(None if revalidate in (None, False) else float(revalidate), expire)

    # Results -----------------------------------------------------------------------------------------------

    def _produce(self, arguments: dict[str, Any], profiles: Mapping[str, tuple[float, float]]) -> Product:
        """Return the result of a call with these arguments, for the cache to store or to refuse."""
        with rendering(profiles) as directives:
            try:
                result = self._function(*self._positional(arguments), **self._named(arguments))
            except Exception as error:
                return Failure("exception", None, directives, personal_data_error(error, self.name))
        if self.is_personal():  # the closure may have changed during the call
            return Failure("closure")
        reason = self._unstorable_reason(result)
        if directives.no_store and not reason:
            return HitForMiss("revalidate-0")
        try:
            content = Value(codec.encode(result))
        except codec.Unencodable as error:
            _log.warning("%s is not kept: %s", self.name, error)
            return HitForMiss("unencodable")
        if reason := reason or directives.failed:
            return Failure(reason, content, directives)
        # Clients can invent arguments that have no result. So such a result creates no tags, as for a 404, and the
        # store may drop it.
        ttl = self._store_ttl(result)
        if result is None and arguments:
            ttl = min(NONE_TTL, ttl or NONE_TTL)
        return self._storable(content, directives, ttl, profiles)

    def _storable(
        self,
        content: Value,
        directives: CacheDirectives,
        ttl: float | None,
        profiles: Mapping[str, tuple[float, float]],
    ) -> Storable:
        lifetime = self._lifetime(profiles)
        if directives.lifetime is not None:
            lifetime = lifetime.lowest(directives.lifetime.revalidate, directives.lifetime.expire)
        tags = tuple(map(tag_name, dict.fromkeys(directives.tags)))
        carried = tuple(directives.carried.items())
        return Storable(content, lifetime, ttl, tags, carried, directives, is_negative=ttl is not None)

    def _positional(self, arguments: dict[str, Any]) -> list[Any]:
        taken: list[Any] = []
        for name, parameter in self._signature.parameters.items():
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                taken.append(arguments[name])
            elif parameter.kind is parameter.VAR_POSITIONAL:
                taken += arguments[name]
        return taken

    def _named(self, arguments: dict[str, Any]) -> dict[str, Any]:
        named: dict[str, Any] = {}
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY:
                named[name] = arguments[name]
            elif parameter.kind is parameter.VAR_KEYWORD:
                named |= arguments[name]
        return named

    def _decoded(self, content: Any) -> tuple[R] | None:
        """Return the result (which may be None) in a stored content; ``None`` if it cannot be read."""
        if not isinstance(content, Value):
            return None
        try:
            result: R = codec.decode(content.data, self._types.allows)
        except ValueError as error:
            _log.warning("%s: what is kept cannot be read (%s); it is made anew", self.name, error)
            return None
        return (result,)

    # Hooks for functions that know more about their results (.http_session) ---------------------------------

    def _description(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return a call in words for people; empty if the function's name is enough."""
        return ""

    def _unstorable_reason(self, result: R) -> str:
        """Return why a result must not be stored; empty if it may be.

        Such a result counts as a failure. All callers that wait for the result still get it.
        """
        return ""

    def _store_ttl(self, result: R) -> float | None:
        """Return the seconds after which the store may drop a result; ``None`` for never."""
        return None


_functions: Functions[DataFunction[Any, Any]] = Functions()


def produce_data(task: Task, profiles: Mapping[str, tuple[float, float]]) -> Product:
    """Return the result of the function of a task, called with the arguments in the task's key.

    :raises Unknown: this process does not have the function.
    """
    return _functions.find(task)._produce(DataKey.parse(task.text).arguments, profiles)


def tags_of_data(task: Task) -> list[str]:
    """Return all tags that a result has before it is produced.

    :raises Unknown: this process does not have the function.
    """
    key = DataKey.parse(task.text)
    return [EVERYTHING, stored_tag(key.tag), *_functions.find(task)._declared_tags(key.arguments)]


def app_of(task: Task) -> str:
    """Return the name of the app in which a result was requested; empty if there is one app."""
    return DataKey.parse(task.text).app
