"""All errors that this package raises, under one base.

Each class says which party is at fault, and keeps the evidence: option, key, node, cause. No error contains the body of
a page.
"""

from __future__ import annotations

from collections.abc import Iterable


class ISRError(Exception):
    """The base of all errors of ``wsgi_isr``."""


class ConfigError(ISRError, ValueError):
    """A mistake in the configuration, found at start.

    :param option: the option, rule or environment variable at fault.
    :param problem: the mistake, with the value.
    :param remedy: the text to write instead.
    """

    def __init__(self, option: str, problem: str, remedy: str = "") -> None:
        self.option = option
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{option}: {problem}" + (f" ({remedy})" if remedy else ""))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, str, str]]:
        return type(self), (self.option, self.problem, self.remedy)


class StoreError(ISRError):
    """The base of all errors that an open store may raise."""


class StoreUnavailable(StoreError):
    """A node did not answer. A missing key is no error.

    :param node: the name of the node: its address, or the path of the file.
    :param cause: the error of the operating system or the client library.
    """

    def __init__(self, node: str, cause: BaseException | str) -> None:
        self.node = node
        self.cause = cause
        super().__init__(f"{node}: {str(cause) or type(cause).__name__}")

    def __reduce__(self) -> tuple[type[StoreUnavailable], tuple[str, BaseException | str]]:
        return type(self), (self.node, self.cause)


class ValueTooLarge(StoreError):
    """A value exceeds the limit of the store. Nothing was sent, so the old value stays.

    :param key: the key of the value.
    :param size: the size of the value, in bytes.
    :param limit: the maximum size, in bytes.
    """

    def __init__(self, key: str, size: int, limit: int) -> None:
        self.key = key
        self.size = size
        self.limit = limit
        super().__init__(f"{key}: {size} bytes, above the store's limit of {limit}")


class InvalidationError(ISRError):
    """An invalidation was not delivered completely. To repeat the invalidation is always safe.

    :param delivered: the names of the delivered tags.
    :param undelivered: from the name of each other tag to the cause.
    :param journal: the file that keeps the undelivered tags; ``None`` if these tags are lost.
    """

    def __init__(
        self, delivered: tuple[str, ...], undelivered: dict[str, StoreError], journal: str | None = None
    ) -> None:
        self.delivered = delivered
        self.undelivered = undelivered
        self.journal = journal
        causes = ", ".join(sorted({str(error) for error in undelivered.values()}))
        kept = (
            f"kept in {journal}; an app with journal= this file, or wsgi-isr replay, delivers it once the node is back"
            if journal
            else "repeat it; a journal= that can be written would keep it"
        )
        left = listed(sorted(undelivered))
        super().__init__(f"not delivered: {left} ({causes}); delivered: {listed(delivered)}; {kept}")

    def __reduce__(
        self,
    ) -> tuple[type[InvalidationError], tuple[tuple[str, ...], dict[str, StoreError], str | None]]:
        return type(self), (self.delivered, self.undelivered, self.journal)


def listed(names: Iterable[str]) -> str:
    """Return names for a message. A name may be the path of a client, so it cannot begin a new line in a log."""
    return ", ".join(name if name.isprintable() else repr(name) for name in names) or "none"


class PersonalDataError(ISRError, RuntimeError):
    """A cached function reads data of the current visitor, but all visitors share its result.

    :param function: the name of the function.
    :param looked_at: the data that the function reads.
    :param remedy: the change to make.
    """

    def __init__(self, function: str, looked_at: str, remedy: str) -> None:
        self.function = function
        self.looked_at = looked_at
        self.remedy = remedy
        super().__init__(f"{function} reads {looked_at}, but its result is kept for all visitors ({remedy})")

    def __reduce__(self) -> tuple[type[PersonalDataError], tuple[str, str, str]]:
        return type(self), (self.function, self.looked_at, self.remedy)


class RefreshError(ISRError):
    """A refresh failed. The last good version stays.

    :param what: the path, or the name of the function.
    :param reason: the reason, as in ``Cache-Status``.
    """

    def __init__(self, what: str, reason: str) -> None:
        self.what = what
        self.reason = reason
        super().__init__(f"{what} was not refreshed: {reason}")

    def __reduce__(self) -> tuple[type[RefreshError], tuple[str, str]]:
        return type(self), (self.what, self.reason)
