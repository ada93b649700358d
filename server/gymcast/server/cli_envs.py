"""``gymcast envs``: the built-in games and their options, and what any other environment can be trained with."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gymcast.server.cli_environment import PackagesOption, environment_settings, import_packages
from gymcast.server.cli_errors import UserError

if TYPE_CHECKING:
    from gymcast.envs import GameSpec

app = typer.Typer(no_args_is_help=True, help="List the built-in games and their options.")

JsonOption = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]


def _facts(spec: GameSpec) -> dict[str, Any]:
    return {
        "id": spec.id,
        "name": spec.name,
        "version": spec.version,
        "title": spec.title,
        "tick_rate": spec.tick_rate,
        "frame_skip": spec.frame_skip_default,
        "max_seats": spec.max_seats,
        "opponents": list(spec.opponents),
        "options": {
            name: {
                "default": option.default,
                "choices": None if option.choices is None else list(option.choices),
                "help": option.help,
            }
            for name, option in spec.options.items()
        },
    }


@app.command("list")
def list_envs(
    everything: Annotated[bool, typer.Option("--all", help="Every registered Gymnasium id too.")] = False,
    gym_packages: PackagesOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the built-in games; with --all or packages the ids of all others too."""
    from gymcast.envs import GAMES, PLAIN_ENVS, short_name

    import_packages({"gym_packages": gym_packages or []})
    if everything or gym_packages:
        _list_all(as_json)
        return
    if as_json:
        typer.echo(json.dumps([_facts(spec) for spec in GAMES.values()], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("name", "id", "what it is", "opponents"):
        table.add_column(heading)
    for spec in GAMES.values():
        table.add_row(spec.name, spec.id, spec.title, ", ".join(spec.opponents))
    for env_id, (_, title) in PLAIN_ENVS.items():
        table.add_row(short_name(env_id), env_id, title, "")
    Console(highlight=False).print(table)
    typer.echo(
        "\nOptions: gymcast envs show NAME. Any other Gymnasium id can be trained too: gymcast train CartPole-v1"
    )


@app.command("show")
def show_env(
    game: Annotated[
        str, typer.Argument(help="Name or id of a built-in game, or any Gymnasium id.", show_default=False)
    ],
    gym_packages: PackagesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one game and its options, or what another environment says of itself; and what either is trained with."""
    from gymcast.envs import GAMES, UnknownEnvError, resolve_env_id

    name, environment = environment_settings(game, gym_packages, (), None)
    import_packages(environment)
    try:
        env_id = resolve_env_id(str(name))
    except UnknownEnvError as error:
        raise UserError(str(error)) from None
    if env_id not in GAMES:
        _show_other(env_id, environment.get("gym_packages", ()), as_json)
        return
    spec = GAMES[env_id]
    facts = _facts(spec)
    learning = _learning(env_id, ())
    if as_json:
        typer.echo(json.dumps({**facts, "training": learning}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    for name in ("id", "name", "title", "tick_rate", "max_seats"):
        typer.echo(f"{name:<12}{facts[name]}")
    typer.echo(f"{'opponents':<12}{', '.join(spec.opponents)}\n")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("option", "default", "allowed", "meaning"):
        table.add_column(heading, no_wrap=heading == "option")
    for name, option in facts["options"].items():
        allowed = ", ".join(map(str, option["choices"])) if option["choices"] else ""
        table.add_row(name, json.dumps(option["default"]), allowed, option["help"])
    Console(highlight=False).print(table)
    choices = {name: option.choices for name, option in spec.options.items() if option.choices}
    example = "".join(f" --option {name}={values[-1]}" for name, values in list(choices.items())[1:3])
    typer.echo(f"\n{_told(learning)}\n\nFor example: gymcast train {spec.name}{example}")


def _list_all(as_json: bool) -> None:
    import gymnasium

    ids = sorted(gymnasium.registry)
    if as_json:
        typer.echo(json.dumps(ids, indent=2))
        return
    for env_id in ids:
        typer.echo(env_id)


def _show_other(env_id: str, gym_packages: Sequence[str], as_json: bool) -> None:
    import gymnasium

    from gymcast.envs.foreign_wrappers import action_problem, observation_problem

    spec = gymnasium.spec(env_id)
    try:
        env = gymnasium.make(env_id)
    except Exception as error:  # noqa: BLE001 - whatever other people's constructors raise is what there is to tell
        raise UserError(f"{env_id} cannot be made: {type(error).__name__}: {error}") from None
    takes = [str(one) for one in inspect.signature(type(env.unwrapped)).parameters.values()]
    facts = {
        "id": env_id,
        "action_space": str(env.action_space),
        "observation_space": str(env.observation_space),
        "options (-o)": ", ".join(takes),
        "registered with": ", ".join(f"{name}={value}" for name, value in spec.kwargs.items()),
        "wrappers": ", ".join(str(wrapper.name) for wrapper in spec.additional_wrappers),
        "time limit": "" if spec.max_episode_steps is None else f"{spec.max_episode_steps} decisions",
        "reward threshold": "" if spec.reward_threshold is None else str(spec.reward_threshold),
        "render_modes": ", ".join(env.metadata.get("render_modes", ())),
        "on the page": "pictures" if "rgb_array" in env.metadata.get("render_modes", ()) else "no pictures",
        "cannot train": observation_problem(env.observation_space) or action_problem(env.action_space),
    }
    facts = {name: value for name, value in facts.items() if value}
    description = inspect.getdoc(env.unwrapped) or ""
    env.close()
    learning = _learning(env_id, gym_packages) if "cannot train" not in facts else None
    if as_json:
        typer.echo(json.dumps({**facts, "training": learning, "description": description}, indent=2))
        return
    for name, value in facts.items():
        typer.echo(f"{name:<19}{value}")
    if learning is not None:
        typer.echo(f"\n{_told(learning)}")
    typer.echo(f"\n{description}\n\nFor example: gymcast train {env_id}")


def _learning(env_id: str, gym_packages: Sequence[str]) -> dict[str, Any]:
    """What ``gymcast train`` would make of an id: its preset, and the algorithms that can be used on what is seen then.

    Raises :class:`UserError`.
    """
    from gymcast.envs import EnvMakeError, make_foreign
    from gymcast.training.algorithm_table import ALGORITHMS, AUTO, choose_algorithm, observation_kind, why_not
    from gymcast.training.config import TrainingConfig

    config = TrainingConfig.for_env(env_id, gym_packages=list(gym_packages))
    try:
        env = make_foreign(env_id, config.env_kwargs, config.extras)
    except EnvMakeError as error:
        raise UserError(f"{env_id} cannot be made for training: {error}") from None
    actions, seen, masks = env.action_space, env.observation_space, env.has_wrapper_attr("action_masks")
    env.close()
    problems = {name: why_not(name, actions, seen, masks) for name in ALGORITHMS}
    chosen, reason = config.algorithm, "the preset names it"
    if chosen == AUTO and not all(problems.values()):
        given = [*config.hyperparameters, *config.network.changed]
        images = observation_kind(seen) == "image"
        chosen, reason = choose_algorithm(
            actions, masks=masks, lanes=config.parallel_episodes, images=images, given=given
        )
    return {
        "preset": TrainingConfig.preset_for(env_id),
        "env_kwargs": dict(config.env_kwargs),
        "wrappers": [wrapper.name for wrapper in config.wrappers],
        "parallel_episodes": config.parallel_episodes,
        "target_reward": config.target_reward,
        "algorithm": chosen,
        "reason": reason,
        "algorithms": [name for name, problem in problems.items() if not problem],
        "not": {name: problem for name, problem in problems.items() if problem},
    }


def _told(learning: Mapping[str, Any]) -> str:
    """What :func:`_learning` found, in lines."""
    name, target = learning["preset"], learning["target_reward"]
    parts = [
        f"{name} (for everything without one of its own)" if name == "default" else name,
        f"{learning['parallel_episodes']:,} lanes",
        "" if target is None else f"until a mean return of {target:g}",
        " ".join(f"{key}={value}" for key, value in learning["env_kwargs"].items()),
        "" if not learning["wrappers"] else f"wrappers {', '.join(learning['wrappers'])}",
    ]
    rows = [
        ("preset", ", ".join(filter(None, parts))),
        ("algorithm", f"{learning['algorithm']}: {learning['reason']}"),
        ("others that fit", ", ".join(one for one in learning["algorithms"] if one != learning["algorithm"]) or "none"),
    ]
    reasons: dict[str, list[str]] = {}
    for one, problem in learning["not"].items():
        reasons.setdefault(problem, []).append(one)
    rows += [("not", f"{', '.join(names)}: {problem}") for problem, names in reasons.items()]
    return "\n".join(f"{label:<19}{text}" for label, text in rows)
