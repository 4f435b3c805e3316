"""Settings of the process, from the environment. What is forwarded where stands in the configuration file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

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
    database_url: str = "sqlite:///data/mkf.db"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"
    prune: bool = True
    ready_strict: bool = False
    seed_metrics: bool = False
    memory_budget: int = Field(default_factory=lambda: memory_limit() // _SHARE_OF_LIMIT, ge=1024 * 1024)
