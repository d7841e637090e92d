"""The two ways a notification travels: a POST to a webhook, or standard input of a command. Each takes a bounded time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gpuwatch import __version__

if TYPE_CHECKING:
    import http.client

_MAX_ANSWER_BYTES = 64 * 1024
_TOO_MANY, _TIMED_OUT = 429, 408


class DeliveryError(Exception):
    """It was not delivered; the text holds no address. `final`: trying again would not help."""

    def __init__(self, text: str, *, final: bool = False) -> None:
        super().__init__(text)
        self.final = final


class Webhook:
    """POSTs JSON. `token_file`: its content goes along as a bearer token, read each time so that it may be renewed."""

    def __init__(self, url: str, token_file: str, timeout_seconds: float) -> None:
        parts = urlsplit(url)
        self._is_tls = parts.scheme == "https"
        self._host, self._port = parts.hostname or "", parts.port
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._token_file = token_file
        self._timeout_seconds = timeout_seconds

    def send(self, body: bytes) -> None:
        """Raises DeliveryError; redirects are not followed, since they would take the token elsewhere."""
        import http.client  # noqa: PLC0415  # with ssl and email it is 5 MiB: only a daemon that has something to send pays

        headers = {"Content-Type": "application/json", "User-Agent": f"gpuwatch/{__version__}"}
        if self._token_file:
            try:
                headers["Authorization"] = f"Bearer {Path(self._token_file).read_text(encoding='utf-8').strip()}"
            except (OSError, UnicodeDecodeError) as error:
                raise DeliveryError(f"the token file cannot be read ({type(error).__name__})") from None
        connection = self._connect()
        try:
            connection.request("POST", self._path, body, headers)
            answer = connection.getresponse()
            answer.read(_MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise DeliveryError(f"no answer ({type(error).__name__})") from None
        finally:
            connection.close()
        if not 200 <= answer.status < 300:
            refused = 300 <= answer.status < 500 and answer.status not in (_TOO_MANY, _TIMED_OUT)
            raise DeliveryError(f"HTTP {answer.status}", final=refused)

    def _connect(self) -> http.client.HTTPConnection:
        import http.client  # noqa: PLC0415  # as above

        if self._is_tls:
            import ssl  # noqa: PLC0415  # as above

            context = ssl.create_default_context()
            return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_seconds, context=context)
        return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_seconds)


class Command:
    """Runs a program with the JSON on its standard input. Never a shell: nothing in a finding can become a command."""

    def __init__(self, arguments: list[str], timeout_seconds: float) -> None:
        self._arguments = arguments
        self._timeout_seconds = timeout_seconds

    def send(self, body: bytes) -> None:
        """Raises DeliveryError; a program that takes too long is ended with its children."""
        try:
            process = subprocess.Popen(
                self._arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise DeliveryError(f"the command cannot be run ({error.strerror})") from None
        try:
            process.communicate(body + b"\n", self._timeout_seconds)
        except subprocess.TimeoutExpired:
            raise DeliveryError(f"the command took more than {self._timeout_seconds:g} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        if process.returncode != 0:
            raise DeliveryError(f"the command ended with {process.returncode}")
