"""Workers that sleep, and some of which come to grief: sent to Ray by value."""

import os
import signal
import time

from benchmarks.synthetic import Sleeper


class Troubled(Sleeper):
    """Something happens to a worker over the second chunk of a cell, `times` times in all.

    What it begins with: groups, (seconds, folder, trouble, times) and rows.
    """

    def start(self, setup):
        groups, (seconds, self._folder, self._trouble, self._times), rows = setup
        return super().start((groups, seconds, rows))

    def _slept(self, task):
        if task.start == 2:
            for number in range(self._times):
                try:
                    os.close(os.open(f"{self._folder}/{number}", os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    continue
                print("something happens", flush=True)
                if self._trouble == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                elif self._trouble == "stopped":
                    os.kill(os.getpid(), signal.SIGSTOP)
                elif self._trouble == "hanging":
                    time.sleep(600)
                elif self._trouble == "bug":
                    raise KeyError("a bug")
        return super()._slept(task)


class ShortLived(Sleeper):
    """One worker after another: x dies before it is ready, k over a chunk, any other never.

    What it begins with: groups, (seconds, folder, lives) and rows.
    """

    def start(self, setup):
        groups, (seconds, folder, lives), rows = setup
        number = len(os.listdir(folder))
        open(f"{folder}/{number}", "w").close()
        self._life = lives[number]
        if self._life == "x":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().start((groups, seconds, rows))

    def _slept(self, task):
        if self._life == "k":
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._slept(task)
