"""How many workers a run has, and where: `--workers N`, `auto` or the address of a Ray cluster."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from robench.errors import InputError
from robench.runs.leftovers import fresh_folder

TIMEOUT = (
    10  # seconds in which the host of a cluster must answer, and three times in which Ray must
)
ADDRESS = "RAY_ADDRESS"  # the variable that names a running cluster; `ray job submit` sets it
STORE = 512 * 2**20  # bytes of the object store of an instance of ours: adapters and the like


class Room(NamedTuple):
    """What there is for workers.

    workers:    how many
    cpus, gpus: of each, in Ray's words
    """

    workers: int
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Workers:
    """What a user asks of workers.

    count:   None: as many as there is room for
    address: HOST:PORT of a running cluster; "": Ray is started here
    gpus:    of each worker, where the model works on GPUs
    timeout: seconds after which a worker that still has the same chunk is replaced; None: never
    """

    count: int | None = None
    address: str = ""
    gpus: float = 1.0
    timeout: float | None = None

    @classmethod
    def of(
        cls,
        asked: int | str | None,
        gpus_per_worker: float | None = None,
        chunk_timeout: float | None = None,
    ) -> Workers | None:
        """Of what `--workers` and its companions say; None: one worker in this process.

        Raises:
            InputError: it is neither a number nor an address, or there is nothing for a companion.
        """
        if asked is None:
            companions = {"--gpus-per-worker": gpus_per_worker, "--chunk-timeout": chunk_timeout}
            for name, value in companions.items():
                if value is not None:
                    raise InputError(f"{name} is of several workers: give --workers, too")
            return None
        text, address = str(asked), os.environ.get(ADDRESS, "")
        count = int(text) if text.isdecimal() else None
        if count is None and text != "auto":
            address = text
        if count == 0 or (address and not _is_address(address)):
            raise InputError(
                f"--workers {address or text}: give a number from 1, auto, or HOST:PORT of the "
                "head of a Ray cluster"
            )
        return cls(count, address, gpus_per_worker or 1.0, chunk_timeout)

    def check(self) -> None:
        """That Ray is here, and a cluster where one is asked for: before anything is made.

        Raises:
            InputError: there is no Ray, or nobody answers.
        """
        imported_ray()
        if self.address:
            check_answers(self.address)

    @contextmanager
    def connected(self, device: str) -> Iterator[Room]:
        """Ray, started here or joined; what was started here ends with the block.

        Args:
            device: on which the model works.

        Raises:
            InputError: there is no Ray, it cannot be started, or there is no room for the workers.
        """
        ray = imported_ray()
        if ray.is_initialized():  # a notebook's
            yield self._room(device, ray.cluster_resources())
            return
        logging.getLogger("ray").setLevel(logging.ERROR)
        with fresh_folder() as folder:
            room = self._begun(ray, device, str(folder))
            try:
                yield room
            finally:
                ray.shutdown()

    def _begun(self, ray: Any, device: str, folder: str) -> Room:
        """Start Ray here, with its files in a folder, or join a cluster.

        Raises:
            InputError: as of `connected`.
        """
        common = {"log_to_driver": False, "configure_logging": False}
        if not self.address:
            room = self._room(device, _of_this_machine())
        try:
            if self.address:
                ray.init(address=self.address, **common)
                room = self._room(device, ray.cluster_resources())
            else:
                ray.init(
                    address="local",
                    num_cpus=room.workers,
                    object_store_memory=STORE,
                    include_dashboard=False,
                    _temp_dir=folder,
                    **common,
                )
        except BaseException as error:
            ray.shutdown()
            if isinstance(error, InputError) or not isinstance(error, Exception):
                raise
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"Ray cannot be started: {type(error).__name__}: {reason}") from error
        return room

    def _room(self, device: str, resources: dict[str, float]) -> Room:
        """How many workers there are to be, on what there is.

        Raises:
            InputError: they want more GPUs than there are.
        """
        if not device.startswith("cuda"):
            return Room(self.count or max(1, int(resources.get("CPU", 1)) // 2), 1, 0)
        if device != "cuda":
            raise InputError(
                f"--device {device}: Ray chooses the GPU of each worker: give --device cuda"
            )
        gpus = resources.get("GPU", 0)
        most = int(gpus / self.gpus + 1e-9)
        if most < (self.count or 1):
            count = self.count or 1
            share = int(100 * gpus / count) / 100
            raise InputError(
                f"{count} workers with {self.gpus:g} GPUs each want {count * self.gpus:g}, and "
                f"there are {gpus:g}: "
                + (f"give --workers {most}, or " if most else "")
                + (f"let them share with --gpus-per-worker {share:g}" if share else "add some")
            )
        return Room(self.count or most, 1, self.gpus)


def imported_ray() -> Any:
    """Ray.

    Raises:
        InputError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise InputError("--workers needs Ray: pip install 'robench[ray]'") from None
    return ray


def _of_this_machine() -> dict[str, float]:
    """CPU cores (not threads of them) and GPUs that this process may use."""
    import psutil
    import torch

    allowed = len(psutil.Process().cpu_affinity()) if sys.platform == "linux" else sys.maxsize
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return {"CPU": min(cores, allowed), "GPU": torch.cuda.device_count()}


def _is_address(text: str) -> bool:
    host, colon, port = text.rpartition(":")
    return bool(host and colon) and "/" not in host and port.isdecimal() and int(port) < 2**16


def check_answers(address: str) -> None:
    """That there is a Ray cluster at an address: Ray itself would wait for one without end.

    Raises:
        InputError: nobody answers, or somebody else does.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT).close()
    except OSError as error:
        raise InputError(
            f"--workers {address}: nobody answers there ({error.strerror or error}); is the "
            "cluster up (ray start --head), and is this the port of its head, 6379 by default?"
        ) from None
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        done = subprocess.run(command, capture_output=True, timeout=3 * TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode:
        raise InputError(
            f"--workers {address}: what answers there is no head of a Ray cluster that accepts "
            "this process: its port is 6379 by default, versions must be the same, and since Ray "
            "2.60 a cluster may want RAY_AUTH_MODE=token and its ~/.ray/auth_token"
        )
