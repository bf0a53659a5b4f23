"""Files that are written completely or not at all."""

from __future__ import annotations

import contextlib
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from thinformer.files.messages import writing


def resolved(path: Path) -> Path:
    """Return the file that a path leads to."""
    try:
        target = path.resolve()
        target.exists()  # raises for a name that is too long
    except (OSError, RuntimeError) as error:  # of a loop of links, a RuntimeError until Python 3.13
        reason = getattr(error, "strerror", None) or "is a loop of symbolic links"
        raise OSError(f"{path}: {reason}") from None
    return target


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file to write, which then replaces `path`, unless there is an error."""
    target = resolved(path)
    mode = _mode(path)
    temporary = target.with_name(
        f".thin-{secrets.token_hex(6)}.part"
    )  # short, as names may be long
    try:
        try:
            temporary.open("xb").close()  # whether it can be written is found out before the work
        except OSError as error:
            raise OSError(f"{path}: cannot be written: {error.strerror}") from None
        if mode is not None:
            temporary.chmod(mode | stat.S_IWUSR | stat.S_IRUSR)
        yield temporary
        with writing(str(path)):
            if mode is not None:
                temporary.chmod(mode)
            temporary.replace(target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _mode(path: Path) -> int | None:
    """The permissions of a file that exists; raises where it cannot be replaced."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OSError(f"{path}: cannot be written: {error.strerror}") from None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(f"{path}: is a folder; it cannot be written as a file")
    if not stat.S_ISREG(status.st_mode):  # a device or a pipe would be lost
        raise OSError(f"{path}: is no regular file; it is not replaced")
    return stat.S_IMODE(status.st_mode)
