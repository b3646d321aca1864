"""The decision as a table, as Markdown for a merge request, and as JUnit XML for CI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as ET

from rich.table import Table
from rich.text import Text

from ilora.present.numbers import markdown, markdown_text, plain

Decision = Mapping[str, Any]
"""The content of gate.json."""

HEAD = ("rule", "on", "against", "before", "now", "lost", "interval", "limit", "rows", "verdict")
_NUMBERS = HEAD[3:9]
_RULES = {
    "best": "best so far",
    "release": "current release",
    "least": "least score",
    "gain": "gain by training",
    "text": "loss on a text",
    "harness": "lm-eval",
}
_STYLES = {"fail": "bold red", "undecidable": "yellow", "pass": ""}


def lines(decision: Decision) -> list[list[str]]:
    """A line of HEAD for each check, as plain texts."""
    return [_line(check) for check in decision["checks"]]


def table(decision: Decision) -> Table:
    """The checks for the terminal."""
    found = Table(box=None, pad_edge=False)
    shown = [place for place, column in enumerate(HEAD) if column != "against"]  # the reasons have it
    for column in (HEAD[place] for place in shown):
        number = column in _NUMBERS
        found.add_column(column, justify="right" if number else "left", no_wrap=number or column == "verdict")
    for check in decision["checks"]:
        line = _line(check)
        found.add_row(*(Text(line[place]) for place in shown), style=_STYLES[check["verdict"]])
    return found


def sentences(decision: Decision) -> list[str]:
    """The decision in words: the outcome, each reason, what to try."""
    told = [*_reasons(decision), *map(_text, decision["notes"]), *_repair(decision)]
    return [_headline(decision), *told, *_tries(decision)]


def parts(decision: Decision) -> dict[str, Any]:
    """The decision in words for a page: `headline`, `failed`, `open`, and `tries` with what, why and command."""
    return {
        "headline": _headline(decision),
        "failed": _reasons(decision, "fail"),
        "open": [*_reasons(decision, "undecidable"), *map(_text, decision["notes"])],
        "repair": _repair(decision),
        "tries": [{key: _text(entry[key]) for key in ("what", "why", "command")} for entry in decision["advice"]],
    }


def as_markdown(decision: Decision) -> str:
    """For a merge request: the outcome, the reasons, the table; everything is escaped."""
    points = [*_reasons(decision), *map(_text, decision["notes"]), *_repair(decision)]
    parts = [f"### {markdown_text(_headline(decision))}\n"]
    if points:
        parts.append("\n" + "".join(f"* {markdown_text(point)}\n" for point in points))
    parts.append("\n" + markdown([list(HEAD), *lines(decision)]))
    if decision["advice"]:
        parts.append("\nWhat to try:\n\n")
        parts += [
            f"{place}. {markdown_text(_text(entry['what']))}: {markdown_text(_text(entry['why']))}\n"
            for place, entry in enumerate(decision["advice"], 1)
        ]
    return "".join(parts)


def as_junit(decision: Decision) -> bytes:
    """JUnit XML: a test case for each check; an undecidable one is skipped, or fails where the rules say so."""
    strict = decision["rules"]["few_rows"] == "fail"
    cases = ET.Element("testsuite", name=f"ilora gate {_text(decision['phase'])}", time="0")
    counts = {"failure": 0, "skipped": 0}
    for check in decision["checks"]:
        name = f"{_text(check['subject'])}: {_RULES.get(check['rule'], check['rule'])}"
        case = ET.SubElement(cases, "testcase", name=name, classname=_text(decision["run"]), time="0")
        if check["verdict"] != "pass":
            kind = "failure" if check["verdict"] == "fail" or strict else "skipped"
            counts[kind] += 1
            ET.SubElement(case, kind, message=_text(check["why"])).text = _text(", ".join(_line(check)))
    cases.set("tests", str(len(decision["checks"])))
    cases.set("failures", str(counts["failure"]))
    cases.set("skipped", str(counts["skipped"]))
    cases.set("errors", "0")
    root = ET.Element("testsuites")
    root.append(cases)
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _headline(decision: Decision) -> str:
    checks = decision["checks"]
    found = {verdict: sum(check["verdict"] == verdict for check in checks) for verdict in _STYLES}
    strict = decision["rules"]["few_rows"] == "fail"
    parts = [f"{found['fail']} of {len(checks)} rules failed"]
    if found["undecidable"]:
        parts.append(f"{found['undecidable']} undecidable{', which fails here (few_rows: fail)' if strict else ''}")
    return f"The gate {_text(decision['outcome'])} for phase {_text(decision['phase'])}: {', '.join(parts)}."


def _reasons(decision: Decision, *verdicts: str) -> list[str]:
    """A sentence for each check that has something to say, or for those with one of these verdicts."""
    return [
        f"{_text(check['subject'])}, {_RULES.get(check['rule'], check['rule'])} ({_text(check['against'])}): "
        f"{_text(check['why'])}"
        for check in decision["checks"]
        if check["why"] and (not verdicts or check["verdict"] in verdicts)
    ]


def _repair(decision: Decision) -> list[str]:
    """What became of each candidate."""
    repair = decision["repair"]
    if repair is None:
        return []
    found = []
    for one in repair["tries"]:
        at = "".join(f" ({key} = {one[key]:g})" for key in ("t", "c") if key in one)
        why = "; ".join([*_scores_of(one), *_why_not(one)])
        found.append(f"Repair, {_text(one['candidate'])}{at}: {_text(one['outcome'])}{f' ({why})' if why else ''}")
    found += [f"Repair, {_text(note)}" for note in repair["notes"]]
    kept = f"{_text(repair['passed'])} passes" if repair["passed"] else "no candidate passes"
    place = f"; its adapter is in {_text(repair['adapter'])}" if repair["adapter"] else ""
    take = f" `{_text(repair['command'])}` makes it the phase's own, and a release." if repair.get("command") else ""
    return [*found, f"Repair: {kept}{place}.{take}"]


def _scores_of(one: Mapping[str, Any]) -> list[str]:
    """What a candidate scores on the gate's rows; where it was not judged on them, on the rows to choose on."""
    scores, chosen_on = one.get("scores", {}), one.get("chosen_on", {})
    told = {task: f"{score:.1f}" for task, score in scores.items()} or {
        task: f"{found['now']:.1f} on {found['split']} rows, before {found['before']:.1f}"
        for task, found in chosen_on.items()
    }
    return [", ".join(f"{_text(task)} {text}" for task, text in told.items())] if told else []


