"""The command ``serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("serve")(serve_command)


def serve_command(
    runs: Annotated[Path, typer.Argument(help="A folder; every report.json below it is a run.")] = Path("runs"),
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
) -> None:
    """Show recorded runs in a browser: list them, compare two, plot a metric over all."""
    from assay.serve import serve

    serve(runs, host=host, port=port)
