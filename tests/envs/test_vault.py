"""The vault: what its best policies get, counted out over every policy, and what Gymnasium and SB3 ask of it."""

from __future__ import annotations

import itertools
import pickle
import warnings
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from gymcast.envs import ActionError, OptionValueError, VaultEnv, resolve_env_id, restore, snapshot

Seen = tuple[Any, ...]


def locks(doors: int, unlocked: int) -> list[tuple[bool, ...]]:
    return [tuple(door in free for door in range(doors)) for free in itertools.combinations(range(doors), unlocked)]


def outcome(env: VaultEnv, door: int, note: int, room: int, legal: tuple[bool, ...]) -> tuple[float, bool]:
    """Reward and end of trying a door in a state, from the environment itself."""
    env.reset(seed=0)
    env.note, env.room, env.legal = note, room, np.array(legal)
    _, reward, terminated, _, _ = env.step(door)
    return reward, terminated


def observed(env: VaultEnv, note: int, room: int) -> bytes:
    env.note, env.room = note, room
    return env._observe().tobytes()


def best_return(rooms: int, doors: int, unlocked: int, *, masks: bool, memory: bool) -> Fraction:
    """The highest mean return of all deterministic policies, by trying each of them.

    A policy maps what it sees to a door. With memory it sees all observations since the start (of past masks only the
    present one is kept: earlier rooms' locks tell nothing about what comes).
    """
    env = VaultEnv(rooms=rooms, doors=doors, unlocked=unlocked)
    every = (True,) * doors
    table = {
        (door, note, room, legal): outcome(env, door, note, room, legal)
        for note, room, door in itertools.product(range(doors), range(rooms + 1), range(doors))
        for legal in (locks(doors, unlocked) if room < rooms else [every])
    }

    def sees(note: int, room: int, legal: tuple[bool, ...]) -> Seen:
        past = [observed(env, note, earlier) for earlier in range(0 if memory else room, room + 1)]
        return (*past, legal if masks else None)

    situations = sorted({(sees(note, room, legal), room) for _, note, room, legal in table}, key=repr)

    def mean(policy: dict[Seen, int]) -> Fraction:
        def value(note: int, room: int) -> Fraction:
            options = locks(doors, unlocked) if room < rooms else [every]
            total = Fraction(0)
            for legal in options:
                reward, ended = table[policy[sees(note, room, legal)], note, room, legal]
                total += Fraction(int(reward)) + (0 if ended else value(note, room + 1))
            return total / len(options)

        return sum((value(note, 0) for note in range(doors)), Fraction(0)) / doors

    seen = [situation for situation, _ in situations]
    return max(
        mean(dict(zip(seen, chosen, strict=True))) for chosen in itertools.product(range(doors), repeat=len(seen))
    )


@pytest.mark.parametrize(
    ("masks", "memory", "expected"),
    [(True, True, "1"), (True, False, "1/2"), (False, True, "1/4"), (False, False, "1/8")],
)
def test_the_best_of_all_policies_gets_what_the_table_says(masks: bool, memory: bool, expected: str) -> None:
    """Two doors, one of them unlocked, two rooms: 2^4 to 2^10 policies, all of them."""
    assert best_return(2, 2, 1, masks=masks, memory=memory) == Fraction(expected)


def test_the_best_returns_of_the_default_vault_by_dynamic_programming() -> None:
    """Backwards from the vault, over what a policy knows; which locks come next depends on nothing it did."""
    env = VaultEnv()
    rooms, doors = env.rooms, env.doors
    kinds = locks(doors, env.unlocked)
    assert len({observed(env, note, room) for note in range(doors) for room in range(1, rooms + 1)}) == rooms
    passes = [
        [Fraction(not outcome(env, door, 0, room, legal)[1]) for legal in kinds]
        for room in (0, 1)
        for door in range(doors)
    ]
    seen = min(max(column) for column in zip(*passes, strict=True))  # the mask known: the best door for each
    unseen = max(sum(row) / len(kinds) for row in passes)  # one door for all masks
    wins = np.array(
        [[outcome(env, door, note, rooms, (True,) * doors)[0] for note in range(doors)] for door in range(doors)]
    )
    known, unknown = Fraction(int(wins.max(axis=0).min())), Fraction(int(wins.sum(axis=1).max()), doors)
    assert seen**rooms * known == 1
    assert seen**rooms * unknown == Fraction(1, 4)
    assert unseen**rooms * known == Fraction(1, 32)
    assert unseen**rooms * unknown == Fraction(1, 128)


