"""What is refused at start, by which name; and the revision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig

from model.adapter import ATTENTION, _attention, register_attention
from model.loader import load_model
from model.probe import probe
from model.revision import NUM_WINDOWS, WINDOW_BYTES, revision
from model.source import eos_token_ids, find_model, max_context_tokens
from packhorse.errors import ConfigError, UnsupportedModelError
from tests.checkpoints import make_checkpoint, make_config


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("llama"))


def _config_only(folder: Path, **config: Any) -> Path:
    """A folder with a configuration and no weights: what is refused with it is refused before weights are read."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _changed(source: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a checkpoint with some fields of its configuration changed."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("config", "feature"),
    [
        ({"model_type": "mistral", "sliding_window": 4096, "max_position_embeddings": 32768}, "sliding_window=4096"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
            "sliding_window=64",
        ),
        ({"model_type": "phi3", "sliding_window": 2047, "max_position_embeddings": 4096}, "sliding_window=2047"),
        ({"model_type": "gemma2"}, "attn_logit_softcapping=50"),
        ({"model_type": "gemma3_text"}, "sliding_attention"),
        ({"model_type": "deepseek_v3"}, "kv_lora_rank=512"),
        ({"model_type": "gpt_oss"}, "attention sinks"),
        ({"model_type": "t5"}, "encoder-decoder"),
        ({"model_type": "bart"}, "encoder-decoder"),
        ({"model_type": "llava"}, "multimodal"),
        ({"model_type": "jamba"}, "mamba"),
        ({"model_type": "mamba"}, "attention interface"),
        ({"model_type": "bloom"}, "attention interface"),
        ({"model_type": "vit"}, "no causal language model"),
        ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, "ForSequenceClassification"),
        ({"model_type": "llama", "hidden_size": 60, "num_attention_heads": 5}, "head_dim of 12"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized weights"),
        ({"model_type": "recurrent_gemma"}, "sliding_window"),
        ({"model_type": "qwen3_next"}, "linear_attention"),
        ({"model_type": "llama", "hidden_size": "wide"}, "expected int, got str"),
        ({"model_type": "llama", "num_attention_heads": 0}, "does not read"),
        ({"model_type": "no_such_architecture"}, "no_such_architecture"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["model_type"],
)
def test_unsupported_models_are_refused_by_feature(tmp_path: Path, config: dict[str, Any], feature: str) -> None:
    folder = _config_only(tmp_path / "some-model", **config)
    with pytest.raises(UnsupportedModelError, match=feature) as caught:
        load_model(str(folder))
    assert "some-model" in caught.value.message


def test_a_window_that_hides_nothing_is_fine(tmp_path: Path) -> None:
    folder = make_checkpoint("mistral", tmp_path / "m", sliding_window=2048)
    assert load_model(str(folder)).info.max_context_tokens == 2048


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", "..", "", "with space"])
def test_a_missing_path_fails_without_asking_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(ConfigError, match=r"does not exist|no config\.json") as caught:
        load_model(name)
    assert repr(name) in caught.value.message


def test_a_hub_id_that_cannot_be_fetched_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise OSError("no connection\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ConfigError, match=r"'some-org/some-model' is neither a folder nor .*: no connection$"):
        find_model("some-org/some-model")


def test_pickled_weights_are_never_loaded(llama: Path, tmp_path: Path) -> None:
    folder = _changed(llama, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="no safetensors weights"):
        load_model(str(folder))


def test_weights_that_lack_a_layer_are_refused(llama: Path, tmp_path: Path) -> None:
    folder = _changed(llama, tmp_path / "short", num_hidden_layers=4, layer_types=None)
    with pytest.raises(ConfigError, match=r"lack .*layers\.3"):
        load_model(str(folder))


def test_truncated_weights_are_refused(llama: Path, tmp_path: Path) -> None:
    folder = _changed(llama, tmp_path / "cut")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1000])
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_model(str(folder))


def test_malformed_config_is_refused(llama: Path, tmp_path: Path) -> None:
    folder = _changed(llama, tmp_path / "bad")
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="bad"):
        load_model(str(folder))


@pytest.mark.parametrize(("dtype", "device"), [("int8", "cpu"), ("auto", "abacus"), ("auto", "cuda:99")])
def test_bad_dtype_and_device_are_named(dtype: str, device: str) -> None:
    with pytest.raises(ConfigError, match=r"int8|abacus|cuda:99"):
        load_model("embedded", dtype=dtype, device=device)


