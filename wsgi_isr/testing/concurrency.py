"""Run a function in several threads or processes at once, for tests of stores."""

from __future__ import annotations

import json
import os
import select
import signal
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import Any

#: Seconds after which a thread or process that does not end counts as hanging.
PATIENCE = 30.0


def in_threads(count: int, job: Callable[[int], Any]) -> list[Any]:
    """Return the results of ``job(0)`` to ``job(count - 1)``, each in its own thread, started together."""
    answers: list[Any] = [None] * count
    gate = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            gate.wait(PATIENCE)
            answers[number] = job(number)
        except BaseException as error:
            answers[number] = error

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a thread hangs"
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers


def in_processes(count: int, job: Callable[[int], Any]) -> list[Any]:
    """Return the results of :func:`in_threads` from forked children, which exit without cleanup.

    Results go through JSON.
    """
    gate, opener = os.pipe()
    children = []
    for number in range(count):
        answers, answer = os.pipe()
        with warnings.catch_warnings():
            # Python 3.12 warns of forks beside other threads: that is the tested situation.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            try:
                os.close(opener)
                os.read(gate, 1)  # until the parent closes its end
                message = json.dumps([job(number), None])
            except BaseException:
                message = json.dumps([None, traceback.format_exc()])
            os.write(answer, message.encode())
            os._exit(0)
        os.close(answer)
        children.append((pid, answers))
    os.close(gate)
    os.close(opener)
    return [_answer(pid, answers) for pid, answers in children]


def _answer(pid: int, answers: int) -> Any:
    message = b""
    try:
        while select.select([answers], [], [], PATIENCE)[0]:
            piece = os.read(answers, 65536)
            if not piece:
                break
            message += piece
        else:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(answers)
        os.waitpid(pid, 0)
    assert message, "a child hangs, or was killed"
    answer, failure = json.loads(message)
    assert failure is None, f"in a child:\n{failure}"
    return answer
