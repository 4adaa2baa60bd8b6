"""What a worker is told first reaches it whole."""

import msgspec

from gateway import config as configuration
from gateway.start import Start
from tests.fakes.gateway import SECRET, configured


def test_everything_of_a_configuration_reaches_the_worker() -> None:
    text = configured(
        "{url: 'https://gpu1', api_key_env: GPU}",
        model="request: {media: {parts: 2}}",
        more="secret: sixteen-letters-\nworkers: 2\ncors: {origins: ['https://a.example']}\n",
    )
    text = text.replace("{search: {}}", "{search: {request: {media: {parts: 1}, n: 2}}}")
    text = text.replace("team: search,", "team: search, expires: 2030-01-01,")
    config = configuration.load("test.yaml", text, {"GPU": "a-credential"})
    sent = msgspec.json.encode(Start.of(config, SECRET, [7, 8], "debug"))
    got = msgspec.json.decode(sent, type=Start)
    assert got.config == config
    assert got.config.models["tiny"].replicas[0].api_key == "a-credential"
    assert (got.secret, got.sockets, got.log_level) == (SECRET, [7, 8], "debug")
