"""Claims: one worker per cell, whatever dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

from stepopsd.experiments.study import claims

RACE = """
import sys, time
from pathlib import Path
from stepopsd.experiments.study import claims
root, start = Path(sys.argv[1]), float(sys.argv[2])
while time.time() < start:
    pass
for index in range(200):
    if claims.take(root / str(index), stale_after_s=600) is not None:
        print(index)
time.sleep(0.5)
while not (root / "over").exists():
    time.sleep(0.05)
"""


def test_racing_workers_never_share_a_cell(tmp_path):
    start = time.time() + 1.5
    command = [sys.executable, "-u", "-c", RACE, str(tmp_path), str(start)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    deadline = time.time() + 60
    while len(list(tmp_path.glob("*/claim-0.json"))) < 200 and time.time() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    (tmp_path / "over").touch()
    taken = [int(line) for worker in workers for line in worker.communicate(timeout=60)[0].split()]
    assert sorted(taken) == list(range(200))


def test_a_held_cell_is_nobody_elses(tmp_path):
    claim = claims.take(tmp_path, stale_after_s=600)
    assert claim is not None
    assert claims.take(tmp_path, stale_after_s=600) is None
    assert claims.holder(tmp_path, stale_after_s=600).endswith(f":{os.getpid()}")
    claim.release()
    assert claims.holder(tmp_path, stale_after_s=600) is None
    again = claims.take(tmp_path, stale_after_s=600)
    assert again is not None
    again.release()


def test_a_dead_worker_of_this_machine_is_noticed_at_once(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c",
         "import sys, os; from pathlib import Path; from stepopsd.experiments.study import claims;"
         "claims.take(Path(sys.argv[1]), stale_after_s=600); os._exit(9)", str(tmp_path)],
        check=False,
    )  # fmt: skip
    assert done.returncode == 9
    taken = claims.take(tmp_path, stale_after_s=600)
    assert taken is not None
    assert taken.path.name == "claim-1.json"
    taken.release()


def test_a_silent_worker_of_another_machine_is_replaced_and_learns_of_it(tmp_path):
    claim = claims.take(tmp_path, stale_after_s=600)
    claim.path.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    assert claims.take(tmp_path, stale_after_s=600) is None
    long_ago = time.time() - 1000
    os.utime(claim.path, (long_ago, long_ago))
    other = claims.take(tmp_path, stale_after_s=600)
    assert other is not None
    assert claim.lost()
    assert not other.lost()
    claim.release()
    other.release()
