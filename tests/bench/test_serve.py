"""`bench serve` against a small scripted server: times, failures by cause, exit status, and what Ctrl-C leaves."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.client import base_url
from bench.exits import EXIT_ALL_FAILED, EXIT_BAD_CONFIG, EXIT_INTERRUPTED
from bench.metrics import Limits
from bench.serve import ServeOptions, ServeResult, run_serve
from packhorse.errors import ConfigError

pytestmark = pytest.mark.usefixtures("no_tasks")

TTFT, ITL, TOKENS = 0.06, 0.03, 5
SLACK = 0.5  # seconds that client and server may take by themselves
TIMEOUT = 5.0  # seconds that no request but one that hangs needs, however busy the machine is


class Stalls:
    """Inside, measures for how long the loop, which client and server share, was late: a busy machine moves what is seen by up to that."""

    _TICK_SECONDS = 0.005

    def __init__(self) -> None:
        self.seconds = 0.0

    async def __aenter__(self) -> Stalls:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            before = time.monotonic()
            try:
                await asyncio.sleep(self._TICK_SECONDS)
            finally:
                self.seconds += max(0.0, time.monotonic() - before - self._TICK_SECONDS)


class FakeServer:
    """Answers by the prompt's first word: ok, nousage, nodone, 429, 500, event, drop, garbage, empty, hang."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[str] = []
        self.running = self.most_running = 0
        self._ended = asyncio.Event()

    @asynccontextmanager
    async def start(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            self._ended.set()
            server.close()
            async with asyncio.timeout(5):
                await server.wait_closed()
                while self.running:
                    await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._answer(reader, writer)
        finally:
            writer.close()
            self.running -= 1

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        self.headers.append(head)
        if head.startswith("get /v1/models"):
            await reply(writer, 200, json.dumps({"data": [{"id": "fake"}]}))
            return
        length = int(head.partition("content-length: ")[2].split("\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        self.bodies.append(body)
        chat = "messages" in body
        script = (body["messages"][0]["content"] if chat else body["prompt"]).split()[0]
        if script in ("429", "500"):
            await reply(writer, int(script), json.dumps({"error": {"message": f"said {script}", "code": "x"}}))
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        await self._stream(writer, script, chat)

    async def _stream(self, writer: asyncio.StreamWriter, script: str, chat: bool) -> None:
        if script == "garbage":
            await event(writer, "{not json")
        if script == "hang":
            await writer.drain()
            await self._ended.wait()
            return
        await asyncio.sleep(TTFT)
        for i in range(0 if script == "empty" else TOKENS):
            await event(writer, json.dumps({"choices": [choice("a\u2028b", chat)]}, ensure_ascii=False))
            if i == 1 and script == "event":
                await event(writer, json.dumps({"error": {"message": "worker lost", "code": "worker_lost"}}))
            if i == 1 and script == "drop":
                writer.transport.abort()
                return
            await asyncio.sleep(ITL if i < TOKENS - 1 else 0)
        await event(writer, json.dumps({"choices": [choice("", chat, "length")]}))
        if script == "ok":
            usage = {"prompt_tokens": 7, "completion_tokens": TOKENS}
            kv = {"bytes_shipped": 10, "raw_bytes": 40}
            await event(writer, json.dumps({"choices": [], "usage": {**usage, "kv_transfer": kv}}))
        if script != "nodone":
            await event(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def choice(text: str, chat: bool, finish: str | None = None) -> dict[str, Any]:
    return ({"delta": {"content": text}} if chat else {"text": text}) | {"index": 0, "finish_reason": finish}


async def event(writer: asyncio.StreamWriter, data: str) -> None:
    payload = f"data: {data}\n\n".encode()
    writer.write(b"%x\r\n%s\r\n" % (len(payload), payload))
    await writer.drain()


async def reply(writer: asyncio.StreamWriter, status: int, body: str) -> None:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    writer.write((head + body).encode())
    await writer.drain()


def dataset(folder: Path, *prompts: str) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt, "max_tokens": TOKENS}) + "\n" for prompt in prompts))
    return path


async def load(folder: Path, url: str, *prompts: str, **options: Any) -> ServeResult:
    options = {"rate": "inf", "num_prompts": len(prompts), **options}
    return await run_serve(ServeOptions(url=url, dataset=dataset(folder, *prompts), **options), api_key="key")


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
async def test_times_and_counts(tmp_path: Path, endpoint: str) -> None:
    server = FakeServer()
    async with server.start() as url, Stalls() as stalls:
        result = await load(
            tmp_path,
            url,
            "ok 1",
            "ok 2",
            "ok 3",
            endpoint=endpoint,
            ignore_eos=True,
            max_ttft=2.5,
            limits=Limits(jct=30),
        )
    summary = result.summary
    assert (summary["completed"], summary["failed"]) == (3, 0)
    slack, between = SLACK + stalls.seconds, TOKENS - 1
    assert TTFT <= summary["ttft_seconds"]["p50"] < TTFT + slack
    for name, figure in (
        ("tpot_seconds", "p50"),
        ("itl_seconds", "mean"),
    ):  # shorter where the first token is seen late
        assert ITL * 0.9 - stalls.seconds / between <= summary[name][figure] < ITL + slack / between
    assert TTFT + between * ITL * 0.9 <= summary["jct_seconds"]["mean"] < TTFT + TOKENS * ITL + slack
    assert (summary["output_tokens"], summary["prompt_tokens"]) == (3 * TOKENS, 21)
    assert summary["goodput_requests_per_second"] == pytest.approx(summary["requests_per_second"])
    assert summary["kv_transfer"]["shipped_share"] == 0.25
    assert all(len(record.chunk_times) == TOKENS and not record.tokens_counted for record in result.records)
    body = server.bodies[0]
    assert (body["model"], body["max_tokens"], body["ignore_eos"]) == ("fake", TOKENS, True)
    assert body["max_ttft_seconds"] == 2.5
    assert body["stream_options"] == {"include_usage": True}
    assert "authorization: bearer key" in server.headers[-1]


