"""What an application may offer beside ASGI: answers to one kind of request, made without waiting for anything."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

_T = TypeVar("_T")


class Quick(NamedTuple):
    """An answer; ``after`` is called once it has left."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    after: Callable[[], None]


class QuickApp(Protocol):
    """What serving.server asks of an application, beside ASGI."""

    @property
    def quick_path(self) -> bytes | None:
        """The path that ``quick`` answers; None where it would have to wait."""
        ...

    def quick(self, headers: Mapping[bytes, bytes], query: bytes, address: str) -> Quick:
        """The answer to a GET; never raises.

        Args:
          headers: by name in small letters; of equal ones the first.
          address: of the client.
        """
        ...


def at_once(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """What a coroutine returns that never waits; raises RuntimeError for one that does."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        value: _T = done.value
        return value
    coroutine.close()
    raise RuntimeError("it waits")
