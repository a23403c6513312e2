"""Locks between all processes of one ``MNIST_HOME``. Each lock ends when its holder ends."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, ReadWriteLock, Timeout
from prefect.locking.protocol import LockManager

from artifacts.errors import StoreError
from artifacts.settings import home
from tasks.running.logs import run_logger


def file_lock(name: str) -> FileLock:
    """A lock that all processes with this ``MNIST_HOME`` share. It ends when its holder ends."""
    return FileLock(_locks() / name, thread_local=False)


def store_lock() -> ReadWriteLock:
    """The lock of the store: a run holds it for reading, and gc holds it for writing while it removes files.

    While a run goes, nothing else tells gc that the files of a reused result are needed.
    """
    return ReadWriteLock(_locks() / "store.db", is_singleton=False)


def registry_lock() -> FileLock:
    """The lock of the registry. A run holds it from reading the champion until its verdict is carried out."""
    return file_lock("registry")


@contextmanager
def no_run_going(wait_minutes: float) -> Iterator[None]:
    """Wait until no run is going, and let no run begin in the context.

    Raises:
        StoreError: Raised if runs are still going after `wait_minutes`.
    """
    lock = store_lock()
    with ExitStack() as held:
        try:
            held.enter_context(lock.write_lock(timeout=0))
        except Timeout:
            run_logger().info(f"runs are going; waiting until they end, at most {wait_minutes:g} minutes")
            try:
                held.enter_context(lock.write_lock(timeout=wait_minutes * 60))
            except Timeout:
                raise StoreError(
                    f"runs are still going after {wait_minutes:g} minutes, and may need what would be removed; "
                    "nothing was removed: try again later, or wait longer with --keep.wait_minutes"
                ) from None
        yield


def _locks() -> Path:
    folder = home() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class FileLockManager(LockManager):
    """Locks cache keys with `flock(2)`, which the kernel releases when a process dies, however it dies.

    Prefect's own `FileSystemLockManager` leaves its lock behind after kill -9.
    """

    def __init__(self) -> None:
        """Hold nothing."""
        self._held: dict[str, tuple[str, FileLock]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return itself: Prefect copies a policy with its lock manager, and the copies must share the locks."""
        return self

    def acquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        """Take the lock, waiting at most `acquire_timeout` seconds. It ends with `release_lock` or the process."""
        del hold_timeout  # the kernel releases the lock of a dead holder, so nothing has to expire
        if self.is_lock_holder(key, holder):
            return True
        lock = file_lock(key)
        try:
            lock.acquire(timeout=-1 if acquire_timeout is None else acquire_timeout)
        except Timeout:
            return False
        self._held[key] = (holder, lock)
        return True

    async def aacquire_lock(
        self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        """See `acquire_lock`. The steps are synchronous, so nothing awaits this."""
        return self.acquire_lock(key, holder, acquire_timeout, hold_timeout)

    def release_lock(self, key: str, holder: str) -> None:
        """Release a lock that `holder` holds.

        Raises:
            ValueError: Raised if `holder` doesn't hold it.
        """
        if not self.is_lock_holder(key, holder):
            raise ValueError(f"{holder} doesn't hold the lock of {key}")
        self._held.pop(key)[1].release()

    def is_locked(self, key: str) -> bool:
        """Whether any process holds the lock."""
        return not self.wait_for_lock(key, timeout=0)

    def is_lock_holder(self, key: str, holder: str) -> bool:
        """Whether `holder` holds the lock."""
        return key in self._held and self._held[key][0] == holder

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """Wait until the lock is free. False if it isn't free after `timeout` seconds."""
        try:
            with file_lock(key).acquire(timeout=-1 if timeout is None else timeout):
                return True
        except Timeout:
            return False

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        """See `wait_for_lock`."""
        return self.wait_for_lock(key, timeout)
