"""Work that is done while the caller goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["Behind"]


class Behind:
    """A thread that does one piece of work at a time; what goes wrong is raised by ``wait``."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether the work is still being done."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Callable[[], object]) -> None:
        """Begin, once the work before is done.

        Raises:
            BaseException: what that raised.
        """
        self.wait()
        self._thread = threading.Thread(target=self._do, args=(work,), name="particlevi draws")
        self._thread.start()

    def wait(self) -> None:
        """Until the work is done.

        Raises:
            BaseException: what it raised, once.
        """
        if self._thread is not None:
            self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if error is not None:
            raise error

    def _do(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error
