"""``gymcast export``: a trained bot as a file for other programs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from gymcast.server.cli_errors import UserError

EPILOG: Final = """
[bold]Examples[/bold]

gymcast export latest -o archer.zip

gymcast export latest --best -o archer.zip

gymcast train archers --from archer.zip
"""


def export(
    run: Annotated[
        str, typer.Argument(help="A run's folder or name, latest, or the folder of one checkpoint.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")],
    format_: Annotated[Literal["sb3"], typer.Option("--format", help="sb3: Stable-Baselines3's own .zip.")] = "sb3",
    best: Annotated[bool, typer.Option("--best", help="The best checkpoint of the run instead of the newest.")] = False,
    runs_dir: Annotated[Path, typer.Option(envvar="GYMCAST_RUNS", help="Folder of all runs.")] = Path("runs"),
) -> None:
    """Write a trained bot as a file that Stable-Baselines3 loads.

    The class to load it with is that of the algorithm, such as PPO.load(FILE)
    or, from sb3_contrib, MaskablePPO.load(FILE). gymcast need not be installed
    there. Other files than those of gymcast train can be brought in with
    gymcast train GAME --from FILE.
    """
    from gymcast.server.cli_checkpoints import choose_run

    if output.suffix != ".zip":
        raise UserError(f"{output} has to end in .zip, as Stable-Baselines3 expects it")
    if output.exists():
        raise UserError(f"{output} exists already; name another file, or remove it")
    chosen = choose_run(run, runs_dir)
    checkpoint = chosen.checkpoint(best=best)
    # torch and Stable-Baselines3 take seconds to import: every cheap check comes before them.
    from gymcast.training.checkpoints import CheckpointError
    from gymcast.training.sb3_zip import export_sb3

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about batch sizes, from a model that is not trained here
            written = export_sb3(chosen.config, checkpoint, output)
    except CheckpointError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or error}") from None
    for path in written:
        typer.echo(f"{path}  ({path.stat().st_size:,} bytes, from {checkpoint.path})")
