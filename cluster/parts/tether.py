"""``tether.py PARENT SIGNAL COMMAND...``: become a command that does not outlive the process ``PARENT``.

A parent normally ends its children. A parent killed by SIGKILL cannot, so the kernel sends the signal (prctl(2),
PR_SET_PDEATHSIG; it survives the exec). On systems other than Linux the command runs without a tether. The kernel sends
the signal when the *thread* that started the command ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def tether(number: signal.Signals) -> None:
    """Ask the kernel to send that signal to this process when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number))


if __name__ == "__main__":
    parent, name, *command = sys.argv[1:]
    tether(signal.Signals[name])
    if sys.platform == "linux" and os.getppid() != int(parent):  # the parent has ended before the prctl
        sys.exit(1)
    try:
        os.execv(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")
