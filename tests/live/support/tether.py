"""``tether.py PARENT COMMAND...``: become a command that does not outlive the process ``PARENT``.

A test that fails stops its server itself. This is for the test run that is killed, and for the hang
that pytest ends by leaving at once: the kernel then sends SIGTERM to the server (prctl(2),
PR_SET_PDEATHSIG; it survives the exec). Elsewhere than on Linux the command just runs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != int(parent):  # it was faster
            sys.exit(1)
    os.execv(command[0], command)
