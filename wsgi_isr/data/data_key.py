"""The key of a call of a cached function: the function and its arguments, as text."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from . import codec


class DataKey(NamedTuple):
    """The parts of a key.

    :param name: module and qualified name of the function.
    :param version: the version that the function declares.
    :param packed: the arguments by name, as encoded text.
    :param closure_digest: the digest of the function's closure; empty without data in it.
    :param app: the active app; empty if there is one app.
    """

    name: str
    version: int | str
    packed: str
    closure_digest: str = ""
    app: str = ""

    @classmethod
    def parse(cls, text: str) -> DataKey:
        """Return the key of :attr:`text`."""
        return cls(*json.loads(text))

    @property
    def text(self) -> str:
        """Return the key as text, without trailing empty parts. Keys with different parts have different texts."""
        parts = [*self]
        while parts[-1] == "":
            parts.pop()
        return json.dumps(parts)

    @property
    def tag(self) -> str:
        """Return the tag of this key alone, in all apps."""
        return f"data:{self._replace(app='').text}"

    @property
    def identity(self) -> tuple[str, str, str]:
        """Return the identity of the function."""
        return identity_of(self.name, self.version, self.closure_digest)

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the arguments by name."""
        arguments: dict[str, Any] = codec.decode(base64.b85decode(self.packed), codec.allow_all)
        return arguments


def identity_of(name: str, version: int | str, closure_digest: str) -> tuple[str, str, str]:
    """Return the identity of a function: functions of one factory share a name, and differ in their closures."""
    return name, json.dumps(version), closure_digest


def pack_arguments(arguments: Mapping[str, Any]) -> str:
    """Return arguments as text.

    :raises Unencodable: a value has a type that cannot be part of a key.
    """
    return base64.b85encode(codec.encode(arguments, key=True)).decode()
