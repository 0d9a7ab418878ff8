"""The doctor's word on the nodes: what is wrong, on which of them, and what to leave out."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from launch.symptoms import ALONE, TOGETHER, Finding, Report, nodes, rate, size
from launch.words import aligned, counted, plain

HOST = 24


def findings(reports: Sequence[Report]) -> list[Finding]:
    """All that is wrong or worth a word, by check and node."""
    came = [report for report in reports if report.came]
    here = [report for report in came if report.software]
    lost = [
        Finding("reach", report.node, "did not come: is it up, and can it reach node 0 (addresses, firewall)?")
        for report in reports
        if not report.came
    ]
    lost += [Finding("answer", report.node, f"{report.silent}: look at that host (dmesg)") for report in reports if report.silent]
    lost += [Finding(told.partition(":")[0], report.node, told) for report in came for told in report.problems]
    alone = [finding for check in ALONE for report in here for finding in check(report)]
    return lost + [finding for check in TOGETHER for finding in check(here)] + alone


def refused(problems: Sequence[str]) -> list[Finding]:
    """Why the head could not even begin, so that there is no report of any node."""
    return [Finding("start", 0, told) for told in problems]


def faulty(reports: Sequence[Report], found: Sequence[Finding]) -> list[str]:
    """Hosts to leave out: where something is wrong that is not wrong everywhere, nor a matter of one node's word against the other's."""
    hosts = {report.node: report.host for report in reports}
    blamed = set()
    for finding in found:
        alike = len({other.node for other in found if other.wrong and other.check == finding.check})
        if finding.wrong and (alike * 2 if finding.compared else alike) < len(reports):
            blamed.add(finding.node)
    return list(dict.fromkeys(hosts[node] for node in sorted(blamed) if hosts[node] != "?"))


def screen(reports: Sequence[Report], found: Sequence[Finding]) -> list[str]:
    """A table of the nodes, what is wrong, and what to type next."""
    heads = ["node", "host", "CPUs", "GPUs", "disk free", "shm", "clock", "gloo", "nccl", "code"]
    lines = aligned([heads, *(_row(report) for report in reports)])
    for wrong, label in ((True, "wrong"), (False, "remark")):
        for told in dict.fromkeys(each.told for each in found if each.wrong == wrong):
            lines.append(f"{label}: {nodes(_of(told, reports, found))}: {told}")
    ill = {each.node for each in found if each.wrong}
    if not ill:
        return [plain(line) for line in [*lines, f"nothing wrong on {counted(len(reports))}"]]
    if out := faulty(reports, found):
        lines.append(f"leave out what is at fault: sbatch --exclude={','.join(out)}")
    elif len(reports) > 1:
        lines.append("no node to leave out: it is wrong on all of them, or two only differ and either may be the odd one")
    lines.append(f"something is wrong on {len(ill)} of {counted(len(reports))}; mend it or leave it out, then run sft-launch doctor again")
    return [plain(line) for line in lines]


def to_json(reports: Sequence[Report], found: Sequence[Finding]) -> dict[str, Any]:
    """The same for scripts."""
    wrong = any(finding.wrong for finding in found)
    return {
        "ok": not wrong,
        "exclude": faulty(reports, found),
        "findings": [asdict(finding) for finding in found],
        "nodes": [asdict(report) for report in reports],
    }


def exit_code(found: Sequence[Finding]) -> int:
    return 78 if any(finding.wrong for finding in found) else 0


def _of(told: str, reports: Sequence[Report], found: Sequence[Finding]) -> list[Report]:
    """The nodes about which the same is told."""
    about = {each.node for each in found if each.told == told}
    return [report for report in reports if report.node in about]


def _row(report: Report) -> list[str]:
    if not report.software:
        return [str(report.node), _short(report.host), *["-"] * 8]
    speeds = [rate(report.rates[name]) if name in report.rates else "-" for name in ("gloo", "nccl")]
    clock = "-" if report.offset_s is None else f"{report.offset_s * 1000:+.0f} ms"
    amounts = [str(report.processors), str(report.gpus), size(report.free_bytes), size(report.shm_bytes)]
    return [str(report.node), _short(report.host), *amounts, clock, *speeds, report.software.get("code", "-")]


def _short(host: str) -> str:
    """For the table; the lines below it have the whole name."""
    return host if len(host) <= HOST else f"{host[: HOST - 2]}.."
