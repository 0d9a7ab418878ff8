"""The small config that tests start from, changed key by key."""

from typing import Any

import yaml

from sft_dist import parse
from sft_dist.config import Config

TREE = """
task: classify
data: {name: digits, size: 32}
model: {name: resnet18}
batch: {total: 32, micro: 8}
train: {duration: "25 epochs"}
report: {write: none}
run: {name: small}
"""


def a_config(**changes: Any) -> Config:
    """The small config with `section__key=value` laid over it."""
    tree = yaml.safe_load(TREE)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            tree.setdefault(section, {})[name] = value
        else:
            tree[section] = value
    return parse.from_tree(tree)
