"""Kinds of work by name, for comparing: a new one is a file beside these, and a line in the table."""

from sft_dist.compare import boxes, labels, masks
from sft_dist.compare.pairing import Kind

KINDS: dict[str, Kind] = {"classify": labels.KIND, "segment": masks.KIND, "detect": boxes.KIND}
