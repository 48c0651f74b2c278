"""The offline report on Triton kernels, and machine code held to the committed figures."""

from __future__ import annotations

from typing import Any

import pytest

from bench.sass import classify, count_classes
from packhorse.errors import ConfigError
from tests.hack_kernels.triton_process import needs_triton

triton = pytest.importorskip("triton", reason="triton is not installed on this platform")

from bench.compile import KERNELS, RECORD_KEYS, compile_report, occupancy, read_baseline  # noqa: E402

RISE = 1.02  # register allocation differs a little from run to run of the sources around it
KEY = ("kernel", "arch", "format", "gqa")


def check_against_baseline(records: list[dict[str, Any]]) -> None:
    baseline = read_baseline()
    if baseline["triton"] != triton.__version__:
        pytest.skip(f"the figures are triton {baseline['triton']}'s, this is {triton.__version__}")
    committed = {tuple(record[name] for name in KEY): record for record in baseline["records"]}
    for record in records:
        before = committed[tuple(record[name] for name in KEY)]
        assert record["spill_bytes"] <= before["spill_bytes"], record
        if before["instructions_per_kv_value"] is not None:
            assert record["instructions_per_kv_value"] <= before["instructions_per_kv_value"] * RISE, record


@needs_triton
def test_the_decode_kernel_keeps_to_its_figures() -> None:
    """k2v2 at head_dim 128 on sm_90: no spills, at most 1.5 instructions per KV value, and fewer than fused dequantization."""
    records = compile_report(["sm_90"], ["k2v2"], [4], kernels=["decode_attention", "fused_dequant"])
    ours, dequant = records
    assert tuple(ours) == RECORD_KEYS
    assert ours["spill_bytes"] == 0
    assert ours["instructions_per_kv_value"] <= 1.5
    assert ours["instructions_per_kv_value"] < dequant["instructions_per_kv_value"]
    assert sum(ours["by_class"].values()) == pytest.approx(ours["instructions_per_kv_value"], abs=0.01)
    assert 0 < occupancy(ours) <= 1
    check_against_baseline(records)


@needs_triton
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kernel", KERNELS)
def test_no_kernel_spills_more_or_grows(kernel: str) -> None:
    check_against_baseline(compile_report(kernels=[kernel]))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"archs": ["sm_70"]}, "sm_70"),
        ({"kernels": ["softmax"]}, "softmax"),
        ({"gqa": [17]}, "gqa=17"),
        ({"archs": ["sm_90"], "formats": ["k3v2"]}, "k3v2"),
        ({"archs": ["sm_90"], "formats": ["k2v2"], "head_dim": 72}, "head_dim"),
    ],
)
def test_what_is_unknown_is_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        compile_report(**arguments)


def test_instructions_fall_into_classes() -> None:
    wanted = {
        "integer": ["LOP3.LUT", "IMAD.MOV.U32", "PRMT", "SHF.R.U32.HI", "SEL", "VIADD", "UMOV"],
        "conversion": ["I2FP.F32.S32", "F2FP.F16.F32.PACK_AB", "F2I"],
        "memory": ["LDG.E.128", "STS.64", "SHFL.BFLY", "LDSM.16.M88.4", "LDGSTS.E"],
        "tensor": ["IMMA.16832.S8.S8", "HMMA.16816.F32", "HGMMA.64x64x16.F32"],
        "float": ["FFMA", "HFMA2", "MUFU.EX2", "FMNMX", "HMNMX2"],
        "control": ["BRA", "BAR.SYNC.DEFER_BLOCKING", "NOP", "WARPSYNC"],
    }
    for name, mnemonics in wanted.items():
        assert {classify(mnemonic) for mnemonic in mnemonics} == {name}
    assert count_classes(["FFMA", "FFMA", "BRA"]) == {
        "integer": 0, "conversion": 0, "memory": 0, "tensor": 0, "float": 2, "control": 1,
    }  # fmt: skip
