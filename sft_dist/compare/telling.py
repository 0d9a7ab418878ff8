"""A comparison in words, the same on the screen, in the page and in the JSON."""

from sft_dist.compare.noise import Difference, Spread
from sft_dist.compare.pairing import ClassChange
from sft_dist.compare.standings import Entry
from sft_dist.compare.verdicts import ALPHA, Comparison, Pair
from sft_dist.pages import words


def sentence(pair: Pair, comparison: Comparison) -> str:
    """The verdict on a pair: which is better, by how much, how sure, by which test, and of what it speaks."""
    if not pair.difference or pair.p is None:
        return f"cannot tell {pair.other} from {pair.one}: {pair.reason}"
    told = (
        f"{difference(pair.difference, words.score(comparison.metric))}, {pair.difference.test} {p_value(pair.p)}{correction(comparison)}"
    )
    if pair.verdict == "noise":
        return f"could be noise: {pair.other} against {pair.one} {told}; {scope(pair)}"
    return f"{pair.other} is {pair.verdict} than {pair.one}: {told}; {scope(pair)}"


def difference(found: Difference, name: str) -> str:
    low, high = 100 * found.low, 100 * found.high
    return f"{100 * found.value:+.1f} points of {name}, 95 % interval {low:.1f} to {high:.1f}"


def beside(pair: Pair) -> list[str]:
    """The other scores of a pair, whose p values decide nothing and are not corrected."""
    return [
        f"{difference(found, words.score(metric))}, {found.test} {p_value(found.p)}, not corrected" for metric, found in pair.beside.items()
    ]


def correction(comparison: Comparison) -> str:
    return f" (Holm over {comparison.among} pairs)" if comparison.among > 1 else ""


def scope(pair: Pair) -> str:
    """What a verdict speaks of, by the seeds that were there."""
    one, other = pair.runs
    if one == other == 1:
        return "one seed each, so it speaks of these two models and not of their recipes"
    if 1 in pair.runs:
        return f"{one} against {other} seeds, where the single run is taken to vary like the others"
    return f"{one} against {other} seeds"


def p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def spread(found: Spread | None) -> str:
    """`0.828 ± 0.018`: a mean, and the sample deviation where there are seeds."""
    if found is None:
        return "-"
    return f"{found.mean:.4f}" + (f" ± {found.deviation:.4f}" if found.deviation is not None else "")


def interval(found: Spread | None) -> str:
    return "-" if found is None or found.low is None or found.high is None else f"{found.low:.4f} to {found.high:.4f}"


def steps(entry: Entry) -> str:
    return " to ".join(map(str, sorted({min(entry.steps), max(entry.steps)})))


def class_change(change: ClassChange) -> str:
    return f"{change.name} {100 * change.change:+.1f}"


def regressions(comparison: Comparison) -> list[str]:
    """The last lines with a baseline: what it means for whoever waits for the exit code."""
    lines = [f"regression: {pair.other} is worse than {pair.one}, beyond noise (p < {ALPHA:.2g})" for pair in comparison.regressions]
    return lines or ([f"no regression against {comparison.baseline}"] if comparison.complete else [])
