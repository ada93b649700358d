"""Schemathesis against a live server in another process: every address, all checks, then sequences along the links.

The suite takes a few examples with a fixed seed. More of them, with other seeds each time::

    export GYMCAST_API_EXAMPLES=300 GYMCAST_API_SEED=random
    python -m pytest -n 0 --timeout 0 tests/contract/test_openapi_schemathesis.py

A number as the seed repeats what it found.
"""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis.checks import CHECKS
from schemathesis.config._checks import NegativeDataRejectionConfig
from schemathesis.generation import GenerationMode

from gymcast.server import auth

from ..openapi_check import document

SECRET = "a-secret-of-these-tests-and-of-nothing-else"
EXAMPLES = int(os.environ.get("GYMCAST_API_EXAMPLES", "4"))
SEED = os.environ.get("GYMCAST_API_SEED", "1")
SESSIONS = "/api/training/sessions"
EXTERNAL = {"training_session_id": "t1", "model_generation": 1, "algorithm": "PPO", "total_episodes": 100}

OF_THE_ENVIRONMENT = {"env_id", "gym_packages", "wrappers", "network", "hyperparameters", "speed_multiplier"}

SETTINGS = hypothesis.settings(
    max_examples=EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)
seeded = (lambda test: test) if SEED == "random" else hypothesis.seed(int(SEED))
# U+0000 is refused in all text, which the document says in its introduction only. 412 and 413 refuse as 422 does.
CONFIG = {
    "generation": {"allow-x00": False},
    "checks": {
        "negative_data_rejection": {
            "expected-statuses": [*NegativeDataRejectionConfig().expected_statuses, "412", "413"],
        }
    },
    # Lists of 20,000 decisions, again and again, take half a minute.
    "operations": [
        {"include-operation-id": "report_events", "phases": {"coverage": {"enabled": EXAMPLES > 50}}},
    ],
}


def short_document() -> dict[str, Any]:
    """The document; the suite leaves out the camelCase spellings of a configuration, which double the cases."""
    found = copy.deepcopy(document())
    if EXAMPLES <= 50:
        fields = found["components"]["schemas"]["TrainingConfig"]["properties"]
        for name in [name for name, schema in fields.items() if "/properties/" in schema.get("$ref", "")]:
            del fields[name]
    return found


