"""`python -m tests.faults.full_disk STEP LEFT train …`: as STEP begins, the disk fills, but for LEFT bytes."""

import errno
import functools
import os
import runpy
import shutil
import sys

from artifacts.settings import Settings


def fill(left: int = 0) -> None:
    """Fill the disk of MNIST_HOME, but for `left` bytes."""
    home = Settings().home
    with (home / "filler").open("ab", buffering=0) as file:
        while (free := shutil.disk_usage(home).free - left) > 0:
            try:
                file.write(bytes(min(free, 1 << 20)))
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    return
                raise


if __name__ == "__main__":
    from service.environment import environment

    os.environ.update(environment())
    from prefect import Task

    import flows.train

    step, left = sys.argv.pop(1), int(sys.argv.pop(1))
    [task] = [task for task in vars(flows.train).values() if isinstance(task, Task) and task.name == step]

    def on_a_full_disk(*given, work=task.fn, **named):
        fill(left)
        return work(*given, **named)

    task.fn = functools.wraps(task.fn)(on_a_full_disk)
    runpy.run_module("flows", run_name="__main__", alter_sys=True)
