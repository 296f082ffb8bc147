"""SIGINT, SIGTERM, SIGHUP and SIGUSR1: whenever one comes, a command ends in good order, with one line and its code.

Only the standard library is imported here: the handlers are there before anything that takes a while.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

# What batch systems send before they end a job differs; what the command says and returns does not.
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 143, signal.SIGUSR1: 143}
KEPT = "what is finished is kept, and the same command goes on from there"


class Stopped(BaseException):
    """A signal of `CODES`, as something that `finally` and `with` blocks see."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = CODES[signal.Signals(number)]

    def __str__(self) -> str:
        return f"{'interrupted' if self.code == CODES[signal.SIGINT] else 'terminated'}; {KEPT}"


class Listener:
    """The handlers of one command.

    While it starts it has opened nothing, and a signal ends it at once: an exception in the midst of an import could
    come out of it as any other. At work the first signal is a `Stopped`; while that closes what is open a second one is
    passed over, and the third ends the process at once, as SIGKILL would. After `done(code)` a signal only ends it
    sooner, with that code.
    """

    def __init__(self) -> None:
        self._working = False
        self._received: list[int] = []
        self._code: int | None = None

    @property
    def stopped(self) -> bool:
        """Whether a signal has come."""
        return bool(self._received)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """The handlers are there; in another thread than the first, which alone may have them, nothing happens."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # What is ignored stays so: of `nohup` SIGHUP, of a shell's background job SIGINT.
        before = {one: signal.getsignal(one) for one in CODES if signal.getsignal(one) is not signal.SIG_IGN}
        hook = sys.unraisablehook
        sys.unraisablehook = lambda lost: self._again(lost) if isinstance(lost.exc_value, Stopped) else hook(lost)
        for number in before:
            signal.signal(number, self._handle)
        try:
            yield
        finally:
            if self._code is None:
                sys.unraisablehook = hook
                for number, handler in before.items():
                    signal.signal(number, handler)

    @contextmanager
    def working(self) -> Iterator[None]:
        """What is opened in this block is closed before the process ends."""
        self._working = True
        try:
            yield
        except Exception as error:
            # Raised in the midst of a library's `with`, a Stopped may come out as an error of its own: a lock that is
            # released unlocked, say.
            if self._received:
                raise Stopped(self._received[0]) from error
            raise
        finally:
            self._working = False

    def done(self, code: int) -> None:
        """The process is about to end with this code; the handlers stay until it has."""
        self._code = code

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)
        if self._code is not None:
            os._exit(self._code)
        stopped = Stopped(self._received[0])
        if len(self._received) == 1 and self._working:
            raise stopped
        if len(self._received) != 2 or not self._working:
            with suppress(OSError):
                os.write(2, f"scalesearch: {stopped}\n".encode())  # sys.stderr may be in use
            os._exit(stopped.code)

    def _again(self, lost: Any) -> None:
        """It was raised where nothing can be, such as in a `__del__`: raise it once more, elsewhere."""
        number = self._received[0]
        self._received.clear()
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
