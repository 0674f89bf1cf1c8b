"""The workers as processes: started, asked one at a time, and stopped in between, so that no other takes a core.

Threads that spin while they wait are what many runtimes are fastest with, and what ruins the time of whoever runs
beside them. A process that is stopped by signal spins no more, and keeps its own best settings.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from environments import HERE, interpreter, made_of, model_path
from peers import Peer
from worker import Request


class Running:
    """A worker that has opened its model."""

    def __init__(self, folder: Path, peer: Peer, threads: int) -> None:
        """Start it and wait until it is ready; what it prints goes to a file of its own under `logs`."""
        self.name = peer.name
        model = model_path(folder, peer)
        self._log = folder / "logs" / f"{peer.name}.log"
        self._log.parent.mkdir(exist_ok=True)
        command = [interpreter(folder, peer.family.environment), str(HERE / peer.family.worker), str(model)]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*command, "--threads", str(threads), *peer.arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
                start_new_session=True,  # Ctrl-C is for the harness, which then ends its workers
            )
        self.facts: dict[str, Any] = self._read() | {"made": made_of(folder, peer)}
        """What it said when it was ready, and what making its model took."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def __enter__(self) -> Running:
        """Nothing more: it runs already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def ask(self, request: Request) -> dict[str, Any]:
        """Let it answer a request, then stop it again."""
        os.kill(self._process.pid, signal.SIGCONT)
        try:
            stdin = self._pipe(self._process.stdin)
            stdin.write(json.dumps(asdict(request)) + "\n")
            stdin.flush()
            return self._read()
        finally:
            os.kill(self._process.pid, signal.SIGSTOP)

    def _read(self) -> dict[str, Any]:
        line = self._pipe(self._process.stdout).readline()
        if not line:
            raise SystemExit(f"{self.name} has ended; its last words are in {self._log}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe
