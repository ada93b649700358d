"""``gymcast token``: make the secret of a server, and tokens signed with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from gymcast.server.cli_errors import UserError

CREATE_EPILOG: Final = """
[bold]Examples[/bold]

gymcast token create --subject ada

gymcast token create --scope read,ingest --subject my-sb3-script --days 30

[bold]Scopes[/bold]

read: look at sessions and watch them. ingest: report trainings that run elsewhere. control: start, pause and stop
trainings; includes read and ingest. admin: everything.
"""

app = typer.Typer(no_args_is_help=True, help="Make the secret of a server, and tokens for those who use it.")


@app.command("secret", epilog='Example: export JWT_SECRET_KEY="$(gymcast token secret)"')
def secret() -> None:
    """Print a new random secret for a server (JWT_SECRET_KEY). Whoever has it can make tokens."""
    import secrets

    typer.echo(secrets.token_urlsafe(48))


@app.command("create", epilog=CREATE_EPILOG)
def create(
    subject: Annotated[str, typer.Option(metavar="NAME", help="Who will use it; shown to whoever looks.")],
    scope: Annotated[str, typer.Option(metavar="LIST", help="What it allows: read, ingest, control, admin.")] = "read",
    days: Annotated[float, typer.Option(help="Days until it ends.")] = 30.0,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The server's settings, when its secret is there.", show_default=False),
    ] = None,
) -> None:
    """Print a token, signed with the secret in JWT_SECRET_KEY or in the server's settings.

    It is sent as Authorization: Bearer TOKEN; gymcast's own commands take it from GYMCAST_TOKEN. A token cannot be
    taken back before it ends, except by changing the secret, which ends all of them.
    """
    from gymcast.server.auth import issue
    from gymcast.server.config import ServerConfig, ServerConfigError

    if not 0 < days <= 3650:
        raise UserError(f"--days: got {days:g}; allowed: more than 0, at most 3650")
    try:
        signing = ServerConfig.load(config).jwt_secret
        if signing is None:
            raise UserError(
                "there is no secret to sign with. Give the server's own: JWT_SECRET_KEY, or --config FILE.\n"
                '  A new one: export JWT_SECRET_KEY="$(gymcast token secret)"'
            )
        scopes = [name.strip() for name in scope.split(",") if name.strip()]
        typer.echo(issue(signing, subject=subject, scopes=scopes, seconds=days * 86_400))
    except ServerConfigError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"cannot read {config}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(str(error)) from None
