"""`bench kernels` on tiny shapes: what it records, that its figures are of the right thing, and what it refuses by name."""

import itertools
import json
import math

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import hack_kernels
from bench.cli import app
from bench.kernel_cases import DTYPE, Case, make_inputs
from bench.kernel_errors import closing_error, expect
from bench.kernel_impls import DENSE, NAMES, Absent, Builder, Implementation
from bench.kernel_report import print_kernels, ratios
from bench.kernels import RECORD_KEYS, KernelOptions, run_kernels
from bench.roofline import Machine, Work
from packhorse.errors import ConfigError

TINY = {"heads": 4, "kv_heads": 2, "head_dim": 64, "chunk": 16}
MACHINE = Machine(1e9, {"int8": 1e9, "bfloat16": 1e9, "float32": 1e9}, "a test")


def tiny(op="decode", fmt="k2v2", context=300, batch=2):
    return Case(op, fmt, context, batch, **TINY)


class FakeClock:
    """Runs the function and says that it took 1, 2, 3 ... milliseconds."""

    def __init__(self):
        self.milliseconds = itertools.count(1)

    def __call__(self, run):
        run()
        return next(self.milliseconds) / 1e3


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr("bench.kernels.measure_machine", lambda device: MACHINE)

    def run(**options):
        options = TINY | {"context": (200, 300), "impl": NAMES, "repeats": 5} | options
        return run_kernels(KernelOptions(**options), FakeClock())

    return run


def test_records_have_the_published_keys(measured):
    result = measured(op=("decode", "close_pages", "prefill"), format=("k2v2", "k4v2"), context=(200,), batch=(1,))
    assert RECORD_KEYS == (
        "device", "op", "impl", "format", "context", "batch", "heads", "kv_heads", "head_dim", "threads",
        "median_seconds", "p20_seconds", "p80_seconds", "bytes_read", "roofline_share", "max_error",
    )  # fmt: skip
    for record in result["records"]:
        assert tuple(record) == RECORD_KEYS
        assert 0 < record["p20_seconds"] <= record["median_seconds"] <= record["p80_seconds"]
        assert record["threads"] == torch.get_num_threads()
    measured_ops = {(r["op"], r["format"], r["impl"]) for r in result["records"]}
    assert {
        ("decode", "k4v2", "ours"),
        ("close_pages", "k2v2", "ours"),
        ("prefill", "k2v2", "sdpa_f32"),
    } <= measured_ops


def test_every_implementation_asked_for_is_measured_or_absent_with_a_reason(measured):
    ops = ("decode", "close_pages", "prefill")
    result = measured(op=ops, format=("k2v2", "raw"), context=(200,), batch=(1, 2))
    seen = [(x["op"], x["format"], x["batch"], x["impl"]) for x in (*result["records"], *result["absent"])]
    assert sorted(seen) == sorted(itertools.product(ops, ("k2v2", "raw"), (1, 2), NAMES))
    assert all(x["reason"] for x in result["absent"])
    absent = {(x["op"], x["format"], x["impl"]) for x in result["absent"]}
    assert ("decode", "raw", "fused_dequant") in absent
    assert ("prefill", "k2v2", "folded_f32") in absent


@pytest.mark.parametrize("op", ["decode", "prefill"])
@pytest.mark.parametrize("fmt", ["k2v2", "k8v8", "raw"])
def test_all_attend_to_the_same_values(op, fmt):
    case = tiny(op, fmt, batch=1 if op == "prefill" else 2)
    inputs = make_inputs(case, "cpu", seed=3)
    expected = expect(inputs, seed=3)
    builder = Builder(inputs, "cpu")
    built = [x for x in map(builder.build, NAMES) if isinstance(x, Implementation)]
    assert {"ours", "reference", "sdpa_f32", "sdpa_bf16", "matmul_bf16"} <= {x.name for x in built}
    # The output is rounded to bf16 where q is: 2**-9 of values below 8. Int8 queries and weights: see the kernels' own tests.
    limit = {"sdpa_f32": 1e-5, "folded_f32": 1e-5, "ours": 0.15, "reference": 0.15, "fused_dequant": 0.05}
    for x in built:
        assert expected.max_error(case, x.run()) < limit.get(x.name, 0.05), x.name


