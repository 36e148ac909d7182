"""The process that a node starts: `launcher.py sandbox FILE` for a pod, `launcher.py container FILE` for a container.

A sandbox is what a pod's containers share: its network, host name and memory volumes. It does nothing else but live.
A container is the first process of a pid namespace of its own, on a root file system that is this machine's under an
overlay. Everything dies with the node: a sandbox and a container's watcher when the node's thread does, the container
with its watcher, and the rest of its processes with the container. All mounts are in the namespaces of these processes,
so that none is left when they have gone.

Only the standard library, and little of it: it starts in some 30 ms, and is single-threaded, as setns(2) demands.
"""

# Its start is waited for often, and a quarter of it would be the import of pathlib.
# ruff: noqa: PTH101, PTH102, PTH103, PTH106, PTH112, PTH120, PTH123, PTH211

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE = {"mnt": 0x00020000, "uts": 0x04000000, "ipc": 0x08000000, "pid": 0x20000000, "net": 0x40000000}
_RDONLY, _NOSUID, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 32, 4096, 16384, 1 << 18
_DETACH = 2  # MNT_DETACH
_PDEATHSIG, _CAPBSET_DROP, _NO_NEW_PRIVS = 1, 24, 38
_HOST = "/.host"  # this machine's root, while a container is being made
STOP, KILL = signal.SIGTERM, signal.SIGUSR1  # what the node sends to a watcher
START_ERROR = 128  # exit code of a container that could not be started


def main() -> None:
    """Do what the arguments say."""
    kind, file = sys.argv[1:]
    with open(file) as text:
        settings = json.load(text)
    _die_with_parent()
    if os.getppid() != settings["parent"]:
        sys.exit("the node is gone")
    if kind == "sandbox":
        sandbox(settings)
    else:
        watch(settings)


def sandbox(settings: dict[str, Any]) -> None:
    """Make what the containers of a pod share, and live."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {STOP})
    _call("unshare", _CLONE["mnt"] | _CLONE["net"] | _CLONE["ipc"] | _CLONE["uts"])
    _mount(None, "/", None, _REC | _PRIVATE)
    name = settings["hostname"].encode()
    _call("sethostname", name, len(name))
    for volume in settings["memory"]:
        _mount("tmpfs", volume["path"], "tmpfs", 0, volume["options"])
    os.write(1, b"ready\n")
    signal.sigwait({STOP})


def watch(settings: dict[str, Any]) -> None:
    """Start a container in its pod's sandbox, hand signals on to it, and end as it ends."""
    signals = {STOP, KILL, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    failure = os.open(settings["failure"], os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
    joined = ("net", "ipc", "uts", "mnt")
    for kind, namespace in [(k, os.open(f"/proc/{settings['sandbox']}/ns/{k}", os.O_RDONLY)) for k in joined]:
        _call("setns", namespace, _CLONE[kind])
    _call("unshare", _CLONE["pid"])
    child = os.fork()
    if child == 0:
        try:
            _die_with_parent()
            contain(settings)
        except Exception as error:
            os.write(failure, str(error).encode())
        finally:
            os._exit(START_ERROR)
    with open(settings["pid"], "w") as file:
        file.write(str(child))
    while True:
        received = signal.sigwait(signals)
        if received == signal.SIGCHLD:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                os._exit(code if code >= 0 else 128 - code)
        else:
            os.kill(child, signal.SIGKILL if received == KILL else received)


def contain(settings: dict[str, Any]) -> None:
    """Become the container's command, in its file system and with its rights."""
    os.setsid()
    os.umask(0o022)
    _call("unshare", _CLONE["mnt"])  # by the container alone: who is in there when the root is changed is taken along
    _enter_root(settings)
    _devices()
    for source, target, read_only in settings["mounts"]:
        _bind(_HOST + source, target, read_only=read_only)
    os.makedirs(settings["cwd"], exist_ok=True)
    _call("umount2", _HOST.encode(), _DETACH)
    os.rmdir(_HOST)
    if settings["read_only"]:
        _mount(None, "/", None, _REMOUNT | _BIND | _RDONLY)
    _give_up_rights(settings)
    os.chdir(settings["cwd"])
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and what is ignored stays so
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    arguments, environment = settings["arguments"], settings["environment"]
    try:
        os.execvpe(arguments[0], arguments, environment)
    except FileNotFoundError:
        raise RuntimeError(f'exec: "{arguments[0]}": executable file not found in $PATH') from None


def _enter_root(settings: dict[str, Any]) -> None:
    scratch = settings["scratch"]
    _mount("tmpfs", scratch, "tmpfs", 0, "mode=755")
    upper, work, root = (f"{scratch}/{name}" for name in ("upper", "work", "root"))
    for folder in (upper, work, root, upper + _HOST):
        os.mkdir(folder)
    for folder in settings["emptied"]:
        os.makedirs(upper + folder)
        os.chmod(upper + folder, 0o1777 if folder == "/tmp" else 0o755)
        os.setxattr(upper + folder, "trusted.overlay.opaque", b"y")
    _mount("overlay", root, "overlay", 0, f"lowerdir=/,upperdir={upper},workdir={work}")
    _call("pivot_root", root.encode(), (root + _HOST).encode())
    os.chdir("/")
    _mount("proc", "/proc", "proc", _NOSUID)
    _mount("sysfs", "/sys", "sysfs", _NOSUID | _RDONLY)


def _devices() -> None:
    _mount("tmpfs", "/dev", "tmpfs", _NOSUID, "mode=755,size=64k")
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        _bind(f"{_HOST}/dev/{name}", f"/dev/{name}", read_only=False)
    links = {
        "fd": "/proc/self/fd",
        "stdin": "/proc/self/fd/0",
        "stdout": "/proc/self/fd/1",
        "stderr": "/proc/self/fd/2",
    }
    for name, target in links.items():
        os.symlink(target, f"/dev/{name}")
    os.mkdir("/dev/shm")
    _mount("tmpfs", "/dev/shm", "tmpfs", _NOSUID, "mode=1777,size=64m")


def _give_up_rights(settings: dict[str, Any]) -> None:
    os.setgroups(settings["groups"])
    os.setresgid(*[settings["gid"]] * 3)
    with open("/proc/sys/kernel/cap_last_cap") as file:
        known = set(range(int(file.read()) + 1))
    for capability in known - set(settings["capabilities"]):
        _call("prctl", _CAPBSET_DROP, capability, 0, 0, 0)
    os.setresuid(*[settings["uid"]] * 3)
    if settings["no_new_privileges"]:
        _call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0)
    _die_with_parent()  # a change of user has the kernel forget it


def _bind(source: str, target: str, *, read_only: bool) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT))
    _mount(source, target, None, _BIND | _REC)
    if read_only:
        _mount(None, target, None, _REMOUNT | _BIND | _RDONLY)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [text.encode() if text is not None else None for text in (source, target, kind)]
    try:
        _call("mount", *texts, ctypes.c_ulong(flags), options.encode() if options is not None else None)
    except OSError as error:
        raise RuntimeError(f"mount of {kind or source} on {target}: {error}") from error


def _die_with_parent() -> None:
    _call("prctl", _PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _call(name: str, *arguments: Any) -> None:
    if getattr(_libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
