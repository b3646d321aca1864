"""The shell of every page: one self-contained HTML file with one style sheet, which loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ilora.present.numbers import count, duration, forgotten, points, uncertainty


def render_page(package: str, template: str, *, script: str | None = None, **content: object) -> str:
    """A page as text: a template that fills the blocks of shell.html.jinja.

    package: where the template and the script lie.
    script: the name of the page's only script; the page's policy forbids every other one.
    content: what the template shows. Every text in it is escaped; only `Markup` is taken as it is.
    """
    code = files(package).joinpath(script).read_text(encoding="utf-8") if script else ""
    return (
        _environment(package)
        .get_template(template)
        .render(script=Markup(code), script_hash=_policy_hash(code) if code else "", **content)
    )


@cache
def _environment(package: str) -> Environment:
    """Kept, since it keeps the compiled templates."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("ilora.present", ".")]),
        autoescape=True,  # for every name: prompts, answers, settings and names of tasks and methods are untrusted
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "pts": lambda score: points(score).replace("-", "−"),
        "forgotten": forgotten,
        "uncertainty": uncertainty,
        "duration": duration,
        "count": count,
        "quoted": lambda text: json.dumps(text, ensure_ascii=False),
        "tint": lambda share: f"{min(1.0, max(0.0, share or 0.0)):.3f}",
    }
    return environment


def _policy_hash(code: str) -> str:
    """How a content security policy names the one script that may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()


def own_drawing(svg: str) -> Markup:
    """An SVG that `as_svg` drew, as markup. It holds no text of the user: matplotlib draws glyphs as outlines."""
    return Markup(svg)


def inert_json(value: object) -> Markup:
    """JSON for a script element. No name or label in it can end the element."""
    text = json.dumps(value, ensure_ascii=True)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
