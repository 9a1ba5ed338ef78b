"""The commands."""

from __future__ import annotations

import reprlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from assay.runtime.errors import InputError, unknown
from assay.runtime.toml import read_toml

app = typer.Typer(
    name="assay",
    help="Puts a trained model to the proof: audit, repair, and what each repair did to every other property.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def from_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Take an option's default from ``path``: one key an option, named as on the command line without the dashes."""
    if path is None:
        return None
    table = read_toml(path, f"--config {path}")
    options = {o.removeprefix("--"): p for p in ctx.command.params for o in p.opts if p.name != "config"}
    for key in table:
        if key not in options:
            raise unknown(f"key in {path}:", key, options)
    ctx.default_map = {
        str(options[k].name): _default(path, k, v, getattr(options[k], "multiple", False)) for k, v in table.items()
    }
    return path


def _default(path: Path, key: str, value: object, several: bool) -> object:
    """A value of a configuration file as the command line would give it: text, true or false."""
    if several:
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            return value
        raise InputError(f"--config {path}: {key} = {reprlib.repr(value)}; expected a list of texts")
    if isinstance(value, bool):
        return value
    if isinstance(value, str | int | float):
        return str(value)
    raise InputError(f"--config {path}: {key} = {reprlib.repr(value)}; expected a text, a number, true or false")


SUBJECTS = (
    "mnist, cifar10, a subject folder, module:factory[@weights.pt], or with --data a model of another kind: "
    "hf:owner/name or hf:FOLDER (Hugging Face), sklearn:FILE.skops, onnx:FILE, export:FILE.pt2, xgboost:FILE.json, "
    "lightgbm:FILE.txt, or an http(s)://HOST/PATH[#budget=N&timeout=S&batch=N] that answers predictions."
)
SubjectArg = Annotated[
    str | None,
    typer.Argument(
        help=f"digits (default), {SUBJECTS}",
        show_default=False,
    ),
]
DataOpt = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Test data: digits, mnist, cifar10, or folder:, parquet:, npz:, csv:, jsonl:, mmap: with a path, or "
        "hf:NAME[:CONFIG][:SPLIT]. Tables: csv:FILE#label=COL&immutable=A,B&integer=C; texts: #text=COL.",
    ),
]
HoldoutOpt = Annotated[
    str | None, typer.Option("--holdout", help="Data for fitting thresholds; else a fifth of the test data.")
]
TrainOpt = Annotated[str | None, typer.Option("--train", help="Training data.")]
ProfileOpt = Annotated[str, typer.Option("--profile", help="quick, standard or deep.")]
OnlyOpt = Annotated[str | None, typer.Option("--only", help="Properties, separated by commas.")]
LimitOpt = Annotated[int | None, typer.Option("--limit", help="At most this many test samples.")]
SeedOpt = Annotated[int, typer.Option("--seed", help="Base seed.")]
DeviceOpt = Annotated[str | None, typer.Option("--device", help="cpu, cuda, mps.")]
JobsOpt = Annotated[int, typer.Option("--jobs", help="Worker processes.")]
OnOpt = Annotated[str, typer.Option("--on", help="local, ray or ray://host:port.")]
PrecisionOpt = Annotated[
    str, typer.Option("--precision", help="fp32, tf32 or bf16: of passes; attacks keep their strength.")
]
ChannelsOpt = Annotated[bool, typer.Option("--channels-last", help="Lay images out channels last.")]
CompileOpt = Annotated[bool, typer.Option("--compile", help="Compile the model (torch.compile).")]
RequireOpt = Annotated[str | None, typer.Option("--require", help="'calibration.ece<=0.05 and ...' or a policy file.")]
JunitOpt = Annotated[Path | None, typer.Option("--junit", help="JUnit XML: a test case a requirement and a property.")]
LogOpt = Annotated[str | None, typer.Option("--log", help="mlflow or wandb: log to a local store, offline.")]
TrustOpt = Annotated[
    list[str] | None,
    typer.Option("--trust", help="A module whose factories a subject folder may import, or a type in a skops file."),
]
OutOpt = Annotated[Path | None, typer.Option("--out", help="Folder for report.html, .json, .md and metrics.parquet.")]
ConfigOpt = Annotated[
    Path | None,
    typer.Option("--config", help="A TOML file with defaults for these options.", is_eager=True, callback=from_config),
]
JsonOpt = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@app.command("audit")
def audit_command(
    subject: SubjectArg = None,
    data: DataOpt = None,
    holdout: HoldoutOpt = None,
    train: TrainOpt = None,
    profile: ProfileOpt = "quick",
    only: OnlyOpt = None,
    limit: LimitOpt = None,
    seed: SeedOpt = 0,
    device: DeviceOpt = None,
    jobs: JobsOpt = 1,
    on: OnOpt = "local",
    config: ConfigOpt = None,
    require: RequireOpt = None,
    junit: JunitOpt = None,
    log: LogOpt = None,
    precision: PrecisionOpt = "fp32",
    channels_last: ChannelsOpt = False,
    compiled: CompileOpt = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would run, and for how long (on --jobs workers); run nothing.")
    ] = False,
    trust: TrustOpt = None,
    out: OutOpt = None,
    json: JsonOpt = False,
) -> None:
    """Measure every property of a model."""
    from assay.cli import work
    from assay.cli.finish import Wanted

    source = {"data": data, "holdout": holdout, "train": train, "trust": tuple(trust or ()), "seed": seed}
    options = {"profile": profile, "only": _split(only), "limit": limit, "seed": seed, "device": device}
    if plan:
        work.plan(subject, source, options, jobs=jobs, on=on, json=json)
        return
    wanted = Wanted(require, out, json, junit, log)
    options |= {"jobs": jobs, "on": on}
    switches = {"precision": precision, "channels_last": channels_last, "compile": compiled}
    raise typer.Exit(work.audit(subject, source, options, switches, wanted))


