"""A checkpoint made ready for elsewhere: one file of weights, what goes before the model, and twenty lines of plain torchvision that use it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sft_dist import archive, checkpoint, inventory, manifest, parse, rundir, transforms
from sft_dist.config import Config, Data
from sft_dist.errors import ConfigError
from sft_dist.families import family
from sft_dist.programs import PROGRAMS
from sft_dist.rundir import RunDir, to_json

FILES = ("model.safetensors", "classes.json", "preprocessing.json", "config.yaml", "predict.py", "README.md")

CARD = """\
# {name}

`{model}` of torchvision, fine-tuned with sft-dist to tell apart {count} classes. Weights: {weights}.

## Scores

| score | value |
|---|---|
{scores}

`val/` was measured on the samples that chose the checkpoint, `test/` on samples that chose nothing.

## Use

```sh
python predict.py {arguments}
```

`predict.py` needs torch, torchvision, safetensors, Pillow and NumPy, and nothing of sft-dist:

```python
{predict}```

## Files

| file | what |
|---|---|
| `model.safetensors` | the weights under torchvision's names; nothing in it is executed |
| `classes.json` | the classes, in the order of the model's outputs |
| `preprocessing.json` | what an image goes through before the model, in this order |
| `config.yaml` | everything that the run was asked to do |
| `MANIFEST.json` | sizes and hashes of these files |
"""


def export(run: RunDir, name: str, to: Path | None = None) -> list[str]:
    """Write the checkpoint called `name` into a folder, `export/` of the run by default; what was made, in words.

    The weights stream from file to file, one tensor at a time. The folder appears whole or not at all. Raises ConfigError for a
    damaged checkpoint, and for a folder that is there and holds anything that is not of an export.
    """
    target = run.path / "export" if to is None else to
    source = checkpoint.named(run, name)
    config = parse.load(run.config)
    _check_target(target)
    aside = target.absolute().with_name(f".unfinished-{target.absolute().name}")
    with rundir.writing(target):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(mode=0o777 if config.run.shared else 0o700, parents=True)
        try:
            weights = archive.weights(source)
            entries = {"model.safetensors": archive.write(aside / "model.safetensors", weights)}
            for file, text in _texts(run, config, source, weights).items():
                (aside / file).write_text(text, encoding="utf-8")
                entries[file] = manifest.entry(aside / file)
            manifest.write(aside, inventory.step_of(source), entries)
            _replace(target.absolute(), aside)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    size = sum(entry.bytes for entry in entries.values())
    return [f"{source.name} is exported to {target} ({size / 2**20:.1f} MiB)", f"python {target / 'predict.py'} {PROGRAMS[config.task][1]}"]


def _check_target(target: Path) -> None:
    if not target.exists() and not target.is_symlink():
        return
    foreign = [target.name] if target.is_symlink() or not target.is_dir() else []
    foreign = foreign or sorted(path.name for path in target.iterdir() if path.name not in (*FILES, manifest.NAME))
    if foreign or (any(target.iterdir()) and not (target / manifest.NAME).is_file()):
        what = f" ({', '.join(foreign[:3])})" if foreign else ""
        raise ConfigError(f"{target} is there and holds what is not of an export{what}; nothing is overwritten; use another --to")


def _replace(target: Path, aside: Path) -> None:
    if target.exists():
        old = target.with_name(f".unfinished-old-{target.name}")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        aside.rename(target)
        shutil.rmtree(old)
    else:
        aside.rename(target)
    manifest.fsync(target.parent)


def _texts(run: RunDir, config: Config, source: Path, weights: archive.Averaged) -> dict[str, str]:
    """The small files of an export by name. Names and numbers enter the code as Python literals only."""
    options = family(config.model.name, config.task).options  # the code names a model of torchvision, or there is no code
    classes, data, how = list(checkpoint.classes_of(source)), config.data, preprocessing(config)
    constants = {"resize": how.get("resize"), "size": data.size, "mean": list(data.mean), "std": list(data.std), "options": dict(options)}
    program, arguments = PROGRAMS[config.task]
    predict = program.format(model=json.dumps(config.model.name), classes=repr(classes), count=len(classes), **constants)
    item = next(item for item in inventory.items(run) if item.name == source.name)
    card = CARD.format(
        name=config.run.name,
        model=config.model.name,
        count=len(classes),
        weights=f"{source.name}, {'the moving average' if weights.averaged else 'as trained'}",
        scores="\n".join(f"| `{score}` | {value:.4f} |" for score, value in item.scores.items()) or "| none is known | |",
        predict=predict,
        arguments=arguments,
    )
    return {
        "classes.json": json.dumps(classes, ensure_ascii=False, indent=1) + "\n",
        "preprocessing.json": to_json(how),
        "config.yaml": run.config.read_text(encoding="utf-8"),
        "predict.py": predict,
        "README.md": card,
    }


def preprocessing(config: Config) -> dict[str, Any]:
    """What an image goes through before the model, in this order, as torchvision's transforms take it."""
    how = PREPROCESSING[config.task](config.data)
    return {"mode": "RGB", **how, "scale": 1 / 255, "mean": list(config.data.mean), "std": list(config.data.std)}


def _cut(data: Data) -> dict[str, Any]:
    resize, crop = transforms.evaluation(data).transforms
    return {"resize": resize.size[0], "interpolation": SMOOTH, "crop": crop.size[0], "crop_place": "centre"}


def _whole(data: Data) -> dict[str, Any]:
    return {"resize": transforms.whole(data).size[0], "interpolation": SMOOTH}


def _padded(data: Data) -> dict[str, Any]:
    return {"longer_side": data.size, "interpolation": SMOOTH, "padded_to": data.size, "padding_place": "right and bottom"}


SMOOTH = "bilinear, antialias"
PREPROCESSING: dict[str, Callable[[Data], dict[str, Any]]] = {"classify": _cut, "segment": _whole, "detect": _padded}
