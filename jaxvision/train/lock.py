"""One process writes to a run's folder at a time."""

import datetime
import json
import os
import pathlib
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from filelock import FileLock, Timeout

from jaxvision.train.processes import gather

__all__ = ["locked"]


@contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it is missing. Of several processes that train together
    (``processes.connect``) the first holds it, and all must call this.

    The operating system holds the lock, so it ends with its process, however that ends: what ``.lock.json`` says of a
    process that was killed holds nobody up.
    Raises: BlockingIOError naming host, process and start if another process has it, OSError if the folder cannot be
    written; nothing in it is touched then.
    """
    folder = pathlib.Path(folder).expanduser().absolute()
    lock, fault = None, None
    if jax.process_index() == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / ".lock", timeout=0)
            lock.acquire()
        except Timeout:
            lock, fault = (
                None,
                f"{folder} is in use: {_holder(folder)} writes to it. Let it end, or choose another folder.",
            )
        except OSError as error:
            lock, fault = None, f"cannot write to the output folder {folder}: {error.strerror}"
    if fault := gather(fault)[0]:
        raise (BlockingIOError if "is in use" in fault else OSError)(fault)
    try:
        if lock is not None:
            _say_who(folder)
        yield
    finally:
        if lock is not None:
            (folder / ".lock.json").unlink(missing_ok=True)
            lock.release()


def _say_who(folder: pathlib.Path) -> None:
    began = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    owner = {"host": socket.gethostname(), "process": os.getpid(), "started": began}
    part = folder / ".lock.json.part"
    part.write_text(json.dumps(owner) + "\n")
    part.replace(folder / ".lock.json")


def _holder(folder: pathlib.Path) -> str:
    """Who has the lock. One that has just taken it may not have said so yet, and one that was killed may still be
    named: wait a moment for a name that can be right."""
    for _ in range(10):
        try:
            owner = json.loads((folder / ".lock.json").read_text())
            host, process = owner["host"], int(owner["process"])
            if host != socket.gethostname() or _alive(process):
                return f"process {process} on {host}, started {owner['started']},"
        except (OSError, ValueError, KeyError, TypeError):
            pass
        time.sleep(0.1)
    return "another process"


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
