"""The base model and its tokenizer: a hub id, a local folder, or the bundled default."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig
from transformers.utils import logging as transformers_logging

from ilora.errors import InputError
from ilora.files import cache_folder
from ilora.hub import within_reach
from ilora.kernels.attention import GROUPED, LONG, PLAIN, flash_serves
from ilora.model.dtype import dtype_of
from ilora.model.names import ALIASES, GIVEN, Alias, allowed, local_folder, wheel_hint
from ilora.model.sharded import begin_sharing, in_all, in_parts, layout_of, refuse_other_files
from ilora.settings import ModelConfig

_OTHER_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")
_DROPOUTS = (
    "dropout",
    "attention_dropout",
    "hidden_dropout",
    "activation_dropout",
    "attn_pdrop",
    "resid_pdrop",
    "embd_pdrop",
)


@dataclass(frozen=True)
class GivenModel:
    """A causal language model and its tokenizer, given as objects instead of by name."""

    model: Any
    tokenizer: Any

    @staticmethod
    def of(model: Any, tokenizer: Any = None) -> GivenModel:
        """tokenizer: None for the one that belongs to the model's name. Raises InputError where there is none."""
        name = getattr(model, "name_or_path", "")
        if tokenizer is None and not name:
            raise InputError("tokenizer: the model object has no name to find its tokenizer by; give it, too")
        return GivenModel(model, tokenizer or load_tokenizer(ModelConfig(name=name)))

    def ready(self, engine: Any) -> None:
        """Told of the engine that computes with the model, before its first pass."""

    def settings(self, config: ModelConfig) -> ModelConfig:
        """The configuration's section that describes this model."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        if dtype not in ("bfloat16", "float32"):
            raise InputError(f"model: its weights are {dtype}; allowed are bfloat16 and float32")
        bits = {"8bit": "is_loaded_in_8bit", "4bit": "is_loaded_in_4bit"}
        found = [kind for kind, flag in bits.items() if getattr(self.model, flag, False)]
        changes = {"name": self.model.name_or_path or GIVEN, "dtype": dtype, "quantization": (*found, "none")[0]}
        return config.model_copy(update=changes)


def load_tokenizer(config: ModelConfig) -> Any:
    """The tokenizer alone. Raises InputError where the name cannot be loaded."""
    source = resolve(config.name)
    with within_reach(source, config.revision):
        try:
            return AutoTokenizer.from_pretrained(source, **_where(config))
        except (OSError, ValueError, ImportError) as error:
            hint = wheel_hint(config.name)
            raise InputError(f"model '{config.name}': {_first_line(error)}; give {allowed()}{hint}") from error


def model_config(config: ModelConfig) -> Any:
    """The base's config.json. Raises InputError where the model cannot be found."""
    source = resolve(config.name)
    with within_reach(source, config.revision):
        try:
            return AutoConfig.from_pretrained(source, **_where(config))
        except (OSError, ValueError) as error:
            raise InputError(f"model '{config.name}': {_first_line(error)}") from error


def load_model(
    config: ModelConfig, *, max_length: int, device: torch.device, accelerator: Accelerator | None = None
) -> tuple[nn.Module, Any]:
    """The frozen causal language model on `device`, in evaluation mode, and its tokenizer.

    max_length: of the rows that it will read, in tokens.
    accelerator: of the processes over which `model.shard` may spread the weights; None: the model is whole.
    Raises InputError where the name cannot be loaded, or the model cannot be used; in every process of `accelerator`.
    """
    layout = None if accelerator is None else layout_of(config, accelerator, lambda: model_config(config))
    if accelerator is None:
        model, tokenizer = _read(config, device)
    elif layout is None:
        model, tokenizer = in_all(lambda: _read(config, device))
    else:
        tokenizer = in_all(lambda: _beside_weights(config))
        refuse_other_files(accelerator, Path(resolve(config.name)))
        with in_parts(config.name) as meshes:
            model, tokenizer = in_all(lambda: _read(config, device, layout.options))
        begin_sharing(model, meshes[0], config.name)
    if config.liger:
        _fuse_with_liger(model, device)
    if config.quantization == "none" and layout is None:
        model.to(device)
    prepare_model(model, tokenizer, config, max_length=max_length)
    return model, tokenizer


def _beside_weights(config: ModelConfig) -> Any:
    """The tokenizer, where the model's config.json is there, too."""
    model_config(config)
    return load_tokenizer(config)


