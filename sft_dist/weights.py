"""Where weights come from: torchvision, a file, or another run. Nothing here runs code that a file holds."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from sft_dist import archive, locks, rundir
from sft_dist.config import Model
from sft_dist.errors import ConfigError, MachineError

State = Mapping[str, Tensor]


def read(model: Model) -> tuple[State, tuple[str, ...] | None]:
    """The named weights on the CPU, and the classes that they were trained for where that is known. Never runs code from a file."""
    if model.weights.startswith("run:"):
        return _from_run(Path(model.weights.removeprefix("run:")))
    if model.weights.endswith(".safetensors"):
        return _from_safetensors(Path(model.weights)), None
    if model.weights.endswith((".pth", ".pt")):
        return _from_pickle(Path(model.weights)), None
    return _from_torchvision(model), None


def _from_torchvision(model: Model) -> State:
    choices = torchvision.models.get_model_weights(model.name)
    name = model.weights.split(".")[-1]
    if name not in choices.__members__:
        raise ConfigError(f"model.weights = {model.weights!r}; {model.name} has {', '.join(choices.__members__)}")
    try:
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        here = (cache / choices[name].url.rsplit("/", 1)[-1]).exists()  # perhaps in a cache that is read-only
        with nullcontext() if here else locks.one_at_a_time(cache):  # the first rank of a machine downloads, the others find the file
            state: State = choices[name].get_state_dict(progress=False, check_hash=True)
        return state
    except Exception as error:  # no network (OSError), another hash (RuntimeError), or a cached file that torch.load cannot read
        url, told = choices[name].url, str(error).split("\n")[0] or type(error).__name__
        raise MachineError(
            f"model.weights = {model.weights}: {url} cannot be fetched into {torch.hub.get_dir()} or read from there ({told}); fetch it where there is a network, "
            f"copy it here, and write model.weights: /path/to/{url.rsplit('/', 1)[-1]}"
        ) from error


def _from_safetensors(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: State = load_file(path)
        return state
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"model.weights = {str(path)!r} is not a whole safetensors file: {error}") from error


def _from_pickle(path: Path) -> State:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError and others for what is not a state dict
        told = str(error).split("\n")[0]
        raise ConfigError(f"model.weights = {str(path)!r} holds more than tensors, or is damaged, and is not opened: {told}") from error
    for key in ("state_dict", "model"):
        content = content[key] if isinstance(content, dict) and isinstance(content.get(key), dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(f"model.weights = {str(path)!r} is not a state dict (names and tensors)")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def _from_run(folder: Path) -> tuple[State, tuple[str, ...]]:
    run = rundir.RunDir(folder)
    for pointer in ("best", "latest"):
        checkpoint = run.pointed_to(pointer)
        if checkpoint is None:
            continue
        if problems := archive.verify(checkpoint):
            raise ConfigError([f"model.weights = 'run:{folder}': its {pointer} checkpoint is damaged", *problems])
        return archive.weights(checkpoint), tuple(rundir.read_json(checkpoint / "state.json")["classes"])
    raise ConfigError(f"model.weights = 'run:{folder}': neither checkpoints/best nor checkpoints/latest names a checkpoint")
