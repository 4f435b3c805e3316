"""The admin token that the environment gives, by which the first tokens are made. It is never stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from server.core.tokens import check_chosen, hash_of, same

if TYPE_CHECKING:
    from pathlib import Path

_log = structlog.get_logger(__name__)

_MOST_BYTES = 4096


class AccessError(Exception):
    """Who may use the API can't be told, or is nobody; the message says what to set."""


class AdminToken:
    """The token of MKF_ADMIN_TOKEN, or the content of MKF_ADMIN_TOKEN_FILE, whose surrounding white space is ignored.

    While the file can't be used nobody is let in by it, neither with what it held before: that may have been taken
    back.
    """

    def __init__(self, *, token: str | None = None, file: Path | None = None) -> None:
        self.file = file
        self._hash = None if token is None else hash_of(token)
        self._trouble: str | None = None

    def load(self) -> None:
        """Read the file.

        Raises:
            AccessError: it can't be used; the message does not repeat what is in it.
        """
        if self.file is None:
            return
        self._hash = None
        try:
            with self.file.open("rb") as opened:
                token = opened.read(_MOST_BYTES).decode("ascii").strip()
            check_chosen(token)
        except OSError as error:
            raise AccessError(f"MKF_ADMIN_TOKEN_FILE: {self.file} can't be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise AccessError(f"MKF_ADMIN_TOKEN_FILE: {self.file} is not ASCII text") from None
        except ValueError as error:
            raise AccessError(f"MKF_ADMIN_TOKEN_FILE: {self.file} holds no usable token: {error}") from None
        self._hash = hash_of(token)

    def reload(self) -> None:
        """Read the file again; what is wrong with it is logged once."""
        before, trouble = self._hash, None
        try:
            self.load()
        except AccessError as error:
            trouble = str(error)
            if trouble != self._trouble:
                _log.error("admin_token_unusable", reason=trouble)
        else:
            if self._hash != before:
                _log.info("admin_token_reloaded", file=str(self.file))
        self._trouble = trouble

    def matches(self, token_hash: str) -> bool:
        """Whether this is the hash of the token."""
        return self._hash is not None and same(self._hash, token_hash)
