"""A rank does not outlive the agent that started it, not even one that died before the rank had begun."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_a_rank_whose_agent_died_before_it_began_leaves_at_once_and_says_why(tmp_path: Path) -> None:
    agent = subprocess.Popen(["true"])
    agent.wait()
    place = {"SFT_PULSE": str(tmp_path), "SFT_ATTEMPT": str(tmp_path), "SFT_AGENT": str(agent.pid)}
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    command = [sys.executable, "sft_dist/train.py", "configs/quickstart.yaml", f"run.dir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, env={**kept, **place}, capture_output=True, text=True, timeout=60)
    told = f"the agent that started this rank (process {agent.pid}) is gone"
    assert (done.returncode, done.stderr) == (75, f"sft-dist: interrupted from outside\n  - {told}\n")
    record = json.loads((tmp_path / "rank-0.json").read_text())
    assert (record["code"], record["type"], record["phase"], record["message"]) == (75, "InfrastructureError", "start-up", told)
    assert not (tmp_path / "quickstart").exists()
