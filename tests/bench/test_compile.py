"""The offline report on Triton kernels, and machine code held to the committed figures."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from bench.sass import classify, count_classes
from packhorse.errors import ConfigError
from tests.hack_kernels.triton_process import needs_triton

triton = pytest.importorskip("triton", reason="triton is not installed on this platform")

from bench.compile import (  # noqa: E402
    KERNELS,
    RECORD_KEYS,
    compile_grid,
    compile_report,
    grid_arguments,
    occupancy,
    print_grid,
    read_baseline,
)

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


@needs_triton
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("head_dim", "name"), [(64, "k2v2"), (256, "k8v8")])
def test_shapes_that_spilled_once_do_not(head_dim: int, name: str) -> None:
    """The rest of the shapes are in `python -m bench.compile grid`."""
    (record,) = compile_grid(["sm_90"], [head_dim], [name], [4])
    assert record["spill_bytes"] == 0, record


def test_the_grid_is_a_table_of_shapes() -> None:
    shared = {"arch": "sm_90", "gqa": 4, "registers": 168, "instructions_per_kv_value": 1.434}
    records = [
        shared | {"head_dim": dim, "format": name, "spill_bytes": dim // 2}
        for dim in (64, 80)
        for name in ("k2v2", "k8v8")
    ]
    console = Console(width=100, record=True, file=StringIO())
    print_grid(records, console)
    text = console.export_text()
    assert text.count("168, 40, 1.43") == 2
    assert "sm_90 GQA 4" in text


def test_a_grid_is_cut_to_what_is_named() -> None:
    assert grid_arguments(["sm_90", "4", "8"]) == (["sm_90"], [4, 8])
    assert grid_arguments([]) == (("sm_80", "sm_90"), (1, 4, 8, 16))
    for wrong in ("sm_70", "17"):
        with pytest.raises(ConfigError, match=f"grid={wrong}"):
            grid_arguments([wrong])


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