def prepare_model(model: Any, tokenizer: Any, config: ModelConfig, *, max_length: int) -> None:
    """Freeze a loaded model, and set up its attention and greedy generation, in place.

    Raises InputError where rows of `max_length` tokens cannot be used with it.
    """
    _refuse(model, tokenizer, config, max_length=max_length)
    # A hub model's own sampling settings (temperature, repetition penalty) have no place in greedy evaluation.
    model.generation_config = GenerationConfig(
        eos_token_id=list(dict.fromkeys([tokenizer.eos_token_id, *ends(model)])), pad_token_id=tokenizer.pad_token_id
    )
    if config.attention == "auto" and _ours_is_faster(model, max_length):
        model.set_attn_implementation(GROUPED)
    if not config.dropout:
        _switch_dropout_off(model)
    _contiguous_output_head(model)
    model.requires_grad_(False)
    for part in model.modules():
        # On a CPU, bitsandbytes packs weights at the first evaluation into a form without gradients, for good:
        # training after it would stand still without a word.
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False
    model.eval()


def ends(model: Any) -> list[int]:
    """The tokens that end an answer, as the model's generation settings name them."""
    found = getattr(model.generation_config, "eos_token_id", None)
    return [] if found is None else [int(token) for token in (found if isinstance(found, list) else [found])]


def positions(config: Any) -> int | None:
    """Tokens that a model with this configuration reads, at most; None where it has no limit."""
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) else None


def refuse_long_rows(config: ModelConfig, most: int | None, max_length: int) -> None:
    """Raises InputError where rows may be longer than the model reads. most: its `positions`."""
    if most is not None and max_length > most:
        raise InputError(
            f"data.max_length: {max_length}, but model '{config.name}' reads at most {most} tokens; "
            f"data.max_length={most} is the most that it takes"
        )


def _ours_is_faster(model: Any, length: int) -> bool:
    """Whether rows go through our own attention: without padding, and on a CPU with short rows."""
    if model.config.model_type not in PLAIN or not _sees_all(model.config, length):
        return False
    short = length <= LONG and model.dtype == torch.bfloat16 and model.device.type == "cpu"
    return short or flash_serves(model.device, model.dtype)


def _sees_all(config: Any, length: int) -> bool:
    """Whether every token of a row sees all tokens before it: no sliding window is shorter than the row."""
    window = getattr(config, "sliding_window", None)
    return window is None or window >= length or getattr(config, "use_sliding_window", True) is False


def _read(config: ModelConfig, device: torch.device, parts: Mapping[str, Any] | None = None) -> tuple[Any, Any]:
    """Model and tokenizer as transformers loads them. Raises InputError where it cannot.

    parts: what transformers needs to know to read the weights in parts.
    """
    transformers_logging.disable_progress_bar()
    source, options = resolve(config.name), _where(config) | {"dtype": dtype_of(config)}
    if parts is not None:
        options |= {**parts, "use_safetensors": True}  # slices of any other file cannot be read
    if config.attention != "auto":  # else the best that transformers has for this model: sdpa, or eager
        options |= {"attn_implementation": config.attention}
    if config.quantization != "none":
        options |= {"quantization_config": _quantization(config), "device_map": {"": device}}
    with within_reach(source, config.revision):
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, **_where(config))
            model, report = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **options)
        except torch.OutOfMemoryError:  # no matter of what was given
            raise
        except (OSError, ValueError, ImportError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            reason, hint = _first_line(error), wheel_hint(config.name)
            if reason.startswith("Unrecognized configuration class"):
                kind = AutoConfig.from_pretrained(source, **_where(config)).model_type
                reason = f"its type is {kind}, which transformers does not load as a language model of text alone"
            raise InputError(f"model '{config.name}': {reason}; give {allowed()}{hint}") from error
    _refuse_incomplete(config.name, model, report)
    return model, tokenizer


def _refuse_incomplete(name: str, model: Any, report: Mapping[str, Any]) -> None:
    """Raises InputError where the checkpoint is not that of a whole causal language model."""
    missing = sorted({*report["missing_keys"], *(key for key, *_ in report.get("mismatched_keys", ()))})
    if missing:
        raise InputError(
            f"model '{name}': its checkpoint lacks {_some(missing)}, which would be random numbers; "
            "give a whole causal language model"
        )
    made_for = [kind for kind in model.config.architectures or () if kind.endswith(_OTHER_HEADS)]
    if made_for or any(key.startswith(("score.", "classifier.")) for key in report["unexpected_keys"]):
        raise InputError(f"model '{name}': its checkpoint is a classifier's; give a causal language model")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _refuse(model: Any, tokenizer: Any, config: ModelConfig, *, max_length: int) -> None:
    """Raises InputError where answers could not end, or rows are longer than the model reads."""
    if tokenizer.eos_token_id is None:
        raise InputError(f"model '{config.name}': its tokenizer has no end-of-text token, so answers could never end")
    known = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > known:
        raise InputError(
            f"model '{config.name}': its tokenizer has {len(tokenizer)} tokens, its embedding {known}; "
            "resize it (resize_token_embeddings), and save the model"
        )
    _refuse_two_directions(model, config.name)
    refuse_long_rows(config, positions(model.config), max_length)


@torch.no_grad()
def _refuse_two_directions(model: Any, name: str) -> None:
    """Raises InputError for an encoder, whose tokens see those that follow: changing these changes its outputs."""
    if model.config.is_encoder_decoder:
        raise InputError(f"model '{name}': an encoder-decoder model; give a decoder-only one")
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 5, 6]], device=model.device)
    first, second = model(input_ids=ids).logits[:, :2].float()
    if not torch.allclose(first, second, rtol=0.02, atol=0.02 * float(first.abs().max())):
        raise InputError(
            f"model '{name}': its tokens see those that follow, as in an encoder; give a decoder-only model"
        )


