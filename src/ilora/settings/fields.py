"""Values that several sections have, and how a method is named in paths."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from ilora.files import expanded

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
LEAST_LENGTH = 16  # tokens of a row
Place = Annotated[Path, AfterValidator(lambda path: Path(expanded(str(path))))]  # `~` and `$HOME` are written out
Name = Annotated[str, AfterValidator(expanded)]  # of a hub, or a place


def method_label(name: str) -> str:
    """A method's name in paths: `er` stays `er`, `my_module:MyMethod` becomes `my_module-mymethod`."""
    return re.sub(r"[^\w+-]+", "-", name.lower())[-64:].strip("-") or "method"
