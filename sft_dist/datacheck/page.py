"""What a check of the data found: on the screen, as JSON and as one HTML file."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from sft_dist.datacheck import census, likeness
from sft_dist.datacheck.findings import Finding, Item, Report
from sft_dist.pages import paper, words

NAMED = 5  # items of a finding on the screen
SHOWN = 60  # items of a finding on the page
TOGETHER = 6  # pictures of one item
PICTURES = 400  # of the whole page: each is decoded once more
MOST = 10_000  # items of a finding in the JSON; their number is always told


def lines(report: Report) -> Iterator[str]:
    """What is wrong first, then remarks, then a line to end with."""
    for part in report.parts:
        sides = f", shorter side {part.sides[0]} to {part.sides[2]} pixels, median {part.sides[1]}" if part.sides else ""
        yield f"{part.name:>5}  {sum(part.counts)} images of {len(report.classes)} classes{sides}"
    for finding in report.findings:
        yield f"{'wrong' if finding.wrong else 'remark'}: {heading(finding)}"
        yield from (f"    {said(item)}" for item in finding.items[:NAMED])
        if len(finding.items) > NAMED:
            yield f"    and {len(finding.items) - NAMED} more"
        if finding.advice:
            yield f"    {finding.advice}"
    yield verdict(report)


def verdict(report: Report) -> str:
    if report.wrong:
        return f"{report.images} images looked at: {words.listed([heading(finding) for finding in report.wrong], 10)}"
    return f"{report.images} images looked at: nothing is wrong" + (", but see the remarks" if report.remarks else "")


def heading(finding: Finding) -> str:
    return f"{len(finding.items)} x {finding.title}"


def said(item: Item) -> str:
    return words.listed(item.names, TOGETHER) + (f": {item.note}" if item.note else "")


def content(report: Report) -> dict[str, Any]:
    """What data-check.json holds."""
    return {
        "format": 1,
        "wrong": bool(report.wrong),
        "classes": report.classes,
        "splits": [asdict(part) for part in report.parts],
        "findings": [
            {
                "kind": finding.kind,
                "wrong": finding.wrong,
                "title": finding.title,
                "advice": finding.advice,
                "count": len(finding.items),
                "items": [asdict(item) for item in finding.items[:MOST]],
            }
            for finding in report.findings
        ],
    }


def shown(report: Report) -> list[str]:
    """The images that the page shows."""
    names = dict.fromkeys(name for finding in report.findings for item in finding.items[:SHOWN] for name in item.names[:TOGETHER])
    return list(names)[:PICTURES]


def page(report: Report, pictures: Mapping[str, str]) -> str:
    """The whole file. pictures: an image's name -> data URI of its picture, as far as there are any."""
    largest = max(max(part.counts) for part in report.parts)
    return paper.render(
        "check.html",
        report=report,
        pictures=pictures,
        verdict=verdict(report),
        heading=heading,
        listed=words.listed,
        largest=largest,
        most=SHOWN,
        together=TOGETHER,
        side=census.SIDE,
        alike=likeness.ALIKE,
        smallest=likeness.SMALLEST,
    )