def test_longrope_is_served_up_to_its_original_context(tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16, "rope_theta": 10000.0}
    folder = make_checkpoint("phi3", tmp_path / "p", rope_parameters=rope, original_max_position_embeddings=512)
    assert load_model(str(folder)).info.max_context_tokens == 512


def test_eos_comes_from_the_generation_config_first(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"eos_token_id": 2, "n_positions": 77}')
    assert eos_token_ids(tmp_path) == (2,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    assert eos_token_ids(tmp_path) == (5, 6)
    assert max_context_tokens(tmp_path) == 77


# ---- the guard and the probe


class _Silent(nn.Module):
    layer_idx = 0
    is_causal = True


def _call(**kwargs: Any) -> object:
    x = torch.zeros(1, 2, 3, 8)
    return _attention(_Silent(), x, x, x, kwargs.pop("mask", None), attend=lambda *a: a[1], **kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [{"sliding_window": 8}, {"softcap": 30.0}, {"s_aux": torch.zeros(2)}, {"mask": torch.zeros(1)}, {"dropout": 0.1}, {"is_causal": False}],
    ids=lambda kwargs: next(iter(kwargs)),
)  # fmt: skip
def test_the_guard_refuses_what_is_not_plain_attention(kwargs: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="_Silent"):
        _call(**kwargs)


def test_the_guard_lets_plain_attention_pass() -> None:
    out, weights = _call(sliding_window=None, position_ids=torch.zeros(1), use_cache=False, scaling=1.0)
    assert out.shape == (1, 3, 2, 8)
    assert weights is None


class _Bypassing(nn.Module):
    """A model that has one layer and two in its configuration."""

    device = torch.device("cpu")

    def __init__(self, layers: list[int], head_dim: int) -> None:
        super().__init__()
        self.config = make_config("llama", num_hidden_layers=2)
        self._layers, self._head_dim = layers, head_dim

    def forward(self, input_ids: torch.Tensor, attend: Any, **_: Any) -> Any:
        x = torch.zeros(input_ids.shape[1], 2, self._head_dim)
        for layer in self._layers:
            attend(layer, x, x, x, 1.0)
        return type("Output", (), {"logits": torch.zeros(1, 1, 10)})


@pytest.mark.parametrize(
    ("layers", "head_dim", "reason"),
    [([], 8, "for layers \\[\\]"), ([0], 8, "\\[0\\]"), ([0, 0], 8, "\\[0, 0\\]"), ([0, 1], 12, "multiple of 8")],
)
def test_the_probe_refuses_models_that_bypass_our_attention(layers: list[int], head_dim: int, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        probe("some-model", _Bypassing(layers, head_dim))  # type: ignore[arg-type]


def test_the_probe_passes_a_sound_model() -> None:
    assert probe("some-model", _Bypassing([0, 1], 8)).layers == 2  # type: ignore[arg-type]


def test_registering_twice_is_harmless() -> None:
    register_attention()
    register_attention()
    assert ATTENTION == "packhorse"


# ---- the revision


def test_revision_tells_weights_and_configurations_apart(llama: Path, tmp_path: Path) -> None:
    first = revision(llama)
    assert revision(_changed(llama, tmp_path / "copy")) != first  # written anew, with other white space
    shutil.copytree(llama, tmp_path / "same")
    assert revision(tmp_path / "same") == first
    other = make_checkpoint("llama", tmp_path / "other", seed=1)
    shutil.copyfile(llama / "config.json", other / "config.json")
    assert revision(other) != first


def test_revision_of_a_large_file_sees_its_header_and_its_end(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    path, size = tmp_path / "model.safetensors", 4 * NUM_WINDOWS * WINDOW_BYTES
    data = bytearray(size)
    data[:8] = (1000).to_bytes(8, "little")
    seen = set()
    for at in (None, 500, size - 1, size // 2):
        if at is not None:
            data[at] ^= 1
        path.write_bytes(data)
        seen.add(revision(tmp_path))
    assert len(seen) >= 3


def test_revision_refuses_a_file_that_is_no_safetensors(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * (NUM_WINDOWS * WINDOW_BYTES + 1))
    with pytest.raises(ConfigError, match="not a safetensors file"):
        revision(tmp_path)


def test_configurations_without_a_head_dim_pass_the_check() -> None:
    from model.support import config_head_dim

    assert config_head_dim(PreTrainedConfig()) is None
