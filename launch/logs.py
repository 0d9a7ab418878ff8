"""Where the ranks of a node write: a file each for output and errors, and both on the agent's screen with `host:rank|` before each line."""

from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs


class Logs(LogsSpecs):
    """`rank-<r>.out` and `rank-<r>.err` in the node's folder, under the ranks' own numbers; torchrun's would be four folders deep."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder

    @property
    def root_log_dir(self) -> str:
        return str(self.folder)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        out = {local: str(self.folder / f"rank-{env['RANK']}.out") for local, env in envs.items()}
        err = {local: str(self.folder / f"rank-{env['RANK']}.err") for local, env in envs.items()}
        summaries = {local: str(self.folder / f"rank-{env['RANK']}.torchrun") for local, env in envs.items()}
        return LogsDest(out, err, dict(out), dict(err), summaries)
