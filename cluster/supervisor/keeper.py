"""End all processes of a cluster, even where the supervisor is killed with SIGKILL.

The command is two processes. The outer one, the keeper, does nothing but wait for the supervisor. The kernel makes the
keeper the parent of all orphans of the supervisor (prctl(2), PR_SET_CHILD_SUBREAPER), at any depth. So the keeper knows
the cluster's processes by descent, without a name or a number from a file, and ends them. If the keeper is killed, the
kernel signals the supervisor (PR_SET_PDEATHSIG), which ends its parts as usual. In case both are killed at once, each
part has a tether of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable

from ..parts import processes
from ..parts.tether import tether
from .stopping import ASKING, Stopped, stoppable

PR_SET_CHILD_SUBREAPER = 36
PASSED_ON = (signal.SIGTERM, signal.SIGHUP)
#: Seconds for processes to end after SIGKILL.
PATIENCE = 20.0
#: In a supervisor: its keeper; ``None`` where there is no keeper.
kept_by: processes.Process | None = None


def keep(supervise: Callable[[], int], when_killed: Callable[[], None] = lambda: None) -> int:
    """Call ``supervise`` in a child, end the processes that it leaves behind, and return its exit code.

    Call it before there are threads. A signal that asks the child to end raises :class:`Stopped` in it; the exit code
    is then not 0.

    :param when_killed: called when the child was killed, and all of its processes are gone.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    outer = processes.look_at(os.getpid())
    assert outer is not None
    # Signals that ask to end wait until both processes have their handlers.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    if (supervisor := os.fork()) == 0:
        tether(signal.SIGTERM)
        code = 1
        try:
            if os.getppid() == outer.pid:
                global kept_by
                kept_by = outer
                with stoppable():
                    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                    code = supervise()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except Stopped:
            print("stopped before its end; nothing is left", file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError):  # the reader is gone, or the disk is full
                    stream.flush()
            os._exit(code)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    for number in PASSED_ON:
        signal.signal(number, lambda got, _frame: os.kill(supervisor, got))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to both
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    # WNOWAIT: the kernel must not reuse the process id before the last signal to it is sent.
    os.waitid(os.P_PID, supervisor, os.WEXITED | os.WNOWAIT)
    for number in PASSED_ON:
        signal.signal(number, signal.SIG_IGN)
    _, status = os.waitpid(supervisor, 0)
    left = _end_all()
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        when_killed()
        name = signal.Signals(-code).name
        print(f"The supervisor was ended by {name}; {left} processes that it left behind were ended.", file=sys.stderr)
        return 1
    return code


def _end_all() -> int:
    """End every descendant and return how many there were."""
    ended: set[int] = set()
    deadline = time.monotonic() + PATIENCE
    while left := processes.descendants(os.getpid()):
        for process in left:
            # Only this process reaps children, and grandchildren become children when their parent is gone.
            if process.parent == os.getpid() or processes.look_at(process.pid) == process:
                processes.send(process, signal.SIGKILL)
                ended.add(process.pid)
        _reap()
        if time.monotonic() > deadline:
            print(f"{[process.pid for process in left]} do not end, not even by SIGKILL", file=sys.stderr)
            break
        time.sleep(0.002)
    return len(ended)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
