"""Mappings as the `forwarding` section of a configuration file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from server.config.document import plain_value
from server.config.interpolation import escape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.core.mapping import Mapping


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - aliases are refused when the file is read
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML quotes what YAML 1.1 would misread; files are read by the core schema of 1.2.
    style = None if isinstance(plain_value(text), str) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def export_forwarding(mappings: Sequence[Mapping]) -> str:
    """Write YAML that bootstraps the same mappings, pauses included; defaults are left out."""
    entries = [_escaped(mapping.model_dump(mode="json", exclude_defaults=True)) for mapping in mappings]
    return yaml.dump({"forwarding": entries}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000)


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return escape(value) if isinstance(value, str) else value
