"""Configuration: four sources in their order, and one clear sentence for everything that cannot be."""

import msgspec
import pytest

from gpuwatch import config
from gpuwatch.config import Config, ConfigError, load, parse_listen

RULES = {
    "exploding_gradient": {"factor": 10.0, "steps": 3},
    "exploding": {"gradient_limit": 1},
    "loss_spike": {"sigma": 6.0},
}


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """No file of whoever runs the tests."""
    monkeypatch.chdir(tmp_path)


def refused(text="", environ=None, flags=None, rules=RULES, name="gpuwatch.toml"):
    """The sentence that a configuration is refused with."""
    path = None
    if text:
        path = config.Path(name)
        path.write_text(text)
    with pytest.raises(ConfigError) as refusal:
        load(path, environ or {}, flags, rules)
    sentence = str(refusal.value)
    assert "\n" not in sentence
    assert "$." not in sentence
    return sentence


def test_defaults():
    assert load(environ={}) == Config()


def test_every_setting_has_a_default_and_is_frozen():
    settings = Config()
    with pytest.raises(AttributeError):
        settings.daemon.logdir = "x"
    for name, section in config.SECTIONS.items():
        assert msgspec.structs.fields(section), name
        section()


def test_a_default_is_within_its_own_bounds():
    msgspec.convert(msgspec.to_builtins(Config()), Config)


def test_each_source_overrides_the_one_before(tmp_path):
    file = tmp_path / "gpuwatch.toml"
    file.write_text('[hooks]\nevery = 2\nhistograms = false\n[daemon]\nlogdir = "file"\nsocket = "/file"\n')
    environ = {"GPUWATCH_HOOKS_EVERY": "3", "GPUWATCH_DAEMON_LOGDIR": "environment"}
    settings = load(environ=environ, flags={"daemon.logdir": "flag", "daemon.socket": None})
    assert (settings.hooks.every, settings.hooks.histograms) == (3, False)
    assert (settings.daemon.logdir, settings.daemon.socket) == ("flag", "/file")


def test_the_file_is_looked_for_here_and_then_in_the_users_folder(tmp_path):
    home = tmp_path / "home"
    (home / ".config" / "gpuwatch").mkdir(parents=True)
    (home / ".config" / "gpuwatch" / "gpuwatch.toml").write_text("[hooks]\nevery = 5\n")
    assert load(environ={"HOME": str(home)}).hooks.every == 5
    assert load(environ={"HOME": "/", "XDG_CONFIG_HOME": str(home / ".config")}).hooks.every == 5
    (tmp_path / "gpuwatch.toml").write_text("[hooks]\nevery = 7\n")
    assert load(environ={"HOME": str(home)}).hooks.every == 7
    given = tmp_path / "other.toml"
    given.write_text("[hooks]\nevery = 9\n")
    assert load(given, {"HOME": str(home)}).hooks.every == 9


@pytest.mark.parametrize(
    ("variable", "value", "section", "key", "expected"),
    [
        ("GPUWATCH_HOOKS_EVERY", "12", "hooks", "every", 12),
        ("GPUWATCH_HOOKS_HISTOGRAMS", "false", "hooks", "histograms", False),
        ("GPUWATCH_HOOKS_HISTOGRAMS", "0", "hooks", "histograms", False),
        ("GPUWATCH_HOOKS_OVERHEAD_BUDGET", "0.05", "hooks", "overhead_budget", 0.05),
        ("GPUWATCH_DAEMON_LOG_FORMAT", "json", "daemon", "log_format", "json"),
        (
            "GPUWATCH_PROMETHEUS_ALLOWED_HOSTS",
            "a.example, b.example",
            "prometheus",
            "allowed_hosts",
            ["a.example", "b.example"],
        ),
        ("GPUWATCH_LIMITS_PEERS", "8", "limits", "peers", 8),
        ("GPUWATCH_DAEMON_LOGDIR", "123", "daemon", "logdir", "123"),
    ],
)
def test_the_environment_is_read_in_the_fields_type(variable, value, section, key, expected):
    assert getattr(getattr(load(environ={variable: value}), section), key) == expected


def test_variables_that_are_no_settings_are_passed_over():
    environ = {"GPUWATCH": "1", "GPUWATCH_SOCKET": "/x", "GPUWATCH_RUN": "r", "GPUWATCH_TOKEN": "t", "HOOKS_EVERY": "3"}
    assert load(environ=environ) == Config()


