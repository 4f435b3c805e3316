"""Settings of the process, from the environment. What is forwarded where stands in the configuration file."""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from server.core.tokens import check_chosen

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_SHARE_OF_LIMIT = 4


def memory_limit(cgroup_files: tuple[Path, ...] = _CGROUP_LIMITS) -> int:
    """The memory this process may use, in bytes: its cgroup's limit, or else the machine's memory."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in cgroup_files:
        try:
            text = file.read_text().strip()
        except OSError:
            continue  # another version of cgroups, or none
        if text.isdecimal():
            return min(int(text), machine)
    return machine


class Settings(BaseSettings):
    """MKF_HOST, MKF_PORT and so on; CONFIG_FILE keeps the seed's name."""

    model_config = SettingsConfigDict(env_prefix="MKF_", env_ignore_empty=True, hide_input_in_errors=True)

    config_file: Path = Field(Path("config.yaml"), validation_alias=AliasChoices("CONFIG_FILE"))
    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65_535)
    database_url: str = Field("sqlite:///data/mkf.db", repr=False)  # it may hold a password
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"
    prune: bool = True
    ready_strict: bool = False
    seed_metrics: bool = False
    auth: Literal["tokens", "none"] = "tokens"
    admin_token: SecretStr | None = None
    admin_token_file: Path | None = None
    metrics_auth: bool = False
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = Field(None, validate_default=True)
    memory_budget: int = Field(default_factory=lambda: memory_limit() // _SHARE_OF_LIMIT, ge=1024 * 1024)

    @field_validator("admin_token")
    @classmethod
    def _not_guessable(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None:
            check_chosen(token.get_secret_value())
        return token

    @field_validator("admin_token_file")
    @classmethod
    def _one_admin_token(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        if file is not None and info.data.get("admin_token") is not None:
            raise ValueError("MKF_ADMIN_TOKEN is set too; give one of them")
        return file

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _networks(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        listed = tuple(entry.strip() for entry in value.split(",") if entry.strip())
        for entry in listed:
            try:
                ip_network(entry)
            except ValueError:
                raise ValueError(
                    "must be addresses or networks with commas between them, such as 10.0.0.7,10.1.0.0/16; a network"
                    " has no bits beyond its prefix, and there is no entry for all: whoever comes could lie about it"
                ) from None
        return listed

    @field_validator("tls_key")
    @classmethod
    def _cert_and_key(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if (key is None) is not (info.data.get("tls_cert") is None):
            raise ValueError("MKF_TLS_CERT and MKF_TLS_KEY are needed together")
        return key