def test_the_error_is_of_the_right_heads():
    case = tiny()
    inputs = make_inputs(case, "cpu", seed=0)
    expected = expect(inputs, seed=0)
    out = Builder(inputs, "cpu").build("sdpa_f32").run()
    sequence, head = expected.heads[0]
    out[sequence, head, 5] += 0.25
    assert expected.max_error(case, out) == pytest.approx(0.25, abs=1e-4)


def test_prefill_errors_see_the_causal_mask():
    case = tiny("prefill", batch=1)
    inputs = make_inputs(case, "cpu", seed=0)
    expected = expect(inputs, seed=0)
    assert {0, case.chunk - 1} <= set(expected.rows)
    k, v = inputs.dense(torch.float32)
    q = inputs.q.float().transpose(0, 1).unsqueeze(0)
    unmasked = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=inputs.scale, enable_gqa=True)
    assert expected.max_error(case, unmasked) > 0.01


def test_pages_lie_shuffled_in_a_pool_larger_than_they_need():
    case = tiny(context=2000)
    inputs = make_inputs(case, "cpu", seed=0)
    listed = inputs.page_table.flatten().tolist()
    assert len(set(listed)) == len(listed) == 2 * case.fmt.num_pages(1999)
    assert listed != sorted(listed)
    assert inputs.pages.shape[0] > len(listed)
    assert case.tokens == 2000
    assert torch.equal(make_inputs(case, "cpu", seed=0).pages, inputs.pages)
    assert not torch.equal(make_inputs(case, "cpu", seed=1).pages, inputs.pages)


def test_keys_have_outlying_channels():
    case = tiny(fmt="k8v8", context=4000, batch=1)
    k, _ = make_inputs(case, "cpu", seed=0).dense(torch.float32)
    largest = k.abs().amax(dim=2).flatten()  # [kv_heads * head_dim]
    assert float(largest.max()) > 2.5 * float(largest.median())


def test_bytes_count_what_is_read():
    case = tiny(batch=1)
    builder = Builder(make_inputs(case, "cpu", seed=0), "cpu")
    ours, dense = builder.build("ours"), builder.build("sdpa_bf16")
    pages = case.pages_per_sequence * case.kv_heads * case.fmt.page_bytes
    assert ours.work.bytes_read == pages + case.residual_tokens * 2 * case.kv_heads * case.head_dim * 2
    assert dense.work.bytes_read == 300 * 2 * case.kv_heads * case.head_dim * 2
    assert ours.work.multiply_adds == dense.work.multiply_adds == 2 * case.heads * 300 * case.head_dim


def test_a_baseline_that_needs_too_much_memory_is_absent(monkeypatch):
    monkeypatch.setattr("bench.kernel_impls.DENSE_BYTES", {"cpu": 1000})
    builder = Builder(make_inputs(tiny(), "cpu", seed=0), "cpu")
    for name in DENSE:
        built = builder.build(name)
        assert isinstance(built, Absent)
        assert "GiB" in built.reason


def test_the_largest_default_case_fits_and_the_next_does_not():
    assert KernelOptions(context=(131072,)).cases()
    with pytest.raises(ConfigError, match=r"context=131072, batch=512: decode needs .* GiB"):
        KernelOptions(context=(131072,), batch=(512,))


