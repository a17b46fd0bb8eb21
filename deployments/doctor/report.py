"""Findings for people and for programs. Pure but for the console."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deployments.doctor.finding import Finding, Level

_STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


def show(findings: Sequence[Finding], console: Console) -> None:
    table = Table("", "check", "found", box=None, padding=(0, 1), header_style="bold")
    for finding in findings:
        told = Text(finding.what)
        if finding.why:
            told.append(f"\n{finding.why}", style="dim")
        if finding.todo:
            told.append(f"\n-> {finding.todo}", style="bold")
        table.add_row(Text(finding.level, style=_STYLES[finding.level]), finding.check, told)
    console.print(table)
    counts = {level: sum(finding.level is level for finding in findings) for level in Level}
    console.print(f"{counts[Level.FAIL]} fail, {counts[Level.WARN]} warn, {counts[Level.OK]} ok", highlight=False)


def as_json(findings: Sequence[Finding]) -> str:
    return json.dumps({"ok": not has_failed(findings), "findings": [asdict(one) for one in findings]}, indent=2)


def has_failed(findings: Sequence[Finding]) -> bool:
    return any(finding.level is Level.FAIL for finding in findings)
