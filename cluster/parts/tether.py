"""``tether.py PARENT SIGNAL COMMAND...``: become a command that does not outlive the process ``PARENT``.

Whoever starts something ends it. This is for when they cannot, because they were killed themselves: the kernel then
sends the signal (prctl(2), PR_SET_PDEATHSIG; it survives the exec). Elsewhere than on Linux the command just runs.
It comes when the *thread* that started the command ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def tether(number: signal.Signals) -> None:
    """From now on this process gets that signal when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number))


if __name__ == "__main__":
    parent, name, *command = sys.argv[1:]
    tether(signal.Signals[name])
    if sys.platform == "linux" and os.getppid() != int(parent):  # it was faster
        sys.exit(1)
    try:
        os.execv(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")