def test_closing_error_is_zero_for_the_same_bytes_and_not_for_others():
    case = tiny("close_pages")
    k, v = torch.randn(2, 6, 2, 64, 64).to(DTYPE).unbind(0)
    pages = hack_kernels.close_pages(case.fmt, k, v)
    assert closing_error(case.fmt, k, v, pages) == 0
    pages[0, 0, 0] ^= 0xFF
    assert closing_error(case.fmt, k, v, pages) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "device=tpu is not one of cpu, cuda"),
        ({"caches": "hot"}, "caches=hot is not one of cold, warm"),
        ({"op": ("append",)}, "op=append is not one of"),
        ({"impl": ("mine",)}, "impl=mine is not one of"),
        ({"format": ("k3v3",)}, "format=k3v3"),
        ({"head_dim": 12}, "head_dim=12"),
        ({"context": (0,)}, "context=0 must be at least 1"),
        ({"context": (68,)}, "context=68 holds no whole page: give at least 69"),
        ({"heads": 5, "kv_heads": 2}, "heads=5 is not a multiple of kv_heads=2"),
        ({"threads": 0}, "threads=0 must be at least 1"),
        ({"repeats": 0}, "repeats=0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError) as caught:
        KernelOptions(**options)
    assert message in caught.value.message
    assert caught.value.param in options


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_device_that_is_missing_is_named():
    with pytest.raises(ConfigError, match="device=cuda: torch sees no NVIDIA GPU"):
        KernelOptions(device="cuda")


def test_the_bound_is_the_larger_of_bytes_and_multiply_adds():
    machine = Machine(2e9, {"int8": 1e9, "float32": None}, "a test")
    assert machine.bound_seconds(Work(2 * 10**9, 0, 10**8, "int8")) == 1.0
    assert machine.bound_seconds(Work(10**9, 3 * 10**9, 10**8, "int8")) == 2.0
    assert machine.bound_seconds(Work(10**9, 0, 3 * 10**9, "int8")) == 3.0
    assert machine.bound_seconds(Work(2 * 10**9, 0, 3 * 10**9, "float32")) == 1.0  # no rate: bytes alone


def test_of_two_measurements_of_the_machine_the_best_counts():
    disturbed = Machine(1e9, {"int8": None, "float32": 5e9}, "unavailable")
    assert disturbed.best(Machine(2e9, {"int8": 3e9, "float32": 4e9}, "a test")) == Machine(
        2e9, {"int8": 3e9, "float32": 5e9}, "a test"
    )


def test_threads_are_given_back(measured):
    before = torch.get_num_threads()
    result = measured(threads=1, impl=("ours",), context=(200,), op=("decode",))
    assert result["records"][0]["threads"] == 1
    assert torch.get_num_threads() == before


def test_ratios_are_to_ours(measured):
    records = measured(op=("decode",), context=(200,))["records"]
    ((_, values),) = ratios(records)
    times = {r["impl"]: r["median_seconds"] for r in records}
    assert values["sdpa_f32"] == times["sdpa_f32"] / times["ours"]
    assert set(values) >= {"sdpa_f32", "matmul_bf16"}


def test_the_table_shows_what_is_absent_and_why(measured):
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    result = measured(op=("decode",), format=("raw",), context=(200,))
    print_kernels(result, console)
    console.file.close()
    text = console.export_text()
    assert "decode raw 200x1" in text
    assert "absent       fused_dequant of decode: raw pages hold no codes" in text
    assert "sdpa_f32/ours" in text


def test_the_command_takes_lists_and_writes_json_and_plots(tmp_path):
    pytest.importorskip("matplotlib")
    arguments = (
        "kernels --heads 4 --kv-heads 2 --head-dim 64 --context 128 200,256 --format k2v2 k4v4 --op decode --repeats 2"
    )
    outputs = ["--json", str(tmp_path / "k.json"), "--plot", str(tmp_path / "k.png"), "--impl", "ours", "sdpa_f32"]
    done = CliRunner().invoke(app, [*arguments.split(), *outputs])
    assert done.exit_code == 0, done.output
    records = json.loads((tmp_path / "k.json").read_text())
    assert {(r["format"], r["context"]) for r in records} == set(itertools.product(("k2v2", "k4v4"), (128, 200, 256)))
    assert all(set(r) == set(RECORD_KEYS) and math.isfinite(r["max_error"]) for r in records)
    assert (tmp_path / "k.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "k.svg").read_text()


def test_the_command_reports_on_compiled_kernels(monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr("bench.compile.compile_report", lambda *args, **named: called.append((args, named)) or [])
    arguments = ["kernels", "--compile", "sm_80", "sm_90", "--format", "k2v2", "--json", str(tmp_path / "c.json")]
    done = CliRunner().invoke(app, [*arguments, "--gqa", "4", "16"])
    assert done.exit_code == 0, done.output
    assert called == [((("sm_80", "sm_90"), ("k2v2",), (4, 16), 128), {})]
    assert json.loads((tmp_path / "c.json").read_text()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--plot", "k.pdf"],
        ["--compile", "sm_12"],
        ["--format", "k1v1"],
        ["--context", "12"],
        ["--impl", "x"],
        ["--json", "no/k"],
    ],
)
def test_the_command_names_a_bad_option(arguments):
    done = CliRunner().invoke(app, ["kernels", *arguments])
    assert done.exit_code == 2
    assert f"error: {arguments[0].removeprefix('--')}={arguments[1]}" in done.output
