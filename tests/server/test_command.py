"""`hivellm-ort serve`: what it says, how it ends, and what it refuses."""

from __future__ import annotations

import ipaddress
import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_calls import QUESTION, chat, chunks, error_of
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from serving_command import Command
from support.golden import BASE, golden, with_base

from hivellm_ort import ExpertManager
from hivellm_ort.cli.main import main

SQL = ["--expert", f"sql={golden('sql')}", "--base", str(BASE), "--threads", "1", "--trust", "off"]
LONG = {"max_tokens": 400, "prompt_lookup": False}


@pytest.fixture
def invoke(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run `hivellm-ort serve` with arguments that it refuses."""
    monkeypatch.setenv("HIVELLM_HOME", str(cache))
    return lambda *arguments: CliRunner().invoke(main, ["serve", *map(str, arguments)])


def streamed(address: str, found: list[str], started: threading.Event) -> None:
    """Read a long stream into a list, as far as it goes."""
    body = chat(**LONG, stream=True)
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=60) as response:
        for line in response.iter_lines():
            found.append(line)
            if line:
                started.set()


def test_answers_over_http(command: Command, manager: ExpertManager) -> None:
    """The process answers as the manager does, and tells its address and its experts."""
    response = httpx.post(f"{command.address}/v1/chat/completions", json=chat(max_tokens=10))
    expected = manager.generate("sql", QUESTION, max_tokens=10)
    assert expected.text == response.json()["choices"][0]["message"]["content"]
    assert f"sql, json at {command.address}\n" in command.output
    assert "server" not in response.headers
    assert (400, "invalid_host") == _refused(
        httpx.get(f"{command.address}/health", headers={"host": "evil.example"})
    )


def _refused(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, error_of(response)["code"]


def test_a_chunked_body_is_bounded(command: Command) -> None:
    """The limit holds for a body without a length, and the connection is closed."""
    parts = (b"x" * 65536 for _ in range(80))
    headers = {"content-type": "application/json"}
    response = httpx.post(f"{command.address}/v1/completions", content=parts, headers=headers)
    assert (413, "body_too_large") == _refused(response)
    assert "close" == response.headers["connection"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_sigterm_drains(cache: Path) -> None:
    """A running answer is finished, new connections are refused, and the process ends with status 0."""
    found: list[str] = []
    started = threading.Event()
    with Command([*SQL, "--drain-timeout", "60"], cache, slow=True) as command:
        reader = threading.Thread(target=streamed, args=(command.address, found, started))
        reader.start()
        assert started.wait(30)
        command.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{command.address}/health")
        assert 0 == command.end(60)
        reader.join(10)
    assert "length" == chunks("\n".join(found))[-1]["choices"][0]["finish_reason"]
    assert "Traceback" not in command.output


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
@pytest.mark.parametrize("times", [1, 2])
def test_the_drain_ends(times: int, cache: Path) -> None:
    """After the drain time or a second signal, running answers end with an error, and the process ends."""
    found: list[str] = []
    started = threading.Event()
    with Command([*SQL, "--drain-timeout", "0.5" if times == 1 else "60"], cache, slow=True) as command:
        reader = threading.Thread(target=_tolerant, args=(command.address, found, started))
        reader.start()
        assert started.wait(30)
        begin = time.monotonic()
        for _ in range(times):
            command.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        assert 0 == command.end(10)
        seconds = time.monotonic() - begin
        reader.join(10)
    assert seconds < 5
    if times == 1:
        assert "shutting_down" == chunks("\n".join(found))[-1]["error"]["code"]


def _tolerant(address: str, found: list[str], started: threading.Event) -> None:
    try:
        streamed(address, found, started)
    except httpx.HTTPError:
        found.append("cut")


def test_keys_of_a_file_and_of_the_variable(cache: Path, tmp_path: Path) -> None:
    """Keys are one per line or separated by commas. Without keys, a public address is a warning."""
    file = tmp_path / "keys"
    file.write_text("# for tests\none\n\n two \n", encoding="utf-8")
    for arguments, environment in (
        (["--api-key-file", str(file)], {}),
        ([], {"HIVELLM_API_KEYS": "one, two"}),
    ):
        with Command([*SQL, "--host", "0.0.0.0", *arguments], cache, environment) as command:
            address = command.address.replace("0.0.0.0", "127.0.0.1")
            assert [401, 200, 200] == [
                httpx.get(f"{address}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code
                for key in ("three", "one", "two")
            ]
        assert "warning" not in command.output
    with Command([*SQL, "--host", "0.0.0.0"], cache, {"HIVELLM_API_KEYS": ""}) as command:
        pass
    assert "warning: other machines can connect to 0.0.0.0, and no API key is set" in command.output


def test_tls(cache: Path, tmp_path: Path) -> None:
    """With a certificate the server speaks HTTPS."""
    certificate, key = _certificate(tmp_path)
    arguments = [*SQL, "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)]
    with Command(arguments, cache) as command:
        assert command.address.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=str(certificate))
        assert 200 == httpx.get(f"{command.address}/health", verify=context).status_code


def _certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True, key_cert_sign=True, crl_sign=False, content_commitment=False,
                key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
    return folder / "cert.pem", folder / "key.pem"


def test_packages_are_asked_by_the_names_of_their_manifests(cache: Path, tmp_path: Path) -> None:
    """A package that is named alone has the name of its manifest."""
    package = with_base("sql", tmp_path / "any.expert")
    with Command([str(package), "--threads", "1", "--trust", "off"], cache) as command:
        models = httpx.get(f"{command.address}/v1/models").json()["data"]
    assert ["base", "expert-sql"] == [model["id"] for model in models]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to serve: name a PACKAGE"),
        (["--expert", "sql"], "'sql' is not NAME=PATH"),
        (["--expert", "a=b", "--expert", "a=c"], "the name 'a' is given twice"),
        (["nothing.expert"], "nothing.expert"),
        (["--expert", f"auto={golden('sql')}", "--base", BASE], "'auto' is the model name for routing"),
        (["--expert", f"base={golden('sql')}", "--base", BASE], "'base' is the name of the base model"),
        ([golden("sql"), golden("sql"), "--base", BASE], "two packages have the name 'expert-sql'"),
        ([*SQL, "--max-n", "0"], "max-n"),
        ([*SQL, "--ssl-keyfile", "x"], "--ssl-keyfile needs --ssl-certfile"),
        ([*SQL, "--ssl-certfile", BASE / "decoder.json"], "not a certificate with its key in PEM"),
        ([*SQL, "--ssl-certfile", "nothing.pem"], "No such file or directory"),
        ([*SQL, "--api-key-file", BASE / "nothing"], "nothing"),
        ([*SQL, "--allow-loading", BASE / "nothing"], "does not exist"),
        ([*SQL, "--host", "192.0.2.1"], "192.0.2.1:8000"),
        ([*SQL, "--host", "no.such.host.invalid"], "no.such.host.invalid"),
    ],
)
def test_what_cannot_be_served(arguments: list[Any], message: str, invoke: Callable[..., Result]) -> None:
    """The status is 2, and the last line says what is wrong."""
    result = invoke(*arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert 2 == result.exit_code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_that_is_in_use(invoke: Callable[..., Result]) -> None:
    """The error names the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = invoke(*SQL, "--port", port)
    assert 2 == result.exit_code
    assert f"127.0.0.1:{port}" in result.stderr


def test_an_empty_file_of_keys(tmp_path: Path, invoke: Callable[..., Result]) -> None:
    """A key file without keys is an error: it would open the server to every client."""
    (tmp_path / "keys").write_text("# none\n", encoding="utf-8")
    result = invoke(*SQL, "--api-key-file", tmp_path / "keys")
    assert (2, True) == (result.exit_code, "it has no key" in result.stderr)


def test_without_the_extra(tmp_path: Path) -> None:
    """Where FastAPI or uvicorn is missing one line says what to install; the other commands work."""
    script = (
        "import sys\n"
        "sys.modules['uvicorn'] = None\n"
        "from hivellm_ort.cli.main import main\n"
        "main(['serve', 'x.expert'], prog_name='hivellm-ort')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert 2 == done.returncode
    assert (
        'error: serve needs FastAPI and uvicorn (uvicorn is not installed): pip install "hivellm-ort[server]"\n'
        == done.stderr
    )


def test_no_path_in_errors(cache: Path, tmp_path: Path) -> None:
    """The error for an evicted package that no longer exists does not show its path."""
    packages = [with_base(name, tmp_path / f"{name}.expert") for name in ("sql", "json")]
    arguments = [str(package) for package in packages] + ["--max-loaded-experts", "1", "--threads", "1"]
    with Command([*arguments, "--trust", "off"], cache) as command:
        for package in packages:
            package.unlink()
        statuses = {}
        for name in ("expert-sql", "expert-json"):
            response = httpx.post(
                f"{command.address}/v1/chat/completions", json=chat(model=name, max_tokens=1)
            )
            statuses[response.status_code] = response
        assert {200, 503} == set(statuses)
    error = error_of(statuses[503])
    assert ("model_unavailable", "model") == (error["code"], error["param"])
    assert str(tmp_path) not in json.dumps(error)
    assert str(tmp_path) in command.output