def walks(env: Any, episodes: int) -> Iterator[list[tuple[Any, ...]]]:
    """Episodes through legal doors, which remember the note."""
    for episode in range(episodes):
        obs, info = env.reset(seed=episode)
        note, steps, ended = int(obs[:-1].argmax()), [], False
        while not ended:
            legal = np.flatnonzero(info["action_mask"])
            door = note if obs[-1] == 1.0 else int(legal[episode % len(legal)])
            steps.append((obs, info["action_mask"], door))
            obs, reward, ended, truncated, info = env.step(door)
            assert not truncated
        steps.append((obs, info, reward))
        yield steps


def test_masks_and_a_memory_open_it_every_time() -> None:
    notes, masks = set(), set()
    for *steps, (_, info, reward) in walks(gymnasium.make("gymcast/Vault-v0"), 60):
        assert reward == 1.0 and info["is_success"] is True and len(steps) == 6
        notes.add(int(steps[0][0][:-1].argmax()))
        masks |= {mask.tobytes() for _, mask, _ in steps}
        assert all(not obs[:-1].any() for obs, _, _ in steps[1:])
    assert notes == {0, 1, 2, 3} and len(masks) == 7, "six pairs of doors, and all four at the vault"


def test_a_locked_door_and_a_wrong_one_end_it_without_a_reward() -> None:
    env = VaultEnv()
    _, info = env.reset(seed=1)
    _, reward, terminated, _, info = env.step(int(np.flatnonzero(~info["action_mask"])[0]))
    assert (reward, terminated, info["is_success"], env.ended) == (0.0, True, False, "alarm")
    with pytest.raises(ActionError, match="reset"):
        env.step(0)
    env.reset(seed=1)
    env.room, env.legal = env.rooms, np.ones(4, np.bool_)
    _, reward, terminated, _, info = env.step((env.note + 1) % 4)
    assert (reward, terminated, info["is_success"], env.ended) == (0.0, True, False, "empty")


def test_the_checkers_of_gymnasium_and_sb3_find_nothing() -> None:
    env = gymnasium.make("gymcast/Vault-v0", render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
        sb3_check_env(env.unwrapped, warn=True)


def test_a_snapshot_and_a_pickle_go_on_the_same_way() -> None:
    env = gymnasium.make("gymcast/Vault-v0")
    env.reset(seed=5)
    env.step(int(env.unwrapped.action_masks().argmax()))  # type: ignore[attr-defined]
    data, twin = snapshot(env), pickle.loads(pickle.dumps(env.unwrapped))  # noqa: S301 - written here

    def story(one: Any) -> list[bytes]:
        told = []
        for _ in range(12):
            obs, *_, ended, _, info = one.step(int(one.unwrapped.action_masks().argmax()))
            told += [obs.tobytes(), info["action_mask"].tobytes()]
            if ended:
                told.append(one.reset()[0].tobytes())
        return told

    first = story(env)
    assert story(twin) == first
    restore(env, data)
    assert story(env) == first


def test_it_is_drawn() -> None:
    env = VaultEnv(render_mode="rgb_array")
    env.reset(seed=3)
    first = env.render()
    assert first.dtype == np.uint8 and first.shape == (240, 280, 3)
    env.step(int(env.action_masks().argmax()))
    assert (env.render() != first).any()
    text = VaultEnv(render_mode="ansi")
    text.reset(seed=3)
    assert "[@____]$" in text.render() and text.render().count("locked") == 2
    assert VaultEnv().render() is None


@pytest.mark.parametrize("action", [4, -1, 1.0, "1", None, [0, 1], np.nan])
def test_what_is_no_door_is_refused(action: Any) -> None:
    env = VaultEnv()
    env.reset(seed=0)
    with pytest.raises(ActionError, match="range 0 to 3"):
        env.step(action)


@pytest.mark.parametrize("options", [{"rooms": 0}, {"doors": 9}, {"unlocked": 5}, {"doors": 2.5}, {"render_mode": "x"}])
def test_options_that_are_not_allowed_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionValueError, match=next(iter(options))):
        VaultEnv(**options)


def test_it_has_a_short_name() -> None:
    assert resolve_env_id("vault") == "gymcast/Vault-v0"