# A WebSocket is not HTTP; tests/server/test_live.py has it.
SCHEMA = schemathesis.openapi.from_dict(short_document(), config=schemathesis.Config.from_dict(CONFIG)).exclude(
    operation_id="watch_session"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("api")
    command = [sys.executable, str(Path(__file__).with_name("api_server.py")), str(folder), SECRET]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate(timeout=30)
        assert process.returncode == 0


HEADERS = {
    "Authorization": "Bearer " + auth.issue(SECRET, subject="schemathesis", scopes=["admin"], seconds=86_400),
}


@pytest.fixture(scope="module")
def session_id(server: str) -> str:
    return new_session(server)


def new_session(server: str) -> str:
    answer = requests.post(server + SESSIONS, json=EXTERNAL, headers=HEADERS, timeout=10)
    return str(answer.json()["session_id"])


def sensible(case: schemathesis.Case) -> None:
    """Make a case that fits the schemas fit what no schema can say."""
    case.body = _of_64_bits(case.body)
    query, headers, body = case.query or {}, case.headers or {}, case.body
    # Cursors are handed out by the server, an ETag is the version that the session happens to have.
    query.pop("cursor", None)
    if "If-Match" in headers:
        headers["If-Match"] = "*"
    if "Idempotency-Key" in headers:
        headers["Idempotency-Key"] = f"{headers['Idempotency-Key'][:200]} {uuid4()}"
    # Two names of one thing; what belongs together.
    if "max_points" in query or query.get("resolution") == "raw":
        query.pop("points", None)
    if query.get("resolution") == "raw":
        query.pop("max_points", None)
    if ("producer" in query) != ("seq" in query):
        query.pop("producer", None)
        query.pop("seq", None)
    if "kind" in query or {"lane", "outcome", "order"} & set(query):
        query.update({"kind": "logged", "session": "nobody"} if "session" in _names(case) else {"kind": "logged"})
    if is_managed(case):
        _sensible_config(body["config"])
    for one in body if isinstance(body, list) else [body]:
        if isinstance(one, dict):
            _sensible_report(one)
            if not one.get("password_protected", True):  # a room without a password
                one.pop("password", None)
            for event in one.get("events", ()):
                _sensible_report(event["data"])


def _sensible_config(config: dict[str, Any]) -> None:
    """One for an environment and an algorithm that are there; these decide about what is left out here."""
    for one in (config, *(value for value in config.values() if isinstance(value, dict))):
        for name in [name for name in one if _snake_case(name) != name and _snake_case(name) in one]:
            del one[name]  # one spelling of each
    for name in [name for name in config if _snake_case(name) in OF_THE_ENVIRONMENT]:
        del config[name]
    config["env_id"] = "CartPole-v1"


def _snake_case(name: str) -> str:
    return re.sub("[A-Z]", lambda letter: "_" + letter[0].lower(), name)


def _of_64_bits(value: Any) -> Any:
    """A copy of ``value`` with 0 for larger integers, which free-form parts of a body may not have either."""
    if isinstance(value, dict):
        return {name: _of_64_bits(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_of_64_bits(item) for item in value]
    return 0 if isinstance(value, int) and abs(value) >= 2**63 else value


def _names(case: schemathesis.Case) -> set[str]:
    return {given["name"] for given in case.operation.definition.raw["parameters"]}


def _sensible_report(data: dict[str, Any]) -> None:
    if "action_probabilities" in data:  # they sum to one
        data["action_probabilities"] = dict.fromkeys(list(data["action_probabilities"])[:1], 1.0)
    if "data_points" in data and "metrics" in data:  # curves are declared
        data["metrics"] = [*data["metrics"], *data["data_points"]][-32:]
    if "bytes_base64" in data:  # a replay file
        data["bytes_base64"] = ""


def is_positive(case: schemathesis.Case) -> bool:
    return case.meta is not None and case.meta.generation.mode is GenerationMode.POSITIVE


def is_managed(case: schemathesis.Case) -> bool:
    return isinstance(case.body, dict) and "config" in case.body


def excluded_checks(case: schemathesis.Case) -> list[schemathesis.CheckFunction]:
    """Checks that have no say in a case."""
    left_out = []
    if is_managed(case):
        # This server runs no trainings: a configuration that it would train is answered with 503, see ``judge``.
        left_out += ["positive_data_acceptance", "not_a_server_error"]
    unknown = [value for name, value in (case.query or {}).items() if name not in _names(case)]
    if unknown and all(value in (None, [], {}) for value in unknown):
        left_out.append("negative_data_rejection")  # an address has no room for them
    return [CHECKS.get_one(name) for name in left_out]


def judge(case: schemathesis.Case, response: Any) -> None:
    """A configuration that fits the document is one that the server would train."""
    if is_managed(case):
        kind = response.json()["type"]
        if is_positive(case):
            assert kind == "/problems/not-managed", f"{case.body}\n{response.text}"
        else:
            assert response.status_code < 500 or kind == "/problems/not-managed", response.text


@SCHEMA.parametrize()
@seeded
@SETTINGS
def test_every_address(case: schemathesis.Case, server: str, session_id: str) -> None:
    if is_positive(case):
        sensible(case)
        if "session_id" in case.path_parameters:
            fresh = case.method in ("PUT", "DELETE") or case.operation.path.endswith(("/stop", "/pause"))
            case.path_parameters["session_id"] = new_session(server) if fresh else session_id
    judge(case, case.call_and_validate(base_url=server, headers=HEADERS, excluded_checks=excluded_checks(case)))


def test_sequences_along_the_links(server: str) -> None:
    wanted, begun, failures = 2 * EXAMPLES, 0, []

    class Machine(SCHEMA.as_state_machine()):  # type: ignore[misc]
        def setup(self) -> None:
            nonlocal begun
            begun += 1

        def before_call(self, case: schemathesis.Case) -> None:
            if is_positive(case):
                sensible(case)

        def get_call_kwargs(self, _case: schemathesis.Case) -> dict[str, Any]:
            return {"base_url": server, "headers": HEADERS}

        def validate_response(self, response: Any, case: schemathesis.Case, **more: Any) -> None:
            try:
                case.validate_response(response, excluded_checks=excluded_checks(case), transport_kwargs=more)
                judge(case, response)
            except Exception as failure:
                failures.append(failure)
                raise

    for attempt in range(wanted):
        if begun >= wanted:
            break
        if SEED != "random":
            hypothesis.seed(int(SEED) + attempt)(Machine)
        try:
            Machine.run(settings=hypothesis.settings(SETTINGS, max_examples=wanted - begun, stateful_step_count=12))
        except hypothesis.errors.Flaky:
            # The server remembers: what is done again may go another way, which Hypothesis does not allow.
            assert failures == []
    assert begun >= wanted
