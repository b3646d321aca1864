"""examples/slurm.sh with a Slurm that is not there: its commands are written down, and `srun` does a run's part."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "slurm.sh"
COMMANDS = {
    "srun": 'echo "$@" >> "$NOTES/srun"; mkdir -p "$RUN"; touch "$RUN/config.yaml"; eval "$PART"',
    "scontrol": 'if [ "$1" = show ]; then echo first; echo second; else echo "$@" >> "$NOTES/scontrol"; fi',
    "squeue": 'echo "$STATE"',
}
STEP = 'mkdir -p "$RUN/checkpoints/00000$(ls "$RUN/checkpoints" 2>/dev/null | wc -l)"; '
WAITING = "trap 'echo ended >> $NOTES/ended; exit 143' TERM; echo ready >> $NOTES/ready; while :; do sleep 0.02; done"

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """The script, for the run folder `tmp_path / "run"`; part: what its `srun` does, state: what `squeue` says."""
    (tmp_path / "bin").mkdir()
    for name, text in COMMANDS.items():
        file = tmp_path / "bin" / name
        file.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        file.chmod(0o755)

    def begin(part: str, *, state: str = "RUNNING", nodes: int = 2) -> subprocess.Popen[bytes]:
        told = {"SLURM_JOB_ID": "70042", "SLURM_JOB_NUM_NODES": str(nodes), "SLURM_JOB_NODELIST": "first,second"}
        ours = {"NOTES": str(tmp_path), "RUN": str(tmp_path / "run"), "PART": part, "STATE": state}
        path = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_GPUS_ON_NODE": "8"}
        command = ["bash", SCRIPT, "my.yaml", tmp_path / "run"]
        return subprocess.Popen(command, env=os.environ | told | ours | path, stdout=subprocess.DEVNULL)

    return begin


def lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def test_a_signal_puts_the_job_back_and_the_next_start_resumes(start: Start, tmp_path: Path) -> None:
    for number, (state, sent) in enumerate((("RUNNING", signal.SIGUSR1), ("COMPLETING", signal.SIGTERM)), 1):
        job = start(WAITING, state=state)
        end = time.monotonic() + 20
        while len(lines(tmp_path / "ready")) < number:
            assert time.monotonic() < end
            time.sleep(0.01)
        job.send_signal(sent)
        assert job.wait(20) == 0
        assert lines(tmp_path / "ended") == ["ended"] * number  # the run was told
        assert lines(tmp_path / "scontrol") == ["requeue 70042"]  # one that was cancelled stays away
    first, second = lines(tmp_path / "srun")
    assert "torchrun --nnodes 2 --nproc-per-node 8" in first
    assert "--rdzv-endpoint first:20042" in first
    assert first.endswith(f"-m ilora run my.yaml --out {tmp_path / 'run'}")
    assert second.endswith(f"-m ilora resume {tmp_path / 'run'}")


@pytest.mark.parametrize(
    ("part", "code", "queued"),
    [
        pytest.param("exit 0", 0, False, id="finished"),
        pytest.param(f"{STEP} exit 1", 1, True, id="a process lost"),
        pytest.param("exit 1", 1, False, id="lost before a checkpoint"),
        pytest.param('mkdir -p "$RUN/contrast/er/checkpoints/000001"; exit 1', 1, True, id="lost in a contrast run"),
        pytest.param('mkdir -p "$RUN/predictions/slow/01-one.jsonl"; exit 1', 1, True, id="lost between answers"),
        pytest.param(f"{STEP} exit 2", 2, False, id="bad input"),
    ],
)
def test_a_job_goes_back_only_where_that_helps(
    part: str, code: int, queued: bool, start: Start, tmp_path: Path
) -> None:
    assert start(part, nodes=1).wait(20) == code
    assert bool(lines(tmp_path / "scontrol")) == queued
    assert "--standalone" in lines(tmp_path / "srun")[0]
