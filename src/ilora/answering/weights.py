"""The weights that a run can answer with, by name: the base model, its adapters, and points between two of them.

base          the base model without an adapter
slow          a variant of the method, after the last phase
phase:2       the answering variant after a phase, by number or label; phase:2/fast is another variant
t:0.4         a point between the answering adapters of the last two phases, as `ilora evaluate --at 0.4` takes it
"""

from __future__ import annotations

from pathlib import Path

from ilora.connectivity import paths, space
from ilora.connectivity.sources import read_outcome
from ilora.connectivity.space import Adapter
from ilora.data.encoding import LONGEST_AUTO
from ilora.errors import InputError
from ilora.releases.store import current, read_release
from ilora.results.reader import check_results, phase_labels, prompt_template

BASE = "base"


class RunWeights:
    """A run's weights, read when they are asked for. Its data need not be there.

    answering: the variant that answers. release: the number of the current one; None without releases.
    phases: the labels of the phases that have left adapters.
    """

    def __init__(self, run: Path) -> None:
        """Raises InputError where the folder is no run, or no single adapter of it answers."""
        self.run = run
        self.config, self.results = read_outcome(run)
        check_results(self.results, str(run / "results.json"))
        self.answering = str(self.results["answers_with"])
        if not self.results["adapter"]:
            raise InputError(
                f"{run}: method {self.results['method']} does not answer with one adapter, but with one for each task, "
                "a choice among them, or prompts; it can be asked in its run alone, which keeps every prediction"
            )
        labels = phase_labels(self.results)
        self.phases = [label for label in labels if (run / "adapters" / label / self.answering).is_dir()]
        if not self.phases:
            raise InputError(f"{run}: no adapter in adapters/")
        self.release = current(run)

    @property
    def variants(self) -> list[str]:
        """Those that the last phase has left, the answering one first."""
        folders = [path.name for path in (self.run / "adapters" / self.phases[-1]).iterdir() if path.is_dir()]
        return sorted(folders, key=lambda name: (name != self.answering, name))

    def template(self, weights: Adapter) -> str | None:
        """In which template to ask the weights: that of the last task they were trained on; None: the run's."""
        labels = phase_labels(self.results)
        there = [number for number, label in enumerate(labels, 1) if label in weights.label]
        return prompt_template(self.results, max(there, default=len(self.phases)))

    def longest_answer(self, task: str | None = None) -> int:
        """The most tokens of an answer in the run's evaluation: of a task, or of any."""
        found = [entry.get("max_new_tokens") for entry in self.results["tasks"] if task in (None, entry["name"])]
        known = [limit for limit in found if isinstance(limit, int)]  # a run of an older version does not say
        setting = self.config.evaluation.max_new_tokens
        return max(known) if known else setting if isinstance(setting, int) else LONGEST_AUTO

    @property
    def allowed(self) -> str:
        """The names that `named` knows, in words."""
        return (
            f"{BASE}, {', '.join(self.variants)}, phase:1 to phase:{len(self.phases)} (also phase:1/fast), t:0 to t:1"
        )

    def named(self, name: str | None) -> Adapter:
        """The adapter of a name; None: the current release's, or the one that answers after the last phase.

        `base` is an adapter that changes nothing.

        Raises InputError, with the names that there are, for any other.
        """
        now = self.answering if self.release is None else f"release:{self.release}"
        kind, _, rest = (now if name is None else name).partition(":")
        if kind == BASE and not rest:
            return Adapter(BASE, {})
        if kind == "phase":
            return self._of_phase(rest)
        if kind == "t":
            return self._between(rest)
        if kind == "release":
            return self._of_release(rest)
        if not rest and kind in self.variants:
            return self._read(self.phases[-1], kind)
        raise InputError(f"{self.run}: no weights {name!r}; there are {self.allowed}")

    def _of_phase(self, text: str) -> Adapter:
        phase, _, variant = text.partition("/")
        labels = {str(int(label.partition("-")[0])): label for label in self.phases}
        label = labels.get(phase.lstrip("0"), phase)
        if label not in self.phases:
            raise InputError(f"{self.run}: no phase {phase!r}; there are {', '.join(self.phases)}")
        if variant and not (self.run / "adapters" / label / variant).is_dir():
            raise InputError(f"{self.run}: no variant {variant!r} after {label}; there are {', '.join(self.variants)}")
        return self._read(label, variant or self.answering)

    def _of_release(self, number: str) -> Adapter:
        if not number.isdecimal():
            raise InputError(f"release {number!r}: a number is needed, such as release:1")
        release = read_release(self.run, int(number))
        if release.adapter is None:
            raise InputError(f"{release.folder}: it holds no adapter that answers")
        return space.read(release.adapter, label=f"release {number} ({release.manifest.phase})")

    def _between(self, text: str) -> Adapter:
        try:
            t = float(text)
        except ValueError:
            raise InputError(f"t {text!r}: a number from 0 to 1 is needed") from None
        paths.check_t(t)
        if len(self.phases) < 2:
            raise InputError(f"{self.run}: t lies between the adapters of two phases, and there is one")
        first, second = (self._read(label, self.answering) for label in self.phases[-2:])
        point = paths.make_path("linear", (first, second), space="factors").at(t)
        return Adapter(f"t = {t:g} from {first.label} to {second.label}", point.updates, point.base, point.settings)

    def _read(self, label: str, variant: str) -> Adapter:
        return space.read(self.run / "adapters" / label / variant, label=f"{label}/{variant}")
