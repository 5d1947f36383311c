"""Linux namespaces: a process that sees the files it is given, no network and no neighbours.

By the calls of the C library: a warm process has to fork into them, and no program that only
starts others can do that for it.
"""

import contextlib
import ctypes
import fcntl
import os
import platform
import resource
import signal
import socket
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

SCRATCH = "/scratch"  # the temporary folder: below /tmp lies what is to be seen
FILES_BYTES = 64 * 2**20  # in it
PROCESSES = 48  # at once, threads included

_NEW_FILES, _NEW_HOST, _NEW_IPC = 0x00020000, 0x04000000, 0x08000000
_NEW_USERS, _NEW_PROCESSES, _NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000

_NO_SUID, _NO_DEVICES, _BIND, _RECURSIVE, _PRIVATE = 2, 4, 4096, 16384, 1 << 18
_DETACH = 2

_DIE_WITH_PARENT, _DUMPABLE, _NO_NEW_PRIVILEGES = 1, 4, 38
_CAPABILITIES_VERSION = 0x20080522
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR = 442
_HERE, _AND_BELOW = -100, 0x8000

_NOBODY = 65534
_DEVICES = ("null", "zero", "full", "random", "urandom")
_PROCESSORS = Path("/sys/devices/system/cpu")  # torch reads how many there are
_KILLED_FIRST = "1000"  # where the machine has no memory left

_libc = ctypes.CDLL(None, use_errno=True)


def enter(read_only: Sequence[Path], hidden: Path) -> None:
    """Go on in a process that sees these folders alone, and of `hidden` only those of them in it.

    The calling process waits for that one, and ends as it does. Raises `OSError` where the system
    does not permit it.
    """
    folder, user = Path.cwd(), os.geteuid()
    if user != 0:
        _own_users(user, os.getegid())
    _call("unshare", _NEW_NETWORK | _NEW_IPC | _NEW_HOST | _NEW_PROCESSES)
    _go_on_in_fork()
    _call("unshare", _NEW_FILES)
    _mount("none", "/", None, _RECURSIVE | _PRIVATE)
    _change_root(read_only, hidden)
    _loop_back()
    _go_on_in_fork()  # the first process takes in those that lose their parent
    if user == 0:
        _become_nobody()
        _own_users(_NOBODY, _NOBODY)
        _call("unshare", _NEW_FILES)
    # With users of its own a process could mount more.
    Path("/proc/sys/user/max_user_namespaces").write_text("0")
    os.chdir(folder)


def enclose(kept: Iterable[int]) -> None:
    """Go on in a process with its own processes and temporary files, and without any rights.

    It and all that it starts die with the calling process. That one's fork is the first of the
    new processes, which no other of these can kill. Of the descriptors above 2 only `kept` stay
    open: here, and in the calling process, so that who reads there sees it end before they close.
    """
    _close_all_but(kept)
    _call("unshare", _NEW_PROCESSES | _NEW_IPC)
    _go_on_in_fork(kept)
    _call("unshare", _NEW_FILES)  # only here: the process that waits goes on seeing what it saw
    _mount("proc", "/proc", "proc", _NO_SUID | _NO_DEVICES)
    for folder in (SCRATCH, "/dev/shm"):
        options = f"size={FILES_BYTES},mode=700"
        _mount("tmpfs", folder, "tmpfs", _NO_SUID | _NO_DEVICES, options)
    _go_on_in_fork()
    Path("/proc/self/oom_score_adj").write_text(_KILLED_FIRST)
    resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES, PROCESSES))
    _give_up_rights()


def _go_on_in_fork(kept: Iterable[int] = ()) -> None:
    """Return in a fork, which dies with this process; this one waits, and ends as the fork does."""
    pid = os.fork()
    if pid:
        _end_as(pid, kept)
    _call("prctl", _DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)


def _end_as(pid: int, kept: Iterable[int]) -> NoReturn:
    """Wait for a process, holding only these open, and end with its exit code or by its signal."""
    _close_all_but(kept)
    for descriptor in range(3):
        os.close(descriptor)
    code = None
    while code is None:
        ended, status = os.wait()
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
    is_first = os.getpid() == 1  # which no signal of its own ends: it says by its code which
    if (code < 0) if is_first else (code - 128 in signal.valid_signals()):
        code = 128 - code
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)


