"""Loads a model: finds it, refuses what cannot be served, reads safetensors, and proves by a probe that our attention runs.

Nothing here executes code from a checkpoint (`trust_remote_code` is off) and no pickle is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from packhorse.errors import ConfigError, UnsupportedModelError

from .adapter import ATTENTION, Model, ModelInfo, register_attention
from .probe import probe
from .revision import revision, weight_files
from .source import eos_token_ids, find_model, max_context_tokens, model_name
from .support import check_supported, window_in_use

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(path_or_id: str, dtype: str = "auto", device: str = "cpu") -> Model:
    """The model at a folder, on the hub, or the "embedded" one, ready to run.

    `dtype` is float32, bfloat16, float16 or auto: float32 on the CPU; on a GPU bfloat16, or float16 where it has none.
    `device` is a torch device, or auto: the first GPU if there is one. Raises ConfigError for what cannot be found or read and
    UnsupportedModelError for a model that cannot be served, naming it and the feature.
    """
    name = model_name(path_or_id)
    place = _device(device)
    number_type = _dtype(dtype, place)
    folder = find_model(path_or_id)
    config = _config(name, folder)
    check_supported(name, config, folder)
    if window_in_use(config) is None and getattr(config, "sliding_window", None) is not None:
        config.sliding_window = None
    module = _module(name, folder, config, number_type, place)
    shapes = probe(name, module)
    info = ModelInfo(
        name=name,
        revision=revision(folder),
        layers=shapes.layers,
        heads=shapes.heads,
        kv_heads=shapes.kv_heads,
        head_dim=shapes.head_dim,
        vocab_size=shapes.vocab_size,
        max_context_tokens=max_context_tokens(folder),
        eos_token_ids=eos_token_ids(folder),
        dtype=number_type,
        device=place,
    )
    return Model(module, info)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name!r} is not one that torch knows", param="device") from error
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ConfigError(f"device={name!r}: this machine has {count} GPUs", param="device")
        device = torch.device("cuda", device.index or 0)
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if name not in _DTYPES:
        raise ConfigError(f"dtype={name!r} is not auto, {', '.join(_DTYPES)}", param="dtype")
    return _DTYPES[name]


def _config(name: str, folder: Path) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, KeyError, OSError, ArithmeticError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise UnsupportedModelError(
            f"model {name!r}: transformers does not read its config.json: {reason}", param="model"
        ) from error
    return config


def _module(
    name: str, folder: Path, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """The weights of `folder` in evaluation mode. Raises ConfigError when they do not fit the configuration."""
    weight_files(folder)
    register_attention()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    load: Any = AutoModelForCausalLM.from_pretrained  # typed as a model alone, without the loading report
    try:
        module, report = load(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=ATTENTION,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except (ValueError, KeyError, OSError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"model {name!r} cannot be loaded from {folder}: {error}", param="model") from error
    missing = [*report["missing_keys"], *report["mismatched_keys"]]
    if missing:
        raise ConfigError(f"model {name!r}: the weights in {folder} lack {missing[:3]}", param="model")
    ready: PreTrainedModel = module.to(device).eval().requires_grad_(False)
    return ready