def _why_not(one: Mapping[str, Any]) -> list[str]:
    return [
        f"{_text(check['subject'])}: {_text(check['why'])}" for check in one["checks"] if check["verdict"] == "fail"
    ]


def _tries(decision: Decision) -> list[str]:
    if not decision["advice"]:
        return []
    found = [
        f"  {_text(entry['what'])} ({_text(entry['why'])}): {_text(entry['command'])}" for entry in decision["advice"]
    ]
    return ["What to try:", *found]


def _line(check: Mapping[str, Any]) -> list[str]:
    shown = "{:.3f}" if check["unit"] == "nats" else "{:.1f}"
    low, high = check["low"], check["high"]
    interval = "–" if low is None or high is None else f"{shown.format(low)} to {shown.format(high)}"
    return [
        _RULES.get(check["rule"], check["rule"]),
        _text(check["subject"], 40),
        _text(check["against"], 40),
        *(
            shown.format(round(check[key], 3 if check["unit"] == "nats" else 1) + 0.0)
            for key in ("before", "now", "lost")
        ),
        interval,
        f"{check['limit']:g}",
        "–" if check["rows"] is None else str(check["rows"]),
        check["verdict"],
    ]


def _text(value: object, limit: int = 400) -> str:
    """Untrusted text on one line without control characters, which XML forbids, too."""
    return plain(value, limit)