def _switch_dropout_off(model: Any) -> None:
    """Set the base model's own dropout to zero: it is frozen, and the loss must not depend on the micro-batch."""
    for part in (model.config, *model.modules()):
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        for setting in _DROPOUTS:
            if isinstance(getattr(part, setting, None), float):
                setattr(part, setting, 0.0)


def _where(config: ModelConfig) -> dict[str, Any]:
    """Arguments that say which version of a hub model is meant, and whether its own code may run."""
    return {"revision": config.revision, "trust_remote_code": config.trust_remote_code}


def _quantization(config: ModelConfig) -> BitsAndBytesConfig:
    """The base weights of QLoRA (arXiv 2305.14314): adapters stay in float32, products are in the model's dtype."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"model.quantization: {config.quantization} needs bitsandbytes; pip install 'ilora[bnb]'")
    if config.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    settings = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype_of(config), **settings)


def resolve(name: str) -> str:
    """A model's name to what transformers loads: a folder (the bundled model becomes one at first use) or a hub id."""
    if name == GIVEN:
        raise InputError(
            "the run's model was given as an object, which has no name: give `model` and `tokenizer` again"
        )
    if name in ALIASES:
        return _bundled(name, ALIASES[name])
    folder = local_folder(name)
    return name if folder is None else str(folder)


def _fuse_with_liger(model: nn.Module, device: torch.device) -> None:
    """Not its cross-entropies: methods need the logits, and we make them for the answers' columns only."""
    if importlib.util.find_spec("liger_kernel") is None:
        raise InputError("model.liger: needs liger-kernel; pip install 'ilora[liger]'")
    if device.type == "cpu":
        raise InputError("model.liger: its kernels need a GPU; leave it out on a CPU")
    from transformers.integrations.liger import apply_liger_kernel

    apply_liger_kernel(model, {"cross_entropy": False, "fused_linear_cross_entropy": False})


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _contiguous_output_head(model: nn.Module) -> None:
    """Give the output head contiguous rows: a slice of the last columns sends CPU matmul down a path 10x slower."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    if not getattr(head, "_ilora_contiguous", False):  # a model that is given as an object may come back
        head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
        head._ilora_contiguous = True


def _bundled(name: str, alias: Alias) -> str:
    """The folder of the de-quantized model in the user's cache; the hub id where the wheel is not installed."""
    spec = importlib.util.find_spec(alias.package)
    if spec is None or spec.origin is None:
        return alias.hub_id
    folder = cache_folder() / "models" / name
    if not (folder / "config.json").is_file():
        _convert(Path(spec.origin).parent, alias.gguf, folder)
    return str(folder)


def _convert(source: Path, gguf: str, folder: Path) -> None:
    """De-quantize a GGUF file into an ordinary safetensors folder; complete or not there at all."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-")
    except OSError as error:
        raise InputError(
            f"{folder.parent}: the bundled model is kept there once, and it cannot be written "
            f"({error.strerror or error}); set ILORA_CACHE to a folder that can"
        ) from error
    with scratch:
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf)
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf, dtype=torch.float32)
        # The weights are plain floats now; transformers would still refuse to save them as "quantized".
        del model.config.quantization_config
        model.hf_quantizer = None
        made = Path(scratch.name) / "model"
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        try:
            made.rename(folder)
        except OSError:
            if not (folder / "config.json").is_file():  # another process may have been first
                raise
