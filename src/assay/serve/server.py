"""Starting the page's server."""

from __future__ import annotations

import ipaddress
import socket
import sys
from pathlib import Path

from assay.runtime.errors import InputError


def serve(runs: Path, *, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve the runs below ``runs`` until interrupted; ``port`` 0 takes a free one.

    Raises InputError where ``runs`` is no folder, the extra is not installed, or the address cannot be had.
    """
    if not runs.is_dir():
        raise InputError(f"serve: {runs} is no folder; expected one that holds runs (assay audit --out RUNS/NAME)")
    try:
        import uvicorn

        from assay.serve.app import create
    except ImportError as error:
        raise InputError(f"serve: {error.name} is not installed; expected pip install 'assay[serve]'") from error
    listening = _listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    print(f"serving {runs} at http://{shown}:{listening.getsockname()[1]}/ (Ctrl-C ends it)", flush=True)
    if not _loopback(host):
        print(f"assay: {host} can be reached from other machines, without a password", file=sys.stderr, flush=True)
    config = uvicorn.Config(create(runs, host), log_level="warning", access_log=False, server_header=False)
    with listening:
        uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"serve: {host} port {port}: {reason}; expected an address of this machine and a free port (--port 0)"
        ) from error


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
