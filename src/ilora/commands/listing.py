"""What `ilora list` prints."""

from __future__ import annotations

from rich.table import Table

from ilora.errors import InputError
from ilora.registry import did_you_mean

FAMILIES = ["bounds", "replay", "regularisation", "projection", "isolation", "merging"]
_CAPTIONS = {"methods": "Joint (multi-task) training, the upper bound: `stream: joint` with any method."}
KINDS = ["methods", "benchmarks", "metrics", "models"]


def listing(kind: str) -> Table:
    """A table of the registered names. Raises InputError for an unknown kind."""
    if kind not in KINDS:
        raise InputError(f"unknown kind '{kind}'{did_you_mean(kind, KINDS)}; known: {', '.join(KINDS)}")
    columns, rows = {"methods": _methods, "benchmarks": _benchmarks, "metrics": _metrics, "models": _models}[kind]()
    table = Table(box=None, pad_edge=False, caption=_CAPTIONS.get(kind), caption_justify="left")
    for column in columns:
        fixed = column in ("name", "alias", "family", "hub id", "task id")
        table.add_column(column, no_wrap=fixed, max_width=16 if column == "paper" else None)
    for row in rows:
        table.add_row(*row)
    return table


Listed = tuple[list[str], list[tuple[str, ...]]]


def _methods() -> Listed:
    from ilora.methods import METHODS

    rows: list[tuple[str, ...]] = [
        (name, method.family, method.paper, method.stores, "yes" if method.needs_task_id else "no")
        for name, method in sorted(
            ((name, METHODS[name]) for name in METHODS), key=lambda item: FAMILIES.index(item[1].family)
        )
    ]
    return ["name", "family", "paper", "stores", "task id"], rows


def _benchmarks() -> Listed:
    from ilora.benchmarks import BENCHMARKS, Stream

    items = {name: BENCHMARKS[name] for name in BENCHMARKS}
    about = {name: item.about if isinstance(item, Stream) else _headline(item) for name, item in items.items()}
    return ["name", "what"], [*about.items()]


def _metrics() -> Listed:
    from ilora.metrics.metrics import METRICS

    return ["name", "what"], [(name, METRICS[name].description) for name in METRICS]


def _models() -> Listed:
    from ilora.model.names import ALIASES

    rows = [(name, alias.hub_id, alias.about) for name, alias in ALIASES.items()]
    return ["alias", "hub id", "what"], [
        *rows,
        ("<owner/model>", "", "any decoder-only model of the hub"),
        ("<folder>", "", "a local one"),
    ]


def _headline(item: object) -> str:
    return (item.__doc__ or "").strip().partition("\n")[0]