def test_rules_are_read_from_file_and_environment(tmp_path):
    (tmp_path / "gpuwatch.toml").write_text("[rules.exploding_gradient]\nfactor = 5\n[rules.loss_spike]\nenabled = false\n")
    environ = {"GPUWATCH_RULES_EXPLODING_GRADIENT_STEPS": "4", "GPUWATCH_RULES_LOSS_SPIKE_SIGMA": "7.5"}
    rules = load(environ=environ, rules=RULES).rules
    assert rules == {"exploding_gradient": {"factor": 5, "steps": 4}, "loss_spike": {"enabled": False, "sigma": 7.5}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[hooks]\nevry = 2\n", ["gpuwatch.toml", "hooks.evry", "did you mean 'every'"]),
        ("[hook]\nevery = 2\n", ["gpuwatch.toml", "[hook]", "did you mean 'hooks'"]),
        ("[otlp]\nendpoint = 'x'\n", ["unknown section [otlp]"]),
        ("[nonsense_entirely]\n", ["nonsense_entirely", "known: daemon, hooks"]),
        ("hooks = 3\n", ["hooks is a section", "[hooks]"]),
        ("[hooks]\nevery = 'two'\n", ['hooks.every must be a whole number from 1 to 1000000, got "two"']),
        ("[hooks]\nevery = 2.5\n", ["hooks.every", "2.5"]),
        ("[hooks]\nevery = true\n", ["hooks.every", "got true"]),
        ("[hooks]\nevery = 0\n", ["hooks.every must be a whole number from 1 to 1000000, got 0"]),
        ("[hooks]\noverhead_budget = 1.5\n", ["hooks.overhead_budget must be a number above 0 and up to 1, got 1.5"]),
        ("[hooks]\noverhead_budget = nan\n", ["hooks.overhead_budget", "NaN"]),
        ("[daemon]\nlog_level = 'loud'\n", ['daemon.log_level must be one of debug, error, info, warning, got "loud"']),
        ("[daemon]\npoll_seconds = 5\n", ["daemon.poll_seconds must be a number from 0.01 to 1, got 5"]),
        ("[daemon]\nlisten = 'localhost'\n", ["gpuwatch.toml: daemon.listen", '"localhost"', "127.0.0.1:9877"]),
        ("[prometheus]\nallowed_hosts = 'one'\n", ['prometheus.allowed_hosts must be a list of texts, got "one"']),
        ("[prometheus]\nallowed_hosts = [1]\n", ["prometheus.allowed_hosts must be a list of texts, got [1]"]),
        ("[rules.exploding_gradint]\nfactor = 1\n", ["exploding_gradint", "did you mean 'exploding_gradient'"]),
        ("[rules.loss_spike]\nsigm = 1\n", ["rules.loss_spike.sigm", "did you mean 'sigma'"]),
        ("[rules.loss_spike]\nsigma = 'six'\n", ['rules.loss_spike.sigma must be a number, got "six"']),
        ("[rules.loss_spike]\nsigma = true\n", ["rules.loss_spike.sigma", "got true"]),
        ("[rules.loss_spike]\nenabled = 1\n", ["rules.loss_spike.enabled must be true or false, got 1"]),
        ("[rules]\nloss_spike = 1\n", ["write [rules.loss_spike]"]),
        ("[rules.loss_spike]\nsigma = []\n", ["rules.loss_spike.sigma must be true, false, a number or a text, got []"]),
        ("[hooks\n", ["gpuwatch.toml", "not TOML"]),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_path(text, words):
    sentence = refused(text)
    for word in words:
        assert word in sentence, sentence


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"GPUWATCH_HOOKS_EVRY": "1"}, ["GPUWATCH_HOOKS_EVRY", "did you mean 'every'"]),
        ({"GPUWATCH_HOOKS_EVERY": "often"}, ['GPUWATCH_HOOKS_EVERY must be a whole number from 1 to 1000000, got "often"']),
        ({"GPUWATCH_HOOKS_EVERY": "-1"}, ["GPUWATCH_HOOKS_EVERY", "from 1"]),
        ({"GPUWATCH_HOOKS_HISTOGRAMS": "maybe"}, ['GPUWATCH_HOOKS_HISTOGRAMS must be true or false, got "maybe"']),
        ({"GPUWATCH_RULES_NO_SUCH_RULE": "1"}, ["GPUWATCH_RULES_NO_SUCH_RULE", "no rule"]),
        ({"GPUWATCH_RULES_LOSS_SPIKE_SIGM": "1"}, ["GPUWATCH_RULES_LOSS_SPIKE_SIGM", "did you mean 'sigma'"]),
        ({"GPUWATCH_RULES_LOSS_SPIKE_SIGMA": "x"}, ['GPUWATCH_RULES_LOSS_SPIKE_SIGMA must be a number, got "x"']),
    ],
)
def test_what_is_wrong_with_the_environment_is_said_with_the_variable(environ, words):
    sentence = refused(environ=environ)
    for word in words:
        assert word in sentence, sentence


def test_a_flag_does_not_hide_an_address_that_the_environment_has_wrong():
    sentence = refused(environ={"GPUWATCH_DAEMON_LISTEN": "nowhere"}, flags={"daemon.listen": "127.0.0.1:0"})
    assert sentence == 'GPUWATCH_DAEMON_LISTEN must be ADDRESS:PORT, for example 127.0.0.1:9877, got "nowhere"'


def test_what_is_wrong_with_a_flag():
    assert "command line: hooks.every" in refused(flags={"hooks.every": 0})


def test_a_file_that_is_not_there():
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read: No such file"):
        load(config.Path("absent.toml"), {})


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "gpuwatch.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not TOML"):
        load(environ={})


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("127.0.0.1:9877", ("127.0.0.1", 9877)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:80", ("::1", 80)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
    ],
)
def test_addresses(text, parsed):
    assert parse_listen(text) == parsed


@pytest.mark.parametrize(
    "text", ["", ":80", "9877", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "::1:80", "[::1]", "a:b", "a:-1", "a:१"]
)
def test_what_is_no_address(text):
    with pytest.raises(ConfigError, match=r"daemon\.listen"):
        parse_listen(text)
