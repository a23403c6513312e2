"""The environment of every command, whatever the user's own says."""

import pytest

from artifacts.settings import CHECKOUT, Settings, home
from service.environment import LOOPBACK, environment


@pytest.mark.parametrize("name", ["MNIST_HOME", "MNIST_PREFECT_PORT", "MNIST_KERAS_URL", "MLFLOW_TRACKING_URI"])
def test_an_empty_variable_is_not_set(monkeypatch, name):
    monkeypatch.delenv(name, raising=False)
    without = Settings()
    monkeypatch.setenv(name, "")
    assert Settings() == without
    if name == "MNIST_HOME":
        assert home() == CHECKOUT / ".mnist"
        assert environment()["MNIST_HOME"] == str(CHECKOUT / ".mnist")


def test_a_relative_home_is_the_checkouts_for_every_process(monkeypatch):
    monkeypatch.setenv("MNIST_HOME", "elsewhere")
    assert environment()["MNIST_HOME"] == str(CHECKOUT / "elsewhere")


@pytest.mark.parametrize("given", [None, "", "intranet", "intranet,127.0.0.1"])
def test_servers_of_this_machine_are_reached_without_a_proxy(monkeypatch, given):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        if given is not None:
            monkeypatch.setenv(name, given)
        once = environment()[name]
        assert once == (f"{given},{LOOPBACK}" if given else LOOPBACK)
        monkeypatch.setenv(name, once)
        assert environment()[name] == once