@app.command("repair")
def repair_command(
    subject: Annotated[
        str,
        typer.Argument(help=f"digits, {SUBJECTS}"),
    ],
    methods: Annotated[list[str], typer.Option("--with", help="ROOM.METHOD[:k=v,..]; repeat it for a chain.")],
    forget: Annotated[
        str | None,
        typer.Option(
            "--forget", help="class=NAME, random=SHARE, subclass=CLASS:CLUSTER, FIELD=VALUE, or a file of indices."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Independent runs.")] = 1,
    processes: Annotated[int, typer.Option("--processes", help="Processes that share each training batch.")] = 1,
    no_control: Annotated[bool, typer.Option("--no-control", help="Leave the control out.")] = False,
    data: DataOpt = None,
    holdout: HoldoutOpt = None,
    train: TrainOpt = None,
    profile: ProfileOpt = "quick",
    only: OnlyOpt = None,
    limit: LimitOpt = None,
    seed: SeedOpt = 0,
    device: DeviceOpt = None,
    jobs: JobsOpt = 1,
    on: OnOpt = "local",
    config: ConfigOpt = None,
    require: RequireOpt = None,
    junit: JunitOpt = None,
    log: LogOpt = None,
    trust: TrustOpt = None,
    out: OutOpt = None,
    json: JsonOpt = False,
) -> None:
    """Repair a model and see what that did to every property."""
    from assay.cli import work
    from assay.cli.finish import Wanted

    source = {"data": data, "holdout": holdout, "train": train, "trust": tuple(trust or ()), "seed": seed}
    options = {
        "profile": profile,
        "only": _split(only),
        "limit": limit,
        "seed": seed,
        "device": device,
        "jobs": jobs,
        "on": on,
    }
    options |= {"forget": forget, "seeds": seeds, "control": not no_control, "processes": processes}
    raise typer.Exit(work.repair(subject, methods, source, options, Wanted(require, out, json, junit, log)))


@app.command("compare")
def compare_command(
    subjects: Annotated[list[str], typer.Argument(help="Two or more subject folders, on the same test data.")],
    profile: ProfileOpt = "quick",
    only: OnlyOpt = None,
    limit: LimitOpt = None,
    seed: SeedOpt = 0,
    device: DeviceOpt = None,
    jobs: JobsOpt = 1,
    on: OnOpt = "local",
    require: RequireOpt = None,
    trust: TrustOpt = None,
    out: OutOpt = None,
    json: JsonOpt = False,
) -> None:
    """Audit saved subjects side by side, with paired differences from the first."""
    from assay.cli import work

    options = {
        "profile": profile,
        "only": _split(only),
        "limit": limit,
        "seed": seed,
        "device": device,
        "jobs": jobs,
        "on": on,
    }
    raise typer.Exit(work.compare(subjects, tuple(trust or ()), options, require=require, out=out, json=json))


@app.command("methods")
def methods_command(
    room: Annotated[str | None, typer.Option("--room", help="Only this room.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Only this kind.")] = None,
    json: JsonOpt = False,
) -> None:
    """List the methods."""
    from assay.cli import listing

    listing.methods(room, kind, json=json)


@app.command("version")
def version_command() -> None:
    """Print the version."""
    from assay import __version__

    sys.stdout.write(f"{__version__}\n")


def _split(text: str | None) -> list[str] | None:
    if text is None:
        return None
    names = [t.strip() for t in text.split(",") if t.strip()]
    if not names:
        raise InputError(f"--only {text!r}; expected at least one property")
    return names


from assay.cli import check, papers, serve  # noqa: E402  (the commands are listed in this order)

check.register(app)
papers.register(app)
serve.register(app)