async def test_every_failure_is_counted_by_cause(tmp_path: Path) -> None:
    server = FakeServer()
    prompts = ("ok", "429", "500", "event", "drop", "garbage", "empty", "hang")
    async with server.start() as url:
        result = await load(tmp_path, url, *prompts, timeout=TIMEOUT)
    causes = {prompts[record.index]: record.cause for record in result.records}
    assert causes == {
        "ok": None, "429": "http_429", "500": "http_500", "event": "error_event", "drop": "dropped",
        "garbage": "bad_stream", "empty": "empty", "hang": "timeout",
    }  # fmt: skip
    errors = {prompts[record.index]: record.error or "" for record in result.records}
    assert errors["429"] == "said 429"
    assert errors["event"] == "worker lost"
    assert (result.summary["completed"], result.summary["failed"]) == (1, 7)
    assert sum(result.summary["failures_by_cause"].values()) == 7
    assert len(next(r for r in result.records if r.cause == "dropped").chunk_times) == 2


async def test_without_usage_chunks_are_counted_and_done_is_optional(tmp_path: Path) -> None:
    async with FakeServer().start() as url:
        result = await load(tmp_path, url, "nousage", "nodone")
    assert [record.status for record in result.records] == ["ok", "ok"]
    assert [record.completion_tokens for record in result.records] == [TOKENS, TOKENS]
    assert result.summary["requests_with_counted_tokens"] == 2


async def test_concurrency_limit_counts_the_wait(tmp_path: Path) -> None:
    server = FakeServer()
    async with server.start() as url:
        result = await load(tmp_path, url, "ok", "ok", "ok", concurrency=1, model="given")
    one = TTFT + (TOKENS - 1) * ITL * 0.9
    assert server.most_running == 1
    assert result.records[2].jct is not None
    assert result.records[2].jct >= 3 * one
    assert result.summary["client_delay_seconds"]["max"] >= 2 * one
    assert server.bodies[0]["model"] == "given"


async def test_arrivals_are_open_loop(tmp_path: Path) -> None:
    """Requests leave on schedule although the first never ends."""
    async with FakeServer().start() as url, Stalls() as stalls:
        result = await load(tmp_path, url, "hang", "ok", "ok", rate="20", timeout=TIMEOUT)
    delays = [record.sent - record.scheduled for record in result.records if record.sent is not None]
    assert len(delays) == 3
    assert 0 <= min(delays) <= max(delays) < SLACK + stalls.seconds
    assert result.summary["completed"] == 2


async def test_no_server_fails_every_request(tmp_path: Path) -> None:
    async with FakeServer().start() as url:
        pass
    result = await load(tmp_path, url, "ok", "ok", model="fake")
    assert result.summary["failures_by_cause"] == {"connect": 2}
    with pytest.raises(ConfigError, match="names no model"):
        await load(tmp_path, url, "ok")


def test_urls() -> None:
    assert base_url("http://host:1/") == base_url("http://host:1/v1/") == "http://host:1/v1"
    for bad in ("host:1", "ftp://host", "http://"):
        with pytest.raises(ConfigError, match="url="):
            base_url(bad)


async def command(*arguments: str) -> Any:
    return await asyncio.to_thread(CliRunner().invoke, app, ["serve", *arguments])


async def test_command_writes_json_and_tells_by_its_status(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    async with FakeServer().start() as url:
        path = dataset(tmp_path, "ok", "500")
        done = await command(
            "--url", url, "--rate", "inf", "--num-prompts", "2", "--dataset", str(path), "--json", str(out)
        )
        failed = await command(
            "--url", url, "--rate", "inf", "--num-prompts", "1", "--dataset", str(dataset(tmp_path, "500"))
        )
        bad = await command("--url", url, "--rate", "never")
    assert done.exit_code == 0, done.output
    assert "1 completed, 1 failed" in done.output
    assert failed.exit_code == EXIT_ALL_FAILED
    assert bad.exit_code == EXIT_BAD_CONFIG
    assert "rate='never'" in bad.output
    content = json.loads(out.read_text())
    assert set(content) == {"summary", "config", "requests"}
    assert content["config"]["rate"] == "inf"
    assert "key" not in json.dumps(content["config"]["machine"])
    assert [request["status"] for request in content["requests"]] == ["ok", "failed"]
    assert content["requests"][0]["ttft"] >= TTFT


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


async def test_interrupt_prints_what_is_done(tmp_path: Path) -> None:
    """One at a time: once the second request is here, the client has the whole of the first."""
    server = FakeServer()
    path = dataset(tmp_path, "ok", "hang")
    async with server.start() as url:
        arguments = ("serve", "--url", url, "--rate", "inf", "--num-prompts", "2", "--dataset", str(path))
        with running(*arguments, "--concurrency", "1") as process:
            async with asyncio.timeout(60):
                while len(server.bodies) < 2:
                    await asyncio.sleep(0.05)
            process.send_signal(signal.SIGINT)
            output, _ = await asyncio.to_thread(process.communicate, timeout=40)
    assert process.returncode == EXIT_INTERRUPTED, output
    assert "1 completed, 0 failed, 1 interrupted" in output


def test_serve_never_loads_torch() -> None:
    code = "import sys, bench.cli, bench.serve, bench.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
