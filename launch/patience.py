"""Waiting only so long for what may never come back: a dead file system, a driver, a store whose process is stopped."""

import threading
from collections.abc import Callable
from typing import Never, TypeVar

COME_S, STEP_S = 120.0, 60.0
"""How long the nodes of an examination may take to come, and then for each step of it, where nothing else is said."""
Result = TypeVar("Result")


class LateError(Exception):
    """What was asked for did not come back in time."""


def within(limit_s: float, action: Callable[[], Result]) -> Result:
    """What the action returns or raises, if it ends in time. Raises LateError otherwise.

    A late action goes on in a thread that nobody can end: the process must leave by os._exit.
    """
    ended: list[Callable[[], Result]] = []
    thread = threading.Thread(target=lambda: ended.append(_outcome(action)), daemon=True)
    thread.start()
    thread.join(limit_s)
    if not ended:
        raise LateError(f"no answer within {limit_s:.0f} s")
    return ended[0]()


def _outcome(action: Callable[[], Result]) -> Callable[[], Result]:
    """The action's end, to be had in another thread."""
    try:
        result = action()
    except BaseException as error:  # raised again where it is waited for
        return _raiser(error)
    return lambda: result


def _raiser(error: BaseException) -> Callable[[], Never]:
    def again() -> Never:
        raise error

    return again
