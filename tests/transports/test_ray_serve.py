"""``ray://`` where Ray is not installed, and what is no deployment. tests/compat/test_ray.py has a cluster."""

import sys

import pytest

from asgi_agents import AgentConfig, ConfigurationError
from asgi_agents.transports.ray_client import RayQuestion, RayReply, config_id_of


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    with pytest.raises(ConfigurationError, match=r"^AgentConfig\('waf'\): .*pip install 'asgi-agents\[ray\]'$"):
        AgentConfig("waf", "ray://guards/Waf")


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("ray://", False),
        ("ray://guards", False),
        ("ray://guards/", False),
        ("ray:///Waf", False),
        ("ray://guards/Waf/more", False),
        ("ray://head:10001", True),
    ],
)
def test_what_is_no_deployment_is_refused(given: str, hint: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ray", "ray.serve"):
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
    with pytest.raises(ConfigurationError, match="expected ray://application/deployment") as caught:
        AgentConfig("waf", given)
    assert ("for ray.init" in str(caught.value)) == hint


def test_nothing_can_be_learnt_from_the_name_of_a_configuration() -> None:
    assert config_id_of(b'{"key": "secret"}') != config_id_of(b'{"key": "other"}')
    assert b"secret" not in config_id_of(b'{"key": "secret"}').encode()


def test_what_crosses_says_nothing_in_its_repr() -> None:
    assert "secret" not in repr(RayQuestion(b"secret", "id", b"secret"))
    assert "secret" not in repr(RayReply(answer=b"secret"))
