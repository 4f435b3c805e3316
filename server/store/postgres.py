"""A Postgres server: how a session with it is opened, and what its errors mean."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import zlib
from typing import TYPE_CHECKING, Any, LiteralString, cast

import psycopg
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from server.store.errors import StoreError, StoreUnavailableError
from server.store.worker import UNKNOWN_OUTCOME

if TYPE_CHECKING:
    from sqlalchemy import URL

ELSEWHERE = "name another database, or another schema (?options=-csearch_path%3Dname), in the store's URL"
SLOW = "check its server, and the network to it"

# libpq's own names, so each can be set in the URL. A peer that is gone must be noticed within seconds: the default of
# TCP is 15 minutes for what was sent, and two hours where nothing is.
_DEFAULTS: dict[str, Any] = {
    "connect_timeout": 2,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 5_000,
    "client_encoding": "utf8",
}
# The same from the server's side: the lock of a machine that lost its power must not be kept for two hours.
_SETTINGS: tuple[LiteralString, ...] = (
    "SET tcp_keepalives_idle = 5",
    "SET tcp_keepalives_interval = 2",
    "SET tcp_keepalives_count = 3",
)
_NAME_BYTES = 63
_OWN_LOCKS = 0x4D4B_4600  # "MKF" and a number: others may use advisory locks in the same database

_DENIED = "does not let us in: check user, password and database in the store's URL, and the server's pg_hba.conf"
_NO_DATABASE = f"does not exist: create the database, or {ELSEWHERE}"
_NO_RIGHT = "denies us a right: GRANT the user USAGE and CREATE on the schema, and all on the tables in it"
_NO_SCHEMA = f"has no schema to use: create the first one of its search_path, or {ELSEWHERE}"
_READ_ONLY = (
    "is read-only, perhaps a standby: name the primary in the store's URL, or both and target_session_attrs=read-write"
)
_LOCKED = "is locked by another session: see pg_locks, and end that session or its transaction"
_FULL = "has no room: the server's disk is full; free some space on it"
_BUSY = "has no connection left for us: raise max_connections, or end some"
_AWAY = "can't be reached: check host and port in the store's URL, and that the server runs"
_TLS = "can't be used over TLS as the store's URL wants: check sslmode, sslrootcert, and the server's certificate"
_OPTIONS = "can't be connected to as the store's URL says: correct its options"
_UNKNOWN = "does not work; see what Postgres says"
# By the beginning of the SQLSTATE; those with True don't mend themselves.
_BY_STATE: tuple[tuple[str, bool, str], ...] = (
    ("28", True, _DENIED),
    ("3D", True, _NO_DATABASE),
    ("3F", True, _NO_SCHEMA),
    ("42501", True, _NO_RIGHT),
    ("25006", False, _READ_ONLY),
    ("53100", False, _FULL),
    ("53300", False, _BUSY),
    ("55P03", False, _LOCKED),
    ("57P", False, _AWAY),
    ("08", False, _AWAY),
)
# A session that did not come about has no SQLSTATE. A server that speaks another language is waited for.
_BY_TEXT: tuple[tuple[re.Pattern[str], bool, str], ...] = (
    (re.compile("password authentication failed|no password supplied|not permitted to log in"), True, _DENIED),
    (re.compile('role ".*" does not exist|no pg_hba.conf entry|permission denied for database'), True, _DENIED),
    (re.compile('database ".*" does not exist'), True, _NO_DATABASE),
    (re.compile("certificate|private key|does not support SSL|sslmode"), True, _TLS),
    (re.compile("connection option|unrecognized configuration parameter|invalid value for parameter"), True, _OPTIONS),
    (re.compile("too many clients|remaining connection slots"), False, _BUSY),
    (re.compile("read-only|not in hot standby|session is not"), False, _READ_ONLY),
)


class PostgresSession:
    """A connection, and a way to break it from another thread. `store_key` tells our stores in one database apart."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        # A descriptor of our own: libpq closes its own when it likes, and the number may be somebody else's by then.
        self._socket: socket.socket | None = socket.socket(fileno=os.dup(connection.fileno()))
        self._guard = threading.Lock()
        self.schema, self.encoding = self._start()
        # Two schemas are two stores, and advisory locks know only databases.
        self.store_key = zlib.crc32((self.schema or "").encode()) & 0x7FFF_FFFF

    def _start(self) -> tuple[str | None, str]:
        with self.connection.cursor() as cursor:
            for setting in _SETTINGS:
                cursor.execute(setting)
            cursor.execute("SELECT current_schema(), current_setting('server_encoding')")
            found = cast("tuple[str | None, str]", cursor.fetchone())
        if not self.connection.autocommit:
            self.connection.commit()
        return found

    @property
    def broken(self) -> bool:
        """Whether nothing more can be asked over it."""
        return self.connection.closed

    def interrupt(self) -> None:
        """Make whatever waits for the server's answer fail; the server ends the statement by its own time limit."""
        with self._guard:
            if self._socket is not None:
                with contextlib.suppress(OSError):  # it is broken already
                    self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it; harmless if it is closed or broken."""
        self.connection.close()
        with self._guard:
            if self._socket is not None:
                self._socket.close()
                self._socket = None


class PostgresServer:
    """The server and the database that `url` names."""

    def __init__(self, url: URL) -> None:
        dialect: Any = PGDialect_psycopg
        _, parameters = dialect().create_connect_args(url)
        self._parameters: dict[str, Any] = {**_DEFAULTS, **parameters}
        host = str(parameters.get("host", "localhost"))
        port = f":{parameters['port']}" if "port" in parameters else ""
        self.name = f"postgresql://{host}{port}/{parameters['dbname']}"

    def connect(self, *, autocommit: bool = False) -> PostgresSession:
        """Open a session; it takes 2 s at most for each address of the server.

        Raises:
            psycopg.Error: it can't be opened; `meaning` says what that means.
        """
        parameters = {"application_name": own_name(), **self._parameters}
        # Prepared statements gain nothing here, and would not survive a connection pooler between us and the server.
        connection = psycopg.connect(autocommit=autocommit, prepare_threshold=None, **parameters)
        try:
            return PostgresSession(connection)
        except BaseException:
            connection.close()
            raise

    def meaning(self, error: BaseException | None, *, opening: bool, undecided: bool = False) -> StoreError:
        """What an error of psycopg means to who has to mend it; `undecided` if it came in the middle of a commit."""
        lasting, meaning = _meaning(error)
        doubt = UNKNOWN_OUTCOME if undecided else ""
        text = f"the store {self.name} {meaning}{doubt} ({' '.join(str(error).split())})"
        return StoreError(text) if opening and lasting else StoreUnavailableError(text, undecided=undecided)


def lock_key(number: int, session: PostgresSession) -> tuple[int, int]:
    """The two numbers of our advisory lock `number` for the session's store."""
    return _OWN_LOCKS + number, session.store_key


def own_name() -> str:
    """What Postgres calls this process in pg_stat_activity: "mkf pid 7 on host-a"."""
    return f"mkf pid {os.getpid()} on {socket.gethostname()}".encode()[:_NAME_BYTES].decode(errors="ignore")


def _meaning(error: BaseException | None) -> tuple[bool, str]:
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    if state is not None:
        for prefix, lasting, meaning in _BY_STATE:
            if state.startswith(prefix):
                return lasting, meaning
        return False, _UNKNOWN
    for pattern, lasting, meaning in _BY_TEXT:
        if pattern.search(str(error)):
            return lasting, meaning
    if isinstance(error, psycopg.OperationalError):
        return False, _AWAY
    if isinstance(error, psycopg.ProgrammingError):  # found by psycopg itself, before it connects
        return True, _OPTIONS
    return False, _UNKNOWN
