"""L2P, learning to prompt: Wang et al. 2022 (arXiv 2112.08654).

A pool of prompts P_i, each with a key k_i. A row's query q is the frozen model's feature of its input; the prompts of
the top keys by cosine similarity stand before it, and their keys are drawn to the query:

    L = CE(x; P_s1 … P_sN) + strength · Σ_j (1 - cos(q, k_sj)),      mean over rows
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from ilora.data.examples import Batch, Totals
from ilora.methods.base import METHODS
from ilora.methods.prompts import PromptConfig, PromptMethod, fill
from ilora.methods.view import RunView
from ilora.settings import Log, PositiveInt


class L2PConfig(PromptConfig):
    """The pool; sizes as in the released settings."""

    search = PromptConfig.search | {"strength": Log(0.05, 5)}

    strength: float = Field(0.5, ge=0, description="weight of the term that pulls keys towards queries")
    pool_size: PositiveInt = Field(10, description="prompts in the pool")
    prompt_length: PositiveInt = Field(5, description="vectors in a prompt")
    top_k: PositiveInt = Field(3, description="prompts that each row uses")

    def prompt_tokens(self, tasks: int) -> int:
        """Those of the chosen prompts."""
        del tasks
        return self.top_k * self.prompt_length

    @model_validator(mode="after")
    def _enough(self) -> L2PConfig:
        if self.top_k > self.pool_size:
            raise ValueError(f"top_k ({self.top_k}) cannot be larger than pool_size ({self.pool_size})")
        return self


@METHODS("l2p")
class L2P(PromptMethod[L2PConfig]):
    """A pool of prompts that rows choose from; no task id.

    Differs: the query is the mean last hidden state over the prompt's tokens (the paper's [CLS] has no counterpart
    here); no classification head is trained. What is saved is no PEFT folder, since prompts depend on the row:
    `prompts.safetensors` (pool, keys) and `prompts.json`.
    """

    title = "L2P"
    paper = "arXiv 2112.08654"
    stores = "a pool of prompts with keys"
    one_adapter_answers = False

    def __init__(self, run: RunView, config: L2PConfig) -> None:
        super().__init__(run, config)
        size, length = config.pool_size, config.prompt_length
        words = self.word_vectors(size * length, "pool")
        self.pool = self.parameter(words.view(size, length, -1))
        source = torch.Generator().manual_seed(self.position.key("keys"))
        self.keys = self.parameter(torch.rand(size, words.shape[1], generator=source) * 2 - 1)

    @property
    def trainable(self) -> list[nn.Parameter]:
        """Prompts and keys."""
        return [self.pool, self.keys]

    def choose(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """For each of (rows, features): the top keys' numbers and similarities, (rows, top_k), best first."""
        similarity = functional.normalize(query, dim=1) @ functional.normalize(self.keys, dim=1).T
        top = similarity.topk(self.config.top_k, dim=1)
        return top.indices, top.values

    def loss(self, batch: Batch, totals: Totals) -> Tensor:
        """Cross-entropy with the chosen prompts + strength · their keys' distance from the query."""
        chosen, similarity = self.choose(self.engine.features(batch))
        with self.engine.prefixed(lambda _: self.pool[chosen].flatten(1, 2)):
            loss = self.cross_entropy(self.engine.forward(batch), batch, totals)
        pull = (1.0 - similarity).sum() / totals.current.rows
        self.run.log("pull", pull)
        return loss + self.config.strength * pull

    @contextmanager
    def inference(self, task: str, variant: str) -> Iterator[None]:
        """As in training."""
        del task, variant
        with self.in_training():
            yield

    @contextmanager
    def in_training(self) -> Iterator[None]:
        """Every row with the prompts that its own input chooses."""

        def prefix(batch: Batch) -> Tensor:
            chosen, _ = self.choose(self.engine.features(batch))
            return self.pool[chosen].flatten(1, 2)

        with self.engine.prefixed(prefix):
            yield

    def save(self, folder: Path) -> None:
        """`folder/fast/prompts.safetensors` and `prompts.json`."""
        target = folder / "fast"
        target.mkdir(parents=True)
        tensors = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        save_file(tensors, target / "prompts.safetensors", metadata={"format": "pt"})
        text = json.dumps({"method": "l2p"} | self.config.model_dump(mode="json"), indent=1)
        (target / "prompts.json").write_text(text + "\n", encoding="utf-8")

    def state_dict(self) -> dict[str, Any]:
        """prompts.pool (pool, length, features) and prompts.keys (pool, features)."""
        return {"prompts.pool": self.pool.detach(), "prompts.keys": self.keys.detach()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`; also takes the content of a saved `prompts.safetensors`."""
        fill([self.pool, self.keys], [state["prompts.pool"], state["prompts.keys"]])
