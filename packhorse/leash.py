"""Runs a command that dies with the process that started it: `python -I -S leash.py <parent pid> <command> ...`.

The kernel is asked (PR_SET_PDEATHSIG, kept across exec) to kill this process when its parent ends, however it ends; then the
command takes its place. Strictly, the kernel watches the parent's *thread* that started it: see packhorse/supervisor.py.
Run by path and by itself, it needs the standard library alone. On systems other than Linux it only runs the command.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
COMMAND_NOT_FOUND = 127


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the process that started this one is gone")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(COMMAND_NOT_FOUND)


if __name__ == "__main__":
    main()