def _change_root(read_only: Sequence[Path], hidden: Path) -> None:
    """Make a root of these folders, of devices that do no harm, and of nothing else."""
    base = Path("/tmp")  # which is seen as it was through what is open
    devices = [Path("/dev", name) for name in _DEVICES]
    opened = {path: os.open(path, os.O_PATH) for path in (*read_only, _PROCESSORS, *devices)}
    _mount("tmpfs", str(base), "tmpfs", _NO_SUID, "mode=755")
    within = sorted((path for path in opened if path.is_relative_to(hidden)), key=str)
    for path in sorted(opened.keys() - set(within), key=str):
        _bind(opened[path], path, base)
    covered = base / hidden.relative_to("/")
    covered.mkdir(parents=True, exist_ok=True)
    _mount("tmpfs", str(covered), "tmpfs", _NO_SUID | _NO_DEVICES, "mode=755")
    for path in within:
        _bind(opened[path], path, base)
    scratch = base / SCRATCH.removeprefix("/")
    for folder in (scratch, base / "proc", base / "dev" / "shm"):
        folder.mkdir(parents=True, exist_ok=True)
    _set_read_only(base)
    _mount("tmpfs", str(scratch), "tmpfs", _NO_SUID | _NO_DEVICES, "mode=1777")
    _mount("proc", str(base / "proc"), "proc", _NO_SUID | _NO_DEVICES)
    os.chdir(base)
    _call("syscall", _PIVOT_ROOT[platform.machine()], b".", b".")
    _call("umount2", b".", _DETACH)
    os.chdir("/")
    for descriptor in opened.values():
        os.close(descriptor)


def _bind(descriptor: int, path: Path, base: Path) -> None:
    """Show at `path` below the base what is open."""
    target = base / path.relative_to("/")
    if path.parent == Path("/") and path.is_symlink():  # /bin, where it is /usr/bin
        target.symlink_to(path.readlink())
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if Path(f"/proc/self/fd/{descriptor}").is_dir():
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    _mount(f"/proc/self/fd/{descriptor}", str(target), None, _BIND | _RECURSIVE)


class _Attributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "users")]


def _set_read_only(root: Path) -> None:
    """Let nothing be written in what is mounted there and below."""
    attributes = _Attributes(set=1 | _NO_SUID)
    arguments = (_HERE, str(root).encode(), _AND_BELOW, ctypes.byref(attributes))
    _call("syscall", _MOUNT_SETATTR, *arguments, ctypes.sizeof(attributes))


def _loop_back() -> None:
    """Let the processes of a run talk to each other by the network that has nobody else."""
    set_flags, is_up = 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh", b"lo", is_up))


def _become_nobody() -> None:
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    # Both are lost with the user.
    _call("prctl", _DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    _call("prctl", _DUMPABLE, 1, 0, 0, 0)


def _own_users(user: int, group: int) -> None:
    """Have users of one's own, of which there is one, and all rights among them."""
    _call("unshare", _NEW_USERS)
    own = Path("/proc/self")
    (own / "setgroups").write_text("deny")
    (own / "uid_map").write_text(f"{user} {user} 1")
    (own / "gid_map").write_text(f"{group} {group} 1")


def _give_up_rights() -> None:
    _call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)())


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    filesystem = kind and kind.encode()
    _call("mount", source.encode(), target.encode(), filesystem, flags, options.encode())


def _call(name: str, *arguments: object) -> None:
    """Call a function of the C library; raise `OSError` if it fails."""
    if getattr(_libc, name)(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def _close_all_but(kept: Iterable[int]) -> None:
    """Close every descriptor above 2 but those."""
    for descriptor in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if descriptor > 2 and descriptor not in kept:
            with contextlib.suppress(OSError):  # the list's own is closed
                os.close(descriptor)


if __name__ == "__main__":  # a trial: HIDDEN FOLDER...
    enter(list(map(Path, sys.argv[2:])), Path(sys.argv[1]))
    enclose(())
