"""``infinichat doctor``: check this machine and say what to do next.

Each check is a function in ``doctor_checks.py`` that gives rows: ok, a warning, or a fault with the next
step. Nothing is changed; a missing database is not made. Exit status 1 when there is a fault.
"""

from __future__ import annotations

import argparse

from infinichat.cli.context import Context
from infinichat.cli.doctor_checks import CHECKS, Finding
from infinichat.cli.parser import add_json
from infinichat.errors import InfiniChatError
from infinichat.text.figures import counted

_SIGN = {"ok": "ok     ", "warning": "warning", "fault": "FAULT  "}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(args: argparse.Namespace, context: Context) -> int:
    findings: list[Finding] = []
    for name, check in CHECKS:
        if context.console.live:
            context.console.progress(f"checking {name} …")
        try:
            found = check(context)
        except InfiniChatError as error:
            found = [Finding(name, "fault", str(error))]
        findings += found
        for finding in [] if args.json else found:
            context.console.line(text_of(finding))
    context.console.clear_progress()
    faults = sum(finding.state == "fault" for finding in findings)
    if args.json:
        rows = [
            {"check": f.check, "state": f.state, "detail": f.detail, "next": f.next_step} for f in findings
        ]
        context.console.json({"checks": rows, "faults": faults})
    elif faults:
        context.console.fail(f"{counted(faults, 'fault')} found; each says what to do next")
    return 1 if faults else 0


def text_of(finding: Finding) -> str:
    """One row for people."""
    step = f". Next: {finding.next_step}" if finding.next_step else ""
    return f"{_SIGN[finding.state]}  {finding.check}: {finding.detail}{step}"
