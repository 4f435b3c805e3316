"""Settings: what the environment says, and how much memory there is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from server.settings import Settings, memory_limit

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("MKF_")] + ["CONFIG_FILE"]:
        monkeypatch.delenv(name, raising=False)


def _file(folder: Path, text: str, name: str = "limit") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_the_cgroup_limits_the_memory(tmp_path: Path) -> None:
    assert memory_limit((_file(tmp_path, "104857600\n"),)) == 104_857_600


@pytest.mark.parametrize("text", ["max\n", "", "9223372036854771712\n"])
def test_a_cgroup_without_a_limit_leaves_the_machine(tmp_path: Path, text: str) -> None:
    assert memory_limit((_file(tmp_path, text),)) == MACHINE


def test_the_first_cgroup_file_that_says_a_number_counts(tmp_path: Path) -> None:
    files = (tmp_path / "missing", _file(tmp_path, "max", "v2"), _file(tmp_path, "5000", "v1"))
    assert memory_limit(files) == 5000
    assert memory_limit(files[:1]) == MACHINE


def test_the_defaults_need_no_environment() -> None:
    settings = Settings()
    assert (settings.host, settings.port, settings.config_file) == ("127.0.0.1", 8080, Path("config.yaml"))
    assert settings.memory_budget == memory_limit() // 4
    assert settings.prune
    assert not settings.ready_strict
    assert (settings.auth, settings.admin_token, settings.metrics_auth) == ("tokens", None, False)


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("CONFIG_FILE", "/etc/mkf.yaml", "config_file", Path("/etc/mkf.yaml")),
        ("MKF_HOST", "::", "host", "::"),
        ("MKF_PORT", "0", "port", 0),
        ("MKF_DATABASE_URL", "sqlite:////x.db", "database_url", "sqlite:////x.db"),
        ("MKF_LOG_LEVEL", "debug", "log_level", "debug"),
        ("MKF_LOG_FORMAT", "json", "log_format", "json"),
        ("MKF_PRUNE", "false", "prune", False),
        ("MKF_READY_STRICT", "true", "ready_strict", True),
        ("MKF_SEED_METRICS", "true", "seed_metrics", True),
        ("MKF_MEMORY_BUDGET", "1048576", "memory_budget", 1_048_576),
        ("MKF_PORT", "", "port", 8080),
        ("MKF_AUTH", "none", "auth", "none"),
        ("MKF_ADMIN_TOKEN", "x" * 32, "admin_token", SecretStr("x" * 32)),
        ("MKF_ADMIN_TOKEN_FILE", "/run/secrets/token", "admin_token_file", Path("/run/secrets/token")),
        ("MKF_METRICS_AUTH", "true", "metrics_auth", True),
        ("MKF_TRUSTED_PROXIES", " 10.0.0.7, 10.1.0.0/16,,::1 ", "trusted_proxies", ("10.0.0.7", "10.1.0.0/16", "::1")),
        ("MKF_TRUSTED_PROXIES", "", "trusted_proxies", ()),
    ],
)
def test_every_setting_comes_from_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, field: str, expected: object
) -> None:
    monkeypatch.setenv(variable, value)
    assert getattr(Settings(), field) == expected


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MKF_PORT", "70000"),
        ("MKF_PORT", "http"),
        ("MKF_LOG_LEVEL", "loud"),
        ("MKF_LOG_FORMAT", "xml"),
        ("MKF_PRUNE", "perhaps"),
        ("MKF_MEMORY_BUDGET", "1000"),
        ("MKF_AUTH", "None"),
        ("MKF_ADMIN_TOKEN", "short"),
        ("MKF_TRUSTED_PROXIES", "*"),
        ("MKF_TRUSTED_PROXIES", "proxy.example"),
        ("MKF_TLS_KEY", "key.pem"),
    ],
)
def test_what_can_not_be_used_is_refused_without_repeating_it(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    (problem,) = caught.value.errors()
    assert problem["loc"] == (variable.removeprefix("MKF_").lower(),)
    assert "input_value" not in str(caught.value)


def test_the_first_admin_token_is_not_shown() -> None:
    assert "x" * 32 not in repr(Settings(admin_token=SecretStr("x" * 32)))


def test_a_certificate_comes_with_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKF_TLS_CERT", "cert.pem")
    with pytest.raises(ValidationError, match="are needed together"):
        Settings()
    monkeypatch.setenv("MKF_TLS_KEY", "key.pem")
    assert (Settings().tls_cert, Settings().tls_key) == (Path("cert.pem"), Path("key.pem"))
